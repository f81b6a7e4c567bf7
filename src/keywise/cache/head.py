"""The head of a cache file: everything but keys and values, small, checked as a whole. docs/format.md describes it."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from keywise.attention.arrays import FLOATS, Array
from keywise.errors import FormatError

MAGIC = b"keywise\x00"
VERSION = 1
BLOCK_TOKENS = 256
"""Tokens per link of the chain of hashes."""
CHECK_BYTES = 256 * 1024
"""Payload bytes per checksum."""
ALIGN_BYTES = 64
PAGE_BYTES = 4096
PREAMBLE = struct.Struct("<8sIIQQQ")
DIGEST_BYTES = hashlib.sha256().digest_size
PREAMBLE_BYTES = PREAMBLE.size + DIGEST_BYTES

NUMBERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in (*NUMBERS, "float16", "float32", "float64")}
DTYPES["bfloat16"] = np.dtype("<u2")


def round_up(number: int, step: int) -> int:
    """Round up to a multiple of `step`."""
    return -(-number // step) * step


@dataclass(frozen=True)
class Stored:
    """Where an array lies in the payload."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the payload, a multiple of 64."""

    @property
    def end(self) -> int:
        """Bytes from the start of the payload to the end of the array."""
        return self.offset + prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class StoredLayer:
    """One layer, from position `first` on.

    `arrays` holds `key` and `value` [batch, heads, tokens, head_dim] and, where these are int8, `key_scale` and
    `value_scale` [batch, heads, tokens].
    """

    window: int | None
    first: int
    arrays: dict[str, Stored]


@dataclass(frozen=True, eq=False)
class Head:
    """What a cache file says about itself.

    Attributes
    ----------
    fingerprint : dict of str to str
        What made the keys and values; a file serves only those who give the same.
    token_ids, positions : int64 [B, N]
        The tokens, and where each of them stands.
    layers : tuple
        A `StoredLayer` each, None for a layer that holds nothing.
    extra : dict
        Named arrays that lie beside the keys and values.
    payload_bytes : int
        Length of the payload.
    """

    fingerprint: dict[str, str]
    token_ids: Array
    positions: Array
    layers: tuple[StoredLayer | None, ...]
    extra: dict[str, Stored]
    payload_bytes: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self.token_ids.shape[1])

    @cached_property
    def head_bytes(self) -> int:
        """Length of the head: where the payload starts."""
        blocks = -(-self.tokens // BLOCK_TOKENS)
        arrays = 2 * self.token_ids.nbytes + blocks * DIGEST_BYTES + 4 * checksum_count(self.payload_bytes)
        return round_up(PREAMBLE_BYTES + len(self._json()) + arrays, PAGE_BYTES)

    @property
    def file_bytes(self) -> int:
        """Length of the whole file."""
        return self.head_bytes + self.payload_bytes

    def common_tokens(self, token_ids: Array, positions: Array | None = None) -> int:
        """Count how many tokens from the first on are the same, at the same positions, in every item of the batch.

        Parameters
        ----------
        token_ids : whole numbers [N] or [B, N]
        positions : whole numbers of that shape, optional
            Default: 0, 1, 2, ...
        """
        other_ids, other_positions = token_arrays(token_ids, positions)
        if other_ids.shape[0] != self.token_ids.shape[0]:
            return 0
        shorter = min(self.tokens, other_ids.shape[1])
        same = (self.token_ids[:, :shorter] == other_ids[:, :shorter]).all(axis=0)
        same &= (self.positions[:, :shorter] == other_positions[:, :shorter]).all(axis=0)
        return shorter if same.all() else int(same.argmin())

    def encode(self, checksums: Array) -> bytes:
        """Give the head's bytes, zeros up to the payload included."""
        text = self._json()
        preamble = PREAMBLE.pack(MAGIC, VERSION, 0, len(text), self.head_bytes, self.file_bytes)
        ids, positions = (array.astype("<i8").tobytes() for array in (self.token_ids, self.positions))
        chain = b"".join(token_hashes(self.token_ids, self.positions))
        rest = text + ids + positions + chain + checksums.astype("<u4").tobytes()
        rest = rest.ljust(self.head_bytes - PREAMBLE_BYTES, b"\x00")
        return preamble + hashlib.sha256(preamble + rest).digest() + rest

    def _json(self) -> bytes:
        def stored(array: Stored) -> dict[str, Any]:
            return {"dtype": array.dtype, "shape": array.shape, "offset": array.offset}

        def of_layer(layer: StoredLayer) -> dict[str, Any]:
            kind = "full" if layer.window is None else "window"
            arrays = {name: stored(array) for name, array in layer.arrays.items()}
            return {"kind": kind, "window": layer.window, "first": layer.first, "arrays": arrays}

        whole = {
            "fingerprint": self.fingerprint,
            "batch": self.token_ids.shape[0],
            "tokens": self.tokens,
            "payload_bytes": self.payload_bytes,
            "extra": {name: stored(array) for name, array in self.extra.items()},
            "layers": [None if layer is None else of_layer(layer) for layer in self.layers],
        }
        return json.dumps(whole, separators=(",", ":"), sort_keys=True).encode()


def token_arrays(token_ids: Array, positions: Array | None) -> tuple[Array, Array]:
    """Give ids and positions as int64 [B, N]; the caller has seen to it that they are whole numbers that fit."""
    ids = np.atleast_2d(np.asarray(token_ids)).astype(np.int64)
    if positions is None:
        return ids, np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape)
    return ids, np.atleast_2d(np.asarray(positions)).astype(np.int64)


