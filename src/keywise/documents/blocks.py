"""Blocks of a document: paragraphs, headings, rows and lines, each with its place in the text."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final


class BlockKind(StrEnum):
    """What a block is. Its value is a word for people.

    Examples
    --------
    >>> str(BlockKind.TABLE_ROW)
    'table row'
    """

    HEADING = "heading"
    PARAGRAPH = "paragraph"
    LIST_ITEM = "list item"
    TABLE_HEADER = "table header"
    TABLE_ROW = "table row"
    CODE = "code"
    CHAT_LINE = "chat line"
    MAIL_LINE = "mail line"
    LINE = "line"
    CAPTION = "caption"
    FOOTNOTE = "footnote"
    CONTENTS_LINE = "contents line"


PROSE_KINDS: Final = frozenset({BlockKind.PARAGRAPH, BlockKind.CAPTION, BlockKind.FOOTNOTE})
"""Kinds that are split into sentences. A block of another kind is one sentence, unless it is long."""


@dataclass(frozen=True, slots=True)
class Box:
    """The place of a word on a page, in points from the page's lower left corner.

    Attributes
    ----------
    begin, end
        Characters of the block's text.
    page
        Number of the page, from 1.
    left, bottom, right, top
        Edges.

    Examples
    --------
    >>> Box(0, 4, 1, 72.0, 700.0, 96.0, 712.0).page
    1
    """

    begin: int
    end: int
    page: int
    left: float
    bottom: float
    right: float
    top: float


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a document that no sentence crosses.

    Attributes
    ----------
    kind
        What it is.
    begin, end
        Its span in the text of its source, in characters, marks included.
    text
        What a reader sees: without marks, on one line, a table row with its header.
    runs
        Pairs (character of `text`, character of the source's text), ascending, at which the two begin to run in
        parallel. Empty if `text` does not follow the source's text; then the block is one sentence.
    heading_path
        The headings that it stands under, outermost first.
    table_header
        Names of the columns, for a table row.
    language
        Code of its language, such as "en"; "" if not known.
    page
        Number of its first page, from 1; 0 if the document has no pages.
    boxes
        Places of its words on the page, for a PDF.

    Examples
    --------
    >>> block = Block(BlockKind.PARAGRAPH, 0, 12, "bold word", runs=((0, 2), (4, 8)))
    >>> block.locate(0, 4), block.locate(5, 9)
    ((2, 6), (9, 13))
    """

    kind: BlockKind
    begin: int
    end: int
    text: str
    runs: tuple[tuple[int, int], ...] = ()
    heading_path: tuple[str, ...] = ()
    table_header: tuple[str, ...] = ()
    language: str = ""
    page: int = 0
    boxes: tuple[Box, ...] = ()

    def locate(self, begin: int, end: int) -> tuple[int, int]:
        """Return the span in the source's text of characters of `text`."""
        return self._locate_character(begin), self._locate_character(end - 1) + 1

    def _locate_character(self, position: int) -> int:
        run = bisect.bisect_right(self.runs, (position, float("inf"))) - 1
        text_position, source_position = self.runs[max(run, 0)]
        return source_position + position - text_position

    def move(self, characters: int) -> Block:
        """Return the block as it stands in a text that begins so many characters earlier."""
        runs = tuple((position, source + characters) for position, source in self.runs)
        return replace(self, begin=self.begin + characters, end=self.end + characters, runs=runs)


