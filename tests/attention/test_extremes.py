"""NaN, infinity, numbers near the limits of float32 and odd bytes: every kernel against the definition."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention.arrays import as_host_array
from keywise.attention.operation import run
from keywise.attention.stats_request import StatsRequest
from keywise.cache.int8 import quantise
from tests.support.cases import Case
from tests.support.judging import as_float64

FIELDS = ("output", "lse", "entropy", "top_keys", "top_weights", "top_mass", "key_mass", "segment_mass")
LARGEST = float(np.finfo(np.float32).max)

SHAPES = {
    "few keys": Case(batch=1, queries=5, keys=6, group=2, head_dim=8),
    "prefill": Case(queries=40, keys=70, group=1, head_dim=20, value_dim=9),
    "group of three": Case(batch=1, queries=30, keys=300, group=3, head_dim=16),
    "packed once": Case(batch=1, key_heads=1, queries=1300, keys=300, group=1, head_dim=8),
    "decoding": Case(batch=2, queries=1, keys=300, group=4, head_dim=16),
    "split by keys": Case(batch=1, key_heads=1, queries=3, keys=2600, group=2, head_dim=16),
}
MASKS = ("none", "causal", "causal window", "lengths", "allowed", "documents")


def make_case(shape: str, mask: str, **changes: Any) -> Case:
    return replace(SHAPES[shape], mask=mask, segment_kind="ids", **changes)


def define(arguments: dict[str, Any], stats: dict[str, Any]) -> kw.AttentionStats:
    with kw.using("reference"):
        return kw.attention_stats(**arguments, **stats)


def check_against_definition(
    arguments: dict[str, Any],
    stats: dict[str, Any],
    *,
    expected: kw.AttentionStats | None = None,
    tolerance: float = 2e-5,
) -> None:
    """Check that NaN and infinity are where the definition has them, and that other numbers are close to it."""
    actual = kw.attention_stats(**arguments, **stats)
    expected = define(arguments, stats) if expected is None else expected
    for field in FIELDS:
        one, other = as_float64(getattr(actual, field)), as_float64(getattr(expected, field))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=field)
    np.testing.assert_array_equal(as_float64(kw.attend(**arguments)), as_float64(actual.output))


def poison(arguments: dict[str, Any], kind: str, seed: int) -> None:
    """Put numbers that are not finite into the arguments, in places that a seed chooses."""
    random = np.random.default_rng(seed)
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    token, other = (int(random.integers(key.shape[2])) for _ in range(2))
    row = int(random.integers(query.shape[2]))
    if kind == "NaN query":
        query[0, -1, row, 1] = np.nan
    elif kind == "NaN key":
        key[0, 0, token, 0] = np.nan
    elif kind == "NaN value":
        value[0, 0, token, 2] = np.nan
    elif kind == "NaN bias":
        bias = torch.zeros(query.shape[2], key.shape[2])
        bias[row, token], bias[row, other] = -np.inf, np.nan
        arguments["bias"] = bias
    elif kind == "infinite key":
        key[0, -1, token, :1] = np.inf
    elif kind == "keys of -inf and NaN":
        query[..., 0] = query[..., 0].abs() + 0.1
        key[0, 0, token, 0], key[0, 0, other, 0] = -np.inf, np.nan
    elif kind == "only scores of -inf, NaN values":
        query[..., 0] = query[..., 0].abs() + 0.1
        key[0, 0, :, 0] = -np.inf
        value[0, 0, token] = np.nan
    else:
        query[0, 0, :], key[0, 0, :] = np.nan, np.nan


KINDS = (
    "NaN query",
    "NaN key",
    "NaN value",
    "NaN bias",
    "infinite key",
    "keys of -inf and NaN",
    "only scores of -inf, NaN values",
    "everything NaN",
)


@functools.lru_cache(len(MASKS))  # kernels vary fastest
def make_poisoned(kind: str, shape: str, number: int) -> tuple[dict[str, Any], dict[str, Any], kw.AttentionStats]:
    """Return arguments with poison, those of the statistics, and what the definition says."""
    case = make_case(shape, MASKS[number], peaky=number % 2 == 0, sinks=number % 3 == 0, query_weights=number == 4)
    arguments, stats = case.arguments(), case.stats_arguments()
    poison(arguments, kind, seed=number)
    return arguments, stats, define(arguments, stats)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_and_infinity_are_where_the_definition_has_them(kernel: str, kind: str, shape: str) -> None:
    for number in range(len(MASKS)):
        arguments, stats, expected = make_poisoned(kind, shape, number)
        check_against_definition(arguments, stats, expected=expected)


def test_query_of_nan_has_nan_statistics_and_no_top_keys(target: str) -> None:
    x = np.random.default_rng(1).normal(size=(1, 1, 7, 8)).astype(np.float32)
    query = x.copy()
    query[0, 0, 2, 5] = np.nan
    stats = kw.attention_stats(query, x, x, mask=kw.Mask(causal=True), top_k=3, segment_bounds=[0, 4, 7])
    for name in ("output", "lse", "entropy", "top_weights", "top_mass", "segment_mass"):
        affected = np.isnan(getattr(stats, name)[0, 0]).reshape(7, -1)
        np.testing.assert_array_equal(affected, np.arange(7)[:, None] == np.full(affected.shape, 2), err_msg=name)
    assert (stats.top_keys[0, 0, 2] == -1).all()
    np.testing.assert_array_equal(np.isnan(stats.key_mass[0, 0]), np.arange(7) <= 2)


def test_query_of_nan_with_weight_0_adds_nothing_to_key_mass(target: str) -> None:
    x = np.random.default_rng(1).normal(size=(1, 2, 7, 8)).astype(np.float32)
    weights = np.ones((2, 7), np.float32)
    weights[:, 2] = 0
    clean = kw.attention_stats(x, x, x, query_weights=weights).key_mass
    query = x.copy()
    query[:, :, 2] = np.nan
    np.testing.assert_allclose(kw.attention_stats(query, x, x, query_weights=weights).key_mass, clean, rtol=1e-5)


@pytest.mark.parametrize("hides", [False, True])
def test_visible_nan_value_is_not_lost_where_its_weight_underflows(target: str, hides: bool) -> None:
    key = np.zeros((1, 1, 40, 4), np.float32)
    key[:, :, 7] = 1000
    value = np.ones((1, 1, 40, 4), np.float32)
    value[0, 0, 3, 1] = np.nan
    allowed = np.ones(40, bool)
    allowed[5] = not hides
    output = kw.attend(np.ones((1, 1, 2, 4), np.float32), key, value, mask=allowed)
    np.testing.assert_array_equal(np.isnan(output), np.full(output.shape, [False, True, False, False]))


# ---- Large and small values ----


def make_equal_keys(shape: str, size: float, dtype: torch.dtype) -> tuple[dict[str, Any], torch.Tensor]:
    """Return arguments whose keys all have the same score, and the mean of their values."""
    case = replace(SHAPES[shape], keys=max(900, SHAPES[shape].keys), mask="none")
    arguments = case.arguments()
    arguments["key"] = torch.zeros_like(arguments["key"])
    # Signs alternate in the first column, whose partial sums leave the range before they cancel; the last has ones.
    value = torch.full_like(arguments["value"], size)
    value[:, :, : value.shape[2] // 2, 0] = -size
    value[..., -1] = 1
    arguments["value"] = value
    mean = value.double().mean(dim=2, keepdim=True)
    return {name: x.to(dtype) if torch.is_tensor(x) else x for name, x in arguments.items()}, mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e36, 0.99 * LARGEST])
@pytest.mark.parametrize("shape", SHAPES)
def test_mean_of_large_values_is_finite(kernel: str, shape: str, size: float, dtype: torch.dtype) -> None:
    arguments, mean = make_equal_keys(shape, size, dtype)
    group = arguments["query"].shape[1] // arguments["key"].shape[1]
    expected = mean.repeat_interleave(group, dim=1).expand(-1, -1, arguments["query"].shape[2], -1)
    for output in (kw.attend(**arguments), kw.attention_stats(**arguments).output):
        actual = output.double()
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
        # Relative to the largest value of the column.
        assert ((actual - expected)[..., :-1].abs() <= tolerance * size).all()
        assert ((actual - expected)[..., -1].abs() <= tolerance).all()


def test_infinite_values_stay_infinite_beside_large_ones(kernel: str) -> None:
    arguments, _ = make_equal_keys("prefill", 1e37, torch.float32)
    arguments["value"][:, :, 5, 1] = np.inf
    arguments["value"][:, :, 6, 2] = -np.inf
    arguments["value"][:, :, 7, 3] = np.nan
    output = kw.attend(**arguments)
    assert torch.isposinf(output[..., 1]).all()
    assert torch.isneginf(output[..., 2]).all()
    assert torch.isnan(output[..., 3]).all()
    np.testing.assert_allclose(output[..., 4], 1e37, rtol=1e-5)


def test_rows_in_range_keep_their_bits_beside_rows_that_overflow(kernel: str) -> None:
    random = np.random.default_rng(0)
    query, key = (random.normal(size=(1, 1, 1200, 8)).astype(np.float32) for _ in range(2))
    value = random.normal(size=(1, 1, 1200, 5)).astype(np.float32)
    mask = kw.Mask(causal=True)
    expected = kw.attend(query, key, value, mask=mask)
    key[:, :, 600:] = 0
    value[:, :, 600:, 2] = 3e37
    output = kw.attend(query, key, value, mask=mask)
    assert np.isfinite(output).all()
    np.testing.assert_array_equal(output[:, :, :600], expected[:, :, :600])


def test_large_int8_values_do_not_overflow(kernel: str) -> None:
    arguments, mean = make_equal_keys("prefill", 1e36, torch.float32)
    for name in ("key", "value"):
        arguments[name] = quantise(name, as_host_array(name, arguments[name].numpy()))
    output = run(**arguments, stats=StatsRequest()).output.double()
    np.testing.assert_allclose(output[..., 1:-1], mean[..., 1:-1].expand_as(output[..., 1:-1]), rtol=1e-2)


def test_partials_of_large_values_merge_to_a_finite_output(target: str) -> None:
    random = np.random.default_rng(3)
    query = random.normal(size=(1, 2, 3, 8)).astype(np.float32)
    key = np.zeros((1, 1, 2000, 8), np.float32)
    value = np.full((1, 1, 2000, 4), 1e36, np.float32)
    value[..., 3] = random.normal(size=2000)
    cuts = [0, 300, 301, 1500, 2000]
    parts = [kw.partial(query, key[:, :, a:b], value[:, :, a:b]) for a, b in itertools.pairwise(cuts)]
    merged = kw.merge(*parts)
    assert np.isfinite(merged.values).all()
    np.testing.assert_allclose(merged.lse(), np.log(2000), rtol=1e-5)
    np.testing.assert_allclose(merged.output()[..., :3], 1e36, rtol=1e-5)
    np.testing.assert_allclose(merged.output()[..., 3], value[..., 3].mean(), atol=1e-5)
    np.testing.assert_allclose(parts[2].share_of(merged), 1199 / 2000, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-36, 1e-39])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_of_tiny_values_are_not_flushed(kernel: str, shape: str, size: float, dtype: torch.dtype) -> None:
    arguments = SHAPES[shape].arguments()
    arguments["value"] = arguments["value"].nan_to_num(0, 0, 0) * size
    arguments = {name: x.to(dtype) if torch.is_tensor(x) else x for name, x in arguments.items()}
    with kw.using("reference"):
        expected = as_float64(kw.attend(**arguments))
    assert expected.any()
    tolerance = (1e-2 if dtype == torch.bfloat16 else 1e-4) * np.abs(expected).max()
    np.testing.assert_allclose(as_float64(kw.attend(**arguments)), expected, rtol=0, atol=tolerance)
    if dtype == torch.float32:
        part = kw.partial(**{name: x for name, x in arguments.items() if name != "sinks"})
        np.testing.assert_allclose(part.output(), expected, rtol=0, atol=tolerance)


# ---- Large scores ----


@pytest.mark.parametrize("scale", [None, 2.0**-10, -0.125])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_overflow_only_where_they_are_too_large_themselves(kernel: str, shape: str, scale: float | None) -> None:
    arguments = {**SHAPES[shape].arguments(), "scale": scale}
    # query · key is up to 2^129, more than float32 holds; times the scale it fits. Powers of two are exact.
    arguments["query"] = torch.full_like(arguments["query"], 2.0**62)
    arguments["key"] = torch.where(arguments["key"] > -0.7, 2.0**63, -(2.0**63))
    check_against_definition(arguments, {"top_k": 3, "segment_bounds": [0, 2, 6]}, tolerance=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_of_subnormal_keys_are_exact(kernel: str, shape: str) -> None:
    arguments = SHAPES[shape].arguments()
    # The factors are exact: subnormal keys keep all bits of numbers with few.
    arguments["query"] = arguments["query"] * 2.0**120
    arguments["key"] = (arguments["key"].nan_to_num(0, 0, 0) * 256).round() / 256 * 2.0**-138
    check_against_definition({**arguments, "scale": 2.0**17}, {"top_k": 3, "segment_bounds": [0, 2, 6]}, tolerance=1e-4)


# ---- Bytes ----


def test_any_byte_but_0_of_a_boolean_mask_is_true(target: str) -> None:
    random = np.random.default_rng(5)
    x = random.normal(size=(2, 2, 30, 8)).astype(np.float32)
    allowed = random.random((2, 1, 30, 30)) < 0.5
    odd = (allowed * random.choice([1, 2, 128, 255], allowed.shape)).astype(np.uint8).view(bool)
    expected = kw.attention_stats(x, x, x, mask=allowed)
    for mask in (odd, kw.Mask(allowed=odd), odd.repeat(2, axis=3)[..., ::2], torch.from_numpy(odd)):
        actual = kw.attention_stats(x, x, x, mask=mask)
        for field in FIELDS[:-1]:
            np.testing.assert_array_equal(getattr(actual, field), getattr(expected, field), err_msg=field)
