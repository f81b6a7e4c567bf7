"""Blocks of an XLSX file: a row is a block, with the names of its columns; hidden sheets and rows are left out."""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator, Sequence
from typing import Any, Final

from keywise.documents.blocks import BlockBuilder, BlockKind
from keywise.documents.extract.extracted import Extracted
from keywise.documents.extract.packages import check_package
from keywise.documents.extract.tables import has_header

JUDGED_ROWS: Final = 20
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
    for number, sheet in enumerate(workbook.worksheets, start=1):
        if sheet.sheet_state != "visible":
            continue
        builder.add_heading(sheet.title, level=1, page=number)
        for rows in _iterate_tables(sheet):
            _add_table(builder, rows, number)
    formulas = load_workbook(io.BytesIO(content), data_only=False)
    for sheet in formulas.worksheets:
        values = workbook[sheet.title]
        without_values += sum(
            1
            for row in sheet.iter_rows()
            for cell in row
            if cell.data_type == "f" and values.cell(cell.row, cell.column).value is None
        )
    warning = f"{without_values} formulas without a stored value: open the file in a spreadsheet and save it"
    return Extracted(builder.text, tuple(builder.blocks), (warning,) if without_values else ())


def _iterate_tables(sheet: Any) -> Iterator[list[list[Any]]]:
    """Yield the rows between empty rows, as cells."""
    hidden_columns = _find_hidden_columns(sheet)
    table: list[list[Any]] = []
    for row in sheet.iter_rows():
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


def _add_table(builder: BlockBuilder, table: Sequence[Sequence[Any]], page: int) -> None:
    rows = [[_to_text(cell) for cell in cells] for cells in table]
    first = 0
    # Titles and notes above the table have one cell each.
    while first < len(rows) and sum(map(bool, rows[first])) == 1:
        builder.add(BlockKind.PARAGRAPH, " ".join(rows[first]), page=page)
        first += 1
    rows = rows[first:]
    if not rows:
        return
    is_bold = all(cell.font.b for cell in table[first] if _to_text(cell))
    columns = sum(any(row[number] for row in rows) for number in range(len(rows[0])))
    builder.add_table(rows, has_header=is_bold or (columns > 2 and has_header(rows[:JUDGED_ROWS])), page=page)


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
        is_share = "%" in str(cell.number_format)
        return f"{value * 100:.{SIGNIFICANT_DIGITS}g} %" if is_share else f"{value:.{SIGNIFICANT_DIGITS}g}"
    return " ".join(str(value).split())
