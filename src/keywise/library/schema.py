"""The columns of a library, what its schema says of the keys, and checks of keys and queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from keywise.errors import DtypeError, FormatError, ModelError, OptionError, ShapeError

if TYPE_CHECKING:
    from keywise.library.encoder import Encoder

KEY: Final = "key"
WEIGHT: Final = "weight"
DTYPES: Final = ("float16", "float32")

ENCODER_NAME: Final = b"keywise.encoder"
ENCODER_FINGERPRINT: Final = b"keywise.encoder.fingerprint"

# Keys as they are, one after the other: such a file can be mapped, and attended to without a copy.
_PLAIN: Final = {b"lance-encoding:compression": b"none", b"lance-encoding:structural-encoding": b"fullzip"}

SENTENCE_COLUMNS: Final = (
    pa.field("text", pa.string(), nullable=False),
    pa.field("gap", pa.string(), nullable=False),  # what stands between the sentence before and this one
    pa.field("document", pa.string(), nullable=False),
    pa.field("sentence", pa.int32(), nullable=False),
    pa.field("paragraph", pa.int32(), nullable=False),
    pa.field("start", pa.int64(), nullable=False),
    pa.field("end", pa.int64(), nullable=False),
    pa.field("hash", pa.string(), nullable=False),
)
"""What a row of a document has besides its key."""


def make_schema(dimension: int, dtype: str, columns: Any, *, name: str = "", fingerprint: str = "") -> pa.Schema:
    """Give the schema of a library; `name` and `fingerprint` are those of the encoder, empty for keys of the user's."""
    key = pa.field(KEY, pa.list_(_ARROW[checked_dtype(dtype)], dimension), nullable=False, metadata=_PLAIN)
    metadata = {ENCODER_NAME: name.encode(), ENCODER_FINGERPRINT: fingerprint.encode()}
    return pa.schema([key, *columns], metadata=metadata)


_ARROW = {"float16": pa.float16(), "float32": pa.float32()}


def checked_dtype(dtype: str) -> str:
    """Give the dtype if keys can have it."""
    if dtype not in DTYPES:
        raise DtypeError(f"dtype={dtype!r}: keys are kept as {' or '.join(DTYPES)}")
    return dtype


def key_type(schema: pa.Schema, path: str) -> tuple[int, str]:
    """Give the dimension and the dtype of a library's keys.

    Raises
    ------
    FormatError
        When the dataset has no key column as a library has it.
    """
    try:
        kind = schema.field(KEY).type
        dtype = {pa.float16(): "float16", pa.float32(): "float32"}[kind.value_type]
        return int(kind.list_size), dtype
    except (KeyError, AttributeError) as error:
        raise FormatError(
            f"{path!r} is a Lance dataset, but no library: it has no column {KEY!r} of float16 or float32 lists of one "
            "length; choose another path"
        ) from error


def columns_of(schema: pa.Schema) -> list[str]:
    """Name a library's columns besides the keys."""
    return [name for name in schema.names if name != KEY]


def made_by(schema: pa.Schema) -> tuple[str, str]:
    """Give the name and the fingerprint of the encoder of a library; empty where its keys are the user's."""
    said: Mapping[bytes, bytes] = schema.metadata or {}
    return said.get(ENCODER_NAME, b"").decode(), said.get(ENCODER_FINGERPRINT, b"").decode()


def check_made_by(encoder: Encoder, schema: pa.Schema, path: str) -> None:
    """Refuse any encoder but the one that made a library's keys.

    Raises
    ------
    ModelError
        When it is another, or the keys are the user's.
    """
    name, fingerprint = made_by(schema)
    if not fingerprint:
        raise ModelError(f"encoder={encoder.name!r}: the keys of {path!r} are the user's, made by no encoder")
    if encoder.fingerprint != fingerprint:
        raise ModelError(
            f"the keys of {path!r} were made by encoder {name!r} (fingerprint {fingerprint[:12]}), not by "
            f"{encoder.name!r} (fingerprint {encoder.fingerprint[:12]}); open it with encoder={name!r}, or make a "
            "library of its own"
        )


def checked_numbers(name: str, numbers: Any, dimension: int | None, dtype: str) -> NDArray[Any]:
    """Give keys or queries [N, D] as a contiguous array of `dtype`.

    Raises
    ------
    DtypeError, ShapeError, OptionError
        When they are no numbers, of another dimension, or not finite in `dtype`.
    """
    given = np.asarray(numbers)
    if given.dtype.kind not in "fiu":
        raise DtypeError(f"{name} has dtype {given.dtype}; give an array of floats")
    if given.ndim != 2 or given.shape[1] == 0 or dimension not in {None, given.shape[1]}:
        wanted = "D" if dimension is None else dimension
        raise ShapeError(f"{name} has shape {list(given.shape)}; it needs one row per {name[:-1]}: [N, {wanted}]")
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(given, dtype)
    wrong = np.flatnonzero(~np.isfinite(rounded).all(axis=1))
    if wrong.size:
        raise OptionError(
            f"{name} row {wrong[0]} holds NaN, infinity or more than {dtype} can hold "
            f"({wrong.size} such rows); leave such rows out"
        )
    return rounded


def key_array(keys: NDArray[Any]) -> pa.FixedSizeListArray:
    """Give keys [N, D] as an Arrow array over the same memory."""
    return pa.FixedSizeListArray.from_arrays(pa.array(keys.reshape(-1)), keys.shape[1])


def numbers_of(column: Any) -> NDArray[Any]:
    """Give an Arrow column of lists of one length as an array [N, D] over the same memory, a plain one as [N, 1].

    Raises
    ------
    DtypeError
        When the column holds no numbers.
    OptionError
        When it has nulls.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    width = 1
    if array.null_count:
        raise OptionError('values holds nulls; leave such rows out with where="... IS NOT NULL"')
    if pa.types.is_fixed_size_list(array.type):
        width, array = array.type.list_size, array.flatten()
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
        raise DtypeError(f"values is a column of {array.type}; name a numeric column")
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(-1, width)
