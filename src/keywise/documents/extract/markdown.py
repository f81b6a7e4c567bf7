"""Blocks of Markdown. Their spans point into the file; their text has no marks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from keywise.documents.blocks import Block, BlockKind, render_row
from keywise.documents.extract.lines import Line, iterate_paragraphs, split_lines

if TYPE_CHECKING:
    from markdown_it.token import Token

_FRONT_MATTER: Final = re.compile(r"\ufeff?---[^\S\n]*\r?\n(?:.*\n){0,100}?(?:---|\.\.\.)[^\S\n]*(?:\r?\n|\Z)")
_TAG: Final = re.compile(r"<!--.*?(?:-->|\Z)|<[^>]*>", re.DOTALL)
_BREAK_TAG: Final = re.compile(r"<br\s*/?>", re.IGNORECASE)

Runs = list[tuple[int, int]]


def find_blocks(text: str) -> tuple[Block, ...]:
    r"""Return the blocks of a Markdown file.

    Parameters
    ----------
    text
        The file. A byte order mark and front matter may stand before it.

    Examples
    --------
    >>> blocks = find_blocks("# Tests\n\nRun `run\_all.py` **now**.")
    >>> [block.text for block in blocks], blocks[1].heading_path
    (['Tests', 'Run run\\_all.py now.'], ('Tests',))
    """
    from markdown_it import MarkdownIt  # noqa: PLC0415 - optional

    front = _FRONT_MATTER.match(text)
    begin = front.end() if front else int(text.startswith("\ufeff"))
    # The parser replaces these; spaces keep the characters' places.
    source = text[begin:].replace("\0", " ").replace("\r\n", " \n").replace("\r", "\n")
    parser = MarkdownIt("commonmark").enable("table").enable("strikethrough").disable("text_join")
    reader = _BlockReader(source, begin)
    if front:
        reader.add_fields(split_lines(front.group()))
    reader.read(parser.parse(source))
    return tuple(reader.blocks)


class _BlockReader:
    def __init__(self, source: str, begin: int) -> None:
        self.blocks: list[Block] = []
        self._source = source
        self._begin = begin
        self._line_starts = [0]
        for line in source.split("\n"):
            self._line_starts.append(self._line_starts[-1] + len(line) + 1)
        self._headings: list[tuple[int, str]] = []

    def add_fields(self, lines: Sequence[Line]) -> None:
        """Add the fields of front matter."""
        for line in lines:
            if line.text.strip("-. "):
                begin = line.begin - self._begin
                self._add(BlockKind.LINE, begin, begin + len(line.text), line.text, [(0, begin)])

    def read(self, tokens: Sequence[Token]) -> None:
        """Read the tokens of the file."""
        # Marks of the list items and quotations that the next inline token is the first of.
        item_begin: int | None = None
        item_marks: list[str] = []
        depth = 0
        number = 0
        while number < len(tokens):
            token = tokens[number]
            if token.type == "list_item_open":
                depth += 1
                item_begin = self._line_begin(token)
                item_marks.append(f"{token.info}{token.markup} " if token.info else "")
            elif token.type == "list_item_close":
                depth -= 1
                item_marks.pop()
                item_begin = None
            elif token.type == "table_open":
                number = self._read_table(tokens, number)
            elif token.type in ("fence", "code_block"):
                self._read_code(token)
                item_begin = None
            elif token.type == "html_block":
                self._read_html(token)
            elif token.type == "inline" and token.map:
                opening = tokens[number - 1]
                if opening.type == "heading_open":
                    self._read_heading(token, int(opening.tag[1:]), opening)
                elif depth and item_begin is not None:
                    self._read_text(BlockKind.LIST_ITEM, token, item_begin, item_marks[-1])
                else:
                    self._read_text(BlockKind.PARAGRAPH, token, self._line_begin(token), "")
                item_begin = None
            number += 1

    def _line_begin(self, token: Token) -> int:
        return self._line_starts[token.map[0]] if token.map else 0

    def _line_end(self, token: Token) -> int:
        last = token.map[1] if token.map else 0
        return min(self._line_starts[last], len(self._source))

    def _read_heading(self, token: Token, level: int, opening: Token) -> None:
        while self._headings and self._headings[-1][0] >= level:
            self._headings.pop()
        text, runs = self._render(token, self._line_begin(token))
        self._add(BlockKind.HEADING, self._line_begin(opening), self._line_end(opening), text, runs)
        if text:
            self._headings.append((level, text))

    def _read_text(self, kind: BlockKind, token: Token, begin: int, mark: str) -> None:
        text, runs = self._render(token, self._line_begin(token))
        if mark:  # the number of an item is shown, as a browser does
            runs = [(0, begin), *((position + len(mark), source) for position, source in runs)]
            text = mark + text
        self._add(kind, begin, self._line_end(token), text, runs)

    def _read_code(self, token: Token) -> None:
        start, end = self._line_begin(token), self._line_end(token)
        lines = [Line(start + line.begin, line.text) for line in split_lines(self._source[start:end])]
        if token.type == "fence":
            lines = lines[1 : 1 + token.content.count("\n")]
        for paragraph in iterate_paragraphs(lines):
            indent = min(line.indent for line in paragraph)
            runs: Runs = []
            length = 0
            for line in paragraph:
                runs.append((length, line.begin + indent))
                length += len(line.text) - indent + 1
            text = "\n".join(line.text[indent:] for line in paragraph)
            self._add(BlockKind.CODE, paragraph[0].begin, paragraph[-1].end, text, runs)

    def _read_html(self, token: Token) -> None:
        start, end = self._line_begin(token), self._line_end(token)
        text = " ".join(_TAG.sub(" ", self._source[start:end]).split())
        self._add(BlockKind.LINE, start, end, text, [])

    def _read_table(self, tokens: Sequence[Token], number: int) -> int:
        """Add the rows of a table; return the number of its last token."""
        header: list[str] = []
        cells: list[str] = []
        row = tokens[number]
        while tokens[number].type != "table_close":
            token = tokens[number]
            if token.type == "tr_open":
                cells, row = [], token
            elif token.type == "inline":
                cells.append(self._render(token, 0)[0])
            elif token.type == "tr_close":
                begin, end = self._line_begin(row), self._line_end(row)
                is_header = tokens[number + 1].type == "thead_close"
                kind = BlockKind.TABLE_HEADER if is_header else BlockKind.TABLE_ROW
                self._add(kind, begin, end, render_row(cells, header), [], header=header)
                header = cells if is_header else header
            number += 1
        return number

    def _render(self, token: Token, begin: int) -> tuple[str, Runs]:
        """Return an inline token's text as a reader sees it, and where its characters stand in the file."""
        parts: list[str] = []
        runs: Runs = []
        length = 0
        cursor = begin

        def append(content: str, raw: str) -> None:
            nonlocal length, cursor
            found = self._source.find(raw, cursor) if raw else -1
            place = cursor if found < 0 else found
            if content:
                runs.append((length, place))
                parts.append(content)
                length += len(content)
            cursor = place + (len(raw) if found >= 0 else 0)

        links: list[bool] = []
        for child in token.children or ():
            if child.type in ("text", "code_inline"):
                append(child.content, child.content)
            elif child.type == "text_special":
                append(child.content, child.markup)
            elif child.type in ("softbreak", "hardbreak"):
                append(" ", "\n")
            elif child.type == "image":
                append(child.content, child.content)
                append("", "](")
                append("", ")")
            elif child.type == "html_inline" and _BREAK_TAG.match(child.content):
                append(" ", child.content)
            elif child.type == "link_open":
                links.append(child.info != "auto")
            elif child.type == "link_close" and links.pop() and self._source.startswith("](", cursor):
                append("", ")")
        return "".join(parts), runs

    def _add(
        self,
        kind: BlockKind,
        begin: int,
        end: int,
        text: str,
        runs: Sequence[tuple[int, int]],
        *,
        header: Sequence[str] = (),
    ) -> None:
        if not any(character.isalnum() for character in text):
            return
        while begin < end and self._source[begin].isspace():
            begin += 1
        while begin < end and self._source[end - 1].isspace():
            end -= 1
        moved = tuple((position, source + self._begin) for position, source in runs)
        path = tuple(heading for _, heading in self._headings)
        self.blocks.append(Block(kind, begin + self._begin, end + self._begin, text, moved, path, tuple(header)))
