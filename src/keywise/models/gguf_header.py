"""Headers of GGUF files, checked before anything is allocated.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import IO, Any, Final

from keywise.models.safetensors_files import HeaderSummary, ModelFileError

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_ENTRIES: Final = 1 << 16
MAX_ELEMENTS: Final = 1 << 21
MAX_NAME_BYTES: Final = 1 << 10
MAX_STRING_BYTES: Final = 1 << 20
MAX_DIMENSIONS: Final = 4
MAX_ALIGNMENT: Final = 1 << 16
DEFAULT_ALIGNMENT: Final = 32

_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_WORD = struct.Struct("<I")
_LONG = struct.Struct("<Q")
_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")
_SUFFIX = re.compile(r"\.(weight|bias|scale|beta|scales|input_scale)$")


@dataclass(frozen=True)
class GgufTensor:
    """The place of a tensor in a GGUF file.

    Attributes
    ----------
    name
        Its name.
    block_format
        Name of GGML's type.
    shape
        Its shape, rows first.
    begin_bytes, size_bytes
        Its place in the file.
    part
        Number of the file, 0 for the first; see `keywise.models.gguf_parts`.
    """

    name: str
    block_format: str
    shape: tuple[int, ...]
    begin_bytes: int
    size_bytes: int
    part: int = 0


@dataclass(frozen=True)
class GgufSummary(HeaderSummary):
    """What a GGUF file holds.

    Attributes
    ----------
    architecture
        The model's architecture, as llama.cpp names it.
    places
        The place of each tensor.
    """

    architecture: str
    places: tuple[GgufTensor, ...]


@dataclass
class _Header:
    """A file whose header is read, with what was read so far."""

    file: IO[bytes]
    file_bytes: int
    scalars: dict[str, Any] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    places: tuple[GgufTensor, ...] = ()
    # Begin and end of the entry of each array, and its elements.
    arrays: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    size_bytes: int = 0

    def read(self, count: int) -> bytes:
        """Return the next bytes; raise an error at the end of the file."""
        content = self.file.read(count) if count <= self.remaining_bytes() else b""
        if len(content) < count:
            raise ModelFileError("it is cut short, or a length in its header is damaged")
        return content

    def remaining_bytes(self) -> int:
        """Return the number of bytes that were not read yet."""
        return self.file_bytes - self.file.tell()

    def read_word(self) -> int:
        """Return the next unsigned number of 32 bits."""
        return int(_WORD.unpack(self.read(4))[0])

    def read_long(self) -> int:
        """Return the next unsigned number of 64 bits."""
        return int(_LONG.unpack(self.read(8))[0])

    def read_text(self, max_bytes: int) -> str:
        """Return the next string."""
        count = self.read_long()
        if count > max_bytes:
            raise ModelFileError(f"a string in its header must have at most {max_bytes:,} bytes, got {count:,}")
        try:
            return self.read(count).decode()
        except UnicodeDecodeError as error:
            raise ModelFileError(f"a string in its header is no UTF-8: {error}") from error


def check_gguf(*paths: Path) -> GgufSummary:
    """Check the headers of a GGUF file and return what the file holds.

    Parameters
    ----------
    *paths : pathlib.Path
        The file, or all its parts in order.

    Returns
    -------
    GgufSummary
        The dtypes are names of GGML's types.

    Raises
    ------
    ModelFileError
        The file is no GGUF file, is cut short, repeats a name, has tensors that overlap or leave a hole, or has a
        count, length, type or place that is out of bounds.
    OSError
        The file cannot be read.
    """
    first, *others = [_read_header(path, part, len(paths)) for part, path in enumerate(paths)]
    architecture = first.scalars.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelFileError("its header does not name the architecture")
    places = [*first.places]
    for header in others:
        places += header.places
    summary = summarise_places(architecture, tuple(places))
    if len(summary.dtypes) != len(places):
        raise ModelFileError("two of its parts have a tensor of the same name")
    expected = first.scalars.get("split.tensors.count", len(places)) if others else len(places)
    if expected != len(places):
        raise ModelFileError(f"its parts must have {expected!r:.40} tensors, got {len(places):,}")
    _check_blocks(first, summary)
    return summary


def write_without_vocabulary(path: Path, target: Path, parts: int = 1) -> tuple[int, int | None]:
    """Write the header of a GGUF file without its vocabulary, and a hole in place of the tensors.

    Readers that make several objects of every token take most of a model's first start otherwise.

    Parameters
    ----------
    path : pathlib.Path
        The file, or its first part.
    target : pathlib.Path
        The file to write.
    parts : int
        Number of the file's parts.

    Returns
    -------
    int
        Number of tokens in the vocabulary.
    int or None
        Number of tokens that the header promises.

    Raises
    ------
    ModelFileError
        As for `check_gguf`.
    OSError
        A file cannot be read or written.
    """
    header = _read_header(path, 0, parts)
    vocabulary = {name: array for name, array in header.arrays.items() if name.startswith("tokenizer.")}
    with path.open("rb") as file:
        content = file.read(header.size_bytes)
    alignment = header.scalars.get("general.alignment", DEFAULT_ALIGNMENT)
    payload_bytes = header.file_bytes - _align(header.size_bytes, alignment)
    for begin, end, _ in sorted(vocabulary.values(), reverse=True):
        content = content[:begin] + content[end:]
    # Magic, version, number of tensors, number of entries.
    entries = _LONG.unpack_from(content, 16)[0] - len(vocabulary)
    with target.open("wb") as file:
        file.write(content[:16] + _LONG.pack(entries) + content[24:])
        file.truncate(_align(len(content), alignment) + payload_bytes)
    tokens = vocabulary.get("tokenizer.ggml.tokens", (0, 0, 0))[2]
    promised = header.scalars.get(f"{header.scalars.get('general.architecture')}.vocab_size")
    return tokens, promised if isinstance(promised, int) else None


def summarise_places(architecture: str, places: tuple[GgufTensor, ...]) -> GgufSummary:
    """Return what a GGUF file with some tensors holds.

    Parameters
    ----------
    architecture : str
        The model's architecture.
    places : tuple of GgufTensor
        The tensors.
    """
    dtypes = {tensor.name: tensor.block_format for tensor in places}
    elements = sum(prod(tensor.shape) for tensor in places)
    largest_size = max((max(tensor.shape) for tensor in places), default=0)
    return GgufSummary(dtypes, elements, largest_size, architecture, places)


def _read_header(path: Path, part: int, parts: int) -> _Header:
    """Read the header of a file, which must be this one of so many parts."""
    with path.open("rb") as file:
        file_bytes = file.seek(0, 2)
        file.seek(0)
        header = _Header(file, file_bytes)
        if header.read(4) != MAGIC:
            raise ModelFileError("it does not begin as a GGUF file")
        version = header.read_word()
        if version not in VERSIONS:
            raise ModelFileError(f"its version must be 2 or 3, got {version}")
        tensors, entries = header.read_long(), header.read_long()
        if max(tensors, entries) > MAX_ENTRIES:
            raise ModelFileError(
                f"it must have at most {MAX_ENTRIES:,} tensors and entries, got {tensors:,}, {entries:,}"
            )
        for _ in range(entries):
            _read_entry(header)
        number, count = header.scalars.get("split.no", 0), header.scalars.get("split.count", 0) or 1
        if (number, count) != (part, parts):
            raise ModelFileError(
                f"{path.name!r:.80} must be part {part} of {parts}, counted from 0, as its name says; "
                f"its header says {number!r:.20} of {count!r:.20}"
            )
        header.places = _read_tensors(header, tensors, part)
        header.size_bytes = file.tell()
    return header


def _read_entry(header: _Header) -> None:
    begin = header.file.tell()
    name = header.read_text(MAX_NAME_BYTES)
    if name in header.names:
        raise ModelFileError(f"its header repeats {name!r:.80}")
    header.names.add(name)
    code = header.read_word()
    if code == _ARRAY:
        count = _skip_array(header, name)
        header.arrays[name] = (begin, header.file.tell(), count)
    else:
        header.scalars[name] = _read_scalar(header, name, code)


def _read_scalar(header: _Header, name: str, code: int) -> Any:
    if code == _STRING:
        return header.read_text(MAX_STRING_BYTES)
    scalar = _SCALARS.get(code)
    if scalar is None:
        raise ModelFileError(f"{name!r:.80} in its header has the unknown type {code}")
    value = scalar.unpack(header.read(scalar.size))[0]
    if isinstance(value, float) and math.isnan(value):
        raise ModelFileError(f"{name!r:.80} in its header is NaN")
    return value


def _skip_array(header: _Header, name: str) -> int:
    """Go to the end of an array and return the number of its elements."""
    code, count = header.read_word(), header.read_long()
    if count > MAX_ELEMENTS:
        raise ModelFileError(f"{name!r:.80} in its header must have at most {MAX_ELEMENTS:,} elements, got {count:,}")
    if code == _STRING:
        for _ in range(count):
            header.read_text(MAX_STRING_BYTES)
    elif code in _SCALARS:
        header.read(count * _SCALARS[code].size)
    else:
        raise ModelFileError(f"{name!r:.80} in its header has elements of the unknown type {code}")
    return count


def _read_tensors(header: _Header, count: int, part: int) -> tuple[GgufTensor, ...]:
    """Read the description of each tensor, and check that all lie in the file without overlap."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    tensors: list[GgufTensor] = []
    names: set[str] = set()
    alignment = header.scalars.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise ModelFileError(
            f"its alignment must be a power of two of at most {MAX_ALIGNMENT:,}, got {alignment!r:.40}"
        )
    for _ in range(count):
        name = header.read_text(MAX_NAME_BYTES)
        if name in names:
            raise ModelFileError(f"its header repeats the tensor {name!r:.80}")
        dimensions = header.read_word()
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ModelFileError(f"tensor {name!r:.80} must have 1 to {MAX_DIMENSIONS} dimensions, got {dimensions}")
        shape = [header.read_long() for _ in range(dimensions)]
        code, begin = header.read_word(), header.read_long()
        try:
            dtype = GGMLQuantizationType(code)
        except ValueError:
            raise ModelFileError(f"tensor {name!r:.80} has the unknown type {code}") from None
        block_elements, block_bytes = GGML_QUANT_SIZES[dtype]
        if shape[0] % block_elements or begin % alignment or not prod(shape):
            raise ModelFileError(f"tensor {name!r:.80} has a damaged shape or place")
        size_bytes = prod(shape) // block_elements * block_bytes
        tensors.append(GgufTensor(name, dtype.name, tuple(shape[::-1]), begin, size_bytes))
        names.add(name)
    payload_begin = _align(header.file.tell(), alignment)
    payload_bytes = header.file_bytes - payload_begin
    expected_begin = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin_bytes, tensor.size_bytes, tensor.name)):
        if tensor.begin_bytes != expected_begin:
            raise ModelFileError(
                f"tensor {tensor.name!r:.80} must begin at byte {expected_begin:,} of the data, "
                f"got {tensor.begin_bytes:,}"
            )
        end = tensor.begin_bytes + tensor.size_bytes
        if end > payload_bytes:
            raise ModelFileError(f"it is cut short: tensor {tensor.name!r:.80} lies behind its end")
        expected_begin = _align(end, alignment)
    if payload_bytes > expected_begin:
        raise ModelFileError(f"its tensors must have {payload_bytes:,} bytes, got {expected_begin:,}")
    return tuple(replace(tensor, begin_bytes=payload_begin + tensor.begin_bytes, part=part) for tensor in tensors)


def _align(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _check_blocks(header: _Header, summary: GgufSummary) -> None:
    """Raise an error if the tensors are not those of the blocks that the header promises."""
    known = _list_known_names()
    for name in summary.dtypes:
        if _SUFFIX.sub("", _BLOCK.sub(".blk.{bid}.", f".{name}").removeprefix(".")) not in known:
            raise ModelFileError(f"it has a tensor of an unknown name, {name!r:.80}")
    numbers = {int(match[1]) for match in map(_BLOCK.search, summary.dtypes) if match}
    blocks = max(numbers, default=-1) + 1
    promised = header.scalars.get(f"{summary.architecture}.block_count")
    if promised != blocks or len(numbers) != blocks:
        raise ModelFileError(f"it must have the tensors of {promised!r:.40} blocks, got those of {len(numbers):,}")


def _list_known_names() -> frozenset[str]:
    from gguf.constants import TENSOR_NAMES

    return frozenset(TENSOR_NAMES.values())
