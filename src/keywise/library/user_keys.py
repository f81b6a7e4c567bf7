"""Rows made of keys and columns of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.library.arrow_arrays import Array, vectors_to_arrow
from keywise.library.dataset import open_dataset
from keywise.library.schema import KEY, WEIGHT, KeyFormat, check_vectors, list_columns, make_schema, read_key_format
from keywise.library.transactions import commit_fragments, create_dataset, write_rows


def add_rows(path: str, dataset: Any, keys: Any, columns: Mapping[str, Any], dtype: str) -> None:
    """Check keys and columns, and add them to a library in one commit.

    Parameters
    ----------
    path
        The library.
    dataset
        Its Lance dataset; None to create it.
    keys : [N, D]
        The keys.
    columns
        Numbers, texts or rows of numbers, by the name of the column.
    dtype
        Dtype of the keys of a new library.

    Raises
    ------
    ShapeError, DtypeError, OptionError
        Keys or columns cannot be stored, or do not fit the library.
    """
    key_format = None if dataset is None else read_key_format(dataset.schema)
    if key_format is None:
        vectors = check_vectors("keys", keys, None, dtype)
    else:
        vectors = check_vectors("keys", keys, key_format.dimension, key_format.dtype)
    arrays = make_columns(columns, len(vectors))
    if dataset is None:
        fields = [pa.field(name, array.type) for name, array in arrays.items()]
        create_dataset(path, make_schema(KeyFormat(vectors.shape[1], dtype), fields))
        dataset = open_dataset(path)
    rows = make_rows(vectors, arrays, dataset.schema)
    commit_fragments(path, write_rows(path, dataset.schema, [rows]), [])


def make_columns(columns: Mapping[str, Any], row_count: int) -> dict[str, Any]:
    """Return columns as Arrow arrays.

    Parameters
    ----------
    columns
        Numbers, texts or rows of numbers, by the name of the column.
    row_count
        The length that each column must have.

    Raises
    ------
    ShapeError
        A column has another length.
    DtypeError
        A column holds something else.
    OptionError
        A name is reserved.
    """
    return {name: _make_column(name, values, row_count) for name, values in columns.items()}


def make_rows(keys: Array, columns: Mapping[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    """Return keys and Arrow columns as rows of a library.

    Raises
    ------
    OptionError
        The library has other columns.
    DtypeError
        A column has another type in the library.
    """
    if set(columns) != set(list_columns(schema)):
        raise OptionError("columns", f"must be {sorted(list_columns(schema))}", got=sorted(columns))
    try:
        arrays = [vectors_to_arrow(keys)]
        arrays += [columns[name].cast(schema.field(name).type) for name in list_columns(schema)]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DtypeError("columns", "must have the types of the library's columns", remedy=str(error)) from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _make_column(name: str, values: Any, row_count: int) -> Any:
    if name in {KEY, WEIGHT}:
        raise OptionError("columns", f"must not be called {KEY!r} or {WEIGHT!r}", got=name)
    array = np.asarray(values)
    if array.ndim == 2 and array.dtype.kind in "fiu" and len(array) == row_count:
        return vectors_to_arrow(np.ascontiguousarray(array))
    is_plain = array.ndim == 1 and array.dtype.kind in "fiub"
    try:
        column = pa.array(array if is_plain else values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DtypeError(
            "columns", f"must hold numbers or texts, one per key; column {name!r} does not", remedy=str(error)
        ) from error
    if len(column) != row_count:
        raise ShapeError("columns", f"must have one entry per key: {row_count}, got {len(column)} in column {name!r}")
    # Lance ends the process when one of its own messages has a null character, as that of a failed cast does.
    if pa.types.is_string(column.type) and pc.any(pc.match_substring(column, "\0")).as_py():
        raise OptionError("columns", f"must not have null characters; column {name!r} has one")
    return column