@dataclass(frozen=True, slots=True)
class Quote:
    """A sentence of a source as it is quoted.

    Attributes
    ----------
    begin, end
        Its span in the source's text, in characters.
    text
        What a reader sees, without marks.
    block
        The block that it belongs to.
    text_begin
        Where it begins in the block's text.

    Examples
    --------
    >>> block = Block(BlockKind.LIST_ITEM, 0, 5, "one", runs=((0, 2),))
    >>> Quote(0, 5, "one", block).boxes
    ()
    """

    begin: int
    end: int
    text: str
    block: Block
    text_begin: int = 0

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Places of its words on the page; words of one line are one box."""
        text_end = self.text_begin + len(self.text)
        words = [box for box in self.block.boxes if box.begin < text_end and box.end > self.text_begin]
        return tuple(join_boxes(words))

    @property
    def page(self) -> int:
        """Number of the page on which it begins, from 1; 0 if the document has no pages."""
        return next((box.page for box in self.boxes), self.block.page)

    def move(self, characters: int, block: Block) -> Quote:
        """Return the sentence as it stands in a text that begins so many characters later.

        Parameters
        ----------
        characters
            What is added to its span.
        block
            Its block, moved alike.
        """
        return Quote(self.begin + characters, self.end + characters, self.text, block, self.text_begin)


def join_boxes(boxes: Sequence[Box]) -> list[Box]:
    """Return one box for consecutive words of one line.

    Parameters
    ----------
    boxes
        Boxes of words, in reading order.

    Examples
    --------
    >>> words = [Box(0, 3, 1, 10.0, 5.0, 20.0, 12.0), Box(4, 7, 1, 22.0, 5.0, 30.0, 12.0)]
    >>> join_boxes(words)
    [Box(begin=0, end=7, page=1, left=10.0, bottom=5.0, right=30.0, top=12.0)]
    """
    joined: list[Box] = []
    for box in boxes:
        last = joined[-1] if joined else None
        if last and last.page == box.page and last.left <= box.left and _overlap(last, box):
            bottom, top = min(last.bottom, box.bottom), max(last.top, box.top)
            joined[-1] = replace(last, end=box.end, right=max(last.right, box.right), bottom=bottom, top=top)
        else:
            joined.append(box)
    return joined


def _overlap(first: Box, second: Box) -> bool:
    """Return whether two boxes stand on one line: their middles are in each other's height."""
    middle = (second.bottom + second.top) / 2
    return first.bottom <= middle <= first.top


class BlockBuilder:
    r"""Text and blocks of a document that has no text of its own, such as a page of HTML.

    The text is that of the blocks; a blank line or, between rows and items, a line end separates them.

    Attributes
    ----------
    blocks
        The blocks so far.

    Examples
    --------
    >>> builder = BlockBuilder()
    >>> builder.add_heading("Lamps", level=1)
    >>> builder.add(BlockKind.PARAGRAPH, " It  is lit. ")
    >>> builder.text, builder.blocks[1].heading_path
    ('Lamps\n\nIt is lit.', ('Lamps',))
    """

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._parts: list[str] = []
        self._length = 0
        self._headings: list[tuple[int, str]] = []

    @property
    def text(self) -> str:
        """The text of all blocks."""
        return "".join(self._parts)

    def add(
        self,
        kind: BlockKind,
        text: str,
        *,
        keep_lines: bool = False,
        table_header: Sequence[str] = (),
        page: int = 0,
        boxes: tuple[Box, ...] = (),
    ) -> None:
        """Append a block; a text without letters and digits is left out.

        Parameters
        ----------
        kind
            What it is.
        text
            Its text. Runs of blanks count as one space; marks of places where a word may be broken are left out.
        keep_lines
            Whether to keep line ends and indentation, for code.
        table_header
            Names of the columns, for a table row.
        page
            Number of its page, from 1.
        boxes
            Places of its words, whose positions count in `text`; `text` has single spaces then.
        """
        if not boxes:
            text = _clean(text)
        text = text.strip("\n").rstrip() if keep_lines else " ".join(text.split())
        if not any(character.isalnum() for character in text):
            return
        if self.blocks:
            close = self.blocks[-1].kind == kind or {self.blocks[-1].kind, kind} <= _TABLE_KINDS
            separator = "\n" if close and kind in _CLOSE_KINDS else "\n\n"
            self._parts.append(separator)
            self._length += len(separator)
        begin = self._length
        self._parts.append(text)
        self._length += len(text)
        path = tuple(heading for _, heading in self._headings)
        self.blocks.append(
            Block(
                kind,
                begin,
                self._length,
                text,
                runs=((0, begin),),
                heading_path=path,
                table_header=tuple(table_header),
                page=page,
                boxes=boxes,
            )
        )

    def add_heading(self, text: str, *, level: int, page: int = 0, boxes: tuple[Box, ...] = ()) -> None:
        """Append a heading; the blocks after it stand under it.

        Parameters
        ----------
        text
            Its text.
        level
            1 for the outermost.
        page, boxes
            As for `add`.
        """
        self.enter_section("", level=level)
        self.add(BlockKind.HEADING, text, page=page, boxes=boxes)
        self.enter_section(text, level=level)

    def enter_section(self, title: str, *, level: int) -> None:
        """Let the following blocks stand under a heading that is not part of the text."""
        while self._headings and self._headings[-1][0] >= level:
            self._headings.pop()
        title = " ".join(_clean(title).split())
        if title:
            self._headings.append((level, title))

    def add_table(self, rows: Sequence[Sequence[str]], *, has_header: bool, page: int = 0) -> None:
        """Append the rows of a table, each with the names of its columns.

        Parameters
        ----------
        rows
            Texts of the cells.
        has_header
            Whether the first row names the columns.
        page
            As for `add`.
        """
        filled = [[" ".join(_clean(cell).split()) for cell in row] for row in rows if any(cell.strip() for cell in row)]
        header: list[str] = filled[0] if has_header and len(filled) > 1 else []
        if header:
            self.add(BlockKind.TABLE_HEADER, render_row(header, ()), page=page)
        for row in filled[1:] if header else filled:
            self.add(BlockKind.TABLE_ROW, render_row(row, header), table_header=header, page=page)


