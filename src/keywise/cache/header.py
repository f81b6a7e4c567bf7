"""The header of a cache file: tokens, layers and checksums. See docs/format.md."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from keywise.attention.arrays import FLOATS, Array
from keywise.cache.payload import count_checksums
from keywise.cache.safetensors_header import (
    LENGTH_WORD,
    MAX_HEADER_BYTES,
    PAGE_BYTES,
    HeaderError,
    InvalidHeaderError,
    TensorEntry,
    encode_header,
    parse_header,
    parse_json,
    parse_size,
    parse_strings,
)

FORMAT: Final = "keywise.kv_cache"
VERSION: Final = 2
"""Version 1 had a binary header; only builds before the first release wrote it."""

BLOCK_TOKENS: Final = 256
"""Tokens per link of the chain of hashes."""
ALIGN_BYTES: Final = 64
"""Tensors begin at multiples of this: a cache line, and the widest vector of the kernels."""

TOKEN_IDS: Final = "token_ids"
POSITIONS: Final = "positions"
EXTRA_PREFIX: Final = "extra."
PADDING_PREFIX: Final = "padding."

_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_NO_DIGEST: Final = b"0" * 2 * _DIGEST_BYTES
_EARLIER_MAGIC: Final = b"keywise\x00"
# The first three fields of the metadata are at fixed offsets, so that they can be checked before anything is parsed.
_VERSION_START: Final = f'{{"__metadata__":{{"format":"{FORMAT}","version":"'.encode()
_DIGEST_START: Final = _VERSION_START + f'{VERSION}","header_sha256":"'.encode()
_DIGEST_BEGIN: Final = LENGTH_WORD.size + len(_DIGEST_START)
_DIGEST_END: Final = _DIGEST_BEGIN + len(_NO_DIGEST)

START_BYTES: Final = _DIGEST_END
"""Bytes of a file that `measure_header` needs."""


@dataclass(frozen=True)
class StoredLayer:
    """A layer in a file.

    Attributes
    ----------
    window : int or None
        Number of keys before the next query's own position that the layer stores; None stores all.
    first_key : int
        Position of the first key.
    tensors : dict of str to TensorEntry
        ``key`` and ``value`` [batch, heads, tokens, head_dim] and, where these are int8, ``key_scale`` and
        ``value_scale`` [batch, heads, tokens].
    """

    window: int | None
    first_key: int
    tensors: dict[str, TensorEntry]


@dataclass(frozen=True, eq=False)
class Header:
    """Verified contents of the header of a cache file, and its tokens.

    Attributes
    ----------
    fingerprint : dict of str to str
        Digests of everything that the keys and values depend on; a file is opened only with the same fingerprint.
    token_ids, positions : int64 [B, N]
        The tokens and their positions.
    layers : tuple of (StoredLayer or None)
        None for a layer without keys.
    extra : dict of str to TensorEntry
        Named arrays that were saved beside the keys and values.
    header_bytes : int
        Bytes before the payload, the length word included; a multiple of 4096.
    payload_bytes : int
        Length of all tensors together.
    """

    fingerprint: dict[str, str]
    token_ids: Array
    positions: Array
    layers: tuple[StoredLayer | None, ...]
    extra: dict[str, TensorEntry]
    header_bytes: int
    payload_bytes: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self.token_ids.shape[1])

    def common_tokens(self, token_ids: Array, positions: Array | None = None) -> int:
        """Return the length of the longest common prefix with other tokens.

        Tokens are common where ids and positions agree in every item of the batch.

        Parameters
        ----------
        token_ids : integers [N] or [B, N]
            The other tokens.
        positions : integers of that shape, optional
            Default: 0, 1, 2, ...
        """
        other_ids, other_positions = as_token_arrays(token_ids, positions)
        if other_ids.shape[0] != self.token_ids.shape[0]:
            return 0
        length = min(self.tokens, other_ids.shape[1])
        same = (self.token_ids[:, :length] == other_ids[:, :length]).all(axis=0)
        same &= (self.positions[:, :length] == other_positions[:, :length]).all(axis=0)
        return length if same.all() else int(same.argmin())


@dataclass(frozen=True)
class HeaderFields:
    """The fields of a header before the token tensors are read.

    Attributes
    ----------
    fingerprint, layers, extra, payload_bytes
        As in `Header`.
    token_ids, positions : TensorEntry
        Places of the token tensors.
    token_hashes : list of bytes
        The chain of hashes that the token tensors must have.
    checksums : uint32 array
        CRC-32 of each block of the payload.
    """

    fingerprint: dict[str, str]
    layers: tuple[StoredLayer | None, ...]
    extra: dict[str, TensorEntry]
    payload_bytes: int
    token_ids: TensorEntry
    positions: TensorEntry
    token_hashes: list[bytes]
    checksums: Array


def as_token_arrays(token_ids: Array, positions: Array | None) -> tuple[Array, Array]:
    """Return token ids and positions as int64 [B, N].

    Parameters
    ----------
    token_ids : integers [N] or [B, N]
        The caller has checked that they fit.
    positions : integers of that shape, optional
        Default: 0, 1, 2, ...
    """
    ids = np.atleast_2d(np.asarray(token_ids)).astype(np.int64)
    if positions is None:
        return ids, np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape)
    return ids, np.atleast_2d(np.asarray(positions)).astype(np.int64)


def hash_tokens(token_ids: Array, positions: Array | None = None) -> list[bytes]:
    """Compute a chain of SHA-256 over blocks of 256 tokens.

    Equal hashes mean equal tokens and positions from the first token on.

    Parameters
    ----------
    token_ids : integers [N] or [B, N]
        The tokens.
    positions : integers of that shape, optional
        Default: 0, 1, 2, ...
    """
    ids, token_positions = as_token_arrays(token_ids, positions)
    hashes = [bytes(_DIGEST_BYTES)]
    for begin in range(0, ids.shape[1], BLOCK_TOKENS):
        link = hashlib.sha256(hashes[-1])
        for array in (ids, token_positions):
            link.update(array[:, begin : begin + BLOCK_TOKENS].astype("<i8", copy=False).tobytes())
        hashes.append(link.digest())
    return hashes[1:]


def encode(
    *,
    fingerprint: Mapping[str, str],
    layers: tuple[StoredLayer | None, ...],
    hashes: list[bytes],
    checksums: Array,
    tensors: Mapping[str, TensorEntry],
) -> bytes:
    """Return the bytes of a header, its digest and padding included.

    The length does not depend on the values of the checksums.

    Parameters
    ----------
    fingerprint, layers
        As in `Header`.
    hashes : list of bytes
        As `hash_tokens` returns them.
    checksums : uint32 array
        CRC-32 of each block of the payload.
    tensors : mapping of str to TensorEntry
        All tensors in order of their places.

    Raises
    ------
    HeaderError
        The header would be too long for a safetensors file.
    """
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "header_sha256": _NO_DIGEST.decode(),
        "fingerprint": _encode_json(dict(fingerprint)),
        "layers": _encode_json([None if layer is None else _describe_layer(layer) for layer in layers]),
        "token_sha256": b"".join(hashes).hex(),
        "payload_crc32": checksums.astype(">u4").tobytes().hex(),
    }
    data = encode_header(metadata, tensors)
    if len(data) > MAX_HEADER_BYTES:
        raise HeaderError(f"must have a header of at most {MAX_HEADER_BYTES} bytes, got {len(data)}")
    return data[:_DIGEST_BEGIN] + _digest_header(data) + data[_DIGEST_END:]


def measure_header(start: bytes, file_bytes: int) -> int:
    """Return the length of a header, after the checks that need no parsing.

    Parameters
    ----------
    start : bytes
        The first `START_BYTES` bytes of the file.
    file_bytes : int
        Length of the file.

    Raises
    ------
    HeaderError
        The file is of another format or version, or is shorter than its header.
    """
    if start.startswith(_EARLIER_MAGIC):
        raise HeaderError("was made by an earlier build; delete it or create it again")
    text = start[LENGTH_WORD.size :]
    if not text.startswith(_VERSION_START):
        raise HeaderError(f"must be a cache file of keywise, got {file_bytes} bytes of another kind")
    if not text.startswith(_DIGEST_START):
        match = re.match(rb'[^"]{0,20}', text[len(_VERSION_START) :])
        version = match[0].decode(errors="replace") if match else ""
        raise HeaderError(f"must have format version {VERSION}, got {version!r}; delete it or create it again")
    header_bytes = LENGTH_WORD.size + int(LENGTH_WORD.unpack_from(start)[0])
    if header_bytes > file_bytes:
        raise HeaderError(f"must have a header of {header_bytes} bytes, got a file of {file_bytes}: it was cut")
    if header_bytes > MAX_HEADER_BYTES or header_bytes % PAGE_BYTES or header_bytes < START_BYTES:
        raise InvalidHeaderError(
            f"its length must be a multiple of {PAGE_BYTES} and at most {MAX_HEADER_BYTES}, got {header_bytes}"
        )
    return header_bytes


def decode(data: bytes, file_bytes: int) -> HeaderFields:
    """Verify a header and return its fields.

    Parameters
    ----------
    data : bytes
        Length word and header.
    file_bytes : int
        Length of the file.

    Raises
    ------
    HeaderError
        The header is damaged or invalid, or the file has another length.
    """
    header_bytes = measure_header(data[:START_BYTES], file_bytes)
    if len(data) != header_bytes or _digest_header(data) != data[_DIGEST_BEGIN:_DIGEST_END]:
        raise HeaderError("is damaged: the SHA-256 of its header differs")
    metadata, tensors = parse_header(data[LENGTH_WORD.size :])
    payload_bytes = max((tensor.end for tensor in tensors.values()), default=0)
    if header_bytes + payload_bytes != file_bytes:
        raise HeaderError(
            f"must be {header_bytes + payload_bytes} bytes long, got {file_bytes}: it was cut or extended"
        )
    for name, tensor in tensors.items():
        if tensor.begin % ALIGN_BYTES and not name.startswith(PADDING_PREFIX):
            raise InvalidHeaderError(
                f"tensor {name!r} must begin at a multiple of {ALIGN_BYTES} bytes, got {tensor.begin}"
            )
    return _parse_fields(metadata, tensors, payload_bytes)


def verify_tokens(fields: HeaderFields, token_ids: Array, positions: Array) -> None:
    """Compare tokens with the chain of hashes.

    Parameters
    ----------
    fields : HeaderFields
        With the hashes.
    token_ids, positions : int64 [B, N]
        As read from the file.

    Raises
    ------
    HeaderError
        The hashes differ.
    """
    if hash_tokens(token_ids, positions) != fields.token_hashes:
        raise HeaderError("is damaged: the SHA-256 of its tokens differs")


def _digest_header(data: bytes) -> bytes:
    """Return the hexadecimal SHA-256 of a header, with zeros in place of its own digits."""
    digest = hashlib.sha256(data[:_DIGEST_BEGIN])
    digest.update(_NO_DIGEST)
    digest.update(data[_DIGEST_END:])
    return digest.hexdigest().encode()


def _encode_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _describe_layer(layer: StoredLayer) -> dict[str, Any]:
    kind = "full" if layer.window is None else "window"
    return {"kind": kind, "window": layer.window, "first_key": layer.first_key}


def name_layer_tensor(number: int, name: str) -> str:
    """Return the name of a tensor of a layer, such as ``layers.0.key``.

    Parameters
    ----------
    number : int
        Number of the layer.
    name : str
        Name in `StoredLayer.tensors`.
    """
    return f"layers.{number}.{name}"


def _parse_fields(metadata: dict[str, str], tensors: dict[str, TensorEntry], payload_bytes: int) -> HeaderFields:
    names = {"format", "version", "header_sha256", "fingerprint", "layers", "token_sha256", "payload_crc32"}
    if metadata.keys() != names:
        raise InvalidHeaderError(f"its metadata must have the fields {', '.join(sorted(names))}")
    remaining = {name: tensor for name, tensor in tensors.items() if not _is_padding(name, tensor)}
    token_ids, positions = (remaining.pop(name, None) for name in (TOKEN_IDS, POSITIONS))
    if token_ids is None or token_ids.dtype != "int64" or len(token_ids.shape) != 2:
        raise InvalidHeaderError(f"{TOKEN_IDS} must be an I64 tensor [batch, tokens]")
    if positions is None or (positions.dtype, positions.shape) != (token_ids.dtype, token_ids.shape):
        raise InvalidHeaderError(f"{POSITIONS} must be an I64 tensor of the shape of {TOKEN_IDS}")
    blocks = -(-token_ids.shape[1] // BLOCK_TOKENS)
    chain = _parse_hex("token_sha256", metadata["token_sha256"], blocks * _DIGEST_BYTES)
    checksums = _parse_hex("payload_crc32", metadata["payload_crc32"], 4 * count_checksums(payload_bytes))
    records = parse_json("layers", metadata["layers"])
    if not isinstance(records, list):
        raise InvalidHeaderError("layers must be a list")
    layers = tuple(_parse_layer(number, record, token_ids, remaining) for number, record in enumerate(records))
    if not any(layers):
        raise InvalidHeaderError("at least one layer must have keys")
    extra = {}
    for name, tensor in remaining.items():
        if not _is_extra(name, tensor):
            raise InvalidHeaderError(f"tensor {name!r} must belong to a layer or be an extra array of numbers")
        extra[name.removeprefix(EXTRA_PREFIX)] = tensor
    return HeaderFields(
        fingerprint=parse_strings("fingerprint", parse_json("fingerprint", metadata["fingerprint"])),
        layers=layers,
        extra=extra,
        payload_bytes=payload_bytes,
        token_ids=token_ids,
        positions=positions,
        token_hashes=[chain[begin : begin + _DIGEST_BYTES] for begin in range(0, len(chain), _DIGEST_BYTES)],
        checksums=np.frombuffer(checksums, ">u4").astype(np.uint32),
    )


def _is_padding(name: str, tensor: TensorEntry) -> bool:
    return name.startswith(PADDING_PREFIX) and tensor.dtype == "uint8" and len(tensor.shape) == 1


def _is_extra(name: str, tensor: TensorEntry) -> bool:
    return name.startswith(EXTRA_PREFIX) and tensor.dtype != "bfloat16"


def _parse_hex(name: str, text: str, expected_bytes: int) -> bytes:
    if len(text) != 2 * expected_bytes or not re.fullmatch(r"[0-9a-f]*", text):
        raise InvalidHeaderError(
            f"{name} must have {2 * expected_bytes} hexadecimal digits, got {len(text)} characters"
        )
    return bytes.fromhex(text)


def _parse_layer(
    number: int, record: Any, token_ids: TensorEntry, remaining: dict[str, TensorEntry]
) -> StoredLayer | None:
    """Return a layer and remove its tensors from those that remain."""
    if record is None:
        return None
    subject = f"layer {number}"
    if not isinstance(record, dict) or record.keys() != {"kind", "window", "first_key"}:
        raise InvalidHeaderError(f"{subject} must have kind, window and first_key, or be null")
    window = None if record["window"] is None else parse_size(f"the window of {subject}", record["window"])
    if record["kind"] != ("full" if window is None else "window"):
        raise InvalidHeaderError(f"the kind of {subject} must agree with its window, got {record['kind']!r:.40}")
    first_key = parse_size(f"first_key of {subject}", record["first_key"])
    tensors = {}
    for name in ("key", "value", "key_scale", "value_scale"):
        tensor = remaining.pop(name_layer_tensor(number, name), None)
        if tensor is not None:
            tensors[name] = tensor
    layer = StoredLayer(window, first_key, tensors)
    _check_layer(subject, layer, token_ids)
    return layer


def _check_layer(subject: str, layer: StoredLayer, token_ids: TensorEntry) -> None:
    key, value = layer.tensors.get("key"), layer.tensors.get("value")
    if key is None or value is None:
        raise InvalidHeaderError(f"{subject} must have a key and a value tensor")
    if key.dtype != value.dtype or key.dtype not in (*FLOATS, "int8"):
        raise InvalidHeaderError(f"key and value of {subject} must share a float dtype or int8")
    if len(key.shape) != 4 or len(value.shape) != 4 or key.shape[:3] != value.shape[:3]:
        raise InvalidHeaderError(
            f"key and value of {subject} must have shapes [batch, heads, tokens, head_dim] that agree"
        )
    batch, tokens = token_ids.shape
    if key.shape[0] != batch or layer.first_key + key.shape[2] != tokens:
        raise InvalidHeaderError(f"{subject} must have the batch and the tokens of {TOKEN_IDS}")
    scales = {name: tensor for name, tensor in layer.tensors.items() if name.endswith("_scale")}
    expected_scales = {"key_scale", "value_scale"} if key.dtype == "int8" else set()
    if scales.keys() != expected_scales:
        raise InvalidHeaderError(f"{subject} must have scales exactly if it is int8")
    for name, tensor in scales.items():
        if (tensor.dtype, tensor.shape) != ("float32", key.shape[:3]):
            raise InvalidHeaderError(f"{name} of {subject} must be an F32 tensor [batch, heads, tokens]")
