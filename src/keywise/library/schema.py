"""The columns of a library, the metadata in its schema, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from keywise.errors import DtypeError, FormatError, ModelError, OptionError, ShapeError

if TYPE_CHECKING:
    from keywise.models.sentence_encoder import Encoder

FORMAT_VERSION: Final = 2
"""Changes whenever columns or metadata change; other versions are refused."""

FORMAT_VERSION_FIELD: Final = b"keywise.library.format_version"
ENCODER_NAME_FIELD: Final = b"keywise.library.encoder"
ENCODER_FINGERPRINT_FIELD: Final = b"keywise.library.encoder_fingerprint"

_EARLIER_ENCODER_FIELD: Final = b"keywise.encoder"
"""A field of libraries of the builds that wrote no format version."""

KEY: Final = "key"
WEIGHT: Final = "weight"

_ARROW_DTYPES: Final = {"float16": pa.float16(), "float32": pa.float32()}

# Uncompressed keys, one after the other: such a file can be mapped and attended to without a copy.
_PLAIN_ENCODING: Final = {b"lance-encoding:compression": b"none", b"lance-encoding:structural-encoding": b"fullzip"}

TEXT: Final = "text"
HEADING_PATH: Final = "heading_path"

SENTENCE_COLUMNS: Final = (
    pa.field(TEXT, pa.string(), nullable=False),  # what a reader sees: no marks, a table row with its header
    pa.field("source_text", pa.string()),  # as it stands in the document; null if that is the same
    pa.field("gap", pa.string(), nullable=False),  # the document's text between the previous sentence and this one
    pa.field("kind", pa.string(), nullable=False),
    pa.field(HEADING_PATH, pa.list_(pa.string()), nullable=False),
    pa.field("document", pa.string(), nullable=False),
    pa.field("sentence", pa.int32(), nullable=False),
    pa.field("paragraph", pa.int32(), nullable=False),
    pa.field("start", pa.int64(), nullable=False),
    pa.field("end", pa.int64(), nullable=False),
    pa.field("hash", pa.string(), nullable=False),
)
"""Columns of a sentence besides its key."""


@dataclass(frozen=True)
class KeyFormat:
    """Dimension and dtype of a library's keys."""

    dimension: int
    dtype: str


@dataclass(frozen=True)
class EncoderId:
    """Name and fingerprint of the encoder that made a library's keys."""

    name: str
    fingerprint: str


def make_schema(keys: KeyFormat, columns: Sequence[pa.Field], encoder: EncoderId | None = None) -> pa.Schema:
    """Return the schema of a library.

    Parameters
    ----------
    keys
        Dimension and dtype of the keys.
    columns
        The other columns.
    encoder
        The encoder that makes the keys; None for keys of the user's own.
    """
    key_type = pa.list_(_ARROW_DTYPES[keys.dtype], keys.dimension)
    key = pa.field(KEY, key_type, nullable=False, metadata=_PLAIN_ENCODING)
    metadata = {FORMAT_VERSION_FIELD: str(FORMAT_VERSION).encode()}
    if encoder is not None:
        metadata[ENCODER_NAME_FIELD] = encoder.name.encode()
        metadata[ENCODER_FINGERPRINT_FIELD] = encoder.fingerprint.encode()
    return pa.schema([key, *columns], metadata=metadata)


def check_schema(schema: pa.Schema, path: str) -> None:
    """Raise an error unless a schema is that of a library.

    Raises
    ------
    FormatError
        The dataset is not a library, or another build made it.
    """
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    version = metadata.get(FORMAT_VERSION_FIELD)
    is_earlier = version is not None and version.isdigit() and int(version[:9]) < FORMAT_VERSION
    if is_earlier or (version is None and _EARLIER_ENCODER_FIELD in metadata):
        raise FormatError(
            "path", f"{path!r} was made by an earlier build of keywise", remedy="delete it or create it again"
        )
    if version is None:
        raise FormatError("path", "must be a library", got=path, remedy="it is another Lance dataset; use another path")
    if version != str(FORMAT_VERSION).encode():
        raise FormatError(
            "path",
            f"must be a library of format version {FORMAT_VERSION}, got version {version.decode(errors='replace')}",
            remedy=f"another build of keywise made {path!r}; delete it or create it again",
        )
    key_type = schema.field(KEY).type if KEY in schema.names else pa.null()
    is_list = pa.types.is_fixed_size_list(key_type) and key_type.list_size > 0
    if not is_list or key_type.value_type not in _ARROW_DTYPES.values():
        raise FormatError("path", f"must be a library with a column {KEY!r} of float16 or float32 lists", got=path)
    try:
        encoder = read_encoder_id(schema)
    except (KeyError, UnicodeDecodeError) as error:
        raise FormatError("path", "must be a library whose encoder has a name in UTF-8", got=path) from error
    if encoder is not None:
        for column in SENTENCE_COLUMNS:
            if column.name not in schema.names or schema.field(column.name).type != column.type:
                rule = f"must be a library of sentences with a column {column.name!r} of type {column.type}"
                raise FormatError("path", rule, got=path)


