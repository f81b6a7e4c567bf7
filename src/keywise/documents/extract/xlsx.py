"""Blocks of an XLSX file: a row is a block, with the names of its columns; hidden sheets and rows are left out."""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator, Sequence
from typing import Any, Final

from keywise.documents.blocks import BlockBuilder, BlockKind, render_row
from keywise.documents.extract.extracted import Extracted
from keywise.documents.extract.packages import check_package
from keywise.documents.extract.tables import names_columns

MAX_NAME_ROWS: Final = 3
MIN_NAMES: Final = 3
MAX_EXACT: Final = 10**16
SIGNIFICANT_DIGITS: Final = 12


def extract(content: bytes) -> Extracted:
    """Return the text and blocks of an XLSX file.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    UnreadableFileError
        It is encrypted, or of an older format.
    """
    from openpyxl import load_workbook  # noqa: PLC0415 - optional

    check_package(content)
    builder = BlockBuilder()
    without_values = 0
    # Values as they were when the file was saved; formulas are not computed here.
    workbook = load_workbook(io.BytesIO(content), data_only=True)
    formulas = load_workbook(io.BytesIO(content), data_only=False)
    for number, sheet in enumerate(workbook.worksheets, start=1):
        without_values += _count_missing_values(formulas[sheet.title], sheet)
        if sheet.sheet_state != "visible":
            continue
        builder.add_heading(sheet.title, level=1, page=number)
        names: list[str] = []
        for rows in _iterate_tables(sheet):
            names = _add_table(builder, rows, names, number)
    warning = f"{without_values} formulas without a stored value: open the file in a spreadsheet and save it"
    return Extracted(builder.text, tuple(builder.blocks), (warning,) if without_values else ())


def _find_extent(sheet: Any) -> tuple[int, int]:
    """Return the last row and the last column with a value; formats alone reach much further."""
    filled = [place for place, cell in sheet._cells.items() if cell.value is not None]
    return max((row for row, _ in filled), default=1), max((column for _, column in filled), default=1)


def _count_missing_values(formulas: Any, values: Any) -> int:
    return sum(
        1
        for place, cell in formulas._cells.items()
        if cell.data_type == "f" and (place not in values._cells or values._cells[place].value is None)
    )


def _iterate_tables(sheet: Any) -> Iterator[list[list[Any]]]:
    """Yield the rows between empty rows, as cells."""
    hidden_columns = _find_hidden_columns(sheet)
    table: list[list[Any]] = []
    last_row, last_column = _find_extent(sheet)
    for row in sheet.iter_rows(max_row=last_row, max_col=last_column):
        if row and sheet.row_dimensions[row[0].row].hidden:
            continue
        cells = [cell for cell in row if cell.column not in hidden_columns]
        if any(_to_text(cell) for cell in cells):
            table.append(cells)
        elif table:
            yield table
            table = []
    if table:
        yield table


def _find_hidden_columns(sheet: Any) -> frozenset[int]:
    hidden: set[int] = set()
    for dimension in sheet.column_dimensions.values():
        if dimension.hidden and dimension.min is not None and dimension.max is not None:
            hidden.update(range(dimension.min, min(dimension.max, sheet.max_column) + 1))
    return frozenset(hidden)


def _add_table(
    builder: BlockBuilder, table: Sequence[Sequence[Any]], names_above: Sequence[str], page: int
) -> list[str]:
    """Append a table; return the names of columns if it consists of these alone, for the table below it."""
    rows = [[_to_text(cell) for cell in cells] for cells in table]
    first = 0
    # Titles and notes above the table have one cell each.
    while first < len(rows) and sum(map(bool, rows[first])) == 1:
        builder.add(BlockKind.PARAGRAPH, " ".join(rows[first]), page=page)
        first += 1
    rows = rows[first:]
    if not rows:
        return []
    filled = [cell for cell in table[first] if _to_text(cell)]
    if names_above and not first and any(_is_number(cell) for cell in filled):
        for row in rows:
            builder.add(BlockKind.TABLE_ROW, render_row(row, names_above), table_header=names_above, page=page)
        return []
    if names := _join_names(table[first:], rows):
        builder.add(BlockKind.TABLE_HEADER, render_row(names, ()), page=page)
        return names
    has_names = all(cell.font.b for cell in filled) and not any(_is_number(cell) for cell in filled)
    builder.add_table(rows, has_header=has_names or names_columns(rows), page=page)
    return []


def _join_names(table: Sequence[Sequence[Any]], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the names of columns in a few rows without numbers, those below each other joined; or nothing."""
    is_header = (
        len(rows) <= MAX_NAME_ROWS
        and sum(map(bool, rows[-1])) >= MIN_NAMES
        and not any(_is_number(cell) for cells in table for cell in cells)
    )
    return [" ".join(filter(None, column)) for column in zip(*rows, strict=True)] if is_header else []


def _is_number(cell: Any) -> bool:
    return isinstance(cell.value, int | float) and not isinstance(cell.value, bool)


def _to_text(cell: Any) -> str:
    """Return the value of a cell as text, dates by ISO 8601."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ", "minutes")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int):
        return _format_number(value, is_share="%" in str(cell.number_format))
    return " ".join(str(value).split())


def _format_number(value: float, *, is_share: bool) -> str:
    if is_share:
        return f"{value * 100:.{SIGNIFICANT_DIGITS}g} %"
    # Long numbers of accounts and goods keep their digits.
    return str(int(value)) if abs(value) < MAX_EXACT and value == int(value) else f"{value:.{SIGNIFICANT_DIGITS}g}"
