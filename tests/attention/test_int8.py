"""Keys and values in int8: the kernels against the definition over the rounded numbers, and the error of rounding."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as strategies

import keywise as kw
from keywise.attention import reference
from keywise.attention.arrays import HostArray, as_host_array
from keywise.attention.operation import Chunks, run
from keywise.attention.problem import make_problem
from keywise.attention.stats_request import StatsRequest
from keywise.cache import file
from keywise.cache.int8 import quantise
from keywise.errors import DtypeError, OptionError
from tests.attention.test_accuracy import RESULTS
from tests.cache.test_kvcache import draw_tokens
from tests.support.cases import DTYPES, MASKS, Case
from tests.support.judging import (
    CAUSAL,
    Expectation,
    as_float64,
    check_output,
    check_stats,
    find_largest_error,
    make_expectation,
)
from tests.support.plain import attend_plainly


def round_to_int8(arguments: dict[str, Any], cuts: tuple[int, ...] = ()) -> dict[str, Any]:
    """Round the keys and values of a problem to int8, in chunks where `cuts` is set."""
    rounded_arguments = dict(arguments)
    for name in ("key", "value"):
        parts = np.split(arguments[name].nan_to_num(0, 0, 0).float().numpy(), cuts, axis=2)
        rounded_arguments[name] = Chunks(quantise(name, as_host_array(name, part)) for part in parts)
    return rounded_arguments


CASES = [
    Case(
        DTYPES[number % 3],
        queries=(1, 3, 60)[number % 3],
        keys=(300, 1100)[number % 2],
        group=(1, 2, 4, 7)[number % 4],
        head_dim=(64, 24, 33)[number % 3],
        value_dim=(0, 9, 130)[number % 3],
        mask=mask,
        bias=("none", "full", "hiding")[number % 3],
        softcap=(None, 20.0)[number % 2],
        sinks=number % 2 == 0,
        peaky=number % 3 == 0,
        segment_kind="ids",
        seed=number,
    )
    for number, mask in enumerate(MASKS)
]
CASES += [
    Case(dtype, batch=1, key_heads=2, group=group, keys=keys, queries=queries, head_dim=width, mask="causal")
    for dtype in DTYPES
    for group, queries, keys, width in ((3, 2, 3_000, 128), (1, 1, 700, 112), (2, 1, 700, 320))
]


@functools.lru_cache(maxsize=2)
def expect_rounded(case: Case, cuts: tuple[int, ...]) -> Expectation:
    arguments = round_to_int8(case.arguments(), cuts)
    return make_expectation(make_problem(**arguments, stats=StatsRequest(**case.stats_arguments())))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.mask}-{case.dtype}-{case.keys}")
def test_kernels_over_int8_equal_the_definition_over_rounded_numbers(case: Case, kernel: str) -> None:
    unsplit = run(**round_to_int8(case.arguments()))
    for cuts in ((), (1, 37, 290)):
        arguments = round_to_int8(case.arguments(), cuts)
        assert torch.equal(run(**arguments), unsplit)
        expectation = expect_rounded(case, cuts)
        check_output(run(**arguments), expectation)
        check_stats(run(**arguments, stats=StatsRequest(**case.stats_arguments())), expectation)


@functools.lru_cache(maxsize=10)
def compute_allowed_errors(case: Case) -> tuple[Any, dict[str, float]]:
    """Return the definition over the rounded numbers, and twice the errors of plain computation."""
    problem = make_problem(**round_to_int8(case.arguments()), stats=StatsRequest())
    definition = reference.evaluate(problem)
    single = attend_plainly(problem, torch.float32, scale_first=False)
    same = attend_plainly(problem, getattr(torch, case.dtype), scale_first=False)
    allowed = {
        name: 2 * find_largest_error(getattr(same if name == "output" else single, name), getattr(definition, name))
        for name in RESULTS
    }
    return definition, allowed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 4, 100])  # keys and values read in place, values in place, packed
@pytest.mark.parametrize("peaky", [False, True], ids=["normal", "peaky"])
def test_errors_are_at_most_twice_plain_ones(kernel: str, dtype: str, queries: int, peaky: bool) -> None:
    """The rule of test_accuracy.py over the rounded numbers, without a floor."""
    errors, allowed = dict.fromkeys(RESULTS, 0.0), dict.fromkeys(RESULTS, 0.0)
    for seed in range(10):
        case = Case(dtype, 2, 4, queries=queries, group=3, keys=300, value_dim=80, peaky=peaky, seed=seed)
        definition, allowed_once = compute_allowed_errors(case)
        stats = run(**round_to_int8(case.arguments()), stats=StatsRequest())
        for name in RESULTS:
            errors[name] += find_largest_error(as_float64(getattr(stats, name)), getattr(definition, name))
            allowed[name] += allowed_once[name]
    over = {name: f"{error:.3g} > {allowed[name]:.3g}" for name, error in errors.items() if error > allowed[name]}
    assert not over


def test_the_same_bits_on_any_number_of_threads() -> None:
    arguments = round_to_int8(Case("bfloat16", queries=1, keys=5_000, group=4, mask="causal").arguments(), (700,))
    results = []
    for threads in (1, 2, 3, 7):
        kw.set_num_threads(threads)
        results.append(run(**arguments))
    kw.set_num_threads(None)
    assert all(torch.equal(results[0], other) for other in results[1:])


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda number: number == 0 or abs(number) > 1e-30)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(array=strategies.arrays(np.float32, (1, 2, 3, 5), elements=FLOATS))
def test_quantisation_error_is_within_its_stated_bound(array: np.ndarray) -> None:
    quantised = quantise("key", as_host_array("key", array))
    assert quantised.scale is not None
    largest = np.abs(array.astype(np.float64)).max(axis=3, keepdims=True)
    error = np.abs(quantised.floats(np.float64) - array)
    assert (error <= largest / 254 * (1 + 1e-6)).all()


def test_int8_cache_equals_attention_over_rounded_tokens_after_any_history(target: str) -> None:
    key, value = (draw_tokens(200, seed=seed, batch=2, width=16, dtype="bfloat16") for seed in (0, 1))
    cache = kw.KVCache(layers=1, dtype="int8")
    for begin, end in ((0, 100), *((token, token + 1) for token in range(100, 150))):
        cache.append(0, key[:, :, begin:end], value[:, :, begin:end])
    cache = cache.fork()
    cache.append(0, key[:, :, 150:], value[:, :, 150:])
    cache.truncate(180)
    cache.select([1, 0, 1])
    query = draw_tokens(3, seed=2, batch=3, heads=4, width=16, dtype="bfloat16")
    arguments = round_to_int8({"key": key[[1, 0, 1], :, :180], "value": value[[1, 0, 1], :, :180]})
    expectation = make_expectation(make_problem(query, **arguments, **CAUSAL, stats=StatsRequest(top_k=4)))
    check_output(cache.attend(0, query, mask=kw.Mask(causal=True)), expectation)
    check_stats(cache.attention_stats(0, query, mask=kw.Mask(causal=True), top_k=4), expectation)
    exact = kw.attend(query, key[[1, 0, 1], :, :180], value[[1, 0, 1], :, :180], mask=kw.Mask(causal=True))
    assert np.abs(as_float64(cache.attend(0, query, mask=kw.Mask(causal=True))) - as_float64(exact)).max() < 0.03


def test_int8_cache_with_a_window_equals_attention_over_the_last_tokens() -> None:
    key, value = (draw_tokens(300, seed=seed, width=16) for seed in (0, 1))
    cache = kw.KVCache(layers=1, windows=[9], dtype="int8")
    for token in range(300):
        cache.append(0, key[:, :, token : token + 1], value[:, :, token : token + 1])
    query = draw_tokens(1, seed=2, width=16)
    arguments = round_to_int8({"key": key[:, :, 290:], "value": value[:, :, 290:]})
    np.testing.assert_allclose(as_float64(cache.attend(0, query)), as_float64(run(query, **arguments)), atol=1e-6)


def test_int8_takes_half_the_bytes_of_bfloat16_and_a_scale() -> None:
    stored_bytes = {}
    for dtype in (None, "int8"):
        cache = kw.KVCache(layers=1, dtype=dtype)
        cache.append(
            0,
            draw_tokens(100, seed=0, width=64, dtype="bfloat16"),
            draw_tokens(100, seed=1, width=64, dtype="bfloat16"),
        )
        arrays = [array for side in cache.chunks(0)[0] for array in (side.data, side.scale) if array is not None]
        stored_bytes[dtype] = sum(array.nbytes for array in arrays)
    assert stored_bytes["int8"] == stored_bytes[None] / 2 + 2 * 2 * 100 * 4


def test_int8_cache_is_restored_from_a_file(tmp_path: Path) -> None:
    cache = kw.KVCache(layers=2, dtype="int8")
    for layer in (0, 1):
        cache.append(layer, draw_tokens(70, seed=layer, batch=2), draw_tokens(70, seed=layer + 2, batch=2, width=5))
    fork = cache.fork()
    fork.append(0, draw_tokens(3, seed=7, batch=2), draw_tokens(3, seed=8, batch=2, width=5))
    fork.append(1, draw_tokens(3, seed=7, batch=2), draw_tokens(3, seed=8, batch=2, width=5))
    file.save(tmp_path / "cache", fork, fingerprint={}, token_ids=np.zeros((2, 73), int))
    opened = file.open(tmp_path / "cache", {})
    opened.verify()
    assert opened.cache.dtype == "int8"
    for other in (fork, opened.cache):
        other.append(0, draw_tokens(1, seed=9, batch=2), draw_tokens(1, seed=9, batch=2, width=5))
    query = draw_tokens(2, seed=3, batch=2)
    for layer in (0, 1):
        actual, expected = opened.cache.attend(layer, query), fork.attend(layer, query)
        np.testing.assert_allclose(as_float64(actual), as_float64(expected), atol=1e-6)


def test_int8_refuses_unusable_dtypes_numbers_and_chunks() -> None:
    with pytest.raises(OptionError, match="dtype must be None or 'int8', got 'int4'"):
        kw.KVCache(layers=1, dtype="int4")
    cache = kw.KVCache(layers=1, dtype="int8")
    for wrong in (np.nan, np.inf):
        poisoned = draw_tokens(3, seed=0)
        poisoned[0, 1, 2, 3] = wrong
        with pytest.raises(OptionError, match="value must be finite in float32"):
            cache.append(0, draw_tokens(3, seed=0), poisoned)
    assert len(cache) == 0
    unsplit, floats = quantise("key", as_host_array("key", draw_tokens(3, seed=0))), draw_tokens(3, seed=0)
    with pytest.raises(DtypeError, match=r"query must have dtype float32.* got int8 with scales"):
        run(unsplit, floats, floats)
    with pytest.raises(DtypeError, match="value must have the key's dtype int8 with scales, got float32"):
        run(floats, unsplit, floats)
    with pytest.raises(DtypeError, match="key chunk 1 must have the first chunk's dtype int8 with scales, got float32"):
        run(floats, Chunks([unsplit, floats]), Chunks([unsplit, floats]))
    without = HostArray(unsplit.data, "int8", None)
    with pytest.raises(DtypeError, match=r"key must have dtype float32.* got int8"):
        run(floats, without, without)
