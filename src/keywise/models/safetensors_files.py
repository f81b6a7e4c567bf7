"""Headers of a model's safetensors files, checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from keywise.cache.safetensors_header import (
    LENGTH_WORD,
    MAX_HEADER_BYTES,
    MAX_SIZE,
    HeaderError,
    parse_json,
    parse_strings,
)

_BITS: Final = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of an element of each dtype of the format."""

MAX_DIMENSIONS: Final = 16
_METADATA = "__metadata__"


class ModelFileError(ValueError):
    """Report a file of a model that is damaged or must not be read; the message is a sentence about the model."""


@dataclass(frozen=True)
class HeaderSummary:
    """What safetensors files hold.

    Attributes
    ----------
    dtypes
        The code of each tensor's dtype, by the tensor's name.
    elements
        Number of elements of all tensors.
    largest_size
        The largest size of any dimension.
    """

    dtypes: Mapping[str, str]
    elements: int
    largest_size: int

    @property
    def tensors(self) -> int:
        """Number of tensors."""
        return len(self.dtypes)


def summarise_headers(files: Mapping[str, Path]) -> HeaderSummary:
    """Check the headers of safetensors files and return what they hold.

    Parameters
    ----------
    files : mapping of str to pathlib.Path
        The files, by the names for messages.

    Raises
    ------
    ModelFileError
        A file is no safetensors file or is cut short, repeats a name, has a tensor whose size contradicts its shape, or
        has tensors that overlap or leave a hole.
    OSError
        A file cannot be read.
    """
    dtypes: dict[str, str] = {}
    elements = largest_size = 0
    for file_name, path in files.items():
        try:
            tensors = read_header(path)
        except HeaderError as error:
            raise ModelFileError(f"{file_name} {error}") from error
        for name, (dtype, shape) in tensors.items():
            dtypes[name] = dtype
            elements += prod(shape)
            largest_size = max(largest_size, *shape, 0)
    return HeaderSummary(dtypes, elements, largest_size)


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype and the shape of each tensor of a safetensors file.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Raises
    ------
    HeaderError
        The header is damaged, or does not fit the file's size.
    OSError
        The file cannot be read.
    """
    with path.open("rb") as file:
        file_bytes = file.seek(0, 2)
        file.seek(0)
        word = file.read(LENGTH_WORD.size)
        if len(word) < LENGTH_WORD.size:
            raise HeaderError("is too short for a safetensors file")
        (header_bytes,) = LENGTH_WORD.unpack(word)
        payload_bytes = file_bytes - LENGTH_WORD.size - header_bytes
        if header_bytes > MAX_HEADER_BYTES or payload_bytes < 0:
            raise HeaderError(f"is no safetensors file, or is cut short: its header must have {header_bytes:,} bytes")
        header = parse_json("the header", file.read(header_bytes))
    if not isinstance(header, dict):
        raise HeaderError("has a header that is no object")
    parse_strings(_METADATA, header.pop(_METADATA, {}))
    entries = {name: _parse_entry(name, entry) for name, entry in header.items()}
    expected_begin = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != expected_begin:
            raise HeaderError(f"has a tensor {name!r:.80} that must begin at byte {expected_begin}, got {begin}")
        expected_begin = end
    if expected_begin != payload_bytes:
        raise HeaderError(f"must have {expected_begin:,} bytes of tensors, got {payload_bytes:,}")
    return {name: (dtype, shape) for name, (dtype, shape, _, _) in entries.items()}


def _parse_entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"has a tensor {name!r:.80} without dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise HeaderError(f"has a tensor {name!r:.80} of the unknown dtype {dtype!r:.40}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not isinstance(offsets, list) or len(offsets) != 2:
        raise HeaderError(f"has a tensor {name!r:.80} with a damaged shape or place")
    if not all(type(number) is int and 0 <= number <= MAX_SIZE for number in (*shape, *offsets)):
        raise HeaderError(f"has a tensor {name!r:.80} with sizes or offsets that are out of bounds")
    begin, end = offsets
    if prod(shape) * _BITS[dtype] != 8 * (end - begin):
        raise HeaderError(f"has a tensor {name!r:.80} whose shape contradicts its {end - begin:,} bytes")
    return dtype, tuple(shape), begin, end
