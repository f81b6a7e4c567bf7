"""Blocks of a DOCX file, without hidden and deleted text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any, Final

from keywise.documents.blocks import BlockBuilder, BlockKind
from keywise.documents.extract.extracted import Extracted
from keywise.documents.extract.packages import check_package
from keywise.documents.extract.tables import has_header, names_columns

_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M: Final = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_CONTENTS_STYLE: Final = re.compile(r"(?:toc|verzeichnis|tm|índice)\s*\d", re.IGNORECASE)
_SKIPPED: Final = frozenset(
    [f"{_W}{name}" for name in ("del", "moveFrom", "instrText", "delText", "pPr", "rPr", "fldData", "sdtPr")]
    + ["{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"]
)
_HEADING_STYLE: Final = re.compile(r"heading\s*(\d)|(title)", re.IGNORECASE)
_FALSE: Final = ("0", "false", "off", "none")
MAX_DEPTH: Final = 60


def extract(content: bytes) -> Extracted:
    """Return the text and blocks of a DOCX file.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    UnreadableFileError
        It is encrypted, or of an older format.
    """
    from docx import Document  # noqa: PLC0415 - optional

    check_package(content)
    document = Document(io.BytesIO(content))
    reader = _BodyReader(document)
    reader.read(document.element.body)
    reader.add_footnotes()
    return Extracted(reader.builder.text, tuple(reader.builder.blocks))


class _BodyReader:
    def __init__(self, document: Any) -> None:
        self.builder = BlockBuilder()
        self._document = document
        self._styles = {style.style_id: style for style in document.styles if style.style_id}
        self._numbering = _Numbering(document)

    def read(self, parent: Any, depth: int = 0) -> None:
        """Append the paragraphs and tables of an element."""
        if depth > MAX_DEPTH:
            return
        for element in parent:
            if element.tag == f"{_W}p":
                self._read_paragraph(element)
            elif element.tag == f"{_W}tbl":
                self._read_table(element, depth)
            elif element.tag in (f"{_W}sdt", f"{_W}sdtContent", f"{_W}ins", f"{_W}customXml", f"{_W}smartTag"):
                self.read(element, depth + 1)

    def _read_paragraph(self, paragraph: Any) -> None:
        self._add_paragraph(paragraph)
        for box in paragraph.iter(f"{_W}txbxContent"):
            owner = next(box.iterancestors(f"{_W}p"))
            if owner is paragraph and not any(each.tag in _SKIPPED for each in box.iterancestors()):
                self.read(box)

    def _add_paragraph(self, paragraph: Any) -> None:
        text = self._text_of(paragraph)
        style = self._style_of(paragraph)
        mark = self._numbering.count(paragraph, style)
        if not any(map(str.isalnum, text)):
            return
        heading = self._find_level(paragraph, style)
        if heading is not None:
            self.builder.add_heading(f"{mark or ''}{text}", level=heading)
            return
        if style is not None and style.name and style.name.lower() == "caption":
            self.builder.add(BlockKind.CAPTION, text)
            return
        kind = BlockKind.PARAGRAPH if mark is None else BlockKind.LIST_ITEM
        if style is not None and _CONTENTS_STYLE.match(style.name or ""):
            kind = BlockKind.CONTENTS_LINE
        for line in text.split("\n"):
            self.builder.add(kind, f"{mark or ''}{line}")
            mark = None

    def _style_of(self, paragraph: Any) -> Any:
        name = paragraph.find(f"{_W}pPr/{_W}pStyle")
        return self._styles.get(name.get(f"{_W}val")) if name is not None else None

    def _find_level(self, paragraph: Any, style: Any) -> int | None:
        """Return the level of a heading, 0 for the title; None for other paragraphs."""
        level = paragraph.find(f"{_W}pPr/{_W}outlineLvl")
        for _ in range(10):
            if level is not None:
                value = level.get(f"{_W}val", "")
                return int(value) + 1 if value.isdigit() and int(value) < 9 else None
            if style is None:
                break
            match = _HEADING_STYLE.match(style.name or "")
            if match:
                return int(match[1] or 0)
            level = style.element.find(f"{_W}pPr/{_W}outlineLvl")
            style = style.base_style
        return None

    def _read_table(self, table: Any, depth: int) -> None:
        rows: list[list[str]] = []
        has_names = False
        table_rows = table.findall(f"{_W}tr")
        for row in table_rows:
            if row.find(f"{_W}trPr/{_W}del") is not None:
                continue
            has_names = has_names or (not rows and row.find(f"{_W}trPr/{_W}tblHeader") is not None)
            cells: list[str] = []
            for cell in row.iter(f"{_W}tc"):
                if next(cell.iterancestors(f"{_W}tr")) is not row:
                    continue  # of a table in a cell
                cells += self._read_cell(cell, rows[-1] if rows else [], len(cells))
            rows.append(cells)
        if len(rows) == 1 or all(len(row) == 1 for row in rows):
            for cell in table.iterfind(f"{_W}tr/{_W}tc"):  # a frame around text
                self.read(cell, depth + 1)
            return
        first_is_bold = bool(table_rows) and _is_bold(table_rows[0])
        self.builder.add_table(
            rows, has_header=has_names or names_columns(rows) or (first_is_bold and has_header(rows))
        )

    def _read_cell(self, cell: Any, above: list[str], column: int) -> list[str]:
        span = cell.find(f"{_W}tcPr/{_W}gridSpan")
        width = int(span.get(f"{_W}val", "1")) if span is not None and span.get(f"{_W}val", "").isdigit() else 1
        merge = cell.find(f"{_W}tcPr/{_W}vMerge")
        if merge is not None and merge.get(f"{_W}val", "continue") == "continue" and column < len(above):
            text = above[column]
        else:
            text = " ".join(self._text_of(paragraph) for paragraph in cell.iter(f"{_W}p"))
        return [text, *[""] * (min(width, 50) - 1)]

    def _text_of(self, paragraph: Any) -> str:
        return "".join(self._iterate_text(paragraph, 0))

    def _iterate_text(self, parent: Any, depth: int) -> Iterator[str]:
        for element in parent:
            tag = element.tag
            if tag in _SKIPPED or depth > MAX_DEPTH:
                continue
            if tag in (f"{_W}t", f"{_M}t"):
                yield element.text or ""
            elif tag in (f"{_W}tab", f"{_W}ptab"):
                yield " "
            elif tag in (f"{_W}br", f"{_W}cr"):
                yield "\n"
            elif tag == f"{_W}noBreakHyphen":
                yield "-"
            elif tag == f"{_W}r":
                if not self._is_hidden(element):
                    raised = element.find(f"{_W}rPr/{_W}vertAlign")
                    text = "".join(self._iterate_text(element, depth + 1))
                    is_raised = raised is not None and raised.get(f"{_W}val") == "superscript"
                    yield text.translate(_SUPERSCRIPTS) if is_raised and not text.strip().isalpha() else text
            elif tag != f"{_W}txbxContent":
                yield from self._iterate_text(element, depth + 1)

    def _is_hidden(self, run: Any) -> bool:
        vanish = run.find(f"{_W}rPr/{_W}vanish")
        if vanish is None:
            style = run.find(f"{_W}rPr/{_W}rStyle")
            own = self._styles.get(style.get(f"{_W}val")) if style is not None else None
            vanish = own.element.find(f"{_W}rPr/{_W}vanish") if own is not None else None
        return vanish is not None and vanish.get(f"{_W}val", "true") not in _FALSE

    def add_footnotes(self) -> None:
        """Append the footnotes and endnotes."""
        from docx.oxml import parse_xml  # noqa: PLC0415 - optional

        for relation in self._document.part.rels.values():
            if relation.is_external or not relation.reltype.endswith(("/footnotes", "/endnotes")):
                continue
            for note in parse_xml(relation.target_part.blob):
                if note.get(f"{_W}type") is None:
                    text = " ".join(self._text_of(paragraph) for paragraph in note.iter(f"{_W}p"))
                    self.builder.add(BlockKind.FOOTNOTE, text)


_SUPERSCRIPTS: Final = str.maketrans("0123456789+-−()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁽⁾ⁿ")


def _is_bold(row: Any) -> bool:
    runs = [run for run in row.iter(f"{_W}r") if run.find(f"{_W}t") is not None]
    return bool(runs) and all(run.find(f"{_W}rPr/{_W}b") is not None for run in runs)


class _Numbering:
    """Numbers of the paragraphs of numbered lists, as Word shows them."""

    def __init__(self, document: Any) -> None:
        self._levels: dict[str, dict[int, tuple[str, str, int]]] = {}
        self._counters: dict[str, dict[int, int]] = {}
        for relation in document.part.rels.values():
            if not relation.is_external and relation.reltype.endswith("/numbering"):
                self._read(relation.target_part.element)

    def _read(self, numbering: Any) -> None:
        abstract: dict[str, dict[int, tuple[str, str, int]]] = {}
        for each in numbering.findall(f"{_W}abstractNum"):
            levels: dict[int, tuple[str, str, int]] = {}
            for level in each.findall(f"{_W}lvl"):
                depth = level.get(f"{_W}ilvl", "0")
                if depth.isdigit():
                    start = _value_of(level, "start", "1")
                    first = int(start) if start.isdigit() else 1
                    levels[int(depth)] = (_value_of(level, "numFmt", "bullet"), _value_of(level, "lvlText", ""), first)
            abstract[each.get(f"{_W}abstractNumId", "")] = levels
        for each in numbering.findall(f"{_W}num"):
            self._levels[each.get(f"{_W}numId", "")] = abstract.get(_value_of(each, "abstractNumId", ""), {})

    def count(self, paragraph: Any, style: Any) -> str | None:
        """Return what stands before a paragraph, empty for a bullet; None outside of lists."""
        properties = paragraph.find(f"{_W}pPr/{_W}numPr")
        if properties is None and style is not None:
            properties = style.element.find(f"{_W}pPr/{_W}numPr")
        if properties is None:
            return "" if style is not None and (style.name or "").lower().startswith("list") else None
        number, depth_text = _value_of(properties, "numId", "0"), _value_of(properties, "ilvl", "0")
        if number == "0" or not depth_text.isdigit():
            return None
        depth = int(depth_text)
        levels = self._levels.get(number, {})
        if depth not in levels:
            return ""
        counters = self._counters.setdefault(number, {})
        counters[depth] = counters.get(depth, levels[depth][2] - 1) + 1
        for deeper in [each for each in counters if each > depth]:
            del counters[deeper]
        kind, pattern, _ = levels[depth]
        if kind in ("bullet", "none"):
            return ""

        def show(match: re.Match[str]) -> str:
            place = int(match[1]) - 1
            own_kind, _, first = levels.get(place, ("decimal", "", 1))
            return _format_number(counters.get(place, first), own_kind)

        return re.sub(r"%(\d)", show, pattern) + " "


def _value_of(parent: Any, name: str, default: str) -> str:
    element = parent.find(f"{_W}{name}")
    value: str = element.get(f"{_W}val", default) if element is not None else default
    return value


def _format_number(number: int, kind: str) -> str:
    if kind in ("lowerLetter", "upperLetter") and 0 < number <= 26:
        letter = chr(ord("a") + number - 1)
        return letter if kind == "lowerLetter" else letter.upper()
    if kind in ("lowerRoman", "upperRoman") and 0 < number < 400:
        roman = _to_roman(number)
        return roman if kind == "lowerRoman" else roman.upper()
    return str(number)


def _to_roman(number: int) -> str:
    digits = ((100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))
    text = ""
    for value, letters in digits:
        text += letters * (number // value)
        number %= value
    return text
