"""Cache files: they return what was saved, any tool opens them, and nothing damaged, cut or foreign is used."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.cache import file
from keywise.cache.header import START_BYTES, VERSION, hash_tokens
from keywise.cache.payload import CHECK_BYTES
from keywise.cache.safetensors_header import LENGTH_WORD, MAX_HEADER_BYTES, PAGE_BYTES
from keywise.errors import DtypeError, FormatError, MissingFileError, OptionError, ShapeError
from tests.cache.test_kvcache import draw_tokens, layer_tensors
from tests.support.cases import DTYPES
from tests.support.damaged_stores import damage_cache_files
from tests.support.judging import as_float64

FINGERPRINT = {"weights": "5e1f", "tokenizer": "77", "rope": "theta 10000", "dtype": "float32"}


def make_cache(count: int, *, layers: int = 2, dtype: str = "float32", batch: int = 1, **options: Any) -> kw.KVCache:
    cache = kw.KVCache(layers, **options)
    for layer in range(layers):
        key, value = (
            draw_tokens(count, seed=2 * layer + side, batch=batch, width=8 + side, dtype=dtype) for side in (0, 1)
        )
        cache.append(layer, key, value)
    return cache


def save(path: Path, count: int = 20, **options: Any) -> kw.KVCache:
    cache = make_cache(count, **options)
    file.save(path, cache, fingerprint=FINGERPRINT, token_ids=np.arange(cache.layers, cache.layers + count))
    return cache


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_saved_cache_opens_unchanged_and_continues(tmp_path: Path, dtype: str, batch: int, target: str) -> None:
    cache = make_cache(300, dtype=dtype, batch=batch).fork()
    more = [draw_tokens(40, seed=9, batch=batch, width=8 + side, dtype=dtype) for side in (0, 1)]
    for layer in (0, 1):
        cache.append(layer, *more)
    ids = np.random.default_rng(0).integers(0, 50_000, (batch, 340))
    extra = {"mass": np.random.default_rng(1).random((4, 340)).astype(np.float16), "empty": np.zeros((0, 3), np.int32)}
    file.save(tmp_path / "cache", cache, fingerprint=FINGERPRINT, token_ids=ids, positions=ids * 2, extra=extra)
    opened = file.open(tmp_path / "cache", FINGERPRINT)
    opened.verify()
    np.testing.assert_array_equal(opened.header.token_ids, ids)
    np.testing.assert_array_equal(opened.header.positions, ids * 2)
    assert opened.extra.keys() == extra.keys()
    for name, array in extra.items():
        np.testing.assert_array_equal(opened.extra[name], array)
    query = draw_tokens(2, seed=5, batch=batch, heads=4, dtype=dtype)
    for branch in (opened.cache, opened.cache.fork()):
        assert len(branch) == 340
        for layer in (0, 1):
            for actual, expected in zip(layer_tensors(branch, layer), layer_tensors(cache, layer), strict=True):
                assert torch.equal(actual, expected)
        for other in (branch, cache):
            for layer in (0, 1):
                other.append(layer, *more)
        actual, expected = (other.attend(1, query, mask=kw.Mask(causal=True)) for other in (branch, cache))
        np.testing.assert_allclose(as_float64(actual), as_float64(expected), atol=2e-6 if dtype == "float32" else 0.02)
        cache.truncate(340)


def test_layers_are_read_in_the_layout_the_kernels_read(tmp_path: Path) -> None:
    save(tmp_path / "cache", 1000)
    opened = file.open(tmp_path / "cache", FINGERPRINT)
    for layer in (0, 1):
        for stored in opened.cache.chunks(layer)[0]:
            assert stored.data.ctypes.data % 64 == 0
            assert stored.data.flags.c_contiguous
            assert not stored.data.flags.owndata
        assert opened.cache.chunks(layer)[0].key.data.ctypes.data % PAGE_BYTES == 0
    # A write to the memory stays in this process.
    opened.cache.chunks(0)[0].key.data[:] = 0
    file.open(tmp_path / "cache", FINGERPRINT).verify()


def test_windows_and_unused_layers_are_restored(tmp_path: Path) -> None:
    cache = kw.KVCache(layers=3, windows=[5, None, None])
    for begin in (0, 10):
        for layer in (0, 1):
            cache.append(layer, draw_tokens(10, seed=begin), draw_tokens(10, seed=begin))
    file.save(tmp_path / "cache", cache, fingerprint={}, token_ids=np.arange(20))
    opened = file.open(tmp_path / "cache", {}).cache
    assert opened.windows == (5, None, None)
    assert [opened.first_key(layer) for layer in range(3)] == [5, 0, 0]
    assert [opened.tokens(layer) for layer in range(3)] == [20, 20, 0]
    assert len(opened) == 20
    for layer in (0, 1):
        assert torch.equal(layer_tensors(opened, layer)[0], layer_tensors(cache, layer)[0])
    opened.append(0, draw_tokens(1, seed=3), draw_tokens(1, seed=3))
    assert opened.first_key(0) == 15


def test_saving_over_the_open_file_leaves_open_readers_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path)
    first, reader = file.open(path, FINGERPRINT), file.open(path, FINGERPRINT)
    before = [as_float64(array) for array in layer_tensors(first.cache)]
    for layer in (0, 1):
        first.cache.append(layer, draw_tokens(5, seed=7), draw_tokens(5, seed=7, width=9))
    file.save(path, first.cache, fingerprint=FINGERPRINT, token_ids=np.arange(25))
    for array, right in zip(layer_tensors(reader.cache), before, strict=True):
        np.testing.assert_array_equal(as_float64(array), right)
    reader.verify()
    again = file.open(path, FINGERPRINT)
    assert len(again.cache) == 25
    assert torch.equal(layer_tensors(again.cache)[0], layer_tensors(first.cache)[0])
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def flip(path: Path, bit: int) -> Callable[[], None]:
    """Flip a bit of a file in place, and return a function that flips it back."""

    def flip_once() -> None:
        with path.open("r+b") as handle:
            handle.seek(bit // 8)
            (old,) = handle.read(1)
            handle.seek(bit // 8)
            handle.write(bytes([old ^ 1 << bit % 8]))

    flip_once()
    return flip_once


@pytest.mark.parametrize("dtype", [*DTYPES, "int8"])
def test_safetensors_package_reads_the_same_tensors(tmp_path: Path, dtype: str) -> None:
    import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy
    import safetensors
    import safetensors.numpy
    import safetensors.torch

    path = tmp_path / "cache"
    cache = make_cache(70, dtype="float32") if dtype == "int8" else make_cache(70, dtype=dtype)
    if dtype == "int8":
        cache = kw.KVCache(1, dtype="int8")
        cache.append(0, draw_tokens(70, seed=0), draw_tokens(70, seed=1, width=9))
    mass = np.arange(7, dtype=np.float16)
    flags = np.array([[True, False]])
    file.save(path, cache, fingerprint=FINGERPRINT, token_ids=np.arange(70), extra={"mass": mass, "flags": flags})
    with safetensors.safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    assert (metadata["format"], metadata["version"]) == ("keywise.kv_cache", str(VERSION))
    assert json.loads(metadata["fingerprint"]) == FINGERPRINT
    assert json.loads(metadata["layers"]) == [{"kind": "full", "window": None, "first_key": 0}] * cache.layers
    by_torch = safetensors.torch.load_file(path)
    by_numpy = safetensors.numpy.load_file(path)
    assert by_torch.keys() == by_numpy.keys()
    for name, array in by_numpy.items():
        assert by_torch[name].shape == array.shape, name
        np.testing.assert_array_equal(as_float64(by_torch[name]), as_float64(array), err_msg=name)
    np.testing.assert_array_equal(by_numpy["token_ids"], np.arange(70)[None])
    np.testing.assert_array_equal(by_numpy["positions"], np.arange(70)[None])
    np.testing.assert_array_equal(by_numpy["extra.mass"], mass)
    np.testing.assert_array_equal(by_numpy["extra.flags"], flags)
    for layer in range(cache.layers):
        (chunk,) = cache.chunks(layer)
        for name, side in (("key", chunk.key), ("value", chunk.value)):
            stored = by_torch[f"layers.{layer}.{name}"]
            assert str(stored.dtype) == f"torch.{dtype}"
            np.testing.assert_array_equal(as_float64(stored), side.floats(np.float64) if dtype != "int8" else side.data)
            if dtype == "int8":
                np.testing.assert_array_equal(by_numpy[f"layers.{layer}.{name}_scale"], side.scale)
    paddings = [name for name in by_numpy if name.startswith("padding.")]
    assert paddings
    for name in paddings:
        assert not by_numpy[name].any()


def test_every_flipped_bit_of_header_or_tokens_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path, 3)
    header = file.read_header(path)
    assert header.header_bytes == PAGE_BYTES
    token_bits = [8 * (header.header_bytes + begin) + bit for begin in (0, 64) for bit in range(8 * 24)]
    for bit in [*range(8 * header.header_bytes), *token_bits]:
        restore = flip(path, bit)
        with pytest.raises(FormatError):
            file.read_header(path)
        if bit % 37 == 0:
            with pytest.raises(FormatError, match="cache' "):
                file.open(path, FINGERPRINT)
        restore()
    file.open(path, FINGERPRINT).verify()


def test_every_damaged_byte_of_the_payload_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path, 3)
    header_bytes, file_bytes = file.read_header(path).header_bytes, path.stat().st_size
    for byte in range(header_bytes, file_bytes):
        restore = flip(path, 8 * byte + byte % 8)
        with pytest.raises(FormatError, match=r"checksum of bytes|SHA-256 of its tokens"):
            file.open(path, FINGERPRINT).verify()
        restore()


def test_damaged_extra_array_is_refused_at_opening(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    file.save(path, make_cache(3), fingerprint={}, token_ids=np.arange(3), extra={"mass": np.ones(5)})
    header = file.read_header(path)
    flip(path, 8 * (header.header_bytes + header.extra["mass"].begin))
    with pytest.raises(FormatError, match="checksum of bytes"):
        file.open(path, {})


def test_damaged_layer_is_refused_at_first_use_and_other_layers_work(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    cache = save(path, 4000, layers=4)
    header = file.read_header(path)
    assert header.payload_bytes > 5 * CHECK_BYTES
    assert header.layers[2] is not None
    flip(path, 8 * (header.header_bytes + header.layers[2].tensors["value"].end - 1))
    opened = file.open(path, FINGERPRINT)
    query = draw_tokens(1, seed=1)
    assert torch.equal(opened.cache.attend(0, query), cache.attend(0, query))
    fork = opened.cache.fork()
    for branch in (opened.cache, fork):
        for use in (
            lambda branch: branch.attend(2, query),
            lambda branch: branch.attention_stats(2, query),
            lambda branch: branch.chunks(2),
            lambda branch: branch.append(2, query, draw_tokens(1, seed=1, width=9)),
            lambda branch: branch.select([0, 0]),
            lambda branch: file.save(path, branch, fingerprint={}, token_ids=np.arange(4000)),
        ):
            with pytest.raises(FormatError, match=r"cache' is damaged: the checksum of bytes \d+ to \d+ differs"):
                use(branch)
    with pytest.raises(FormatError):
        opened.verify()


@pytest.mark.parametrize("kind", [None, "int8"])
def test_only_the_remaining_tokens_of_a_truncated_layer_are_verified(tmp_path: Path, kind: str | None) -> None:
    path, count = tmp_path / "cache", 70_000
    cache = kw.KVCache(1, dtype=kind)
    cache.append(0, *[draw_tokens(count, seed=seed, batch=2, dtype="bfloat16") for seed in (1, 2)])
    file.save(path, cache, fingerprint=FINGERPRINT, token_ids=np.zeros((2, count), np.int64))
    header = file.read_header(path)
    assert header.layers[0] is not None
    entries = header.layers[0].tensors.values()
    first_block = header.layers[0].tensors["key"].begin // CHECK_BYTES + 1
    all_blocks = range(first_block, header.payload_bytes // CHECK_BYTES)

    def blocks(remaining: int) -> set[int]:
        """Return the blocks with the first tokens of any item, head and tensor."""
        numbers_of_blocks = set()
        for entry in entries:
            token_bytes = (entry.end - entry.begin) // (4 * count)
            for run in range(4):
                begin = entry.begin + run * count * token_bytes
                end = begin + remaining * token_bytes
                numbers_of_blocks |= set(range(begin // CHECK_BYTES, -(-end // CHECK_BYTES)))
        return numbers_of_blocks

    def use(remaining: int) -> None:
        opened = file.open(path, FINGERPRINT).cache
        for branch in (opened.fork(), opened):
            branch.truncate(remaining)
            branch.attend(0, draw_tokens(1, seed=1, batch=2, dtype="bfloat16"))

    for remaining in (1, 10_000, count):
        needed = blocks(remaining)
        assert (needed >= set(all_blocks)) == (remaining == count)
        for block in all_blocks:
            restore = flip(path, 8 * (header.header_bytes + block * CHECK_BYTES + 1))
            if block in needed:
                with pytest.raises(FormatError, match="checksum of bytes"):
                    use(remaining)
            else:
                use(remaining)
            restore()


def test_every_cut_and_every_extension_is_refused(tmp_path: Path) -> None:
    path, short = tmp_path / "cache", tmp_path / "short"
    save(path, 3)
    data = path.read_bytes()
    short.write_bytes(data)
    for count in reversed(range(len(data))):
        os.truncate(short, count)
        with pytest.raises(FormatError):
            file.open(short, FINGERPRINT)
    short.write_bytes(data + b"\0")
    with pytest.raises(
        FormatError, match=f"must be {len(data)} bytes long, got {len(data) + 1}: it was cut or extended"
    ):
        file.open(short, FINGERPRINT)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    import safetensors.numpy

    path = tmp_path / "cache"
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    foreign_files = [b"", b"x" * 10_000, b"\0" * 10_000, path.read_bytes()]
    for foreign in foreign_files:
        path.write_bytes(foreign)
        with pytest.raises(FormatError, match=f"must be a cache file of keywise, got {len(foreign)} bytes"):
            file.open(path, FINGERPRINT)
    with pytest.raises(FormatError, match="must be a cache file, not a folder, got '/"):
        file.open(tmp_path, FINGERPRINT)


def test_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"path must be an existing cache file, got '/.*/nothing'") as caught:
        file.open(tmp_path / "nothing", FINGERPRINT)
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.argument == "path"


def test_file_of_an_earlier_build_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"keywise\0" + (1).to_bytes(4, "little") + bytes(5000))
    for reader in (file.read_header, lambda path: file.open(path, FINGERPRINT)):
        with pytest.raises(FormatError, match="was made by an earlier build; delete it or create it again"):
            reader(path)


@pytest.mark.parametrize("version", [b"1", b"3", b"99"])
def test_another_version_is_refused_by_name(tmp_path: Path, version: bytes) -> None:
    path = tmp_path / "cache"
    save(path)
    path.write_bytes(path.read_bytes().replace(b'"version":"2"', b'"version":"' + version + b'"'))
    with pytest.raises(FormatError, match=f"must have format version 2, got '{version.decode()}'; delete it or create"):
        file.open(path, FINGERPRINT)


@pytest.mark.parametrize("name", FINGERPRINT)
def test_another_fingerprint_is_refused_by_field(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cache"
    save(path)
    with pytest.raises(FormatError, match=f"same fingerprint: {name} must be '0', got '{FINGERPRINT[name]}'"):
        file.open(path, {**FINGERPRINT, name: "0"})
    with pytest.raises(FormatError, match=f"{name} must be None, got"):
        file.open(path, {key: value for key, value in FINGERPRINT.items() if key != name})
    with pytest.raises(FormatError, match="layout must be 'x', got None"):
        file.open(path, {**FINGERPRINT, "layout": "x"})


def split(data: bytes) -> tuple[bytes, bytes]:
    """Return the text of a header without its padding, and the payload."""
    header_bytes = LENGTH_WORD.size + LENGTH_WORD.unpack_from(data)[0]
    return data[LENGTH_WORD.size : header_bytes].rstrip(b" "), data[header_bytes:]


def sign(text: bytes, payload: bytes) -> bytes:
    """Return a file with this header, padded and with the right SHA-256, as an attacker would make it."""
    padding = -(LENGTH_WORD.size + len(text)) % PAGE_BYTES
    header = LENGTH_WORD.pack(len(text) + padding) + text + b" " * padding
    begin, zeros = START_BYTES - 64, b"0" * 64
    digest = hashlib.sha256(header[:begin] + zeros + header[START_BYTES:]).hexdigest().encode()
    return header[:begin] + digest + header[START_BYTES:] + payload


def change_header(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Apply a change to the parsed header of a file, and sign it."""
    text, payload = split(data)
    root = json.loads(text)
    change(root)
    text = json.dumps(root, separators=(",", ":")).encode()
    return sign(text.replace(b'"DIGITS"', b"1" * 5000), payload)  # json does not write such a number


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change that sets a value.

    A step into a string of the metadata decodes its JSON.
    """

    def change(root: Any) -> None:
        if path[0] in ("layers", "fingerprint"):
            inner = {path[0]: json.loads(root["__metadata__"][path[0]])}
            _set(inner, path, value)
            root["__metadata__"][path[0]] = json.dumps(inner[path[0]])
        else:
            _set(root, path, value)

    return change


def _set(root: Any, path: tuple[Any, ...], value: Any) -> None:
    for step in path[:-1]:
        root = root[step]
    root[path[-1]] = value


def combine(*changes: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def change(root: dict[str, Any]) -> None:
        for one in changes:
            one(root)

    return change


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(root: dict[str, Any]) -> None:
        root[new] = root.pop(old)

    return change


def retype(name: str, dtype: str, shape: list[int]) -> Callable[[dict[str, Any]], None]:
    return combine(put(name, "dtype", value=dtype), put(name, "shape", value=shape))


def add(name: str, dtype: Any, shape: Any, offsets: Any) -> Callable[[dict[str, Any]], None]:
    return put(name, value={"dtype": dtype, "shape": shape, "data_offsets": offsets})


KEY, VALUE = "layers.0.key", "layers.0.value"
FULL = {"kind": "full", "window": None, "first_key": 0}
# Two layers of float32: in the file token_ids 0-24, positions 64-88, layers.0 4096-4288-4504, layers.1 8192-8384-8600.
INVALID: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "offsets far away": (put(KEY, "data_offsets", value=[2**62, 2**62 + 192]), "must begin at byte 4096"),
    "overlapping tensors": (put(VALUE, "data_offsets", value=[4224, 4440]), "must begin at byte 4288, got 4224"),
    "two names for a place": (add("extra.x", "F32", [1, 2, 3, 8], [4096, 4288]), "must begin at byte"),
    "hole": (lambda root: root.pop("padding.0"), "must begin at byte 24, got 64"),
    "hole at the start": (lambda root: root.pop("token_ids"), "must begin at byte 0, got 24"),
    "negative offset": (put(KEY, "data_offsets", value=[-64, 128]), "sizes and offsets of tensor .* got -64"),
    "bool as offset": (put("token_ids", "data_offsets", value=[False, 24]), "sizes and offsets of tensor .* got False"),
    "string as offset": (put(KEY, "data_offsets", value=["4096", 4288]), "sizes and offsets of tensor .* got '4096'"),
    "fraction as offset": (put(KEY, "data_offsets", value=[4096.0, 4288]), "a number must be an integer, got 4096.0"),
    "infinite offset": (put(KEY, "data_offsets", value=[float("inf"), 4288]), "an integer, got Infinity"),
    "offset NaN": (put(KEY, "data_offsets", value=[float("nan"), 4288]), "an integer, got NaN"),
    "offset of 30 digits": (put(KEY, "data_offsets", value=[10**29, 4288]), r"between 0 and 2\*\*63 - 1, got 1000"),
    "offset of 9999 digits": (put(KEY, "data_offsets", value=[10**4298, 4288]), r"between 0 and 2\*\*63 - 1, got 1000"),
    "offset of 5000 digits": (put(KEY, "data_offsets", value=["DIGITS", 4288]), "the header must be JSON"),
    "one offset": (put(KEY, "data_offsets", value=[4096]), "must be a list of two offsets"),
    "offsets an object": (put(KEY, "data_offsets", value={}), "must be a list of two offsets"),
    "end before begin": (put(KEY, "data_offsets", value=[4096, 4000]), "must end at byte 4288 .* got 4000"),
    "end too late": (put(KEY, "data_offsets", value=[4096, 4352]), "must end at byte 4288 .* got 4352"),
    "shape huge": (put(KEY, "shape", value=[1, 2**40, 2**40, 2**40]), r"less than 2\*\*63 bytes"),
    "shape huge and empty": (put(KEY, "shape", value=[0, 2**62, 2**62]), r"less than 2\*\*63 bytes"),
    "tensor of a petabyte": (add("extra.x", "F32", [2**48], [8600, 8600 + 2**50]), r"must be \d+ bytes long, got"),
    "shape of 65 axes": (put(KEY, "shape", value=[1] * 65), "a list of at most 64 sizes"),
    "negative size": (put(VALUE, "shape", value=[1, -3, 2, 8]), "sizes and offsets of tensor .* got -3"),
    "shape of three": (put(KEY, "shape", value=[1, 6, 8]), r"shapes \[batch, heads, tokens, head_dim\] that agree"),
    "shape a string": (put(KEY, "shape", value="abc"), "a list of at most 64 sizes"),
    "other tokens": (put(KEY, "shape", value=[1, 2, 8, 3]), "that agree"),
    "other heads": (put(KEY, "shape", value=[1, 1, 6, 8]), "that agree"),
    "other batch": (
        combine(put(KEY, "shape", value=[2, 1, 3, 8]), put(VALUE, "shape", value=[2, 1, 3, 9])),
        "the batch and the tokens of token_ids",
    ),
    "dtype unknown": (put(KEY, "dtype", value="F8_E4M3"), "must be one of BOOL, .* got 'F8_E4M3'"),
    "dtype a number": (put(KEY, "dtype", value=32), "must be one of BOOL, .* got 32"),
    "dtype a list": (put(KEY, "dtype", value=["F32"]), "must be one of BOOL"),
    "dtype of one side": (put(KEY, "dtype", value="I32"), "must share a float dtype or int8"),
    "integers": (
        combine(put(KEY, "dtype", value="I32"), put(VALUE, "dtype", value="I32")),
        "must share a float dtype or int8",
    ),
    "int8 without scales": (
        combine(retype(KEY, "I8", [1, 2, 3, 32]), retype(VALUE, "I8", [1, 2, 3, 36])),
        "must have scales exactly if it is int8",
    ),
    "scales of floats": (
        combine(
            rename("layers.1.key", "layers.0.key_scale"),
            rename("layers.1.value", "layers.0.value_scale"),
            put("layers", 1, value=None),
        ),
        "must have scales exactly if it is int8",
    ),
    "entry without dtype": (lambda root: root[KEY].pop("dtype"), "must have dtype, shape and data_offsets"),
    "entry with more": (put(KEY, "strides", value=[1]), "must have dtype, shape and data_offsets"),
    "entry a list": (put(KEY, value=[]), "must have dtype, shape and data_offsets"),
    "no values": (rename(VALUE, "extra.value"), "must have a key and a value tensor"),
    "unknown tensor": (add("x", "F32", [0], [4096, 4096]), "'x' must belong to a layer or be an extra array"),
    "padding of floats": (put("padding.0", value={"dtype": "F32", "shape": [10], "data_offsets": [24, 64]}), "padding"),
    "extra bfloat16": (add("extra.x", "BF16", [0], [4096, 4096]), "must belong to a layer or be an extra array"),
    "not aligned": (
        combine(
            put("padding.0", value={"dtype": "U8", "shape": [8], "data_offsets": [24, 32]}),
            put("positions", "data_offsets", value=[32, 56]),
            put("padding.1", value={"dtype": "U8", "shape": [4040], "data_offsets": [56, 4096]}),
        ),
        "must begin at a multiple of 64 bytes, got 32",
    ),
    "tokens of floats": (put("token_ids", "dtype", value="F64"), "token_ids must be an I64 tensor"),
    "tokens of one axis": (put("token_ids", "shape", value=[3]), "token_ids must be an I64 tensor"),
    "tokens missing": (rename("token_ids", "extra.ids"), "token_ids must be an I64 tensor"),
    "positions missing": (rename("positions", "extra.places"), "positions must be an I64 tensor"),
    "positions of another shape": (put("positions", "shape", value=[3, 1]), "positions must be an I64 tensor"),
    "batch of tokens": (
        combine(put("token_ids", "shape", value=[3, 1]), put("positions", "shape", value=[3, 1])),
        "the batch and the tokens of token_ids",
    ),
    "first key of a layer": (put("layers", 0, "first_key", value=1), "the batch and the tokens of token_ids"),
    "window negative": (put("layers", 0, "window", value=-1), "window of layer 0 must be an integer between 0"),
    "window without kind": (put("layers", 0, "window", value=2), "kind of layer 0 must agree with its window"),
    "layer with more": (put("layers", 0, value={**FULL, "x": 1}), "layer 0 must have kind, window and first_key"),
    "layer a number": (put("layers", 0, value=5), "layer 0 must have kind, window and first_key"),
    "layer a zero": (put("layers", 0, value=0), "layer 0 must have kind, window and first_key"),
    "layers an object": (put("layers", value={}), "layers must be a list"),
    "layers not JSON": (put("__metadata__", "layers", value="[null"), "layers must be JSON"),
    "layers nested": (put("__metadata__", "layers", value="[" * 100_000), "layers is nested too deeply"),
    "no layers": (put("layers", value=[]), "at least one layer must have keys"),
    "a layer less": (put("layers", value=[FULL]), "'layers.1.key' must belong to a layer"),
    "a layer more": (put("layers", value=[FULL] * 3), "layer 2 must have a key and a value tensor"),
    "fingerprint a list": (put("fingerprint", value=[]), "fingerprint must be an object of strings"),
    "fingerprint of numbers": (put("fingerprint", value={"weights": 3}), "fingerprint must be an object of strings"),
    "metadata of numbers": (put("__metadata__", "layers", value=3), "__metadata__ must be an object of strings"),
    "metadata with more": (put("__metadata__", "x", value=""), "its metadata must have the fields"),
    "metadata with less": (lambda root: root["__metadata__"].pop("layers"), "its metadata must have the fields"),
    "hashes too short": (put("__metadata__", "token_sha256", value="00"), "64 hexadecimal digits, got 2"),
    "hashes of letters": (put("__metadata__", "token_sha256", value="x" * 64), "64 hexadecimal digits"),
    "checksums too long": (put("__metadata__", "payload_crc32", value="0" * 16), "8 hexadecimal digits, got 16"),
    "checksum with spaces": (put("__metadata__", "payload_crc32", value="00 00 00"), "8 hexadecimal digits"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_header_with_a_right_digest_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cache"
    save(path, 3)
    data = path.read_bytes()
    assert change_header(data, lambda root: None) == data
    change, message = INVALID[name]
    path.write_bytes(change_header(data, change))
    with pytest.raises(FormatError, match=rf"cache' (has an invalid header: .*)?{message}"):
        file.open(path, FINGERPRINT)


INVALID_TEXTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "ends inside": (lambda text: text[:-1], "the header must be JSON"),
    "text behind it": (lambda text: text + b"x", "the header must be JSON: Extra data"),
    "not UTF-8": (lambda text: text.replace(b"extra.x", b"extra.\xff"), "the header must be JSON"),
    "deep": (lambda text: text[:-1] + b',"x":' + b"[" * 100_000, "the header is nested too deeply"),
    "deep object": (lambda text: text[:-1] + b',"x":' + b'{"a":' * 100_000, "the header is nested too deeply"),
    "tensor twice": (lambda text: text[:-1] + b',"positions":{}}', "a name is repeated in an object"),
    "dtype twice": (lambda text: text.replace(b'"dtype"', b'"dtype":"F32","dtype"'), "a name is repeated"),
    "metadata twice": (lambda text: text[:-1] + b',"__metadata__":{}}', "a name is repeated in an object"),
    "exponent": (lambda text: text.replace(b"[0,24]", b"[0,24e400]"), "a number must be an integer, got 24e400"),
}


@pytest.mark.parametrize("name", INVALID_TEXTS)
def test_header_that_is_no_strict_json_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cache"
    file.save(path, make_cache(3), fingerprint={}, token_ids=np.arange(3), extra={"x": np.ones(1)})
    text, payload = split(path.read_bytes())
    change, message = INVALID_TEXTS[name]
    assert change(text) != text
    path.write_bytes(sign(change(text), payload))
    with pytest.raises(FormatError, match=f"has an invalid header: {message}"):
        file.open(path, {})


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    cache = kw.KVCache(1, dtype="int8")
    cache.append(0, draw_tokens(3, seed=0), draw_tokens(3, seed=1))
    file.save(path, cache, fingerprint={}, token_ids=np.arange(3))
    data = path.read_bytes()
    for change in (put("layers.0.key_scale", "dtype", value="I32"), put("layers.0.key_scale", "shape", value=[6])):
        path.write_bytes(change_header(data, change))
        with pytest.raises(FormatError, match="key_scale of layer 0 must be an F32 tensor"):
            file.open(path, {})


def test_length_word_out_of_range_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path, 3)
    data = path.read_bytes()
    for length in (0, 1, 100, PAGE_BYTES, PAGE_BYTES - 9, PAGE_BYTES - 7):
        path.write_bytes(LENGTH_WORD.pack(length) + data[8:])
        with pytest.raises(FormatError, match=r"its length must be a multiple of 4096"):
            file.open(path, FINGERPRINT)
    for length in (len(data), 2**32, 2**63, 2**64 - 1):
        path.write_bytes(LENGTH_WORD.pack(length) + data[8:])
        with pytest.raises(FormatError, match=rf"must have a header of {length + 8} bytes, got a file of"):
            file.open(path, FINGERPRINT)
    # A sparse file as long as its header says: the limit is checked before anything is read.
    too_long = -(-MAX_HEADER_BYTES // PAGE_BYTES) * PAGE_BYTES
    path.write_bytes(LENGTH_WORD.pack(too_long - 8) + data[8:])
    os.truncate(path, too_long + PAGE_BYTES)
    with pytest.raises(FormatError, match=f"at most {MAX_HEADER_BYTES}, got {too_long}"):
        file.open(path, FINGERPRINT)


def test_random_changes_of_a_header_raise_format_errors_only(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    file.save(path, make_cache(3), fingerprint=FINGERPRINT, token_ids=np.arange(3), extra={"x": np.ones(3, np.int16)})
    text, payload = split(path.read_bytes())
    random = np.random.default_rng(0)
    alphabet = b'0123456789-+.eE[]{}",:\\ntFIU8_x \xff\x00'
    refused = 0
    for _ in range(3000):
        changed = bytearray(text)
        for _ in range(random.integers(1, 4)):
            place = int(random.integers(START_BYTES, len(changed)))
            if random.integers(3) == 0:
                del changed[place]
            else:
                changed[place] = alphabet[random.integers(len(alphabet))]
        path.write_bytes(sign(bytes(changed), payload))
        try:
            file.open(path, FINGERPRINT).verify()
        except FormatError:
            refused += 1
    assert refused > 2500


def test_tokens_with_other_hashes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path, 3)
    data = path.read_bytes()
    hashes = b"".join(hash_tokens(np.array([2, 3, 5]))).hex()
    path.write_bytes(change_header(data, put("__metadata__", "token_sha256", value=hashes)))
    with pytest.raises(FormatError, match="is damaged: the SHA-256 of its tokens differs"):
        file.open(path, FINGERPRINT)


def test_common_tokens_is_the_longest_common_prefix(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    cache = make_cache(700, layers=1)
    ids = np.random.default_rng(0).integers(0, 99, 700)
    file.save(path, cache, fingerprint={}, token_ids=ids.tolist())
    header = file.read_header(path)
    assert header.tokens == 700
    for same in (0, 1, 255, 256, 257, 511, 512, 699):
        other = ids.copy()
        other[same] += 1
        assert header.common_tokens(other) == same
        links = [a == b for a, b in zip(hash_tokens(ids), hash_tokens(other), strict=True)]
        assert links == [number < same // 256 for number in range(3)]
    assert header.common_tokens(ids) == 700
    assert header.common_tokens(ids[:300]) == 300
    assert header.common_tokens(np.concatenate([ids, ids])) == 700
    assert header.common_tokens(ids, positions=np.arange(700) + 1) == 0
    assert header.common_tokens(np.stack([ids, ids])) == 0
    assert hash_tokens(ids) != hash_tokens(ids, np.arange(700) + 1)


def test_arguments_that_do_not_fit_are_refused_and_write_nothing(tmp_path: Path) -> None:
    path, cache = tmp_path / "cache", make_cache(4)
    good: dict[str, Any] = {"fingerprint": {}, "token_ids": [1, 2, 3, 4]}
    uneven = cache.fork()
    uneven.append(0, draw_tokens(1, seed=0), draw_tokens(1, seed=0, width=9))
    gone = kw.KVCache(layers=1, windows=[0])
    for seed in (0, 1):
        gone.append(0, draw_tokens(2, seed=seed), draw_tokens(2, seed=seed))
    gone.truncate(2)
    mistakes: list[tuple[kw.KVCache, dict[str, Any], type[Exception], str]] = [
        (cache, {"token_ids": [1, 2, 3]}, ShapeError, r"token_ids must have the shape .* \[1, 4\], got \[3\]"),
        (cache, {"token_ids": [[1, 2, 3, 4]] * 2}, ShapeError, r"token_ids must have the shape .* got \[2, 4\]"),
        (
            cache,
            {"token_ids": [1.0, 2.0, 3.0, 4.0]},
            DtypeError,
            "token_ids must have integers as elements, got dtype float64",
        ),
        (cache, {"positions": [1]}, ShapeError, r"positions must have the shape of token_ids, \[4\], got \[1\]"),
        (cache, {"fingerprint": "abc"}, DtypeError, "fingerprint must be a mapping of names to digests, got a str"),
        (cache, {"fingerprint": {"weights": 3}}, DtypeError, "fingerprint must have strings .* got 'weights': 3"),
        (cache, {"extra": {"x": "abc"}}, DtypeError, r"extra\['x'\] "),
        (cache, {"extra": {"x": np.array(["a"])}}, DtypeError, r"extra\['x'\] must be an array of numbers .* got str"),
        (kw.KVCache(layers=2), {}, OptionError, "cache must have keys in every layer that is used"),
        (gone, {"token_ids": [1, 2]}, OptionError, "cache must have keys in every layer that is used"),
        (uneven, {}, OptionError, r"cache must have the same tokens .* got \[4, 5\] tokens"),
    ]
    for wrong, change, kind, words in mistakes:
        with pytest.raises(kind, match=words):
            file.save(path, wrong, **{**good, **change})
    assert not list(tmp_path.iterdir())
    with pytest.raises(FormatError, match="cannot be written"):
        file.save(tmp_path / "nowhere" / "cache", cache, **good)


def test_full_disk_raises_and_leaves_the_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path, 20)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 100, len(before) + 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(FormatError, match=r"cannot be written .* an existing file is unchanged"):
                save(path, 2000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def test_copied_file_opens(tmp_path: Path) -> None:
    save(tmp_path / "cache")
    shutil.copy(tmp_path / "cache", tmp_path / "copy")
    file.open(tmp_path / "copy", FINGERPRINT).verify()


def test_files_are_the_same_without_the_faster_checksum(tmp_path: Path) -> None:
    save(tmp_path / "here", 300)
    code = (
        "import sys; sys.modules['zlib_ng'] = None\n"
        "import tests.cache.test_file as this\n"
        "from keywise.cache import payload\n"
        "assert payload.crc32.__module__ == 'zlib'\n"
        "this.save(this.Path('there'), 300)\n"
        "this.file.open('here', this.FINGERPRINT).verify()\n"
    )
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=here, check=True)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


@pytest.mark.parametrize("length", [0, 100, 8192, 30_000])
@pytest.mark.parametrize("used_before", [True, False])
def test_file_that_is_truncated_while_it_is_open_is_refused_or_read_before(
    tmp_path: Path, length: int, used_before: bool
) -> None:
    path = tmp_path / "cache"
    cache = save(path, 5000)
    opened = file.open(path, FINGERPRINT)
    query = draw_tokens(1, seed=1)
    if used_before:
        opened.cache.attend(1, query)
    os.truncate(path, length)
    fork = opened.cache.fork()
    if used_before:
        for branch in (opened.cache, fork):
            assert torch.equal(branch.attend(1, query), cache.attend(1, query))
    else:
        with pytest.raises(FormatError, match="cache' is damaged: it was cut while it was open"):
            fork.attend(1, query)
    with pytest.raises(FormatError):
        opened.cache.attend(0, query)


def test_bytes_that_change_after_verification_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    cache = save(path, 5000)
    opened = file.open(path, FINGERPRINT)
    query = draw_tokens(1, seed=1)
    opened.verify()
    with path.open("r+b") as handle:
        handle.write(bytes(path.stat().st_size))
    for layer in (0, 1):
        assert torch.equal(opened.cache.attend(layer, query), cache.attend(layer, query))


def test_removed_file_stays_open(tmp_path: Path) -> None:
    cache = save(tmp_path / "cache", 5000)
    opened = file.open(tmp_path / "cache", FINGERPRINT)
    (tmp_path / "cache").unlink()
    opened.verify()
    assert torch.equal(layer_tensors(opened.cache)[0], layer_tensors(cache)[0])


def test_deep_copy_of_a_cache_that_was_not_read_yet_has_its_tokens(tmp_path: Path) -> None:
    cache = save(tmp_path / "cache", 5000)
    copied = copy.deepcopy(file.open(tmp_path / "cache", FINGERPRINT).cache)
    for layer in (0, 1):
        assert torch.equal(layer_tensors(copied, layer)[0], layer_tensors(cache, layer)[0])


def test_threads_that_use_one_file_at_once_read_the_same_tokens(tmp_path: Path) -> None:
    cache = save(tmp_path / "cache", 20_000, layers=4)
    opened = file.open(tmp_path / "cache", FINGERPRINT)
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda number: layer_tensors(opened.cache, number % 4)[0], range(16)))
    for number, tensor in enumerate(stored):
        assert torch.equal(tensor, layer_tensors(cache, number % 4)[0])


def test_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path)
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    cases = [(tmp_path / "loop", "symbolic links"), (tmp_path / "pipe", "not a regular file"), ("/dev/zero", "regular")]
    cases += [("a\0b", "null byte"), ("\ud800", "surrogates")]
    for place, reason in cases:
        for reader in (file.read_header, lambda place: file.open(place, FINGERPRINT)):
            with pytest.raises(FormatError, match=f"cannot be read .*{reason}"):
                reader(place)


def test_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    cache = make_cache(4)
    os.mkfifo(tmp_path / "pipe")
    for place in ("", tmp_path, tmp_path / "pipe", "a\0b", "\ud800", tmp_path / ("x" * 300)):
        with pytest.raises(FormatError, match="cannot be written"):
            file.save(place, cache, fingerprint={}, token_ids=[1, 2, 3, 4])
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize(
    ("token_ids", "error"),
    [
        ([[1, 2], [3]], ShapeError),
        ([[[1, 2, 3, 4]]], ShapeError),
        (3, ShapeError),
        (None, DtypeError),
        ("abcd", DtypeError),
        ({"input_ids": [1, 2, 3, 4]}, DtypeError),
        ([1, 2, 3, 2**80], DtypeError),
        ([True, False, True, True], DtypeError),
        (["1", "2", "3", "4"], DtypeError),
        ([], DtypeError),
    ],
)
def test_token_ids_that_are_no_integers_are_refused(tmp_path: Path, token_ids: Any, error: type) -> None:
    with pytest.raises(error, match="token_ids must"):
        file.save(tmp_path / "cache", make_cache(4), fingerprint={}, token_ids=token_ids)


def test_damaged_copies_are_refused(tmp_path: Path) -> None:
    ends = damage_cache_files(tmp_path, 1500)
    assert ends["refused"] > 1200, ends