_INVISIBLE: Final = re.compile("[\u00ad\u200b\u2060\ufeff]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _clean(text: str) -> str:
    """Return a text without characters that show nothing; halves of characters are joined or replaced."""
    if _SURROGATE.search(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _INVISIBLE.sub("", text)


_TABLE_KINDS: Final = frozenset({BlockKind.TABLE_HEADER, BlockKind.TABLE_ROW})
_CLOSE_KINDS: Final = _TABLE_KINDS | {BlockKind.LIST_ITEM, BlockKind.CHAT_LINE, BlockKind.MAIL_LINE, BlockKind.LINE}


def render_row(cells: Sequence[str], header: Sequence[str]) -> str:
    """Return a table row as text, each cell after the name of its column.

    Parameters
    ----------
    cells
        Texts of the cells; empty ones are left out.
    header
        Names of the columns; may be shorter or empty.

    Examples
    --------
    >>> render_row(["North", "2,100", ""], ["region", "sales", "note"]), render_row(["a", "b"], [])
    ('region: North; sales: 2,100', 'a; b')
    """
    parts = []
    for number, cell in enumerate(cells):
        value = " ".join(cell.split())
        name = " ".join(header[number].split()).rstrip(":") if number < len(header) else ""
        if value:
            parts.append(f"{name}: {value}" if name else value)
    return "; ".join(parts)


def encode_blocks(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Return blocks as plain data for JSON; fields with their default are left out.

    Parameters
    ----------
    blocks
        The blocks.

    Examples
    --------
    >>> import json
    >>> json.dumps(encode_blocks([Block(BlockKind.LINE, 0, 2, "ab")]))
    '[{"kind": "line", "begin": 0, "end": 2, "text": "ab"}]'
    """
    return [
        {name: value for name, value in asdict(block).items() if value or name in ("begin", "end")} for block in blocks
    ]


def decode_blocks(data: Sequence[dict[str, Any]]) -> tuple[Block, ...]:
    """Return the blocks that `encode_blocks` encoded.

    Parameters
    ----------
    data
        From JSON.

    Examples
    --------
    >>> blocks = (Block(BlockKind.LINE, 0, 2, "ab", runs=((0, 0),)),)
    >>> decode_blocks(encode_blocks(blocks)) == blocks
    True
    """
    blocks = []
    for fields in data:
        tuples = {name: tuple(fields.get(name, ())) for name in ("heading_path", "table_header")}
        runs = tuple((position, source) for position, source in fields.get("runs", ()))
        boxes = tuple(Box(**box) for box in fields.get("boxes", ()))
        own = {**fields, **tuples, "kind": BlockKind(fields["kind"]), "runs": runs, "boxes": boxes}
        blocks.append(Block(**own))
    return tuple(blocks)


def encode_quotes(quotes: Sequence[Quote], blocks: Sequence[Block]) -> list[list[Any]]:
    """Return sentences as plain data for JSON, each with the number of its block.

    Parameters
    ----------
    quotes
        The sentences, in order.
    blocks
        The blocks that they were made from.

    Examples
    --------
    >>> block = Block(BlockKind.LINE, 0, 2, "ab")
    >>> encode_quotes([Quote(0, 2, "ab", block)], [block])
    [[0, 2, 'ab', 0, 0]]
    """
    numbers = {id(block): number for number, block in enumerate(blocks)}
    return [[quote.begin, quote.end, quote.text, quote.text_begin, numbers[id(quote.block)]] for quote in quotes]


def decode_quotes(data: Sequence[Sequence[Any]], blocks: Sequence[Block]) -> tuple[Quote, ...]:
    """Return the sentences that `encode_quotes` encoded.

    Parameters
    ----------
    data
        From JSON.
    blocks
        The blocks, decoded.

    Examples
    --------
    >>> block = Block(BlockKind.LINE, 0, 2, "ab")
    >>> decode_quotes([[0, 2, "ab", 0, 0]], [block]) == (Quote(0, 2, "ab", block),)
    True
    """
    return tuple(Quote(begin, end, text, blocks[number], text_begin) for begin, end, text, text_begin, number in data)
