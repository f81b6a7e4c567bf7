"""Cache files: what comes back is what was saved, and nothing damaged, cut, foreign or half-written is ever used."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.cache import file
from keywise.cache.head import CHECK_BYTES, PAGE_BYTES, PREAMBLE, PREAMBLE_BYTES, token_hashes
from keywise.errors import DtypeError, FormatError, OptionError, ShapeError
from tests.cache.test_kvcache import held, tokens
from tests.support.cases import DTYPES
from tests.support.judging import numbers

FINGERPRINT = {"weights": "5e1f", "tokenizer": "77", "rope": "theta 10000", "dtype": "float32"}


def cache_of(count: int, *, layers: int = 2, dtype: str = "float32", batch: int = 1, **options: Any) -> kw.KVCache:
    cache = kw.KVCache(layers, **options)
    for layer in range(layers):
        key, value = (tokens(count, seed=2 * layer + side, batch=batch, width=8 + side, dtype=dtype) for side in (0, 1))
        cache.append(layer, key, value)
    return cache


def save(path: Path, count: int = 20, **options: Any) -> kw.KVCache:
    cache = cache_of(count, **options)
    file.save(path, cache, fingerprint=FINGERPRINT, token_ids=np.arange(cache.layers, cache.layers + count))
    return cache


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_saved_comes_back_and_goes_on(tmp_path: Path, dtype: str, batch: int, target: str) -> None:
    cache = cache_of(300, dtype=dtype, batch=batch).fork()
    more = [tokens(40, seed=9, batch=batch, width=8 + side, dtype=dtype) for side in (0, 1)]
    for layer in (0, 1):
        cache.append(layer, *more)
    ids = np.random.default_rng(0).integers(0, 50_000, (batch, 340))
    extra = {"mass": np.random.default_rng(1).random((4, 340)).astype(np.float16), "empty": np.zeros((0, 3), np.int32)}
    file.save(tmp_path / "cache", cache, fingerprint=FINGERPRINT, token_ids=ids, positions=ids * 2, extra=extra)
    opened = file.open(tmp_path / "cache", FINGERPRINT)
    opened.verify()
    np.testing.assert_array_equal(opened.head.token_ids, ids)
    np.testing.assert_array_equal(opened.head.positions, ids * 2)
    assert opened.extra.keys() == extra.keys()
    for name, array in extra.items():
        np.testing.assert_array_equal(opened.extra[name], array)
    query = tokens(2, seed=5, batch=batch, heads=4, dtype=dtype)
    for branch in (opened.cache, opened.cache.fork()):
        assert len(branch) == 340
        for layer in (0, 1):
            for got, right in zip(held(branch, layer), held(cache, layer), strict=True):
                assert torch.equal(got, right)
        for other in (branch, cache):
            for layer in (0, 1):
                other.append(layer, *more)
        got, right = (other.attend(1, query, mask=kw.Mask(causal=True)) for other in (branch, cache))
        np.testing.assert_allclose(numbers(got), numbers(right), atol=2e-6 if dtype == "float32" else 0.02)
        cache.truncate(340)


def test_opening_maps_the_file_in_the_layout_the_kernels_read(tmp_path: Path) -> None:
    save(tmp_path / "cache", 1000)
    opened = file.open(tmp_path / "cache", FINGERPRINT)
    for layer in (0, 1):
        for stored in opened.cache.chunks(layer)[0]:
            assert stored.data.ctypes.data % 64 == 0
            assert stored.data.flags.c_contiguous
            assert not stored.data.flags.owndata
        assert opened.cache.chunks(layer)[0].key.data.ctypes.data % PAGE_BYTES == 0
    # A write to the mapping stays in this process.
    opened.cache.chunks(0)[0].key.data[:] = 0
    file.open(tmp_path / "cache", FINGERPRINT).verify()


def test_windows_and_unused_layers_come_back(tmp_path: Path) -> None:
    cache = kw.KVCache(layers=3, windows=[5, None, None])
    for begin in (0, 10):
        for layer in (0, 1):
            cache.append(layer, tokens(10, seed=begin), tokens(10, seed=begin))
    file.save(tmp_path / "cache", cache, fingerprint={}, token_ids=np.arange(20))
    opened = file.open(tmp_path / "cache", {}).cache
    assert opened.windows == (5, None, None)
    assert [opened.first_key(layer) for layer in range(3)] == [5, 0, 0]
    assert [opened.tokens(layer) for layer in range(3)] == [20, 20, 0]
    assert len(opened) == 20
    for layer in (0, 1):
        assert torch.equal(held(opened, layer)[0], held(cache, layer)[0])
    opened.append(0, tokens(1, seed=3), tokens(1, seed=3))
    assert opened.first_key(0) == 15


def test_a_cache_saved_over_the_file_it_is_mapped_from_disturbs_no_reader(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path)
    first, reader = file.open(path, FINGERPRINT), file.open(path, FINGERPRINT)
    before = [numbers(array) for array in held(first.cache)]
    for layer in (0, 1):
        first.cache.append(layer, tokens(5, seed=7), tokens(5, seed=7, width=9))
    file.save(path, first.cache, fingerprint=FINGERPRINT, token_ids=np.arange(25))
    for array, right in zip(held(reader.cache), before, strict=True):
        np.testing.assert_array_equal(numbers(array), right)
    reader.verify()
    again = file.open(path, FINGERPRINT)
    assert len(again.cache) == 25
    assert torch.equal(held(again.cache)[0], held(first.cache)[0])
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def flip(path: Path, bit: int) -> Callable[[], None]:
    """Flip a bit of a file in place, and give what flips it back."""

    def turn() -> None:
        with path.open("r+b") as handle:
            handle.seek(bit // 8)
            (old,) = handle.read(1)
            handle.seek(bit // 8)
            handle.write(bytes([old ^ 1 << bit % 8]))

    turn()
    return turn


def test_every_bit_of_the_head_counts(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path, 3)
    head_bytes = file.peek(path).head_bytes
    assert head_bytes == PAGE_BYTES
    for bit in range(8 * head_bytes):
        back = flip(path, bit)
        with pytest.raises(FormatError):
            file.peek(path)
        if bit % 37 == 0:
            with pytest.raises(FormatError, match="cache: "):
                file.open(path, FINGERPRINT)
        back()
    file.open(path, FINGERPRINT).verify()


def test_every_byte_of_the_payload_counts(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path, 3)
    head_bytes, file_bytes = file.peek(path).head_bytes, path.stat().st_size
    for byte in range(head_bytes, file_bytes):
        back = flip(path, 8 * byte + byte % 8)
        opened = file.open(path, FINGERPRINT)
        with pytest.raises(FormatError, match="checksum of bytes"):
            opened.verify()
        back()


def test_damage_is_found_before_a_layer_is_used_and_only_there(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    cache = save(path, 4000, layers=4)
    head = file.peek(path)
    assert head.payload_bytes > 5 * CHECK_BYTES
    assert head.layers[2] is not None
    flip(path, 8 * (head.head_bytes + head.layers[2].arrays["value"].end - 1))
    opened = file.open(path, FINGERPRINT)
    query = tokens(1, seed=1)
    assert torch.equal(opened.cache.attend(0, query), cache.attend(0, query))
    fork = opened.cache.fork()
    for branch in (opened.cache, fork):
        for use in (
            lambda branch: branch.attend(2, query),
            lambda branch: branch.attention_stats(2, query),
            lambda branch: branch.chunks(2),
            lambda branch: branch.append(2, query, tokens(1, seed=1, width=9)),
            lambda branch: branch.select([0, 0]),
            lambda branch: file.save(path, branch, fingerprint={}, token_ids=np.arange(4000)),
        ):
            with pytest.raises(FormatError, match=r"cache: damaged: the checksum of bytes \d+ to \d+ differs"):
                use(branch)
    with pytest.raises(FormatError):
        opened.verify()


@pytest.mark.parametrize("kind", [None, "int8"])
def test_of_a_layer_that_was_cut_what_is_left_is_verified(tmp_path: Path, kind: str | None) -> None:
    path, count = tmp_path / "cache", 70_000
    cache = kw.KVCache(1, dtype=kind)
    cache.append(0, *[tokens(count, seed=seed, batch=2, dtype="bfloat16") for seed in (1, 2)])
    file.save(path, cache, fingerprint=FINGERPRINT, token_ids=np.zeros((2, count), np.int64))
    head = file.peek(path)
    assert head.layers[0] is not None
    arrays = head.layers[0].arrays.values()

    def blocks(left: int) -> set[int]:
        """Give the blocks with the first tokens of any item, head, and array."""
        found = set()
        for stored in arrays:
            token_bytes = (stored.end - stored.offset) // (4 * count)
            for run in range(4):
                begin = stored.offset + run * count * token_bytes
                found |= set(range(begin // CHECK_BYTES, -(-(begin + left * token_bytes) // CHECK_BYTES)))
        return found

    def use(left: int) -> None:
        opened = file.open(path, FINGERPRINT).cache
        for branch in (opened.fork(), opened):
            branch.truncate(left)
            branch.attend(0, tokens(1, seed=1, batch=2, dtype="bfloat16"))

    for left in (1, 10_000, count):
        needed = blocks(left)
        assert (len(needed) == head.payload_bytes // CHECK_BYTES + 1) == (left == count)
        for block in range(head.payload_bytes // CHECK_BYTES):
            back = flip(path, 8 * (head.head_bytes + block * CHECK_BYTES + 1))
            if block in needed:
                with pytest.raises(FormatError, match="checksum of bytes"):
                    use(left)
            else:
                use(left)
            back()


def test_every_cut_is_refused_and_so_is_anything_added(tmp_path: Path) -> None:
    path, short = tmp_path / "cache", tmp_path / "short"
    save(path, 3)
    data = path.read_bytes()
    short.write_bytes(data)
    for count in reversed(range(len(data))):
        os.truncate(short, count)
        with pytest.raises(FormatError):
            file.open(short, FINGERPRINT)
    short.write_bytes(data + b"\0")
    with pytest.raises(FormatError, match=f"{len(data) + 1} bytes long and should be {len(data)}"):
        file.open(short, FINGERPRINT)
    for foreign in (b"", b"x" * 10_000, b"\0" * 10_000):
        short.write_bytes(foreign)
        with pytest.raises(FormatError, match=r"ends after 0 bytes|not a cache file of keywise"):
            file.open(short, FINGERPRINT)
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FormatError, match=r"No such file|Is a directory"):
            file.open(missing, FINGERPRINT)


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path)
    data = bytearray(path.read_bytes())
    data[8] = 9
    path.write_bytes(data)
    with pytest.raises(FormatError, match="has format version 9, and this keywise reads version 1"):
        file.open(path, FINGERPRINT)


@pytest.mark.parametrize("name", FINGERPRINT)
def test_a_file_serves_only_those_with_its_fingerprint(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cache"
    save(path)
    with pytest.raises(
        FormatError, match=f"made with another {name}: the file has '{FINGERPRINT[name]}', wanted is '0'"
    ):
        file.open(path, {**FINGERPRINT, name: "0"})
    with pytest.raises(FormatError, match=f"another {name}: .* wanted is None"):
        file.open(path, {key: value for key, value in FINGERPRINT.items() if key != name})
    with pytest.raises(FormatError, match="another layout: the file has None, wanted is 'x'"):
        file.open(path, {**FINGERPRINT, "layout": "x"})


def signed(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Change the text of a head and give it the right length and sha256, as one who wants to mislead would."""
    magic, version, zero, json_bytes, head_bytes, file_bytes = PREAMBLE.unpack_from(data)
    text = json.loads(data[PREAMBLE_BYTES : PREAMBLE_BYTES + json_bytes])
    text = change(text) or text
    written = text if isinstance(text, bytes) else json.dumps(text).encode()
    rest = written + data[PREAMBLE_BYTES + json_bytes : head_bytes].rstrip(b"\0")
    length = -(-(PREAMBLE_BYTES + len(rest)) // PAGE_BYTES) * PAGE_BYTES
    rest = rest.ljust(length - PREAMBLE_BYTES, b"\0")
    whole = length + file_bytes - head_bytes
    preamble = PREAMBLE.pack(magic, version, zero, len(written), length, whole)
    return preamble + hashlib.sha256(preamble + rest).digest() + rest + data[head_bytes:]


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(text: Any) -> None:
        for step in path[:-1]:
            text = text[step]
        text[path[-1]] = value

    return change


MISLEADING: dict[str, Callable[[dict[str, Any]], Any]] = {
    "offset far away": put("layers", 0, "arrays", "key", "offset", value=2**62),
    "offset negative": put("layers", 0, "arrays", "key", "offset", value=-64),
    "offset between": put("layers", 0, "arrays", "key", "offset", value=4),
    "offset a bool": put("layers", 0, "arrays", "key", "offset", value=True),
    "shape huge": put("layers", 0, "arrays", "key", "shape", value=[1, 2**40, 2**40, 2**40]),
    "shape negative": put("layers", 0, "arrays", "value", "shape", value=[1, -3, 2, 8]),
    "shape of three": put("layers", 0, "arrays", "key", "shape", value=[1, 3, 8]),
    "shape a word": put("layers", 0, "arrays", "key", "shape", value="abc"),
    "other tokens": put("layers", 0, "arrays", "key", "shape", value=[1, 2, 2, 8]),
    "other heads": put("layers", 0, "arrays", "key", "shape", value=[1, 1, 3, 8]),
    "dtype unknown": put("layers", 0, "arrays", "key", "dtype", value="object"),
    "scales of floats": lambda text: text["layers"][0]["arrays"].update(key_scale=text["layers"][0]["arrays"]["key"]),
    "no values": lambda text: text["layers"][0]["arrays"].pop("value") and None,
    "int8 without scales": lambda text: (
        [put("layers", 0, "arrays", side, "dtype", value="int8")(text) for side in ("key", "value")] and None
    ),
    "dtype of one": put("layers", 0, "arrays", "key", "dtype", value="float16"),
    "whole numbers": lambda text: (
        [put("layers", 0, "arrays", side, "dtype", value="int32")(text) for side in ("key", "value")] and None
    ),
    "first of a layer": put("layers", 0, "first", value=1),
    "window negative": put("layers", 0, "window", value=-1),
    "window without kind": put("layers", 0, "window", value=2),
    "layer a number": put("layers", 0, value=5),
    "layer a zero": put("layers", 0, value=0),
    "no layers": lambda text: text.pop("layers") and None,
    "tokens": put("tokens", value=2**50),
    "batch": put("batch", value=2),
    "payload longer": put("payload_bytes", value=2**40),
    "fingerprint a list": put("fingerprint", value=[]),
    "fingerprint of numbers": put("fingerprint", value={"weights": 3}),
    "extra outside": put("extra", value={"x": {"dtype": "float32", "shape": [2**30], "offset": 0}}),
    "extra a list": put("extra", value=[1]),
    "a list": lambda text: b"[1, 2]",
    "not JSON": lambda text: b"{",
    "not text": lambda text: b"\xff\xfe{}",
    "deep": lambda text: b"[" * 100_000,
    "infinity": lambda text: json.dumps({**text, "tokens": float("inf")}).encode(),
}


@pytest.mark.parametrize("name", MISLEADING)
def test_a_head_that_misleads_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cache"
    save(path, 3)
    data = path.read_bytes()
    path.write_bytes(signed(data, lambda text: None))
    file.open(path, FINGERPRINT).verify()
    path.write_bytes(signed(data, MISLEADING[name]))
    with pytest.raises(FormatError, match="cache: its head does not agree with itself"):
        file.open(path, FINGERPRINT)


def test_tokens_that_are_not_the_hashed_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path, 3)
    data = path.read_bytes()
    json_bytes, head_bytes = PREAMBLE.unpack_from(data)[3:5]
    place = PREAMBLE_BYTES + json_bytes
    assert struct.unpack_from("<q", data, place) == (2,)
    rest = data[PREAMBLE_BYTES:place] + struct.pack("<q", 7) + data[place + 8 : head_bytes]
    preamble = data[: PREAMBLE.size]
    path.write_bytes(preamble + hashlib.sha256(preamble + rest).digest() + rest + data[head_bytes:])
    with pytest.raises(FormatError, match="the hashes of its tokens differ"):
        file.open(path, FINGERPRINT)


