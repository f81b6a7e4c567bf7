"""Blocks of files with values: CSV and TSV, a block per record. Spans point into the file."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Final

from keywise.documents.blocks import Block, BlockKind, render_row

DELIMITERS: Final = ",;\t|"
JUDGED_ROWS: Final = 20
MIN_PAIRS: Final = 2
_SAMPLE_CHARACTERS: Final = 10_000
_NUMBER: Final = re.compile(r"[-+−]?[\d.,'\s]*\d[\d.,]*\s*[%€$£]?")
_MAX_FIELD_CHARACTERS: Final = 10**7


def find_blocks(text: str) -> tuple[Block, ...]:
    r"""Return the rows of a CSV or TSV file, with the names of their columns.

    Parameters
    ----------
    text
        The file.

    Examples
    --------
    >>> [block.text for block in find_blocks("region,sales\nNorth,\"2,100\"\n")]
    ['region; sales', 'region: North; sales: 2,100']
    """
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    delimiter = find_delimiter(text)
    records = [record for record in _iterate_records(text, delimiter) if any(cell.strip() for cell in record[2])]
    header = records[0][2] if has_header([cells for _, _, cells in records[:20]]) else []
    blocks = []
    for number, (begin, end, cells) in enumerate(records):
        is_header = number == 0 and bool(header)
        kind = BlockKind.TABLE_HEADER if is_header else BlockKind.TABLE_ROW
        names = [] if is_header else header
        text_of_row = render_row(cells, names)
        if any(character.isalnum() for character in text_of_row):
            blocks.append(Block(kind, begin, end, text_of_row, (), (), tuple(names)))
    return tuple(blocks)


def find_delimiter(text: str) -> str:
    r"""Return the character that separates the cells of a CSV file.

    It is the one that stands as often in most lines, and the most often.

    Examples
    --------
    >>> find_delimiter("a;b\n1,5;2\n"), find_delimiter("one\ntwo")
    (';', ',')
    """
    lines = [re.sub(r'"[^"]*"', "", line) for line in text[:_SAMPLE_CHARACTERS].splitlines() if line.strip()]
    best, best_score = ",", 0.0
    for delimiter in DELIMITERS:
        counts = [line.count(delimiter) for line in lines]
        common = max(set(counts), key=counts.count, default=0)
        score = common * counts.count(common) / max(len(counts), 1)
        if score > best_score:
            best, best_score = delimiter, score
    return best


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row names the columns: it has no numbers, or is all text above numbers.

    Parameters
    ----------
    rows
        The first rows of a table.

    Examples
    --------
    >>> has_header([["region", "sales"], ["North", "2,100"]]), has_header([["1", "2"], ["3", "4"]])
    (True, False)
    """
    if len(rows) < 2 or len(rows[0]) < 1:
        return False
    first = [cell.strip() for cell in rows[0]]
    names = [cell for cell in first if cell]
    numbers = [cell for cell in names if _NUMBER.fullmatch(cell)]
    # Years may name columns; the first column of a header is a name or empty.
    below_are_numbers = any(_NUMBER.fullmatch(cell.strip()) for row in rows[1:] for cell in row)
    return (
        bool(names)
        and len(set(names)) == len(names)
        and (not numbers or (below_are_numbers and first[0] not in numbers))
    )


def names_columns(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row of a table without marks names the columns.

    The rows of a table of two columns may be names and values. Its first row is a header only if it alone has no number
    in the second column.

    Parameters
    ----------
    rows
        The rows of a table.

    Examples
    --------
    >>> sales, form = [["Month", "Sales"], ["May", "10"], ["June", "12"]], [["Town", "Hull"], ["Fee", "7"]]
    >>> names_columns(sales), names_columns(form)
    (True, False)
    """
    rows = rows[:JUDGED_ROWS]
    width = max((sum(map(bool, row)) for row in rows), default=0)
    if width > 2:
        return has_header(rows)
    pairs = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return (
        len(rows) > MIN_PAIRS
        and all(len(pair) == 2 for pair in pairs)
        and not any(map(_NUMBER.fullmatch, pairs[0]))
        and all(_NUMBER.fullmatch(pair[1]) for pair in pairs[1:])
    )


def _iterate_records(text: str, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield the span and the cells of each record; a quoted cell may have line ends."""
    begin = 1 if text.startswith("\ufeff") else 0
    line_ends = [begin]
    for line in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n|\Z)", text[begin:]):
        if line.group():
            line_ends.append(begin + line.end())
    lines = (text[start:end] for start, end in itertools.pairwise(line_ends))
    reader = csv.reader(lines, delimiter=delimiter)
    first_line = 0
    for cells in reader:
        start, end = line_ends[first_line], line_ends[reader.line_num]
        first_line = reader.line_num
        raw = text[start:end]
        yield start + len(raw) - len(raw.lstrip()), start + len(raw.rstrip()), cells
