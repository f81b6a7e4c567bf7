"""KVCache: after any appends, truncations, forks and selections, attention equals attention over one array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keywise as kw
from keywise.attention.arrays import to_library
from keywise.attention.problem import make_problem
from keywise.attention.stats_request import StatsRequest
from keywise.errors import DtypeError, KeywiseError, OptionError, ShapeError
from tests.support.cases import DTYPES
from tests.support.judging import CAUSAL, as_float64, check_output, check_stats, make_expectation

KINDS = [*((dtype, "torch") for dtype in DTYPES), ("float32", "numpy"), ("float16", "numpy")]


def draw_tokens(
    count: int, *, seed: int, batch: int = 1, heads: int = 2, width: int = 8, dtype: str = "float32"
) -> Any:
    """Return random keys or values [batch, heads, count, width] as a torch tensor."""
    array = np.random.default_rng(seed).standard_normal((batch, heads, count, width))
    return torch.from_numpy(array).to(getattr(torch, dtype))


def layer_tensors(cache: kw.KVCache, layer: int = 0) -> tuple[Any, Any]:
    """Return keys and values of a layer as two torch tensors."""
    chunks = cache.chunks(layer)
    key, value = (
        torch.cat([to_library(chunk[side].data, torch.empty(0)) for chunk in chunks], dim=2) for side in (0, 1)
    )
    return key, value


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_appending_token_by_token_equals_one_array(dtype: str, kind: str, target: str) -> None:
    key, value = draw_tokens(150, seed=1, batch=2, dtype=dtype), draw_tokens(150, seed=2, batch=2, width=5, dtype=dtype)
    query = draw_tokens(3, seed=3, batch=2, heads=4, dtype=dtype)
    if kind == "numpy":
        key, value, query = key.numpy(), value.numpy(), query.numpy()
    cache = kw.KVCache(layers=2)
    cache.append(1, key[:, :, :70], value[:, :, :70])
    for token in range(70, 150):
        cache.append(1, key[:, :, token : token + 1], value[:, :, token : token + 1])
    assert len(cache) == cache.tokens(1) == 150
    assert cache.tokens(0) == 0
    assert len(cache.chunks(1)) == 1
    mask = kw.Mask(causal=True)
    expected = kw.attend(query, key, value, mask=mask)
    actual = cache.attend(1, query, mask=mask)
    assert type(actual) is type(expected)
    np.testing.assert_array_equal(as_float64(actual), as_float64(expected))
    stats = cache.attention_stats(1, query, mask=mask, top_k=3, segment_bounds=[0, 40, 150])
    expected_stats = kw.attention_stats(query, key, value, mask=mask, top_k=3, segment_bounds=[0, 40, 150])
    for name in ("output", "lse", "entropy", "top_keys", "top_weights", "key_mass", "segment_mass"):
        np.testing.assert_array_equal(
            as_float64(getattr(stats, name)), as_float64(getattr(expected_stats, name)), err_msg=name
        )


def test_appending_copies_no_past_tokens() -> None:
    cache = kw.KVCache(layers=1)
    moves = 0
    address = None
    for step in range(4_000):
        cache.append(0, draw_tokens(1, seed=step), draw_tokens(1, seed=-step - 1 + 2**32))
        (chunk,) = cache.chunks(0)
        moves += chunk.key.data.ctypes.data != address
        address = chunk.key.data.ctypes.data
    assert moves <= 12, "the capacity did not grow geometrically"


def test_tokens_of_a_head_are_contiguous_and_chunks_are_views() -> None:
    cache = kw.KVCache(layers=1)
    cache.append(0, draw_tokens(5, seed=0), draw_tokens(5, seed=1))
    (chunk,) = cache.chunks(0)
    assert all(head.flags.c_contiguous for head in chunk.key.data[0])
    assert np.shares_memory(chunk.key.data, cache.chunks(0)[0].key.data)


def test_forks_change_independently_without_copies() -> None:
    cache = kw.KVCache(layers=1)
    key, value = draw_tokens(50, seed=0), draw_tokens(50, seed=1)
    cache.append(0, key, value)
    forks = [cache.fork() for _ in range(3)]
    for number, fork in enumerate([cache, *forks]):
        assert np.shares_memory(fork.chunks(0)[0].key.data, cache.chunks(0)[0].key.data)
        more = draw_tokens(20 + number, seed=10 + number)
        fork.append(0, more, more)
        fork.truncate(65)
    for number, fork in enumerate([cache, *forks]):
        expected = torch.cat([key, draw_tokens(20 + number, seed=10 + number)[:, :, :15]], dim=2)
        assert torch.equal(layer_tensors(fork)[0], expected)
    cache.truncate(30)
    cache.append(0, draw_tokens(40, seed=99), draw_tokens(40, seed=99))
    for number, fork in enumerate(forks, start=1):
        expected = torch.cat([key, draw_tokens(20 + number, seed=10 + number)[:, :, :15]], dim=2)
        assert torch.equal(layer_tensors(fork)[0], expected), "truncating its origin changed a fork"
    assert torch.equal(layer_tensors(cache)[0], torch.cat([key[:, :, :30], draw_tokens(40, seed=99)], dim=2))


def test_window_keeps_the_keys_that_the_next_queries_see(target: str) -> None:
    window, count = 6, 400
    key, value, query = draw_tokens(count, seed=0), draw_tokens(count, seed=1), draw_tokens(count, seed=2, heads=4)
    cache = kw.KVCache(layers=1, windows=[window])
    mask = kw.Mask(causal=True, window=(window, None))
    expected = kw.attend(query, key, value, mask=mask)
    begin = 0
    for step in [1, 1, 30, 1, 7, 3, *[1] * 40, 100, 2, *[1] * 215]:
        end = begin + step
        cache.append(0, key[:, :, begin:end], value[:, :, begin:end])
        assert cache.tokens(0) == end
        assert cache.first_key(0) == max(0, begin - window)
        actual = cache.attend(0, query[:, :, begin:end], mask=kw.Mask(causal=True))
        np.testing.assert_allclose(as_float64(actual), as_float64(expected[:, :, begin:end]), atol=2e-6)
        begin = end
    assert begin == count
    (chunk,) = cache.chunks(0)
    assert chunk.tokens == window + 1
    assert chunk.key.data.base.nbytes <= 64 * 1024, "the capacity of a window does not stay small"


def test_truncated_window_continues_or_refuses_when_keys_were_dropped() -> None:
    key, value, query = draw_tokens(100, seed=0), draw_tokens(100, seed=1), draw_tokens(100, seed=2)
    cache = kw.KVCache(layers=2, windows=[10, None])
    for begin, end in ((0, 40), (40, 60)):
        for layer in (0, 1):
            cache.append(layer, key[:, :, begin:end], value[:, :, begin:end])
    cache.truncate(45)
    cache.truncate(40)
    assert len(cache) == 40
    for layer in (0, 1):
        cache.append(layer, key[:, :, 40:41], value[:, :, 40:41])
    mask = kw.Mask(causal=True, window=(10, None))
    expected = kw.attend(query[:, :, 40:41], key[:, :, :41], value[:, :, :41], mask=mask)
    np.testing.assert_allclose(as_float64(cache.attend(0, query[:, :, 40:41])), as_float64(expected), atol=1e-6)
    with pytest.raises(
        OptionError,
        match="before position 30, which the window of layer 0 has dropped, got 39",
    ):
        cache.truncate(39)
    assert [cache.tokens(layer) for layer in (0, 1)] == [41, 41]
    cache.truncate(0)
    assert len(cache) == 0
    assert cache.first_key(0) == 0


def test_queries_that_would_see_dropped_keys_are_refused() -> None:
    cache = kw.KVCache(layers=1, windows=[4])
    for _ in range(20):
        cache.append(0, draw_tokens(1, seed=0), draw_tokens(1, seed=1))
    cache.attend(0, draw_tokens(1, seed=2))
    with pytest.raises(OptionError, match="first of 2 queries sees keys from position 14 on; layer 0 has"):
        cache.attend(0, draw_tokens(2, seed=2))
    with pytest.raises(OptionError, match=r"mask.keep_first must be 0 after keys were dropped, got 1"):
        cache.attend(0, draw_tokens(1, seed=2), mask=kw.Mask(keep_first=1))
    with pytest.raises(OptionError, match="position 13 on"):
        cache.attend(0, draw_tokens(1, seed=2), mask=kw.Mask(lengths=[18]))
    cache.windows = [None]
    with pytest.raises(OptionError, match="position 0 on"):
        cache.attend(0, draw_tokens(1, seed=2))
    cache.attend(0, draw_tokens(1, seed=2), mask=kw.Mask(window=(3, None)))


def test_select_follows_beam_search() -> None:
    key, value = draw_tokens(10, seed=0), draw_tokens(10, seed=1)
    cache = kw.KVCache(layers=1)
    cache.append(0, key, value)
    cache.select([0, 0, 0])
    assert cache.chunks(0)[0].key.data.strides[0] == 0, "repeating a batch of one copied it"
    steps = [draw_tokens(1, seed=10 + step, batch=3) for step in range(4)]
    expected = key.repeat(3, 1, 1, 1)
    for step, items in zip(steps, ([0, 1, 2], [2, 0, 0], [1, 1, 1], [2, 1, 0]), strict=True):
        cache.append(0, step, step)
        expected = torch.cat([expected, step], dim=2)
        cache.select(items)
        expected = expected[items]
        assert torch.equal(layer_tensors(cache)[0], expected)
    fork = cache.fork()
    cache.select(np.array([1, 2]))
    assert torch.equal(layer_tensors(cache)[0], expected[[1, 2]])
    assert torch.equal(layer_tensors(fork)[0], expected)
    fork.select([2, 2, 1])
    assert torch.equal(layer_tensors(fork)[0], expected[[2, 2, 1]])
    assert torch.equal(layer_tensors(cache)[0], expected[[1, 2]])


def test_emptied_cache_accepts_other_shapes_and_dtypes() -> None:
    cache = kw.KVCache(layers=1)
    cache.append(0, draw_tokens(10, seed=0), draw_tokens(10, seed=1))
    cache.truncate(0)
    with pytest.raises(OptionError, match="layer must have keys, got 0; append some first"):
        cache.attend(0, draw_tokens(1, seed=0))
    other = draw_tokens(5, seed=2, batch=3, heads=1, width=4, dtype="float16")
    cache.append(0, other, other)
    assert torch.equal(layer_tensors(cache)[0], other)


def test_wrong_arguments_are_refused_and_change_nothing() -> None:
    cache = kw.KVCache(layers=2)
    cache.append(0, draw_tokens(4, seed=0), draw_tokens(4, seed=1, width=6))
    one, one_value = draw_tokens(1, seed=0), draw_tokens(1, seed=0, width=6)
    cases: list[tuple[Any, Any, Any, type[KeywiseError], str]] = [
        (2, one, one_value, OptionError, "layer must be between 0 and 1, got 2"),
        (
            0,
            one,
            draw_tokens(2, seed=0, width=6),
            ShapeError,
            r"value must have the batch, heads and tokens of key, \[1, 2, 1",
        ),
        (0, one, one, ShapeError, r"value must have shape \[1, 2, 1, 6\] for layer 0, got \[1, 2, 1, 8\]"),
        (
            0,
            draw_tokens(1, seed=0, batch=2),
            draw_tokens(1, seed=0, batch=2, width=6),
            ShapeError,
            r"key must have shape \[1, 2, 1, 8\] for layer 0, got \[2, 2, 1, 8\]",
        ),
        (0, one.half(), one_value, DtypeError, "value must have the dtype of key, float16, got float32"),
        (0, one.half(), one_value.half(), DtypeError, "key must have the dtype of layer 0, float32, got float16"),
        (0, one[0], one, ShapeError, r"key must have shape \[batch, heads, tokens, head_dim\], got \[2, 1, 8\]"),
        (0, [1.0], one, DtypeError, "key "),
        (0, one.int(), one.int(), DtypeError, "key must have dtype float32, .* got int32"),
    ]
    for layer, key, value, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            cache.append(layer, key, value)
        assert not caught.value.argument or words.startswith(caught.value.argument)
    assert [cache.tokens(layer) for layer in (0, 1)] == [4, 0]
    with pytest.raises(OptionError, match="tokens must be at most 4, the tokens of layer 0, got 5"):
        cache.truncate(5)
    with pytest.raises(OptionError, match=r"items must be between 0 and 0, got \[1\]"):
        cache.select([1])
    with pytest.raises(DtypeError, match=r"items must be a list of one or more integers, got \[0.5\]"):
        cache.select([0.5])
    with pytest.raises(OptionError, match=r"windows must have one entry per layer, 2, got"):
        kw.KVCache(layers=2, windows=[3])
    with pytest.raises(OptionError, match=r"windows must be between 0 and .* got -1"):
        kw.KVCache(layers=1, windows=[-1])
    with pytest.raises(OptionError, match=r"layers must be between 1 and .* got 0"):
        kw.KVCache(layers=0)
    with pytest.raises(DtypeError, match="key chunk 0 must have the query's dtype float16, got float32"):
        cache.attend(0, draw_tokens(1, seed=0, dtype="float16"))


OPERATION = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 90)),
    st.tuples(st.just("truncate"), st.floats(0, 1)),
    st.tuples(st.just("fork"), st.booleans()),
    st.tuples(st.just("select"), st.lists(st.integers(0, 3), min_size=1, max_size=4)),
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(operations=st.lists(OPERATION, max_size=14), dtype=st.sampled_from(DTYPES), queries=st.integers(1, 20))
def test_any_history_equals_one_array(operations: list[tuple[str, Any]], dtype: str, queries: int) -> None:
    """Check every branch, the abandoned ones too, against the array of its own history."""
    cache = kw.KVCache(layers=1)
    start = draw_tokens(1, seed=0, batch=2, dtype=dtype)
    cache.append(0, start, start.flip(3))
    key = start
    abandoned: list[tuple[kw.KVCache, torch.Tensor]] = []
    for seed, (name, detail) in enumerate(operations, start=1):
        if name == "append":
            more = draw_tokens(detail, seed=seed, batch=key.shape[0], dtype=dtype)
            cache.append(0, more, more.flip(3))
            key = torch.cat([key, more], dim=2)
        elif name == "truncate":
            kept = max(1, round(detail * key.shape[2]))
            cache.truncate(kept)
            key = key[:, :, :kept]
        elif name == "fork":
            fork = cache.fork()
            abandoned.append((cache, key) if detail else (fork, key))
            cache = fork if detail else cache
        else:
            items = [item % key.shape[0] for item in detail]
            cache.select(items)
            key = key[items]
    for branch, expected in [*abandoned, (cache, key)]:
        actual_key, actual_value = layer_tensors(branch)
        assert torch.equal(actual_key, expected)
        assert torch.equal(actual_value, expected.flip(3))
    query = draw_tokens(queries, seed=99, batch=key.shape[0], heads=4, dtype=dtype)
    expectation = make_expectation(
        make_problem(query, key, key.flip(3), **CAUSAL, stats=StatsRequest(segment_bounds=[0, 1]))
    )
    for target in kw.targets():
        with kw.using(target):
            check_output(cache.attend(0, query, mask=kw.Mask(causal=True)), expectation)
            check_stats(cache.attention_stats(0, query, mask=kw.Mask(causal=True), segment_bounds=[0, 1]), expectation)
