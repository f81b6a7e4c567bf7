"""KVCache: whatever is appended, cut, forked and selected, attention is that over one array of what is there."""

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
from keywise.errors import DtypeError, OptionError, ShapeError
from tests.support.cases import DTYPES
from tests.support.judging import CAUSAL, check_output, check_stats, numbers, verdict

KINDS = [*((dtype, "torch") for dtype in DTYPES), ("float32", "numpy"), ("float16", "numpy")]


def tokens(count: int, *, seed: int, batch: int = 1, heads: int = 2, width: int = 8, dtype: str = "float32") -> Any:
    """Give random keys or values [batch, heads, count, width] as a torch tensor."""
    made = np.random.default_rng(seed).standard_normal((batch, heads, count, width))
    return torch.from_numpy(made).to(getattr(torch, dtype))


def held(cache: kw.KVCache, layer: int = 0) -> tuple[Any, Any]:
    """Give what a layer holds as two torch tensors."""
    chunks = cache.chunks(layer)
    key, value = (
        torch.cat([to_library(chunk[side].data, torch.empty(0)) for chunk in chunks], dim=2) for side in (0, 1)
    )
    return key, value


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_appending_token_by_token_is_one_array(dtype: str, kind: str, target: str) -> None:
    key, value = tokens(150, seed=1, batch=2, dtype=dtype), tokens(150, seed=2, batch=2, width=5, dtype=dtype)
    query = tokens(3, seed=3, batch=2, heads=4, dtype=dtype)
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
    right, got = kw.attend(query, key, value, mask=mask), cache.attend(1, query, mask=mask)
    assert type(got) is type(right)
    np.testing.assert_array_equal(numbers(got), numbers(right))
    stats = cache.attention_stats(1, query, mask=mask, top_k=3, segment_bounds=[0, 40, 150])
    wanted = kw.attention_stats(query, key, value, mask=mask, top_k=3, segment_bounds=[0, 40, 150])
    for name in ("output", "lse", "entropy", "top_keys", "top_weights", "key_mass", "segment_mass"):
        np.testing.assert_array_equal(numbers(getattr(stats, name)), numbers(getattr(wanted, name)), err_msg=name)


def test_appending_copies_nothing_of_what_is_there() -> None:
    cache = kw.KVCache(layers=1)
    moves = 0
    place = None
    for step in range(4_000):
        cache.append(0, tokens(1, seed=step), tokens(1, seed=-step - 1 + 2**32))
        (chunk,) = cache.chunks(0)
        moves += chunk.key.data.ctypes.data != place
        place = chunk.key.data.ctypes.data
    assert moves <= 12, "the room did not grow geometrically"


def test_a_heads_tokens_lie_together_and_views_copy_nothing() -> None:
    cache = kw.KVCache(layers=1)
    cache.append(0, tokens(5, seed=0), tokens(5, seed=1))
    (chunk,) = cache.chunks(0)
    assert all(head.flags.c_contiguous for head in chunk.key.data[0])
    assert np.shares_memory(chunk.key.data, cache.chunks(0)[0].key.data)


def test_forks_go_their_own_ways_and_copy_nothing() -> None:
    cache = kw.KVCache(layers=1)
    key, value = tokens(50, seed=0), tokens(50, seed=1)
    cache.append(0, key, value)
    forks = [cache.fork() for _ in range(3)]
    for number, fork in enumerate([cache, *forks]):
        assert np.shares_memory(fork.chunks(0)[0].key.data, cache.chunks(0)[0].key.data)
        more = tokens(20 + number, seed=10 + number)
        fork.append(0, more, more)
        fork.truncate(65)
    for number, fork in enumerate([cache, *forks]):
        right = torch.cat([key, tokens(20 + number, seed=10 + number)[:, :, :15]], dim=2)
        assert torch.equal(held(fork)[0], right)
    cache.truncate(30)
    cache.append(0, tokens(40, seed=99), tokens(40, seed=99))
    for number, fork in enumerate(forks, start=1):
        right = torch.cat([key, tokens(20 + number, seed=10 + number)[:, :, :15]], dim=2)
        assert torch.equal(held(fork)[0], right), "truncating the one it came from disturbed a fork"
    assert torch.equal(held(cache)[0], torch.cat([key[:, :, :30], tokens(40, seed=99)], dim=2))


