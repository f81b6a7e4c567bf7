"""Conversions between Arrow columns and NumPy arrays."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from keywise.errors import DtypeError, OptionError
from keywise.library.query import Query
from keywise.library.schema import KEY

Array = NDArray[Any]

ADDRESS_COLUMN: Final = "_rowaddr"


def vectors_to_arrow(vectors: Array) -> pa.FixedSizeListArray:
    """Return a contiguous array [N, D] as an Arrow array over the same memory."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def arrow_to_vectors(column: Any) -> Array:
    """Return a numeric Arrow column as an array [N, D] over the same memory.

    A column of plain numbers has D = 1.

    Raises
    ------
    DtypeError
        The column does not hold numbers.
    OptionError
        The column has nulls.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    width = 1
    if array.null_count:
        raise OptionError(
            "values", "must not have nulls", got=array.null_count, remedy='leave such rows out: where="... IS NOT NULL"'
        )
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        array = array.flatten()
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
        raise DtypeError("values", f"must be a numeric column, got a column of {array.type}")
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(-1, width)


def read_values(batch: Any, query: Query, keys: Array | None) -> Array | None:
    """Return the values [N, Dv] of rows that Lance decoded.

    Parameters
    ----------
    batch
        An Arrow batch or table with the columns of the query.
    query
        The query.
    keys
        The keys of the rows; they are the values if the query says so.

    Returns
    -------
    array [N, Dv] or None
        None for a query without values.

    Raises
    ------
    OptionError
        A value is not finite.
    """
    if query.values is None:
        return None
    if query.values == KEY:
        return keys
    values = arrow_to_vectors(batch.column(query.values)).astype(np.float64)
    if not np.isfinite(values).all():
        raise OptionError(
            "values",
            f"must be a column of finite numbers, got NaN or infinity in {query.values!r}",
            remedy="leave such rows out with `where`",
        )
    return values


def read_addresses(batch: Any) -> Array:
    """Return the addresses of rows that Lance decoded, as int64."""
    return np.asarray(batch.column(ADDRESS_COLUMN).to_numpy(), dtype=np.int64)
