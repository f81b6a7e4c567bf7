"""A KVCache in a file: written whole or not at all, mapped instead of read, verified before it is used."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from keywise.attention.arrays import Array, HostArray, as_host_array
from keywise.attention.problem import Chunk
from keywise.cache.head import (
    ALIGN_BYTES,
    CHECK_BYTES,
    DTYPES,
    PAGE_BYTES,
    PREAMBLE_BYTES,
    Head,
    Stored,
    StoredLayer,
    decode,
    head_bytes_of,
    round_up,
    token_arrays,
)
from keywise.cache.kvcache import KVCache
from keywise.cache.layer import Layer
from keywise.errors import DtypeError, FormatError, OptionError, ShapeError
from keywise.util.atomic_write import atomic_write

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:  # the same sums, six times slower
    from zlib import crc32


@dataclass(frozen=True, eq=False)
class Opened:
    """A cache file that is open.

    Attributes
    ----------
    cache : KVCache
        Its keys and values, mapped: they are read from the disk, and verified, when a layer is first used.
    head : Head
        Tokens, positions, fingerprint.
    extra : dict of str to array
        What was saved beside them, verified.
    """

    cache: KVCache
    head: Head
    extra: dict[str, Array]
    _file: _Mapped = field(repr=False)

    def verify(self) -> None:
        """Read and verify the whole file now.

        Raises
        ------
        FormatError
            When a byte of it is not what was written.
        """
        self._file.check(0, self.head.payload_bytes)


def save(
    path: str | os.PathLike[str],
    cache: KVCache,
    *,
    fingerprint: Mapping[str, str],
    token_ids: Any,
    positions: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a cache to a file, which takes the place of the one that is there only when it is whole.

    Readers of the old file keep it, also when the cache itself is mapped from it.

    Parameters
    ----------
    path : path
        Its folder exists. The file can be read and written by its owner alone: it tells what the tokens were.
    cache : KVCache
        All layers in use hold the same tokens.
    fingerprint : mapping of str to str
        Names and digests of everything the keys and values depend on (weights, configuration, tokenizer, ...).
    token_ids : whole numbers [N] or [B, N]
        The tokens of the cache, dropped ones included.
    positions : whole numbers of that shape, optional
        Where the tokens stand; default 0, 1, 2, ...
    extra : mapping of str to arrays, optional
        Small arrays of numbers to keep beside the keys and values.

    Raises
    ------
    FormatError
        When the file cannot be written: the disk is full, say. What was there before is untouched.
    ShapeError, DtypeError, OptionError
        When the arguments do not fit each other.

    Examples
    --------
    >>> import tempfile, numpy as np, keywise as kw
    >>> from keywise.cache import file
    >>> cache = kw.KVCache(layers=1)
    >>> cache.append(0, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file.save(f"{folder}/cache", cache, fingerprint={"weights": "1f"}, token_ids=[7, 8, 9])
    ...     len(file.open(f"{folder}/cache", {"weights": "1f"}).cache)
    3
    """
    head, arrays = _plan(cache, _fingerprint(fingerprint), *_tokens(cache, token_ids, positions), _extra(extra or {}))
    try:
        with atomic_write(path, private=True) as file:
            file.seek(head.head_bytes)
            payload = _Payload(file)
            for stored, runs in arrays:
                payload.skip_to(stored.offset)
                for run in runs:
                    payload.write(run)
            payload.skip_to(head.payload_bytes)
            checksums = payload.checksums()
            file.seek(0)
            file.write(head.encode(checksums))
    except OSError as error:
        raise FormatError(
            f"{path}: cannot be written ({error.strerror}); what was there before is untouched"
        ) from error


def open(path: str | os.PathLike[str], fingerprint: Mapping[str, str]) -> Opened:
    """Open a cache file that the same fingerprint made, without reading its keys and values.

    Parameters
    ----------
    path : path
    fingerprint : mapping of str to str
        As given to `save`; every field must agree.

    Raises
    ------
    FormatError
        When the file is missing, damaged, cut, of another version or of another fingerprint, with the reason. Damage
        in the keys and values of a layer is found when the layer is first used, or by `Opened.verify`.
    """
    wanted = _fingerprint(fingerprint)
    head, file = _mapped(path)
    for name in sorted(wanted.keys() | head.fingerprint.keys()):
        found, asked = head.fingerprint.get(name), wanted.get(name)
        if found != asked:
            raise FormatError(f"{path}: made with another {name}: the file has {found!r}, wanted is {asked!r}")
    layers = [Layer() if stored is None else _layer(file, stored) for stored in head.layers]
    extra = {name: file.checked(stored) for name, stored in head.extra.items()}
    int8 = any(stored is not None and stored.arrays["key"].dtype == "int8" for stored in head.layers)
    cache = KVCache.of_layers(layers, dtype="int8" if int8 else None)
    return Opened(cache, head, extra, file)