def test_a_window_keeps_what_the_next_queries_see(target: str) -> None:
    window, count = 6, 400
    key, value, query = tokens(count, seed=0), tokens(count, seed=1), tokens(count, seed=2, heads=4)
    cache = kw.KVCache(layers=1, windows=[window])
    mask = kw.Mask(causal=True, window=(window, None))
    right = kw.attend(query, key, value, mask=mask)
    begin = 0
    for step in [1, 1, 30, 1, 7, 3, *[1] * 40, 100, 2, *[1] * 215]:
        end = begin + step
        cache.append(0, key[:, :, begin:end], value[:, :, begin:end])
        assert cache.tokens(0) == end
        assert cache.first_key(0) == max(0, begin - window)
        got = cache.attend(0, query[:, :, begin:end], mask=kw.Mask(causal=True))
        np.testing.assert_allclose(numbers(got), numbers(right[:, :, begin:end]), atol=2e-6)
        begin = end
    assert begin == count
    (chunk,) = cache.chunks(0)
    assert chunk.tokens == window + 1
    assert chunk.key.data.base.nbytes <= 64 * 1024, "a window's room does not stay small"


def test_a_truncated_window_goes_on_where_it_can_and_refuses_where_it_cannot() -> None:
    key, value, query = tokens(100, seed=0), tokens(100, seed=1), tokens(100, seed=2)
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
    right = kw.attend(query[:, :, 40:41], key[:, :, :41], value[:, :, :41], mask=mask)
    np.testing.assert_allclose(numbers(cache.attend(0, query[:, :, 40:41])), numbers(right), atol=1e-6)
    with pytest.raises(OptionError, match="tokens=39: the window of layer 0 has dropped the keys before position 30"):
        cache.truncate(39)
    assert [cache.tokens(layer) for layer in (0, 1)] == [41, 41]
    cache.truncate(0)
    assert len(cache) == 0
    assert cache.first_key(0) == 0


def test_queries_that_would_see_dropped_keys_are_refused() -> None:
    cache = kw.KVCache(layers=1, windows=[4])
    for _ in range(20):
        cache.append(0, tokens(1, seed=0), tokens(1, seed=1))
    cache.attend(0, tokens(1, seed=2))
    with pytest.raises(OptionError, match="first of 2 queries sees keys from position 14 on, and layer 0 holds"):
        cache.attend(0, tokens(2, seed=2))
    with pytest.raises(OptionError, match=r"mask.keep_first=1"):
        cache.attend(0, tokens(1, seed=2), mask=kw.Mask(keep_first=1))
    with pytest.raises(OptionError, match="position 13 on"):
        cache.attend(0, tokens(1, seed=2), mask=kw.Mask(lengths=[18]))
    cache.windows = [None]
    with pytest.raises(OptionError, match="position 0 on"):
        cache.attend(0, tokens(1, seed=2))
    cache.attend(0, tokens(1, seed=2), mask=kw.Mask(window=(3, None)))


def test_selecting_items_serves_beams() -> None:
    key, value = tokens(10, seed=0), tokens(10, seed=1)
    cache = kw.KVCache(layers=1)
    cache.append(0, key, value)
    cache.select([0, 0, 0])
    assert cache.chunks(0)[0].key.data.strides[0] == 0, "repeating a batch of one copied it"
    steps = [tokens(1, seed=10 + step, batch=3) for step in range(4)]
    right = key.repeat(3, 1, 1, 1)
    for step, items in zip(steps, ([0, 1, 2], [2, 0, 0], [1, 1, 1], [2, 1, 0]), strict=True):
        cache.append(0, step, step)
        right = torch.cat([right, step], dim=2)
        cache.select(items)
        right = right[items]
        assert torch.equal(held(cache)[0], right)
    fork = cache.fork()
    cache.select(np.array([1, 2]))
    assert torch.equal(held(cache)[0], right[[1, 2]])
    assert torch.equal(held(fork)[0], right)
    fork.select([2, 2, 1])
    assert torch.equal(held(fork)[0], right[[2, 2, 1]])
    assert torch.equal(held(cache)[0], right[[1, 2]])


def test_a_cache_can_be_filled_with_something_else_once_it_is_empty() -> None:
    cache = kw.KVCache(layers=1)
    cache.append(0, tokens(10, seed=0), tokens(10, seed=1))
    cache.truncate(0)
    with pytest.raises(OptionError, match="layer=0 holds no keys"):
        cache.attend(0, tokens(1, seed=0))
    other = tokens(5, seed=2, batch=3, heads=1, width=4, dtype="float16")
    cache.append(0, other, other)
    assert torch.equal(held(cache)[0], other)


