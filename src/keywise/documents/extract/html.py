"""Blocks of HTML: what a browser shows, without navigation, buttons and cookie banners."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from keywise.documents.blocks import BlockBuilder, BlockKind
from keywise.documents.extract.encodings import decode_markup
from keywise.documents.extract.extracted import Extracted
from keywise.documents.extract.lines import iterate_paragraphs, split_lines
from keywise.documents.extract.plain import add_plain_text
from keywise.documents.extract.tables import names_columns

if TYPE_CHECKING:
    from lxml.html import HtmlElement

MAX_DEPTH: Final = 150
MAX_OPTIONS: Final = 40
MAX_BANNER_CHARACTERS: Final = 1500
NAVIGATION_LINK_SHARE: Final = 0.6
MAX_SPAN: Final = 50

_LEFT_OUT_TAGS: Final = (
    "script style template noscript head svg annotation annotation-xml canvas iframe object embed audio video nav "
    "button textarea input datalist meta link base frame frameset map rp"
)
_LEFT_OUT: Final = frozenset(_LEFT_OUT_TAGS.split())
_BLOCKS_TAGS: Final = (
    "address article aside blockquote body center dd details dialog div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hr html legend li main menu ol optgroup option p pre search "
    "section select summary table tbody td tfoot th thead tr ul caption label"
)
_BLOCKS: Final = frozenset(_BLOCKS_TAGS.split())
_CELL_BLOCKS_TAGS: Final = "table ul ol dl h1 h2 h3 h4 h5 h6 pre blockquote form article section"
_CELL_BLOCKS: Final = frozenset(_CELL_BLOCKS_TAGS.split())
_HIDDEN_STYLE: Final = re.compile(r"display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)", re.IGNORECASE)
_HIDING_RULE: Final = re.compile(r"([^{}]*)\{([^{}]*)\}")
_SIMPLE_SELECTOR: Final = re.compile(r"[.#][\w-]+\Z")
_BANNER_NAME: Final = re.compile(r"cookie|consent|gdpr", re.IGNORECASE)
_NAVIGATION_NAME: Final = re.compile(
    r"(?:^|[\s_-])(?:nav|navbar|navigation|breadcrumbs?|menu|skip-?links?)(?:$|[\s_-])", re.I
)
_HIDDEN_ROLES: Final = frozenset({"navigation", "search", "menu", "menubar", "tablist", "toolbar"})
_SUPERSCRIPTS: Final = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")
_SUPERSCRIPT: Final = re.compile(r"[0-9+\-−=()n]+")
_SKIP_LINK: Final = re.compile(r"(?:skip|jump) to\b.{0,30}\Z", re.IGNORECASE | re.DOTALL)
_HEADING_MARKS: Final = frozenset(("¶", "#", "§", "🔗", "[edit]", "edit", ""))
_CODE_CHARACTERS: Final = re.compile(r"[{}();=<>$\\|]")
_CODE_CLASS: Final = re.compile(r"code|highlight|listing|program|screen|synopsis|example|\bsh\b|lang", re.IGNORECASE)
MIN_PROSE_CHARACTERS: Final = 1000
MAX_CODE_SHARE: Final = 0.02
MAX_CELL_CHARACTERS: Final = 400
WRAPPED_CHARACTERS: Final = 60
_XML_DECLARATION: Final = re.compile(r"\s*<\?xml[^>]*\?>")


def extract(content: bytes) -> Extracted:
    r"""Return the text and blocks of an HTML file.

    Parameters
    ----------
    content
        The file.

    Examples
    --------
    >>> extract(b"<h1>Rain</h1><p hidden>No.</p><p>It is <b>wet</b>.</p>").text
    'Rain\n\nIt is wet.'
    """
    builder = BlockBuilder()
    add_html(builder, decode_markup(content))
    return Extracted(builder.text, tuple(builder.blocks))


def add_html(builder: BlockBuilder, text: str) -> None:
    r"""Append the blocks of a page of HTML to a document.

    Parameters
    ----------
    builder
        The document.
    text
        The page.

    Examples
    --------
    >>> builder = BlockBuilder()
    >>> add_html(builder, "<ul><li>one<li>two</ul>")
    >>> builder.text
    'one\ntwo'
    """
    from lxml import html  # noqa: PLC0415 - optional

    # The parser must not be misled by what the file declares: the text is decoded already.
    markup = _XML_DECLARATION.sub("", text, count=1).replace("\0", " ").encode("utf-8", "replace")
    if not markup.strip():
        return
    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True)
    root = html.document_fromstring(markup, parser=parser, ensure_head_body=True)
    if not root.xpath("//h1"):
        title = root.findtext(".//title") or ""
        builder.enter_section(title, level=0)
    _PageReader(builder, _find_hiding_names(root)).read(root)


class _PageReader:
    """Appends what an element shows to a document, depth first."""

    def __init__(self, builder: BlockBuilder, hiding_names: frozenset[str]) -> None:
        self._builder = builder
        self._hiding_names = hiding_names
        self._inline: list[str] = []
        self._kind = BlockKind.PARAGRAPH
        self._heading_level = 0
        self._mark = ""
        self._next_number: int | None = None

    def read(self, root: HtmlElement) -> None:
        self._visit(root, 0)
        self._flush()

    def _visit(self, element: HtmlElement, depth: int) -> None:
        tag = element.tag if isinstance(element.tag, str) else ""
        if not tag or self._is_left_out(element, tag):
            return
        if depth > MAX_DEPTH:
            self._inline.append(" ".join(element.itertext()))
            return
        if tag == "br":
            self._inline.append("\n")
        elif tag == "sup":
            self._inline.append(_raise_text(element.text_content()))
        elif tag == "wbr" or (tag == "a" and self._is_aid(element)):
            pass
        elif tag == "table" and not self._is_layout(element):
            self._flush()
            self._read_table(element)
        elif tag == "pre":
            self._flush()
            self._read_code(element)
        elif tag == "dl":
            self._flush()
            self._read_definitions(element, depth)
        elif tag == "select":
            self._flush()
            self._read_options(element)
        elif tag in _BLOCKS:
            self._visit_block(element, tag, depth)
        else:
            self._visit_children(element, depth)

    def _is_aid(self, link: HtmlElement) -> bool:
        """Return whether a link only serves to move on the page: the mark of a heading, or "Skip to content"."""
        text = link.text_content().strip()
        if self._heading_level:
            return text in _HEADING_MARKS
        return link.get("href", "").startswith("#") and _SKIP_LINK.match(text) is not None

    def _visit_block(self, element: HtmlElement, tag: str, depth: int) -> None:
        self._flush()
        before = self._kind, self._heading_level
        number_before = self._next_number
        if tag[0] == "h" and tag[1:].isdigit():
            self._heading_level = int(tag[1:])
        elif tag in ("summary", "legend"):
            self._heading_level = 6
        elif tag == "li":
            self._kind, self._mark = BlockKind.LIST_ITEM, self._count_item(element)
            number_before = self._next_number
        elif tag in ("ol", "ul", "menu"):
            start = element.get("start", "1")
            self._next_number = int(start) if tag == "ol" and start.isdecimal() and len(start) < 10 else None
        elif tag in ("figcaption", "caption"):
            self._kind = BlockKind.CAPTION
        elif tag == "p" and self._kind != BlockKind.LIST_ITEM:
            self._kind = BlockKind.PARAGRAPH
        self._visit_children(element, depth)
        self._flush()
        self._kind, self._heading_level = before
        if tag == "li":
            self._mark = ""
        self._next_number = number_before

    def _count_item(self, item: HtmlElement) -> str:
        """Return the number of an item of a numbered list as a browser shows it."""
        if self._next_number is None:
            return ""
        value = item.get("value", "")
        number = int(value) if value.isdecimal() and len(value) < 10 else self._next_number
        self._next_number = number + 1
        return f"{number}. "

    def _visit_children(self, element: HtmlElement, depth: int) -> None:
        self._inline.append(_join_white(element.text))
        for child in element:
            self._visit(child, depth + 1)
            self._inline.append(_join_white(child.tail))

    def _flush(self) -> None:
        text = "".join(self._inline)
        self._inline = []
        pieces = _join_pieces(text.split("\n"))
        if not any(piece.strip() for piece in pieces):
            return
        if self._heading_level:
            self._builder.add_heading(" ".join(pieces), level=self._heading_level)
            return
        mark, self._mark = self._mark, ""
        for piece in pieces:
            self._builder.add(self._kind, mark + piece)
            mark = ""

    def _is_left_out(self, element: HtmlElement, tag: str) -> bool:
        if tag in _LEFT_OUT or (tag == "dialog" and "open" not in element.attrib):
            return True
        attributes = element.attrib
        return bool(attributes) and (
            "hidden" in attributes
            or _HIDDEN_STYLE.search(attributes.get("style", "")) is not None
            or attributes.get("aria-hidden") == "true"
            or attributes.get("role") in _HIDDEN_ROLES
            or self._is_left_out_by_name(element, tag)
        )

    def _is_left_out_by_name(self, element: HtmlElement, tag: str) -> bool:
        classes, identifier = element.get("class", ""), element.get("id", "")
        own_names = [f".{each}" for each in classes.split()] + [f"#{identifier}"]
        if not self._hiding_names.isdisjoint(own_names):
            return True
        name = f"{classes} {identifier}"
        if tag in ("html", "body", "main", "article") or not name.strip():
            return False
        if _BANNER_NAME.search(name):
            return len(element.text_content()) <= MAX_BANNER_CHARACTERS
        return _NAVIGATION_NAME.search(name) is not None and _link_share(element) >= NAVIGATION_LINK_SHARE

    def _is_layout(self, table: HtmlElement) -> bool:
        """Return whether a table places parts of the page and has no values."""
        if table.get("role") == "presentation":
            return True
        if table.xpath("./tr/th | ./*/tr/th"):
            return False
        if any(isinstance(each.tag, str) and each.tag in _CELL_BLOCKS for each in table.iterdescendants()):
            return True
        cells = len(table.xpath("./tr/td | ./*/tr/td"))
        return len(table.text_content()) > MAX_CELL_CHARACTERS * max(cells, 1)

    def _read_table(self, table: HtmlElement) -> None:
        rows: list[list[str]] = []
        header_rows = 0
        spanning: dict[int, tuple[int, str]] = {}
        for caption in table.findall("caption"):
            self._builder.add(BlockKind.CAPTION, self._text_of(caption))
        for row in table.iter("tr"):
            if next(row.iterancestors("table")) is not table or self._is_left_out(row, "tr"):
                continue
            cells: list[str] = []
            all_names = True
            own_cells = [cell for cell in row.iter("td", "th") if next(cell.iterancestors("tr")) is row]
            for cell in own_cells:
                _fill_spanned(cells, spanning)
                text = "" if self._is_left_out(cell, "td") else self._text_of(cell)
                all_names = all_names and (cell.tag == "th" or not text)
                width, height = _read_span(cell, "colspan"), _read_span(cell, "rowspan")
                for _ in range(width):
                    if height > 1:
                        spanning[len(cells)] = (height - 1, text)
                    cells.append(text)
                    text = "" if cell.tag == "td" else text
            _fill_spanned(cells, spanning)
            if len(own_cells) == 1 and len(cells) > 1:  # a title across the table
                title = next(filter(None, cells), "")
                if not rows:
                    self._builder.add(BlockKind.CAPTION, title)
                    continue
                cells = [title, *[""] * (len(cells) - 1)]
            in_head = row.getparent().tag == "thead"
            if len(rows) == header_rows and any(cells) and (in_head or (all_names and not rows)):
                header_rows += 1
            rows.append(cells)
        if header_rows > 1:
            names = [" ".join(dict.fromkeys(filter(None, column))) for column in _transpose(rows[:header_rows])]
            rows = [names, *rows[header_rows:]]
        self._builder.add_table(rows, has_header=header_rows > 0 or names_columns(rows))

    def _read_code(self, element: HtmlElement) -> None:
        text = element.text_content()
        is_code = element.find(".//code") is not None or _CODE_CLASS.search(element.get("class", ""))
        marks = len(_CODE_CHARACTERS.findall(text))
        if not is_code and len(text) >= MIN_PROSE_CHARACTERS and marks < MAX_CODE_SHARE * len(text):
            add_plain_text(self._builder, text)
            return
        for paragraph in iterate_paragraphs(split_lines(element.text_content())):
            self._builder.add(BlockKind.CODE, "\n".join(line.text for line in paragraph), keep_lines=True)

    def _read_definitions(self, element: HtmlElement, depth: int) -> None:
        """Read a list of terms: questions are headings of their answers, other terms stand before their values."""
        term = ""
        for child in _iterate_definitions(element):
            if self._is_left_out(child, child.tag):
                continue
            if child.tag == "dt":
                if term:
                    self._builder.add(BlockKind.LINE, term)
                term = self._text_of(child)
                if term.endswith(("?", "？", "؟")) or len(term) > 100:
                    self._builder.add_heading(term, level=7)
                    term = ""
            elif term and not any(
                isinstance(each.tag, str) and each.tag in _BLOCKS for each in child.iterdescendants()
            ):
                self._builder.add(BlockKind.LINE, f"{term.rstrip(':')}: {self._text_of(child)}")
                term = ""
            else:
                if term:
                    self._builder.add_heading(term, level=7)
                    term = ""
                self._visit_block(child, "dd", depth + 1)
        if term:
            self._builder.add(BlockKind.LINE, term)
        self._builder.enter_section("", level=7)

    def _read_options(self, element: HtmlElement) -> None:
        options = element.findall(".//option")
        if len(options) <= MAX_OPTIONS:
            for option in options:
                if not self._is_left_out(option, "option"):
                    self._builder.add(BlockKind.LIST_ITEM, option.text_content())

    def _text_of(self, element: HtmlElement) -> str:
        """Return what an element shows, on one line."""
        outer, builder = self._inline, self._builder
        self._inline, self._builder = [], BlockBuilder()
        before = self._kind, self._heading_level, self._mark
        self._heading_level = 0
        self._visit_children(element, 0)
        self._flush()
        text = " ".join(self._builder.text.split())
        self._inline, self._builder = outer, builder
        self._kind, self._heading_level, self._mark = before
        return text


def _has_blocks(element: HtmlElement) -> bool:
    return any(isinstance(each.tag, str) and each.tag in _BLOCKS for each in element.iterdescendants())


def _join_white(text: str | None) -> str:
    return re.sub(r"\s+", " ", text) if text else ""


def _join_pieces(pieces: Sequence[str]) -> list[str]:
    """Return the lines of a paragraph with breaks; a line that does not end a sentence may go on in the next."""
    joined: list[str] = []
    last = ""
    for piece in pieces:
        text = piece.strip()
        is_wrapped = last.endswith(",") or (len(last) > WRAPPED_CHARACTERS and last[-1].isalnum())
        last = text
        if text and joined and joined[-1].strip() and (text[:1].islower() or is_wrapped):
            joined[-1] = f"{joined[-1]} {text}"
        else:
            joined.append(text)
    return joined


def _raise_text(text: str) -> str:
    text = text.strip()
    return text.translate(_SUPERSCRIPTS) if _SUPERSCRIPT.fullmatch(text) else text


def _read_span(cell: HtmlElement, name: str) -> int:
    value = cell.get(name, "1").strip()
    return min(max(int(value), 1), MAX_SPAN) if value.isdecimal() and len(value) < 6 else 1


def _fill_spanned(cells: list[str], spanning: dict[int, tuple[int, str]]) -> None:
    """Append the cells of rows above that reach into this row."""
    while len(cells) in spanning:
        rows_left, text = spanning.pop(len(cells))
        if rows_left > 1:
            spanning[len(cells)] = (rows_left - 1, text)
        cells.append(text)


def _transpose(rows: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    for column in range(max(map(len, rows))):
        yield [row[column] for row in rows if column < len(row)]


def _iterate_definitions(element: HtmlElement) -> Iterator[HtmlElement]:
    for child in element:
        if child.tag == "div":
            yield from (each for each in child if each.tag in ("dt", "dd"))
        elif child.tag in ("dt", "dd"):
            yield child


def _link_share(element: HtmlElement) -> float:
    linked = sum(len(link.text_content().strip()) for link in element.iter("a"))
    return linked / max(len(" ".join(element.text_content().split())), 1)


def _find_hiding_names(root: Any) -> frozenset[str]:
    """Return the classes and ids that the page's own style sheets hide, such as ``.sr-only``."""
    names: set[str] = set()
    for style in root.iter("style"):
        sheet = re.sub(r"/\*.*?\*/", "", style.text or "", flags=re.DOTALL)
        for rule in _HIDING_RULE.finditer(re.sub(r"@[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", sheet)):
            if re.search(r"display\s*:\s*none", rule[2], re.IGNORECASE):
                names.update(each.strip() for each in rule[1].split(",") if _SIMPLE_SELECTOR.match(each.strip()))
    return frozenset(names)
