"""Documents as they are shown: headings, lists, tables and code of sentences with their spans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keywise.documents.blocks import BlockKind
from keywise.documents.files import FORMAT_BY_SUFFIX
from keywise.documents.shading import NO_SHADING, Shading

if TYPE_CHECKING:
    from keywise.documents.blocks import Block, Quote
    from keywise.documents.evidence import Evidence
    from keywise.documents.files import Source
    from keywise.documents.page_images import PageImage

MAX_HEADING_LEVEL: Final = 6
# The title of a page is of level 1, the name of a document of level 2.
FIRST_HEADING_LEVEL: Final = 3
_GROUPS: Final = {
    BlockKind.LIST_ITEM: "list",
    BlockKind.TABLE_HEADER: "table",
    BlockKind.TABLE_ROW: "table",
    BlockKind.CODE: "code",
    BlockKind.HEADING: "heading",
    BlockKind.CAPTION: "caption",
    BlockKind.FOOTNOTE: "footnote",
    BlockKind.CHAT_LINE: "line",
    BlockKind.MAIL_LINE: "line",
    BlockKind.LINE: "line",
    BlockKind.CONTENTS_LINE: "line",
}


@dataclass(frozen=True)
class Piece:
    """A sentence of a document, or text between two sentences.

    Attributes
    ----------
    text
        What is shown.
    start, end
        Its span in the source's text.
    evidence
        Its scores for the answer; None for text between sentences and without an answer.
    is_sentence
        Whether it is a sentence.
    cells
        The cells of a table row; empty if they are not known.
    kind
        Kind of its block.
    """

    text: str
    start: int
    end: int
    evidence: Evidence | None = None
    is_sentence: bool = True
    cells: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Group:
    """Blocks of one kind that follow each other.

    Attributes
    ----------
    kind
        ``"plain"`` for text as it stands in a file, else ``"paragraph"``, ``"heading"``, ``"list"``, ``"table"``,
        ``"code"``, ``"line"``, ``"caption"`` or ``"footnote"``.
    level
        Level of a heading in HTML.
    columns
        Number of columns of a table.
    items
        The pieces of each block.
    """

    kind: str
    level: int = 0
    columns: int = 1
    items: list[list[Piece]] = field(default_factory=list)


@dataclass(frozen=True)
class DocumentView:
    """A document as it is shown.

    Attributes
    ----------
    name
        Its name.
    groups
        Its text.
    pages
        Pages as pictures.
    """

    name: str
    groups: list[Group]
    pages: Sequence[PageImage] = ()


def make_view(source: Source, shading: Shading = NO_SHADING, pages: Sequence[PageImage] = ()) -> DocumentView:
    """Return a document as it is shown.

    Text without a known structure is shown as it stands; other formats as headings, paragraphs, lists, tables and code,
    without the marks of the format.

    Parameters
    ----------
    source
        The document.
    shading
        The marks of an answer.
    pages
        Pages as pictures.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> [piece.text for piece in make_view(Source("note", "It rains. It is dry.")).groups[0].items[0]]
    ['It rains.', ' ', 'It is dry.']
    """
    is_structured = source.blocks is not None and Path(source.name).suffix.lower() in FORMAT_BY_SUFFIX
    groups = list(_group_blocks(source, shading)) if is_structured else [_show_plain(source, shading)]
    return DocumentView(source.name, groups, pages)


def split_row(text: str, header: Sequence[str]) -> tuple[str, ...]:
    """Return the cells of a table row as `keywise.documents.blocks.render_row` wrote it; none if they are not clear.

    Parameters
    ----------
    text
        The row, each cell after the name of its column.
    header
        Names of the columns.

    Examples
    --------
    >>> split_row("region: North; sales: 2,100", ["region", "note", "sales"])
    ('North', '', '2,100')
    """
    names = [" ".join(name.split()).rstrip(":") for name in header]
    if not all(names) or len(set(names)) < len(names):
        return ()
    cells = [""] * len(names)
    rest = text
    column = 0
    while rest:
        while column < len(names) and not rest.startswith(f"{names[column]}: "):
            column += 1
        if column == len(names):
            return ()
        rest = rest.removeprefix(f"{names[column]}: ")
        ends = [end for name in names[column + 1 :] if (end := rest.find(f"; {name}: ")) >= 0]
        end = min(ends, default=len(rest))
        cells[column], rest = rest[:end], rest[end + 2 :]
        column += 1
    return tuple(cells)


def _show_plain(source: Source, shading: Shading) -> Group:
    """Return a text as it stands: its sentences and what lies between them."""
    pieces: list[Piece] = []
    position = 0
    for quote in source.quotes:
        if quote.begin > position:
            between = source.text[position : quote.begin]
            pieces.append(Piece(between, position, quote.begin, is_sentence=False))
        pieces.append(_make_piece(source, quote, shading, source.text[quote.begin : quote.end]))
        position = quote.end
    if position < len(source.text):
        pieces.append(Piece(source.text[position:], position, len(source.text), is_sentence=False))
    return Group("plain", items=[pieces])


def _group_blocks(source: Source, shading: Shading) -> Iterator[Group]:
    blocks = [(quotes[0].block, quotes) for quotes in _group_quotes(source.quotes)]
    for (kind, level, header), members in groupby(blocks, lambda each: _get_group(each[0])):
        items = [[_make_piece(source, quote, shading, quote.text) for quote in quotes] for _, quotes in members]
        if kind in {"list", "table", "code"}:
            yield Group(kind, columns=max(1, len(header)), items=_split_header(items, header))
        else:
            for item in items:
                yield Group(kind, level, items=[item])


def _group_quotes(quotes: Sequence[Quote]) -> Iterator[list[Quote]]:
    for _, members in groupby(quotes, lambda quote: id(quote.block)):
        yield list(members)


def _get_group(block: Block) -> tuple[str, int, tuple[str, ...]]:
    """Return the kind of a block's group, its level as a heading, and the names of its columns."""
    kind = _GROUPS.get(block.kind, "paragraph")
    if kind == "heading":
        return kind, min(len(block.heading_path) + FIRST_HEADING_LEVEL, MAX_HEADING_LEVEL), ()
    if kind == "table":
        header = block.table_header
        if block.kind == BlockKind.TABLE_HEADER:
            header = tuple(block.text.split("; "))
        return kind, 0, header
    return kind, 0, ()


def _split_header(items: list[list[Piece]], header: Sequence[str]) -> list[list[Piece]]:
    """Return the rows of a table with the cells of its header."""
    for item in items:
        first = item[0]
        if first.kind == BlockKind.TABLE_HEADER:
            cells = tuple(first.text.split("; "))
            item[0] = replace(first, cells=cells)
        elif first.kind == BlockKind.TABLE_ROW and len(item) == 1:
            item[0] = replace(first, cells=split_row(first.text, header))
    return items


def _make_piece(source: Source, quote: Quote, shading: Shading, text: str) -> Piece:
    evidence = shading.evidence.get((source.name, quote.begin))
    return Piece(text, quote.begin, quote.end, evidence, kind=quote.block.kind)