def test_mistakes_are_refused_and_change_nothing() -> None:
    cache = kw.KVCache(layers=2)
    cache.append(0, tokens(4, seed=0), tokens(4, seed=1, width=6))
    mistakes: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (2, tokens(1, seed=0), tokens(1, seed=0, width=6), OptionError, "layer=2: layer lies between 0 and 1"),
        (0, tokens(1, seed=0), tokens(2, seed=0, width=6), ShapeError, "batch, heads and tokens must agree"),
        (0, tokens(1, seed=0), tokens(1, seed=0), ShapeError, r"value has shape .* needs \[1, 2, 1, 6\]"),
        (0, tokens(1, seed=0, batch=2), tokens(1, seed=0, batch=2, width=6), ShapeError, r"needs \[1, 2, 1, 8\]"),
        (0, tokens(1, seed=0).half(), tokens(1, seed=0, width=6), DtypeError, "the two share one"),
        (0, tokens(1, seed=0).half(), tokens(1, seed=0, width=6).half(), DtypeError, "layer 0 holds float32"),
        (0, tokens(1, seed=0)[0], tokens(1, seed=0), ShapeError, "batch, heads, tokens, head_dim"),
        (0, [1.0], tokens(1, seed=0), DtypeError, "key is a list"),
        (0, tokens(1, seed=0).int(), tokens(1, seed=0).int(), DtypeError, "a cache takes"),
    ]
    for layer, key, value, kind, words in mistakes:
        with pytest.raises(kind, match=words):
            cache.append(layer, key, value)
    assert [cache.tokens(layer) for layer in (0, 1)] == [4, 0]
    with pytest.raises(OptionError, match="tokens=5: layer 0 has 4 tokens only"):
        cache.truncate(5)
    with pytest.raises(OptionError, match="the batch has items 0 to 0"):
        cache.select([1])
    with pytest.raises(DtypeError, match="items"):
        cache.select([0.5])
    with pytest.raises(OptionError, match=r"windows=.*one entry per layer: 2"):
        kw.KVCache(layers=2, windows=[3])
    with pytest.raises(OptionError, match="windows=-1"):
        kw.KVCache(layers=1, windows=[-1])
    with pytest.raises(OptionError, match="layers=0"):
        kw.KVCache(layers=0)
    with pytest.raises(DtypeError, match="query has float16"):
        cache.attend(0, tokens(1, seed=0, dtype="float16"))


OPERATION = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 90)),
    st.tuples(st.just("truncate"), st.floats(0, 1)),
    st.tuples(st.just("fork"), st.booleans()),
    st.tuples(st.just("select"), st.lists(st.integers(0, 3), min_size=1, max_size=4)),
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(operations=st.lists(OPERATION, max_size=14), dtype=st.sampled_from(DTYPES), queries=st.integers(1, 20))
def test_any_history_is_the_array_it_made(operations: list[tuple[str, Any]], dtype: str, queries: int) -> None:
    """Every branch, the abandoned ones too, holds at the end what its own history made."""
    cache = kw.KVCache(layers=1)
    start = tokens(1, seed=0, batch=2, dtype=dtype)
    cache.append(0, start, start.flip(3))
    key = start
    abandoned: list[tuple[kw.KVCache, torch.Tensor]] = []
    for seed, (name, detail) in enumerate(operations, start=1):
        if name == "append":
            more = tokens(detail, seed=seed, batch=key.shape[0], dtype=dtype)
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
    for branch, right in [*abandoned, (cache, key)]:
        found_key, found_value = held(branch)
        assert torch.equal(found_key, right)
        assert torch.equal(found_value, right.flip(3))
    query = tokens(queries, seed=99, batch=key.shape[0], heads=4, dtype=dtype)
    judged = verdict(make_problem(query, key, key.flip(3), **CAUSAL, stats=StatsRequest(segment_bounds=[0, 1])))
    for target in kw.targets():
        with kw.using(target):
            check_output(cache.attend(0, query, mask=kw.Mask(causal=True)), judged)
            check_stats(cache.attention_stats(0, query, mask=kw.Mask(causal=True), segments=[0, 1]), judged)
