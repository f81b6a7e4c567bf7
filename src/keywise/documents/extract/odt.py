"""Blocks of an ODT file, without hidden and deleted text."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any, Final

from keywise.documents.blocks import BlockBuilder, BlockKind
from keywise.documents.extract.extracted import Extracted, UnreadableFileError
from keywise.documents.extract.packages import check_package, read_xml
from keywise.documents.extract.tables import names_columns

_NAMESPACE: Final = "urn:oasis:names:tc:opendocument:xmlns:"
_TEXT: Final = f"{{{_NAMESPACE}text:1.0}}"
_TABLE: Final = f"{{{_NAMESPACE}table:1.0}}"
_OFFICE: Final = f"{{{_NAMESPACE}office:1.0}}"
_STYLE: Final = f"{{{_NAMESPACE}style:1.0}}"
_DRAW: Final = f"{{{_NAMESPACE}drawing:1.0}}"
_DRAWING: Final = f"{{{_NAMESPACE}svg-compatible:1.0}}"
_SKIPPED: Final = frozenset(
    [f"{_TEXT}{name}" for name in ("tracked-changes", "note", "hidden-text", "sequence-decls", "table-of-content")]
    + [f"{_OFFICE}annotation", f"{_TEXT}bookmark", f"{_TEXT}soft-page-break", f"{_OFFICE}forms"]
    + [f"{_DRAWING}title", f"{_DRAWING}desc"]
)
_SHAPES: Final = frozenset(
    f"{_DRAW}{name}" for name in ("frame", "custom-shape", "rect", "g", "ellipse", "line", "caption")
)
"""Boxes with paragraphs of their own, which stand behind the paragraph that they are anchored to."""

MAX_DEPTH: Final = 60
MAX_REPEATED: Final = 50


def extract(content: bytes) -> Extracted:
    """Return the text and blocks of an ODT file.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    UnreadableFileError
        It is encrypted, or no ODT file.
    """
    check_package(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if "META-INF/manifest.xml" in names and b"encryption-data" in archive.read("META-INF/manifest.xml"):
            raise UnreadableFileError("it is encrypted: save a copy without a password")
        if "content.xml" not in names:
            raise UnreadableFileError("it has no text of a document")
        roots = [read_xml(archive.read(name)) for name in ("styles.xml", "content.xml") if name in names]
    hidden = frozenset(
        str(style.get(f"{_STYLE}name"))
        for root in roots
        for style in root.iter(f"{_STYLE}style")
        if any(each.get(f"{_TEXT}display") == "none" for each in style.iter(f"{_STYLE}text-properties"))
    )
    reader = _TextReader(hidden)
    for body in roots[-1].iter(f"{_OFFICE}text"):
        reader.read(body, 0)
    for note in reader.notes:
        reader.builder.add(BlockKind.FOOTNOTE, note)
    return Extracted(reader.builder.text, tuple(reader.builder.blocks))


class _TextReader:
    def __init__(self, hidden: frozenset[str]) -> None:
        self.builder = BlockBuilder()
        self.notes: list[str] = []
        self._hidden = hidden

    def read(self, parent: Any, depth: int) -> None:
        """Append the paragraphs, lists and tables of an element."""
        for element in parent:
            if depth > MAX_DEPTH or self._is_left_out(element):
                continue
            if element.tag == f"{_TEXT}h":
                level = element.get(f"{_TEXT}outline-level", "1")
                self.builder.add_heading(self._text_of(element), level=int(level) if level.isdecimal() else 1)
            elif element.tag == f"{_TEXT}p":
                in_list = any(each.tag == f"{_TEXT}list-item" for each in element.iterancestors())
                for line in self._text_of(element).split("\n"):
                    self.builder.add(BlockKind.LIST_ITEM if in_list else BlockKind.PARAGRAPH, line)
                for shape in _iterate_shapes(element):
                    self.read(shape, depth + 1)
            elif element.tag == f"{_TABLE}table":
                self._read_table(element)
            else:
                self.read(element, depth + 1)

    def _is_left_out(self, element: Any) -> bool:
        is_comment = not isinstance(element.tag, str)
        return is_comment or element.tag in _SKIPPED or element.get(f"{_TEXT}style-name") in self._hidden

    def _read_table(self, table: Any) -> None:
        rows: list[list[str]] = []
        header_rows = 0
        for row in table.iter(f"{_TABLE}table-row"):
            cells: list[str] = []
            for cell in row:
                if cell.tag in (f"{_TABLE}table-cell", f"{_TABLE}covered-table-cell"):
                    text = " ".join(self._text_of(each) for each in cell.iter(f"{_TEXT}p", f"{_TEXT}h"))
                    repeated = cell.get(f"{_TABLE}number-columns-repeated", "1")
                    cells += [text] * min(int(repeated) if repeated.isdecimal() else 1, MAX_REPEATED)
            if not rows and next(row.iterancestors()).tag == f"{_TABLE}table-header-rows":
                header_rows = 1
            rows.append(cells)
        self.builder.add_table(rows, has_header=header_rows > 0 or names_columns(rows))

    def _text_of(self, element: Any) -> str:
        return "".join(self._iterate_text(element, 0))

    def _iterate_text(self, parent: Any, depth: int) -> Iterator[str]:
        yield _join_white(parent.text)
        for element in parent:
            if element.tag == f"{_TEXT}note":
                body = element.find(f"{_TEXT}note-body")
                if body is not None:
                    self.notes.append(" ".join(self._text_of(each) for each in body))
            elif depth <= MAX_DEPTH and not self._is_left_out(element) and element.tag not in _SHAPES:
                if element.tag in (f"{_TEXT}s", f"{_TEXT}tab"):
                    yield " "
                elif element.tag == f"{_TEXT}line-break":
                    yield "\n"
                else:
                    yield from self._iterate_text(element, depth + 1)
            yield _join_white(element.tail)


def _iterate_shapes(element: Any) -> Iterator[Any]:
    """Yield the outermost shapes in a paragraph."""
    for child in element:
        if child.tag in _SHAPES:
            yield child
        elif isinstance(child.tag, str) and child.tag != f"{_TEXT}note":
            yield from _iterate_shapes(child)


def _join_white(text: str | None) -> str:
    if not text:
        return ""
    joined = " ".join(text.split())
    return f"{' ' if text[0].isspace() else ''}{joined}{' ' if joined and text[-1].isspace() else ''}"
