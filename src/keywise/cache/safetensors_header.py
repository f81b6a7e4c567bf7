"""Headers of safetensors files, read with hard limits and written in one canonical form.

A file is a little-endian 64-bit word with the length of the header, the header (a JSON object), and the tensors without
holes. The format is described at https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np

PAGE_BYTES: Final = 4096
LENGTH_WORD: Final = struct.Struct("<Q")
MAX_HEADER_BYTES: Final = 100_000_000
"""Limit of the safetensors package: longer headers could not be opened by other tools."""
MAX_SIZE: Final = 2**63 - 1
"""Limit of sizes and offsets."""
MAX_DIMENSIONS: Final = 64
"""Limit of NumPy 2."""

CODES: Final = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
"""The format's code of each dtype."""

DTYPES: Final = {name: np.dtype("uint16" if name == "bfloat16" else name).newbyteorder("<") for name in CODES}
"""Element type in memory of each dtype; NumPy has no bfloat16, so its bits are stored as uint16."""

_NAMES: Final = {code: name for name, code in CODES.items()}
_METADATA: Final = "__metadata__"


class HeaderError(ValueError):
    """Report a header that cannot be used; the message is a predicate about the file."""


class InvalidHeaderError(HeaderError):
    """Report a header that contradicts the format or itself.

    Parameters
    ----------
    detail : str
        The contradiction.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(f"has an invalid header: {detail}")


class TensorEntry(NamedTuple):
    """Type, shape and place of a tensor.

    Attributes
    ----------
    dtype : str
        A key of `DTYPES`.
    shape : tuple of int
        Sizes, each 0 or more.
    begin, end : int
        Bytes from the end of the header to the first byte of the tensor, and to the byte behind the last one.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def place_tensor(dtype: str, shape: tuple[int, ...], begin: int) -> TensorEntry:
    """Return the entry of a tensor that begins at a place.

    Parameters
    ----------
    dtype : str
        A key of `DTYPES`.
    shape : tuple of int
        Sizes, each 0 or more.
    begin : int
        Bytes from the end of the header.

    Examples
    --------
    >>> place_tensor("float32", (2, 3), 64).end
    88
    """
    return TensorEntry(dtype, shape, begin, begin + prod(shape) * DTYPES[dtype].itemsize)


def encode_header(metadata: Mapping[str, str], tensors: Mapping[str, TensorEntry]) -> bytes:
    """Return length word and header, padded with spaces to whole pages.

    Parameters
    ----------
    metadata : mapping of str to str
        Written first, in this order.
    tensors : mapping of str to TensorEntry
        In order of their places, without holes between them.

    Returns
    -------
    bytes
        Its length is a multiple of 4096.

    Examples
    --------
    >>> header = encode_header({"format": "example"}, {"x": place_tensor("float32", (2, 3), 0)})
    >>> len(header), header[8:80]
    (4096, b'{"__metadata__":{"format":"example"},"x":{"dtype":"F32","shape":[2,3],"d')
    """
    entries = {
        name: {"dtype": CODES[tensor.dtype], "shape": tensor.shape, "data_offsets": (tensor.begin, tensor.end)}
        for name, tensor in tensors.items()
    }
    text = json.dumps({_METADATA: dict(metadata), **entries}, separators=(",", ":")).encode()
    padding = -(LENGTH_WORD.size + len(text)) % PAGE_BYTES
    return LENGTH_WORD.pack(len(text) + padding) + text + b" " * padding


