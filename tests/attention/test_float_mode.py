"""The floating-point mode of a thread: no result depends on it, and it is the same after a call."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import platform
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import keywise as kw

FE_UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine())
pytestmark = pytest.mark.skipif(FE_UPWARD is None or sys.platform != "linux", reason="its modes are unknown")


@pytest.fixture(autouse=True)
def usual_mode() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)
    ctypes.CDLL(None).fesetround(0)
    kw.set_num_threads(None)


def draw_bits(random: np.random.Generator, tokens: int, exponent: int, dtype: torch.dtype) -> torch.Tensor:
    """Return numbers of one exponent, 0 for subnormal ones; no arithmetic, which could flush them."""
    bits = random.integers(2**23, size=(1, 4, tokens, 24), dtype=np.uint32)
    bits |= random.integers(2, size=bits.shape, dtype=np.uint32) << 31 | np.uint32(exponent << 23)
    if dtype == torch.bfloat16:
        return torch.from_numpy((bits >> 16).astype(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(bits.view(np.float32))


def compute_digest() -> str:
    """Return a digest of the results of calls with subnormal keys, values and outputs."""
    random = np.random.default_rng(0)
    digest = hashlib.sha256()
    for queries, keys, dtype in itertools.product((1, 30), (290, 1300), (torch.float32, torch.bfloat16)):
        query, key, value = (
            draw_bits(random, tokens, exponent, dtype) for tokens, exponent in ((queries, 246), (keys, 0), (keys, 0))
        )
        for scale in (10.0, 1e-3):
            stats = kw.attention_stats(query, key, value, scale=scale, softcap=30.0, top_k=4)
            for name in ("output", "lse", "entropy", "top_keys", "top_weights", "key_mass"):
                digest.update(getattr(stats, name).contiguous().view(torch.uint8).numpy().tobytes())
        left, right = (kw.partial(query, key[:, :, part], value[:, :, part]) for part in (slice(99), slice(99, None)))
        merged = kw.merge(left, right)
        for array in (left.running_max, merged.running_sum, merged.values, merged.output(), left.share_of(merged)):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def is_flushing() -> bool:
    return not (torch.full((64,), 1e-39) * torch.ones(64)).any()


@pytest.mark.parametrize("threads", [1, 3])
def test_flushing_of_the_calling_thread_changes_no_bit_and_stays(kernel: str, threads: int) -> None:
    kw.set_num_threads(threads)
    usual = compute_digest()
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers")
    assert is_flushing()
    assert compute_digest() == usual
    assert is_flushing()


def test_rounding_of_the_calling_thread_changes_no_bit_and_stays(kernel: str) -> None:
    library = ctypes.CDLL(None)
    usual = compute_digest()
    assert library.fesetround(FE_UPWARD) == 0
    try:
        # The inputs are drawn and converted in the usual mode.
        random = np.random.default_rng(1)
        assert library.fegetround() == FE_UPWARD
        library.fesetround(0)
        x = random.normal(size=(1, 3, 90, 20)).astype(np.float32)
        expected = kw.attention_stats(x, x, x, scale=0.3, top_k=5)
        library.fesetround(FE_UPWARD)
        actual = kw.attention_stats(x, x, x, scale=0.3, top_k=5)
        assert library.fegetround() == FE_UPWARD
    finally:
        library.fesetround(0)
    for name in ("output", "lse", "entropy", "top_keys", "top_weights", "key_mass"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), err_msg=name)
    assert compute_digest() == usual


WORKER = """
import torch
assert torch.set_flush_denormal(True)  # before any other thread: they inherit it
import keywise as kw
from tests.attention.test_float_mode import compute_digest
for threads in (1, 2, 3):
    kw.set_num_threads(threads)
    print(compute_digest())
torch.set_num_threads(2)
torch.ones(512, 512) @ torch.ones(512, 512)
kw.set_num_threads(None)
print(compute_digest())
"""


def test_workers_that_inherit_flushing_change_no_bit() -> None:
    usual = compute_digest()
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers")
    torch.set_flush_denormal(False)
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {usual}
