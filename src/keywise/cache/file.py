"""Cache files: a `KVCache` on disk, which is verified before it is used.

Files are written atomically, and keys and values are read when they are first used. They are safetensors files;
docs/format.md describes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from keywise.attention.arrays import Array, HostArray, as_host_array
from keywise.attention.checks import as_integer_array
from keywise.attention.problem import Chunk
from keywise.cache.header import (
    ALIGN_BYTES,
    EXTRA_PREFIX,
    PADDING_PREFIX,
    POSITIONS,
    START_BYTES,
    TOKEN_IDS,
    Header,
    StoredLayer,
    as_token_arrays,
    decode,
    encode,
    hash_tokens,
    measure_header,
    name_layer_tensor,
    verify_tokens,
)
from keywise.cache.kvcache import KVCache
from keywise.cache.layer import Layer
from keywise.cache.payload import PayloadWriter, StoredPayload, count_checksums
from keywise.cache.safetensors_header import DTYPES, PAGE_BYTES, HeaderError, TensorEntry, place_tensor
from keywise.errors import DtypeError, FormatError, MissingFileError, OptionError, ShapeError
from keywise.util.atomic_write import atomic_write
from keywise.util.regular_files import open_regular


@dataclass(frozen=True, eq=False)
class Opened:
    """A cache file that is open.

    Attributes
    ----------
    cache : KVCache
        Its keys and values: they are read from the disk and verified when a layer is first used.
    header : Header
        Tokens, positions and fingerprint, verified.
    extra : dict of str to array
        The arrays that were saved beside the keys and values, verified.

    Examples
    --------
    >>> import tempfile, numpy as np, keywise as kw
    >>> from keywise.cache import file
    >>> cache = kw.KVCache(layers=1)
    >>> cache.append(0, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file.save(f"{folder}/cache", cache, fingerprint={"weights": "1f"}, token_ids=[7, 8, 9])
    ...     opened = file.open(f"{folder}/cache", {"weights": "1f"})
    >>> opened.header.common_tokens([7, 8, 10])
    2
    >>> opened.cache.truncate(2)
    """

    cache: KVCache
    header: Header
    extra: dict[str, Array]
    _payload: StoredPayload = field(repr=False)

    def verify(self) -> None:
        """Read and verify the whole file now.

        Raises
        ------
        FormatError
            A byte of the file has changed.

        Examples
        --------
        >>> import tempfile, numpy as np, keywise as kw
        >>> from keywise.cache import file
        >>> cache = kw.KVCache(layers=1)
        >>> cache.append(0, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file.save(f"{folder}/cache", cache, fingerprint={"weights": "1f"}, token_ids=[7, 8, 9])
        ...     file.open(f"{folder}/cache", {"weights": "1f"}).verify()
        """
        self._payload.verify(0, self.header.payload_bytes)


def save(
    path: str | os.PathLike[str],
    cache: KVCache,
    *,
    fingerprint: Mapping[str, str],
    token_ids: Any,
    positions: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a cache to a file, which replaces an existing file atomically.

    The old file stays valid for processes that have it open, and for `cache` itself if it was opened from it. Only the
    owner may read and write the file, because it contains the tokens.

    Parameters
    ----------
    path : path
        A file in an existing folder.
    cache : KVCache
        All layers with keys have the same number of tokens.
    fingerprint : mapping of str to str
        Names and digests of everything that the keys and values depend on: weights, configuration, tokenizer, ...
    token_ids : integers [N] or [B, N]
        The tokens of the cache, including those that a window has dropped.
    positions : integers of that shape, optional
        Positions of the tokens; default 0, 1, 2, ...
    extra : mapping of str to arrays, optional
        Small arrays of numbers to save beside the keys and values; bfloat16 is not accepted.

    Raises
    ------
    FormatError
        The file cannot be written, for example because the disk is full; an existing file is unchanged.
    ShapeError, DtypeError, OptionError
        The arguments do not agree with each other.

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
    _check_fingerprint(fingerprint)
    ids, token_positions = _check_tokens(cache, token_ids, positions)
    layout = _Layout()
    layout.add_tensor(TOKEN_IDS, "int64", ids.shape, [ids])
    layout.add_tensor(POSITIONS, "int64", ids.shape, [token_positions])
    for name, array in _check_extra(extra or {}).items():
        layout.add_tensor(EXTRA_PREFIX + name, array.dtype.name, array.shape, [array])
    layers = tuple(layout.add_layer(number, cache) for number in range(cache.layers))
    hashes = hash_tokens(ids, token_positions)

    def encode_with(checksums: Array) -> bytes:
        return encode(
            fingerprint=fingerprint, layers=layers, hashes=hashes, checksums=checksums, tensors=layout.tensors
        )

    try:
        # All checksums have the same number of digits, so the header's length does not depend on them.
        header_bytes = len(encode_with(np.zeros(count_checksums(layout.end), np.uint32)))
        with atomic_write(path, private=True) as file:
            file.seek(header_bytes)
            payload = PayloadWriter(file)
            for arrays in layout.arrays:
                payload.write(arrays)
            file.seek(0)
            file.write(encode_with(payload.list_checksums()))
    except HeaderError as error:
        raise FormatError("cache", str(error)) from error
    except OSError as error:
        raise FormatError(
            "path", f"{os.fspath(path)!r} cannot be written ({error.strerror}); an existing file is unchanged"
        ) from error


def open(path: str | os.PathLike[str], fingerprint: Mapping[str, str]) -> Opened:
    """Open a cache file with the same fingerprint, without reading its keys and values.

    Damage in the keys and values of a layer is detected when the layer is first used, or by `Opened.verify`.

    Parameters
    ----------
    path : path
        The file.
    fingerprint : mapping of str to str
        As passed to `save`; every field must agree.

    Returns
    -------
    Opened
        With the cache and the header.

    Raises
    ------
    MissingFileError
        There is no such file.
    FormatError
        The file cannot be read, is damaged, cut, of another version or of another fingerprint; the message gives the
        reason.

    Examples
    --------
    >>> import tempfile, numpy as np, keywise as kw
    >>> from keywise.cache import file
    >>> cache = kw.KVCache(layers=1)
    >>> cache.append(0, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file.save(f"{folder}/cache", cache, fingerprint={"weights": "1f"}, token_ids=[7, 8, 9])
    ...     file.open(f"{folder}/cache", {"weights": "1f"}).cache
    KVCache(1 layers, 3 tokens)
    """
    _check_fingerprint(fingerprint)
    header, payload = _open_payload(os.fspath(path))
    for name in sorted(fingerprint.keys() | header.fingerprint.keys()):
        stored, expected = header.fingerprint.get(name), fingerprint.get(name)
        if stored != expected:
            raise FormatError(
                "path",
                f"{os.fspath(path)!r} must have the same fingerprint: {name} must be {expected!r}, got {stored!r}",
                remedy="create it again with this model",
            )
    layers = [Layer() if stored is None else _view_layer(payload, stored) for stored in header.layers]
    extra = {}
    for name, entry in header.extra.items():
        payload.verify(entry.begin, entry.end)
        extra[name] = payload.view_tensor(entry)
    int8 = any(stored is not None and stored.tensors["key"].dtype == "int8" for stored in header.layers)
    return Opened(KVCache.from_layers(layers, dtype="int8" if int8 else None), header, extra, payload)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and verify the header and the tokens of a cache file.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    Header
        Tokens, positions, fingerprint and sizes.

    Raises
    ------
    MissingFileError
        There is no such file.
    FormatError
        The header is damaged, or the file is no cache file of this version.

    Examples
    --------
    >>> import tempfile, numpy as np, keywise as kw
    >>> from keywise.cache import file
    >>> cache = kw.KVCache(layers=1)
    >>> cache.append(0, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file.save(f"{folder}/cache", cache, fingerprint={"weights": "1f"}, token_ids=[7, 8, 9])
    ...     file.read_header(f"{folder}/cache").fingerprint
    {'weights': '1f'}
    """
    with _open_binary(os.fspath(path)) as file:
        return _read_header(os.fspath(path), file)[0]


def as_token_numbers(name: str, value: Any) -> Array:
    """Return token ids or positions as an array of integers [N] or [B, N].

    Parameters
    ----------
    name : str
        The argument's name.
    value : array, or list of integers or of lists
        Its value, as a tokenizer returns it.

    Raises
    ------
    DtypeError, ShapeError
        The value has other elements, or another number of axes.

    Examples
    --------
    >>> from keywise.cache.file import as_token_numbers
    >>> as_token_numbers("token_ids", [[5, 6], [7, 8]]).shape
    (2, 2)
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ShapeError(
                name, "must be a list of integers, or of lists of one length", remedy=str(error)
            ) from error
    array = as_integer_array(name, value)
    if array.ndim not in {1, 2}:
        raise ShapeError(name, "must have shape [tokens] or [batch, tokens]", got=list(array.shape))
    return array


def as_positions(positions: Any, token_ids: Array) -> Array:
    """Return positions as an array of integers of the shape of their tokens.

    Parameters
    ----------
    positions : array, or list of integers or of lists
        The value.
    token_ids : integers [N] or [B, N]
        From `as_token_numbers`.

    Raises
    ------
    DtypeError, ShapeError
        The value has other elements, or another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.cache.file import as_positions
    >>> as_positions([4, 5], np.array([7, 8])).tolist()
    [4, 5]
    """
    array = as_token_numbers(POSITIONS, positions)
    if array.shape != token_ids.shape:
        raise ShapeError(
            POSITIONS, f"must have the shape of token_ids, {list(token_ids.shape)}, got {list(array.shape)}"
        )
    return array


class _Layout:
    """Place tensors one after the other, with padding tensors between them.

    Attributes
    ----------
    tensors : dict of str to TensorEntry
        All tensors, padding included, in order of their places.
    arrays : list of iterables of arrays
        The elements of each tensor, in runs of contiguous memory.
    end : int
        Bytes so far.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, TensorEntry] = {}
        self.arrays: list[Iterable[Array]] = []
        self.end = 0
        self._paddings = 0

    def add_tensor(
        self, name: str, dtype: str, shape: tuple[int, ...], arrays: Iterable[Array], *, align_bytes: int = ALIGN_BYTES
    ) -> TensorEntry:
        padding_bytes = -self.end % align_bytes
        if padding_bytes:
            self._add(
                f"{PADDING_PREFIX}{self._paddings}",
                place_tensor("uint8", (padding_bytes,), self.end),
                [np.zeros(padding_bytes, np.uint8)],
            )
            self._paddings += 1
        entry = place_tensor(dtype, shape, self.end)
        self._add(name, entry, arrays)
        return entry

    def _add(self, name: str, entry: TensorEntry, arrays: Iterable[Array]) -> None:
        self.tensors[name] = entry
        self.arrays.append(arrays)
        self.end = entry.end

    def add_layer(self, number: int, cache: KVCache) -> StoredLayer | None:
        chunks = cache.chunks(number)
        if not chunks:
            return None
        tokens = sum(chunk.tokens for chunk in chunks)
        entries: dict[str, TensorEntry] = {}
        for name, (dtype, first) in _name_arrays(chunks[0]).items():
            entries[name] = self.add_tensor(
                name_layer_tensor(number, name),
                dtype,
                (*first.shape[:2], tokens, *first.shape[3:]),
                _iterate_runs([_name_arrays(chunk)[name][1] for chunk in chunks]),
                align_bytes=ALIGN_BYTES if entries else PAGE_BYTES,  # a layer begins on a page
            )
        return StoredLayer(cache.windows[number], cache.first_key(number), entries)


def _name_arrays(chunk: Chunk) -> dict[str, tuple[str, Array]]:
    """Return dtype and array of keys, values and scales, by their names in the file."""
    named = {"key": (chunk.key.dtype, chunk.key.data), "value": (chunk.value.dtype, chunk.value.data)}
    if chunk.key.scale is not None:
        named["key_scale"] = ("float32", chunk.key.scale)
    if chunk.value.scale is not None:
        named["value_scale"] = ("float32", chunk.value.scale)
    return named


def _iterate_runs(arrays: list[Array]) -> Iterator[Array]:
    """Yield the contiguous runs of arrays concatenated along the tokens."""
    for item, head in np.ndindex(*arrays[0].shape[:2]):
        for array in arrays:
            yield array[item, head]


def _open_binary(path: str) -> IO[bytes]:
    try:
        return open_regular(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError("path", "must be an existing cache file", got=path) from error
    except IsADirectoryError as error:
        raise FormatError("path", "must be a cache file, not a folder", got=path) from error
    except OSError as error:
        raise FormatError("path", f"{path!r} cannot be read ({error.strerror})") from error


def _read_header(path: str, file: IO[bytes]) -> tuple[Header, Array]:
    """Return the verified header and the checksums of the payload."""
    file_bytes = os.fstat(file.fileno()).st_size
    try:
        start = file.read(START_BYTES)
        header_bytes = measure_header(start, file_bytes)
        fields = decode(start + file.read(header_bytes - len(start)), file_bytes)
        token_ids = _read_tensor(file, header_bytes, fields.token_ids)
        positions = _read_tensor(file, header_bytes, fields.positions)
        verify_tokens(fields, token_ids, positions)
    except HeaderError as error:
        raise FormatError("path", f"{path!r} {error}") from error
    except OSError as error:
        raise FormatError("path", f"{path!r} cannot be read ({error.strerror})") from error
    header = Header(
        fingerprint=fields.fingerprint,
        token_ids=token_ids,
        positions=positions,
        layers=fields.layers,
        extra=fields.extra,
        header_bytes=header_bytes,
        payload_bytes=fields.payload_bytes,
    )
    return header, fields.checksums


def _read_tensor(file: IO[bytes], header_bytes: int, entry: TensorEntry) -> Array:
    file.seek(header_bytes + entry.begin)
    data = file.read(entry.end - entry.begin)
    if len(data) != entry.end - entry.begin:
        raise HeaderError("was cut while it was read")
    return np.frombuffer(data, DTYPES[entry.dtype]).reshape(entry.shape)


def _open_payload(path: str) -> tuple[Header, StoredPayload]:
    with _open_binary(path) as file:
        header, checksums = _read_header(path, file)
        try:
            return header, StoredPayload(path, file, header.header_bytes, header.payload_bytes, checksums)
        except OSError as error:
            rule = f"{path!r} cannot be opened: its {header.payload_bytes:,} bytes do not fit in memory"
            raise FormatError("path", rule, remedy=str(error.strerror)) from error


def _view_layer(payload: StoredPayload, stored: StoredLayer) -> Layer:
    arrays = {name: payload.view_tensor(entry) for name, entry in stored.tensors.items()}
    key, value = (
        HostArray(arrays[name], stored.tensors[name].dtype, None, arrays.get(f"{name}_scale"))
        for name in ("key", "value")
    )
    stored_tokens = stored.tensors["key"].shape[2]
    all_verified = False

    def verify(remaining: Chunk) -> None:
        nonlocal all_verified
        if all_verified:
            return
        for _, array in _name_arrays(remaining).values():
            payload.verify_view(array)
        all_verified = remaining.tokens == stored_tokens

    return Layer(stored.window, first_key=stored.first_key, chunk=Chunk(key, value), verify=verify)


def _check_fingerprint(fingerprint: Mapping[str, str]) -> None:
    if not isinstance(fingerprint, Mapping):
        raise DtypeError("fingerprint", f"must be a mapping of names to digests, got a {type(fingerprint).__name__}")
    for name, digest in fingerprint.items():
        if not isinstance(name, str) or not isinstance(digest, str):
            raise DtypeError("fingerprint", f"must have strings as names and digests, got {name!r}: {digest!r}")


def _check_tokens(cache: KVCache, token_ids: Any, positions: Any) -> tuple[Array, Array]:
    """Return token ids and positions that fit a cache, int64 [B, N]."""
    ids = as_token_numbers(TOKEN_IDS, token_ids)
    token_positions = None if positions is None else as_positions(positions, ids)
    used_layers = [number for number in range(cache.layers) if cache.tokens(number)]
    first_chunks = [cache.chunks(number)[:1] for number in used_layers]
    if not used_layers or not all(first_chunks):
        raise OptionError("cache", "must have keys in every layer that is used", remedy="append some first")
    batches = {chunk.key.data.shape[0] for chunks in first_chunks for chunk in chunks}
    counts = {cache.tokens(number) for number in used_layers}
    if len(counts) > 1 or len(batches) > 1:
        raise OptionError(
            "cache",
            "must have the same tokens and batch in every layer, "
            f"got {sorted(counts)} tokens and batches of {sorted(batches)}",
        )
    shape = [*batches, *counts]
    if list(np.atleast_2d(ids).shape) != shape:
        raise ShapeError(TOKEN_IDS, f"must have the shape of the cache's tokens, {shape}, got {list(ids.shape)}")
    return as_token_arrays(ids, token_positions)


def _check_extra(extra: Mapping[str, Any]) -> dict[str, Array]:
    arrays = {}
    for name, value in extra.items():
        array = as_host_array(f"extra[{name!r}]", value)
        if not isinstance(name, str) or array.dtype not in DTYPES or array.dtype == "bfloat16":
            raise DtypeError(f"extra[{name!r}]", f"must be an array of numbers under a string, got {array.dtype}")
        arrays[name] = array.data
    return arrays