def peek(path: str | os.PathLike[str]) -> Head:
    """Read and verify the head of a cache file alone: its tokens, fingerprint and sizes.

    Raises
    ------
    FormatError
        When the file is missing, or its head is damaged.
    """
    with _opened(path) as file:
        return _head(path, file)[0]


class _Payload:
    """Writes the payload and sums it up, block by block."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sums: list[int] = []
        self._written = 0

    def write(self, array: Array) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        while data:
            filled = self._written % CHECK_BYTES
            if not filled:
                self._sums.append(0)
            here = data[: CHECK_BYTES - filled]
            self._file.write(here)
            self._sums[-1] = crc32(here, self._sums[-1])
            self._written += len(here)
            data = data[len(here) :]

    def skip_to(self, offset: int) -> None:
        self.write(np.zeros(offset - self._written, np.uint8))

    def checksums(self) -> Array:
        return np.array(self._sums, np.uint32)


@dataclass(eq=False)
class _Mapped:
    """The payload of a file in memory; a private mapping, so that nothing written to it reaches the file."""

    path: str
    data: mmap.mmap
    start: int
    payload_bytes: int
    checksums: Array
    verified: set[int] = field(default_factory=set)

    def array(self, stored: Stored) -> Array:
        count = (stored.end - stored.offset) // DTYPES[stored.dtype].itemsize
        made = np.frombuffer(self.data, DTYPES[stored.dtype], count, self.start + stored.offset)
        return made.reshape(stored.shape)

    def checked(self, stored: Stored) -> Array:
        self.check(stored.offset, stored.end)
        return self.array(stored)

    def check_view(self, view: Array) -> None:
        """Verify what is left of keys, values or scales [batch, heads, tokens, ...] after a cut along the tokens."""
        payload = byte_bounds(np.frombuffer(self.data, np.uint8, offset=self.start))[0]
        runs = [view] if view.flags.c_contiguous else [view[at] for at in np.ndindex(view.shape[:2])]
        for run in runs:
            begin, end = byte_bounds(run)
            self.check(begin - payload, end - payload)

    def check(self, begin: int, end: int) -> None:
        """Verify the blocks that hold some bytes of the payload, once each.

        In one thread: those of the model's last operation are awake and would be in the way of others.
        """
        blocks = [block for block in range(begin // CHECK_BYTES, -(-end // CHECK_BYTES)) if block not in self.verified]
        with memoryview(self.data) as view:
            for block in blocks:
                first = self.start + block * CHECK_BYTES
                last = min(first + CHECK_BYTES, self.start + self.payload_bytes)
                if crc32(view[first:last]) != self.checksums[block]:
                    raise FormatError(f"{self.path}: damaged: the checksum of bytes {first} to {last - 1} differs")
                self.verified.add(block)


def _opened(path: str | os.PathLike[str]) -> IO[bytes]:
    try:
        return Path(path).open("rb")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FormatError(f"{path}: {error.strerror}") from error


def _head(path: str | os.PathLike[str], file: IO[bytes]) -> tuple[Head, Array]:
    file_bytes = os.fstat(file.fileno()).st_size
    start = file.read(PREAMBLE_BYTES)
    try:
        head_bytes = head_bytes_of(start, file_bytes)
        return decode(start + file.read(head_bytes - len(start)), file_bytes)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _mapped(path: str | os.PathLike[str]) -> tuple[Head, _Mapped]:
    with _opened(path) as file:
        head, checksums = _head(path, file)
        data = mmap.mmap(file.fileno(), head.file_bytes, access=mmap.ACCESS_COPY)
    return head, _Mapped(str(path), data, head.head_bytes, head.payload_bytes, checksums)


def _layer(file: _Mapped, stored: StoredLayer) -> Layer:
    arrays = {name: file.array(array) for name, array in stored.arrays.items()}
    key, value = (
        HostArray(arrays[name], stored.arrays[name].dtype, None, arrays.get(f"{name}_scale"))
        for name in ("key", "value")
    )

    whole = False

    def check(left: Chunk) -> None:
        nonlocal whole
        for _, array in () if whole else _arrays(left).values():
            file.check_view(array)
        whole |= left.tokens == stored.arrays["key"].shape[2]

    return Layer(stored.window, first=stored.first, shared=Chunk(key, value), check=check)


def _plan(
    cache: KVCache, fingerprint: dict[str, str], token_ids: Array, positions: Array, extra: dict[str, Array]
) -> tuple[Head, list[tuple[Stored, Iterator[Array]]]]:
    """Say where everything lies, and give the arrays in that order, each in runs of contiguous memory."""
    arrays: list[tuple[Stored, Iterator[Array]]] = []
    end = 0

    def place(dtype: str, shape: tuple[int, ...], runs: Iterator[Array]) -> Stored:
        nonlocal end
        stored = Stored(dtype, shape, round_up(end, ALIGN_BYTES))
        arrays.append((stored, runs))
        end = stored.end
        return stored

    placed = {name: place(array.dtype.name, array.shape, iter([array])) for name, array in extra.items()}
    layers: list[StoredLayer | None] = []
    for number in range(cache.layers):
        chunks = cache.chunks(number)
        if not chunks:
            layers.append(None)
            continue
        end = round_up(end, PAGE_BYTES)
        tokens = sum(chunk.tokens for chunk in chunks)
        stored = {}
        for name, (dtype, first) in _arrays(chunks[0]).items():
            shape = (*first.shape[:2], tokens, *first.shape[3:])
            stored[name] = place(dtype, shape, _runs([_arrays(chunk)[name][1] for chunk in chunks]))
        layers.append(StoredLayer(cache.windows[number], cache.first_key(number), stored))
    return Head(fingerprint, token_ids, positions, tuple(layers), placed, end), arrays


def _arrays(chunk: Chunk) -> dict[str, tuple[str, Array]]:
    """Give element type and array by the names that the file uses."""
    sides = {"key": chunk.key, "value": chunk.value}
    scales = {f"{name}_scale": ("float32", held.scale) for name, held in sides.items() if held.scale is not None}
    return {name: (held.dtype, held.data) for name, held in sides.items()} | scales


def _runs(chunks: list[Array]) -> Iterator[Array]:
    """Give arrays [batch, heads, tokens, ...] as one, in order: item by item, head by head, piece by piece."""
    for item, head in np.ndindex(*chunks[0].shape[:2]):
        for chunk in chunks:
            yield chunk[item, head]


def _fingerprint(fingerprint: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(fingerprint, Mapping):
        raise DtypeError(f"fingerprint is a {type(fingerprint).__name__}; give a mapping of names to digests")
    for name, digest in fingerprint.items():
        if not isinstance(name, str) or not isinstance(digest, str):
            raise DtypeError(f"fingerprint[{name!r}]={digest!r}: names and digests are strings")
    return dict(fingerprint)


def _whole_numbers(name: str, value: Any) -> Array:
    taken = as_host_array(name, np.asarray(value) if isinstance(value, (list, tuple)) else value)
    if not taken.dtype.startswith(("int", "uint")):
        raise DtypeError(f"{name} has dtype {taken.dtype}; it holds whole numbers")
    return taken.data


def _tokens(cache: KVCache, token_ids: Any, positions: Any) -> tuple[Array, Array]:
    ids = _whole_numbers("token_ids", token_ids)
    places = None if positions is None else _whole_numbers("positions", positions)
    if places is not None and places.shape != ids.shape:
        raise ShapeError(f"positions has shape {list(places.shape)} and token_ids {list(ids.shape)}; they must agree")
    batches = {chunk.key.data.shape[0] for number in range(cache.layers) for chunk in cache.chunks(number)[:1]}
    counts = {cache.tokens(number) for number in range(cache.layers) if cache.tokens(number)}
    if not counts or any(cache.tokens(number) and not cache.chunks(number) for number in range(cache.layers)):
        raise OptionError("the cache, or one of its layers, holds no keys; there is nothing to go on from")
    if len(counts) > 1 or len(batches) > 1:
        raise OptionError(
            f"the layers of the cache hold {sorted(counts)} tokens of {sorted(batches)} items; they must agree"
        )
    wanted = (*batches, *counts)
    if np.atleast_2d(ids).shape != wanted:
        raise ShapeError(f"token_ids has shape {list(ids.shape)}; the cache holds {list(wanted)} tokens")
    return token_arrays(ids, places)


def _extra(extra: Mapping[str, Any]) -> dict[str, Array]:
    arrays = {}
    for name, value in extra.items():
        taken = as_host_array(f"extra[{name!r}]", value)
        if not isinstance(name, str) or taken.dtype not in DTYPES or taken.dtype == "bfloat16":
            raise DtypeError(
                f"extra[{name!r}] has dtype {taken.dtype}; it holds numbers that NumPy knows, under a name"
            )
        arrays[name] = taken.data
    return arrays