def read_key_format(schema: pa.Schema) -> KeyFormat:
    """Return the dimension and dtype of a library's keys."""
    key_type = schema.field(KEY).type
    dtype = next(name for name, arrow_dtype in _ARROW_DTYPES.items() if arrow_dtype == key_type.value_type)
    return KeyFormat(int(key_type.list_size), dtype)


def list_columns(schema: pa.Schema) -> list[str]:
    """Return the names of a library's columns besides the key."""
    return [name for name in schema.names if name != KEY]


def read_encoder_id(schema: pa.Schema) -> EncoderId | None:
    """Return the encoder that made a library's keys; None for user keys."""
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    if ENCODER_FINGERPRINT_FIELD not in metadata:
        return None
    return EncoderId(metadata[ENCODER_NAME_FIELD].decode(), metadata[ENCODER_FINGERPRINT_FIELD].decode())


def check_encoder(encoder: Encoder, schema: pa.Schema, path: str) -> None:
    """Raise an error unless an encoder is the one that made a library's keys.

    Raises
    ------
    ModelError
        The keys were made by another encoder, or by none.
    """
    expected = read_encoder_id(schema)
    if expected is None:
        raise ModelError(
            "encoder",
            "must be None",
            got=encoder.name,
            remedy=f"the keys of {path!r} were made by no encoder but added with `add_keys`",
        )
    if encoder.fingerprint != expected.fingerprint:
        raise ModelError(
            "encoder",
            f"must be {expected.name!r} (fingerprint {expected.fingerprint[:12]}), which made the keys of {path!r}, "
            f"got {encoder.name!r} (fingerprint {encoder.fingerprint[:12]})",
            remedy="open the library with its own encoder, or create another library",
        )


def check_dtype(dtype: str) -> str:
    """Return a dtype of keys, or raise.

    Raises
    ------
    DtypeError
        Keys cannot have this dtype.
    """
    if dtype not in _ARROW_DTYPES:
        raise DtypeError("dtype", f"must be {' or '.join(_ARROW_DTYPES)}", got=dtype)
    return dtype


def check_vectors(name: str, vectors: Any, dimension: int | None, dtype: str) -> NDArray[Any]:
    """Return keys or queries as a contiguous array of a dtype, or raise.

    Parameters
    ----------
    name
        The argument's name.
    vectors : [N, D]
        Its value.
    dimension
        The D it must have; None for any.
    dtype
        The dtype to round to.

    Returns
    -------
    array [N, D]
        All numbers are finite.

    Raises
    ------
    DtypeError
        The value does not consist of numbers.
    ShapeError
        Its shape is another.
    OptionError
        A number is not finite in `dtype`.
    """
    array = np.asarray(vectors)
    if array.dtype.kind not in "fiu":
        raise DtypeError(name, "must be an array of numbers", got=array.dtype)
    if array.ndim != 2 or array.shape[1] == 0 or dimension not in {None, array.shape[1]}:
        width = "D" if dimension is None else dimension
        raise ShapeError(name, f"must have shape [N, {width}]", got=list(array.shape))
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(array, dtype)
    finite = np.isfinite(rounded)
    bad_rows = np.flatnonzero(~finite.all(axis=1))
    if bad_rows.size:
        row = bad_rows[0]
        value = array[row][~finite[row]][0]
        raise OptionError(
            name,
            f"must be finite in {dtype}, got {value} in row {row} ({bad_rows.size} such rows)",
            remedy="leave such rows out",
        )
    return rounded
