"""Keys and columns of the user's own become rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.library.part import Array
from keywise.library.schema import KEY, WEIGHT, columns_of, key_array


def arrow_columns(columns: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Give columns as Arrow arrays.

    Raises
    ------
    ShapeError, DtypeError, OptionError
        When one has not an entry per row, holds what cannot be kept, or has a name that is taken.
    """
    return {name: _column(name, values, rows) for name, values in columns.items()}


def rows_of(keys: Array, columns: Mapping[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    """Give keys and columns as rows of a library.

    Raises
    ------
    OptionError, DtypeError
        When the columns are not the library's.
    """
    if set(columns) != set(columns_of(schema)):
        raise OptionError(f"columns {sorted(columns)} are not the library's, {sorted(columns_of(schema))}; give these")
    try:
        given = [key_array(keys), *(columns[name].cast(schema.field(name).type) for name in schema.names[1:])]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DtypeError(f"columns do not have the types of the library's: {error}") from error
    return pa.RecordBatch.from_arrays(given, schema=schema)


def _column(name: str, values: Any, rows: int) -> Any:
    if name in {KEY, WEIGHT}:
        raise OptionError(f"a column cannot be called {name!r}; choose another name")
    array = np.asarray(values)
    if array.ndim == 2 and array.dtype.kind in "fiu" and len(array) == rows:
        return key_array(np.ascontiguousarray(array))
    try:
        column = pa.array(values) if array.ndim != 1 or array.dtype.kind not in "fiub" else pa.array(array)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DtypeError(f"column {name!r} cannot be kept: {error}; give numbers or texts, one per key") from error
    if len(column) != rows:
        raise ShapeError(f"column {name!r} has {len(column)} entries; it needs one per key: {rows}")
    return column
