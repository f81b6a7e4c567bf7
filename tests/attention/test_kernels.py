"""Every kernel against the definition: sizes around each vector width, layouts, masks, biases and statistics."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention.operation import run
from keywise.attention.stats_request import StatsRequest
from tests.support.cases import BIASES, DTYPES, LAYOUTS, MASKS, SEGMENTS, Case, combine_pairwise
from tests.support.judging import as_float64, check_case, expect_case, find_largest_error

HEAD_DIMS = (1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 128, 129, 256, 512)
VALUE_DIMS = (0, 1, 7, 24, 33, 64, 130)
KEYS = (1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257, 300, 513, 1025, 2100)
QUERIES = (1, 2, 3, 5, 12, 13, 47, 48, 49, 240)
GROUPS = (1, 2, 3, 4, 7, 8)

SWEEP = combine_pairwise(
    {
        "dtype": DTYPES,
        "head_dim": HEAD_DIMS,
        "value_dim": VALUE_DIMS,
        "keys": KEYS,
        "queries": QUERIES,
        "group": GROUPS,
        "key_heads": (1, 2),
        "layout": LAYOUTS,
        "mask": MASKS,
        "bias": BIASES,
        "scale": (None, 0.3),
        "softcap": (None, 5.0, 30.0),
        "sinks": (False, True),
        "peaky": (False, True),
        "top_k": (0, 1, 8, 33),
        "segment_kind": SEGMENTS,
        "query_weights": (False, True),
    },
    seed=20260101,
)


@pytest.mark.parametrize("case", SWEEP, ids=lambda case: f"{case.seed}")
def test_pairs_of_factors_equal_the_definition(case: Case, kernel: str) -> None:
    check_case(case)


LONG = [
    Case(batch=1, key_heads=1, queries=1025, keys=1025, head_dim=64, mask="causal"),
    Case("bfloat16", batch=1, key_heads=1, queries=700, keys=1100, head_dim=64, mask="causal window", sinks=True),
    Case("float16", batch=1, key_heads=2, queries=260, keys=1500, head_dim=65, mask="documents", peaky=True),
    Case(batch=1, key_heads=1, group=4, queries=1, keys=20_011, head_dim=128, peaky=True, segment_kind="bounds"),
    Case(
        "bfloat16", batch=1, key_heads=1, group=8, queries=1, keys=20_011, head_dim=128, peaky=True, segment_kind="ids"
    ),
    Case(batch=1, key_heads=1, queries=90, keys=4_500, head_dim=16, mask="causal", segment_kind="bounds"),
    Case("bfloat16", batch=1, key_heads=1, group=3, queries=50, keys=2_700, head_dim=16, segment_kind="ids"),
    Case("float16", batch=2, key_heads=1, group=7, queries=2, keys=9_000, head_dim=80, mask="lengths", bias="per key"),
    Case("bfloat16", batch=1, key_heads=1, group=3, queries=3, keys=12_345, mask="keep_first", softcap=20.0, top_k=40),
    Case(batch=1, key_heads=3, group=2, queries=70, keys=4_300, head_dim=16, mask="causal", segment_kind="bounds"),
    Case("bfloat16", batch=1, key_heads=2, queries=192, keys=4_096, head_dim=16, peaky=True, segment_kind="ids"),
    Case("float16", batch=2, key_heads=9, queries=5, keys=4_500, head_dim=16, mask="lengths", query_weights=True),
]
# The tiles of the values depend on the number of queries and on the width of the values.
WIDE = [
    Case(dtype, batch=1, key_heads=2, group=group, queries=1, keys=700, head_dim=64, value_dim=width, peaky=group == 2)
    for dtype in DTYPES
    for group in (1, 2, 3)
    for width in (112, 192, 320)
]


@pytest.mark.parametrize("case", WIDE, ids=lambda case: f"{case.dtype}-{case.group}-{case.value_dim}")
def test_few_queries_over_wide_values_equal_the_definition(case: Case, kernel: str) -> None:
    check_case(case)


@pytest.mark.parametrize("case", LONG, ids=lambda case: f"{case.queries}x{case.keys}-{case.dtype}")
def test_long_inputs_equal_the_definition(case: Case, kernel: str) -> None:
    check_case(case)


WIDTHS = [
    Case(dtype, head_dim=head_dim, queries=11, keys=77, key_heads=1, mask="causal", peaky=peaky, seed=head_dim)
    for dtype in DTYPES
    for head_dim in HEAD_DIMS
    for peaky in (False, True)
]


@pytest.mark.parametrize("case", WIDTHS, ids=lambda case: f"{case.dtype}-{case.head_dim}-{case.peaky}")
def test_head_dims_around_vector_widths_equal_the_definition(case: Case, kernel: str) -> None:
    check_case(case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_of_the_lowest_float_on_every_key_has_uniform_weights(target: str, dtype: str) -> None:
    case = Case(dtype, queries=3, keys=40)
    arguments = case.arguments()
    smallest = np.zeros((3, 40), np.float32)
    smallest[1] = np.finfo(np.float32).min
    stats = kw.attention_stats(**{**arguments, "bias": smallest})
    mean = as_float64(arguments["value"]).mean(axis=2).repeat(case.group, axis=1)
    np.testing.assert_allclose(as_float64(stats.output)[:, :, 1], mean, atol=0.02 if dtype != "float32" else 1e-6)
    np.testing.assert_allclose(as_float64(stats.entropy)[:, :, 1], np.log(40), rtol=1e-5)
    others = kw.attend(**arguments)
    np.testing.assert_array_equal(as_float64(stats.output)[:, :, ::2], as_float64(others)[:, :, ::2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_keys_have_equal_weights_at_every_position(target: str, dtype: str) -> None:
    arguments = Case(dtype, batch=1, key_heads=1, queries=14, keys=1300, head_dim=33, seed=5).arguments()
    key = arguments["key"]
    places = [3, 4, 200, 255, 256, 500, 511, 1024, 1299]
    key[:, :, places] = arguments["query"][:, :1, :1] * 2
    stats = kw.attention_stats(**arguments, top_k=len(places))
    assert stats.top_keys[0, 0, 0].tolist() == places
    assert (stats.top_weights[0, 0, 0] == stats.top_weights[0, 0, 0, 0]).all()


@pytest.mark.parametrize("case", SWEEP[::9], ids=lambda case: f"{case.seed}")
def test_statistics_change_the_output_by_rounding_only(case: Case, target: str) -> None:
    expectation = expect_case(case)
    alone = as_float64(kw.attend(**case.arguments()))
    with_stats = as_float64(kw.attention_stats(**case.arguments(), **case.stats_arguments()).output)
    assert find_largest_error(alone, with_stats) <= expectation.tolerance["output"]


@pytest.mark.parametrize("rows", [(0, 20), (3, 9), (19, 20), (7, 7)])
def test_statistics_of_selected_queries_equal_those_of_all_queries(target: str, rows: tuple[int, int]) -> None:
    arguments = Case(queries=20, keys=300, mask="causal", sinks=True).arguments()
    first, last = rows
    options = {"top_k": 4, "segment_bounds": [0, 50, 300]}
    actual = run(**arguments, stats=StatsRequest(**options, queries=rows))
    all_rows = kw.attention_stats(**arguments, **options)
    own_weights = np.zeros(20, np.float32)
    own_weights[first:last] = 1
    np.testing.assert_allclose(as_float64(actual.output), as_float64(all_rows.output), atol=1e-6)
    np.testing.assert_array_equal(actual.top_keys, all_rows.top_keys[:, :, first:last])
    for name in ("lse", "entropy", "top_weights", "segment_mass"):
        expected = as_float64(getattr(all_rows, name))[:, :, first:last]
        np.testing.assert_allclose(as_float64(getattr(actual, name)), expected, atol=3e-6, err_msg=name)
    expected = kw.attention_stats(**arguments, query_weights=own_weights).key_mass
    np.testing.assert_allclose(as_float64(actual.key_mass), as_float64(expected), atol=1e-6)
    without = run(**arguments, stats=StatsRequest(top_k=0, key_mass=False, queries=rows))
    assert without.key_mass is None
    np.testing.assert_allclose(as_float64(without.entropy), as_float64(actual.entropy), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_transposed_output_has_the_same_bits(target: str, dtype: str) -> None:
    arguments = Case(dtype, queries=20, keys=300, mask="causal", value_dim=24).arguments()
    expected = kw.attend(**arguments)
    actual = run(**arguments, transposed_output=True)
    assert actual.is_contiguous()
    assert torch.equal(actual.transpose(1, 2), expected)


@pytest.mark.parametrize("keys", [31, 32, 300])
def test_nan_value_under_a_bias_of_minus_infinity_does_not_leak(target: str, keys: int) -> None:
    ones = np.ones((1, 1, 3, 4), np.float32)
    key, value, bias = (
        np.ones((1, 1, keys, 4), np.float32),
        np.ones((1, 1, keys, 4), np.float32),
        np.zeros(keys, np.float32),
    )
    value[:, :, 3], bias[3] = np.nan, -np.inf
    np.testing.assert_allclose(kw.attend(ones, key, value, bias=bias), 1, rtol=1e-6)


NARROW = {
    "window": {"window": (40, 7)},
    "causal window": {"causal": True, "window": (40, 0)},
    "queries before the first key": {"causal": True, "window": (40, 0), "lengths": [1000, 460]},
    "queries behind the last key": {"causal": True, "window": (40, None), "lengths": [1000, 1010]},
    "left padding": {"causal": True, "window": (300, 0), "starts": [0, 400]},
    "first keys kept": {"causal": True, "window": (40, 0), "keep_first": 3, "starts": [5, 0]},
    "documents": {"causal": True, "window": (300, 0), "documents": np.arange(1000) // 300 + np.zeros((2, 1), int)},
}


def _compute_narrow_stats(mask: str, dtype: str) -> kw.AttentionStats:
    arguments = Case(dtype, batch=2, group=2, queries=1000, keys=1000, head_dim=16, value_dim=16).arguments()
    return kw.attention_stats(**{**arguments, "mask": kw.Mask(**NARROW[mask])}, segment_bounds=[0, 300, 800, 1000])


@functools.cache  # every kernel is compared with the same
def _compute_narrow_reference(mask: str, dtype: str) -> kw.AttentionStats:
    with kw.using("reference"):
        return _compute_narrow_stats(mask, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mask", NARROW)
def test_queries_with_few_visible_keys_equal_the_definition(kernel: str, mask: str, dtype: str) -> None:
    actual, expected = _compute_narrow_stats(mask, dtype), _compute_narrow_reference(mask, dtype)
    tolerance = 2e-2 if dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(as_float64(actual.output), as_float64(expected.output), atol=tolerance)
    for name in ("key_mass", "segment_mass", "entropy"):
        np.testing.assert_allclose(
            as_float64(getattr(actual, name)), as_float64(getattr(expected, name)), rtol=1e-4, atol=1e-4
        )
