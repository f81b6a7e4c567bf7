"""Blocks of a PPTX file: slides with their titles, tables and speaker's notes; hidden slides are left out."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Final

from keywise.documents.blocks import BlockBuilder, BlockKind
from keywise.documents.extract.extracted import Extracted
from keywise.documents.extract.packages import check_package
from keywise.documents.extract.tables import has_header

MAX_DEPTH: Final = 20
_FURNITURE: Final = frozenset({"DATE", "FOOTER", "HEADER", "SLIDE_NUMBER", "SLIDE_IMAGE"})
_TITLES: Final = frozenset({"TITLE", "CENTER_TITLE", "VERTICAL_TITLE"})


def extract(content: bytes) -> Extracted:
    """Return the text and blocks of a PPTX file.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    UnreadableFileError
        It is encrypted, or of an older format.
    """
    from pptx import Presentation  # noqa: PLC0415 - optional

    check_package(content)
    builder = BlockBuilder()
    for number, slide in enumerate(Presentation(io.BytesIO(content)).slides, start=1):
        if slide.element.get("show") in ("0", "false"):
            continue
        builder.enter_section("", level=0)
        shapes = list(_iterate_shapes(slide.shapes, 0))
        for shape in shapes:
            if _name_placeholder(shape) in _TITLES:
                builder.add_heading(shape.text_frame.text, level=1, page=number)
        for shape in shapes:
            if _name_placeholder(shape) not in _TITLES | _FURNITURE:
                _add_shape(builder, shape, number)
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            _add_text(builder, slide.notes_slide.notes_text_frame, number, BlockKind.PARAGRAPH)
    return Extracted(builder.text, tuple(builder.blocks))


def _iterate_shapes(shapes: Any, depth: int) -> Iterator[Any]:
    """Yield the shapes of a slide and of its groups, from top to bottom."""
    for shape in sorted(shapes, key=lambda each: (each.top or 0, each.left or 0)):
        if hasattr(shape, "shapes"):
            if depth < MAX_DEPTH:
                yield from _iterate_shapes(shape.shapes, depth + 1)
        elif shape.element.xpath("boolean(.//p:cNvPr[@hidden='1' or @hidden='true'])") is not True:
            yield shape


def _name_placeholder(shape: Any) -> str:
    if not shape.is_placeholder or shape.placeholder_format.type is None:
        return ""
    name: str = shape.placeholder_format.type.name
    return name


def _add_shape(builder: BlockBuilder, shape: Any, page: int) -> None:
    if getattr(shape, "has_table", False):
        table = shape.table
        rows = [["" if cell.is_spanned else cell.text for cell in row.cells] for row in table.rows]
        builder.add_table(rows, has_header=bool(table.first_row) or has_header(rows[:20]), page=page)
    elif shape.has_text_frame:
        is_body = _name_placeholder(shape) in ("BODY", "OBJECT")
        _add_text(builder, shape.text_frame, page, BlockKind.LIST_ITEM if is_body else BlockKind.PARAGRAPH)


def _add_text(builder: BlockBuilder, frame: Any, page: int, kind: BlockKind) -> None:
    for paragraph in frame.paragraphs:
        # A vertical tab is a line break within a paragraph.
        for line in paragraph.text.split("\v"):
            builder.add(kind, line, page=page)
