"""Documents and their marks as HTML without scripts and inline styles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from keywise.documents.blocks import BlockKind
from keywise.documents.shading import NO_SHADING, Shading
from keywise.util.optional_imports import require_modules
from keywise.util.terminal_text import replace_controls

if TYPE_CHECKING:
    from markupsafe import Markup

    from keywise.documents.page_images import Mark, PageImage
    from keywise.documents.view import DocumentView, Group, Piece


def render_documents(views: Sequence[DocumentView], shading: Shading = NO_SHADING) -> str:
    """Return documents as HTML; everything from the documents is escaped, control characters are replaced by U+FFFD.

    Every sentence is an element with ``data-document``, ``data-start`` and ``data-end``. Those with a share have the id
    ``rank-N``, their boxes on pages ``box-N``; marked ones have the class ``cited`` or ``context``. The best sentence,
    or its first box, is focused when a browser opens the page.

    Parameters
    ----------
    views
        The documents.
    shading
        The marks of an answer.

    Raises
    ------
    ModelError
        markupsafe, a part of jinja2, is not installed.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> from keywise.documents.view import make_view
    >>> "&lt;b&gt;" in render_documents([make_view(Source("note", "It is <b>."))])
    True
    """
    require_modules("app", "markupsafe")
    is_pictured = any(mark.rank == 1 for view in views for page in view.pages for mark in page.marks)
    return str(DocumentRenderer(shading, focused="box" if is_pictured else "sentence").render(views))


def read_style() -> str:
    """Return the style sheet for what `render_documents` returns."""
    return files("keywise.documents").joinpath("document.css").read_text("utf-8")


def make_element(tag: str, attributes: Mapping[str, object], *children: object) -> Markup:
    """Return an element; children that are not `Markup` are escaped, and so are attributes.

    Parameters
    ----------
    tag
        Its name.
    attributes
        None leaves one out.
    *children
        Texts and elements.

    Examples
    --------
    >>> make_element("p", {"class": "line", "id": None}, "a < b")
    Markup('<p class="line">a &lt; b</p>')
    """
    from markupsafe import Markup  # noqa: PLC0415 - optional

    written = Markup("").join(
        Markup(' {}="{}"').format(name, replace_controls(str(value)))
        for name, value in attributes.items()
        if value is not None
    )
    content = Markup("").join(
        child if isinstance(child, Markup) else replace_controls(str(child)) for child in children
    )
    return Markup("<{}{}>{}</{}>").format(tag, written, content, tag)


class DocumentRenderer:
    """Renders documents with the marks of one answer.

    Parameters
    ----------
    shading
        The marks.
    focused
        Whether the best sentence, ``"sentence"``, or its first box, ``"box"``, has the focus.
    """

    def __init__(self, shading: Shading, *, focused: str) -> None:
        self._shading = shading
        self._focused = focused
        self._boxed: set[int] = set()

    def render(self, views: Sequence[DocumentView]) -> Markup:
        """Return a section for each document."""
        from markupsafe import Markup  # noqa: PLC0415 - optional

        return Markup("\n").join(self._render_document(number, view) for number, view in enumerate(views))

    def _render_document(self, document: int, view: DocumentView) -> Markup:
        is_plain = any(group.kind == "plain" for group in view.groups)
        pages = [self._render_page(page, view.name) for page in view.pages]
        text = make_element(
            "div",
            {"class": "text plain" if is_plain else "text"},
            *(self._render_group(group, document) for group in view.groups),
        )
        heading = make_element("h2", {}, view.name)
        return make_element("section", {"class": "document", "data-document": document}, heading, *pages, text)

    def _render_group(self, group: Group, document: int) -> Markup:
        if group.kind == "plain":
            return _join(self._render_piece(piece, document) for piece in group.items[0])
        if group.kind == "list":
            items = (make_element("li", {}, self._render_item(item, document)) for item in group.items)
            return make_element("ul", {}, *items)
        if group.kind == "table":
            table = make_element("table", {}, *(self._render_row(item, group, document) for item in group.items))
            label = {"class": "table", "role": "region", "aria-label": "Table", "tabindex": 0}
            return make_element("div", label, table)
        if group.kind == "code":
            blocks = (self._render_item(item, document, separator="\n") for item in group.items)
            return _join(make_element("pre", {"tabindex": 0}, block) for block in blocks)
        content = self._render_item(group.items[0], document)
        if group.kind == "heading":
            return make_element(f"h{group.level}", {}, content)
        return make_element("p", {"class": group.kind}, content)

    def _render_item(self, item: Sequence[Piece], document: int, *, separator: str = " ") -> Markup:
        return _join((self._render_piece(piece, document) for piece in item), separator)

    def _render_row(self, item: Sequence[Piece], group: Group, document: int) -> Markup:
        row = item[0]
        if not row.cells:
            cell = make_element("td", {"colspan": group.columns}, self._render_item(item, document))
            return make_element("tr", {}, cell)
        tag = "th" if row.kind == BlockKind.TABLE_HEADER else "td"
        return make_element("tr", self._describe(row, document), *(make_element(tag, {}, cell) for cell in row.cells))

    def _render_piece(self, piece: Piece, document: int) -> Markup:
        if not piece.is_sentence:
            return _join([piece.text])
        tone = self._find_tone(piece)
        return make_element("mark" if tone else "span", self._describe(piece, document), piece.text)

    def _find_tone(self, piece: Piece) -> str | None:
        return None if piece.evidence is None else self._shading.describe_tone(piece.evidence.rank)

    def _describe(self, piece: Piece, document: int) -> dict[str, object]:
        """Return the attributes of a sentence."""
        evidence = piece.evidence if piece.evidence is not None and piece.evidence.share > 0 else None
        tone = self._find_tone(piece)
        shown = evidence if tone else None
        return {
            "id": None if evidence is None else f"rank-{evidence.rank}",
            "class": " ".join(filter(None, ["sentence", tone])),
            "data-document": document,
            "data-start": piece.start,
            "data-end": piece.end,
            "data-rank": None if evidence is None else evidence.rank,
            "tabindex": -1 if shown else None,
            "autofocus": "" if shown and shown.rank == 1 and self._focused == "sentence" else None,
            "title": f"rank {shown.rank}, {shown.share:.1%} of the evidence" if shown else None,
        }

    def _render_page(self, page: PageImage, name: str) -> Markup:
        image = _join(
            [
                make_element(
                    "img",
                    {
                        "src": page.address,
                        "width": page.width,
                        "height": page.height,
                        "loading": "lazy",
                        "alt": f"Page {page.number} of {name}",
                    },
                ).removesuffix("</img>")
            ]
        )
        boxes = [self._render_box(mark) for mark in page.marks if self._shading.describe_tone(mark.rank)]
        layer = {
            "class": "boxes",
            "viewBox": "0 0 100 100",
            "preserveAspectRatio": "none",
            "role": "group",
            "aria-label": f"Marked sentences on page {page.number}",
        }
        sheet = make_element("div", {"class": "sheet"}, image, *([make_element("svg", layer, *boxes)] if boxes else []))
        caption = make_element("figcaption", {}, f"page {page.number}")
        return make_element("figure", {"class": "page", "data-page": page.number}, sheet, caption)

    def _render_box(self, mark: Mark) -> Markup:
        """Return a box of a sentence; only the first one of each can be reached by the keyboard."""
        is_first = mark.rank not in self._boxed
        self._boxed.add(mark.rank)
        tone = self._shading.describe_tone(mark.rank)
        place = {"x": mark.left, "y": mark.top, "width": mark.width, "height": mark.height}
        attributes = {
            "href": f"#rank-{mark.rank}",
            "id": f"box-{mark.rank}" if is_first else None,
            "class": f"box {tone}",
            "data-rank": mark.rank,
            "tabindex": 0 if is_first and tone == "cited" else -1,
            "aria-label": f"Sentence of rank {mark.rank}" if is_first else None,
            "aria-hidden": None if is_first else "true",
            "autofocus": "" if is_first and mark.rank == 1 and self._focused == "box" else None,
        }
        return make_element(
            "a", attributes, make_element("title", {}, f"rank {mark.rank}"), make_element("rect", place)
        )


def _join(parts: Iterable[object], separator: str = "") -> Markup:
    from markupsafe import Markup  # noqa: PLC0415 - optional

    return Markup(separator).join(part if isinstance(part, Markup) else replace_controls(str(part)) for part in parts)