def test_the_longest_common_prefix(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    cache = cache_of(700, layers=1)
    ids = np.random.default_rng(0).integers(0, 99, 700)
    file.save(path, cache, fingerprint={}, token_ids=ids.tolist())
    head = file.peek(path)
    assert head.tokens == 700
    for same in (0, 1, 255, 256, 257, 511, 512, 699):
        other = ids.copy()
        other[same] += 1
        assert head.common_tokens(other) == same
        links = [a == b for a, b in zip(token_hashes(ids), token_hashes(other), strict=True)]
        assert links == [number < same // 256 for number in range(3)]
    assert head.common_tokens(ids) == 700
    assert head.common_tokens(ids[:300]) == 300
    assert head.common_tokens(np.concatenate([ids, ids])) == 700
    assert head.common_tokens(ids, positions=np.arange(700) + 1) == 0
    assert head.common_tokens(np.stack([ids, ids])) == 0
    assert token_hashes(ids) != token_hashes(ids, np.arange(700) + 1)


def test_arguments_that_do_not_fit_are_refused_and_write_nothing(tmp_path: Path) -> None:
    path, cache = tmp_path / "cache", cache_of(4)
    good: dict[str, Any] = {"fingerprint": {}, "token_ids": [1, 2, 3, 4]}
    uneven = cache.fork()
    uneven.append(0, tokens(1, seed=0), tokens(1, seed=0, width=9))
    gone = kw.KVCache(layers=1, windows=[0])
    for seed in (0, 1):
        gone.append(0, tokens(2, seed=seed), tokens(2, seed=seed))
    gone.truncate(2)
    mistakes: list[tuple[kw.KVCache, dict[str, Any], type[Exception], str]] = [
        (cache, {"token_ids": [1, 2, 3]}, ShapeError, r"token_ids has shape \[3\]; the cache holds \[1, 4\]"),
        (cache, {"token_ids": [[1, 2, 3, 4]] * 2}, ShapeError, r"token_ids has shape \[2, 4\]"),
        (cache, {"token_ids": [1.0, 2.0, 3.0, 4.0]}, DtypeError, "token_ids has dtype float64"),
        (cache, {"positions": [1]}, ShapeError, "positions has shape"),
        (cache, {"fingerprint": "abc"}, DtypeError, "fingerprint is a str"),
        (cache, {"fingerprint": {"weights": 3}}, DtypeError, r"fingerprint\['weights'\]=3"),
        (cache, {"extra": {"x": "abc"}}, DtypeError, r"extra\['x'\] is a str"),
        (cache, {"extra": {"x": np.array(["a"])}}, DtypeError, r"extra\['x'\] has dtype str"),
        (kw.KVCache(layers=2), {}, OptionError, "holds no keys"),
        (gone, {"token_ids": [1, 2]}, OptionError, "holds no keys"),
        (uneven, {}, OptionError, r"hold \[4, 5\] tokens"),
    ]
    for wrong, change, kind, words in mistakes:
        with pytest.raises(kind, match=words):
            file.save(path, wrong, **{**good, **change})
    assert not list(tmp_path.iterdir())
    with pytest.raises(FormatError, match="cannot be written"):
        file.save(tmp_path / "nowhere" / "cache", cache, **good)


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    save(path, 20)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 100, len(before) + 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(FormatError, match=r"cannot be written .* what was there before is untouched"):
                save(path, 2000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def test_a_copied_file_is_as_good(tmp_path: Path) -> None:
    save(tmp_path / "cache")
    shutil.copy(tmp_path / "cache", tmp_path / "copy")
    file.open(tmp_path / "copy", FINGERPRINT).verify()


def test_files_are_the_same_without_the_faster_checksum(tmp_path: Path) -> None:
    save(tmp_path / "here", 300)
    code = (
        "import sys; sys.modules['zlib_ng'] = None\n"
        "import tests.cache.test_file as this\n"
        "assert this.file.crc32.__module__ == 'zlib'\n"
        "this.save(this.Path('there'), 300)\n"
        "this.file.open('here', this.FINGERPRINT).verify()\n"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=here, check=True)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