def token_hashes(token_ids: Array, positions: Array | None = None) -> list[bytes]:
    """Chain a sha256 over blocks of 256 tokens: equal hashes mean equal tokens and positions from the first on."""
    ids, places = token_arrays(token_ids, positions)
    hashes = [bytes(DIGEST_BYTES)]
    for begin in range(0, ids.shape[1], BLOCK_TOKENS):
        block = np.stack([array[:, begin : begin + BLOCK_TOKENS] for array in (ids, places)]).astype("<i8")
        hashes.append(hashlib.sha256(hashes[-1] + block.tobytes()).digest())
    return hashes[1:]


def checksum_count(payload_bytes: int) -> int:
    """Count the checksums of a payload."""
    return -(-payload_bytes // CHECK_BYTES)


def head_bytes_of(preamble: bytes, file_bytes: int) -> int:
    """Check a file's first bytes against its length, and give the length of its head."""
    if len(preamble) < PREAMBLE_BYTES:
        raise FormatError(f"it ends after {len(preamble)} bytes, inside its head")
    magic, version, zero, json_bytes, head_bytes, whole_bytes = PREAMBLE.unpack_from(preamble)
    if magic != MAGIC:
        raise FormatError("it is not a cache file of keywise")
    if version != VERSION:
        raise FormatError(f"it has format version {version}, and this keywise reads version {VERSION}")
    if whole_bytes != file_bytes:
        raise FormatError(f"it is {file_bytes} bytes long and should be {whole_bytes}: it was cut or added to")
    if zero or head_bytes % PAGE_BYTES or not PREAMBLE_BYTES + json_bytes <= head_bytes <= whole_bytes:
        raise FormatError("the sizes in its head are damaged")
    return int(head_bytes)


def decode(data: bytes, file_bytes: int) -> tuple[Head, Array]:
    """Give a head and its checksums of the payload; refuse what is damaged or does not agree with itself."""
    head_bytes = head_bytes_of(data, file_bytes)
    if len(data) != head_bytes:
        raise FormatError(f"it ends after {len(data)} bytes, inside its head")
    digest = data[PREAMBLE.size : PREAMBLE_BYTES]
    if hashlib.sha256(data[: PREAMBLE.size] + data[PREAMBLE_BYTES:]).digest() != digest:
        raise FormatError("its head is damaged: the sha256 differs")
    json_bytes = PREAMBLE.unpack_from(data)[3]
    try:
        text = json.loads(data[PREAMBLE_BYTES : PREAMBLE_BYTES + json_bytes])
        head, checksums = _decoded(text, data[PREAMBLE_BYTES + json_bytes :])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        # Only a file made to mislead has a right sha256 over a wrong head.
        raise FormatError(f"its head does not agree with itself: {error}") from error
    if (head.head_bytes, head.file_bytes) != (head_bytes, file_bytes):
        raise FormatError("its head does not agree with itself: its length differs")
    return head, checksums


def _decoded(text: Mapping[str, Any], rest: bytes) -> tuple[Head, Array]:
    batch, tokens, payload_bytes = (_count(text[name]) for name in ("batch", "tokens", "payload_bytes"))
    place = 0

    def array(dtype: str, *shape: int) -> Array:
        nonlocal place
        begin, place = place, place + prod(shape) * np.dtype(dtype).itemsize
        if place > len(rest):
            raise ValueError("an array lies outside")
        return np.frombuffer(rest[begin:place], dtype).reshape(shape)

    token_ids, positions = array("<i8", batch, tokens), array("<i8", batch, tokens)
    chain = array("u1", -(-tokens // BLOCK_TOKENS), DIGEST_BYTES)
    checksums = array("<u4", checksum_count(payload_bytes))
    if b"".join(token_hashes(token_ids, positions)) != chain.tobytes():
        raise ValueError("the hashes of its tokens differ")
    fingerprint, extra = _named(text["fingerprint"]), _named(text["extra"])
    if not all(isinstance(value, str) for value in fingerprint.values()):
        raise ValueError("its fingerprint is not made of strings")
    head = Head(
        fingerprint=fingerprint,
        token_ids=token_ids,
        positions=positions,
        layers=tuple(_layer(layer, batch, tokens, payload_bytes) for layer in text["layers"]),
        extra={name: _stored(stored, payload_bytes) for name, stored in extra.items()},
        payload_bytes=payload_bytes,
    )
    return head, checksums


def _layer(text: Mapping[str, Any] | None, batch: int, tokens: int, payload_bytes: int) -> StoredLayer | None:
    if text is None:
        return None
    window = None if text["window"] is None else _count(text["window"])
    if text["kind"] != ("full" if window is None else "window"):
        raise ValueError("the kind of a layer differs from its window")
    arrays = {name: _stored(array, payload_bytes) for name, array in _named(text["arrays"]).items()}
    layer = StoredLayer(window, _count(text["first"]), arrays)
    key, value = arrays["key"], arrays["value"]
    if len(key.shape) != 4 or len(value.shape) != 4 or key.shape[:3] != value.shape[:3]:
        raise ValueError("the keys of a layer do not fit its values")
    if key.dtype != value.dtype or key.dtype not in (*FLOATS, "int8"):
        raise ValueError("keys and values of a layer are not of one type that a cache holds")
    if key.shape[0] != batch or layer.first + key.shape[2] != tokens:
        raise ValueError("a layer does not fit the tokens")
    scales = {name: (array.dtype, array.shape) for name, array in arrays.items() if name not in {"key", "value"}}
    wanted = dict.fromkeys(("key_scale", "value_scale"), ("float32", key.shape[:3])) if key.dtype == "int8" else {}
    if scales != wanted:
        raise ValueError("the scales of a layer do not fit its keys and values")
    return layer


def _stored(text: Mapping[str, Any], payload_bytes: int) -> Stored:
    stored = Stored(str(text["dtype"]), tuple(_count(size) for size in text["shape"]), _count(text["offset"]))
    if stored.offset % ALIGN_BYTES or stored.end > payload_bytes:
        raise ValueError("an array lies outside the payload")
    return stored


def _named(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} is not a mapping")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value