def parse_header(text: bytes) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """Return the metadata and the tensors of a header, in order of their places.

    Nothing is allocated from the sizes in the header; they are only compared with each other.

    Parameters
    ----------
    text : bytes
        The header without its length word.

    Returns
    -------
    metadata : dict of str to str
        Empty if there is none.
    tensors : dict of str to TensorEntry
        They begin at 0 and leave no holes.

    Raises
    ------
    HeaderError
        The header is not JSON, repeats a name, or has a type, shape or place that is not allowed.

    Examples
    --------
    >>> parse_header(b'{"x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}')
    ({}, {'x': TensorEntry(dtype='float32', shape=(2, 3), begin=0, end=24)})
    """
    root = parse_json("the header", text)
    if not isinstance(root, dict):
        raise InvalidHeaderError("the header must be an object")
    metadata = parse_strings(_METADATA, root.pop(_METADATA, {}))
    tensors = {name: _parse_entry(name, entry) for name, entry in root.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    expected_begin = 0
    for name, tensor in tensors.items():
        if tensor.begin != expected_begin:
            raise InvalidHeaderError(f"tensor {name!r} must begin at byte {expected_begin}, got {tensor.begin}")
        expected_begin = tensor.end
    return metadata, tensors


def parse_json(name: str, text: bytes | str) -> Any:
    """Return the value of a JSON text without fractions, NaN and infinities.

    Parameters
    ----------
    name : str
        Name of the text, for the message.
    text : bytes or str
        UTF-8 where it is bytes.

    Raises
    ------
    HeaderError
        The text is not JSON, is nested too deeply, repeats a name in an object, or has a fraction, NaN or an infinity.

    Examples
    --------
    >>> parse_json("layers", "[null, 3]")
    [None, 3]
    """
    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=_check_unique_names,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except RecursionError:
        raise InvalidHeaderError(f"{name} is nested too deeply") from None
    except HeaderError:
        raise
    except ValueError as error:
        raise InvalidHeaderError(f"{name} must be JSON: {error}") from error


def parse_strings(name: str, value: Any) -> dict[str, str]:
    """Return a JSON object whose values are strings.

    Parameters
    ----------
    name : str
        Name of the object, for the message.
    value : object
        A parsed JSON value.

    Raises
    ------
    HeaderError
        The value is anything else.

    Examples
    --------
    >>> parse_strings("fingerprint", {"weights": "1f"})
    {'weights': '1f'}
    """
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InvalidHeaderError(f"{name} must be an object of strings")
    return value


def parse_size(name: str, value: Any) -> int:
    """Return a JSON value that is an integer between 0 and 2**63 - 1.

    Parameters
    ----------
    name : str
        Name of the value, for the message.
    value : object
        A parsed JSON value.

    Raises
    ------
    HeaderError
        The value is anything else.

    Examples
    --------
    >>> parse_size("window", 4)
    4
    """
    if not _is_size(value):
        raise InvalidHeaderError(f"{name} must be an integer between 0 and 2**63 - 1, got {value!r:.40}")
    size: int = value
    return size


def _parse_entry(name: str, entry: Any) -> TensorEntry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidHeaderError(f"tensor {name!r} must have dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _NAMES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise InvalidHeaderError(f"the dtype of tensor {name!r} must be one of {', '.join(_NAMES)}, got {code!r:.40}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise InvalidHeaderError(f"the shape of tensor {name!r} must be a list of at most {MAX_DIMENSIONS} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise InvalidHeaderError(f"the data_offsets of tensor {name!r} must be a list of two offsets")
    for number in (*shape, *offsets):
        if not _is_size(number):
            raise InvalidHeaderError(
                f"sizes and offsets of tensor {name!r} must be between 0 and 2**63 - 1, got {number!r:.40}"
            )
    # NumPy refuses an empty array whose other sizes are too large.
    if prod(size or 1 for size in shape) * DTYPES[dtype].itemsize > MAX_SIZE:
        raise InvalidHeaderError(f"tensor {name!r} must have less than 2**63 bytes")
    begin, end = offsets
    tensor = place_tensor(dtype, tuple(shape), begin)
    if tensor.end != end:
        raise InvalidHeaderError(f"tensor {name!r} must end at byte {tensor.end} according to its shape, got {end}")
    return tensor


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_SIZE


def _check_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise InvalidHeaderError("a name is repeated in an object")
    return values


def _refuse_number(text: str) -> Any:
    raise InvalidHeaderError(f"a number must be an integer, got {text:.40}")
