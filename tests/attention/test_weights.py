"""Weights of a block of queries and keys: those of the definition, whatever the rest of the row is."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention import reference
from keywise.attention.problem import make_problem
from keywise.errors import DtypeError, OptionError, ShapeError
from tests.support.cases import BIASES, DTYPES, LAYOUTS, MASKS, Case, combine_pairwise
from tests.support.judging import as_float64

CASES = combine_pairwise(
    {
        "dtype": DTYPES,
        "head_dim": (1, 16, 33, 80),
        "keys": (1, 31, 300, 1025),
        "queries": (1, 5, 48),
        "group": (1, 3),
        "layout": LAYOUTS,
        "mask": MASKS,
        "bias": BIASES,
        "scale": (None, 0.3),
        "softcap": (None, 5.0),
        "sinks": (False, True),
        "peaky": (False, True),
    },
    seed=20261201,
)


def get_arguments(case: Case) -> dict[str, Any]:
    return {name: array for name, array in case.arguments().items() if name != "value"}


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: f"{case.seed}")
def test_weights_of_a_block_equal_the_definition(case: Case, kernel: str) -> None:
    arguments = get_arguments(case)
    problem = make_problem(**arguments, value=arguments["key"])
    softmax = reference.compute_softmax(problem)
    queries, keys = slice(case.queries // 3, None), slice(case.keys // 4, max(case.keys // 2, 1))
    block = kw.attention_weights(**arguments, queries=queries, keys=keys)
    assert block.queries == (case.queries // 3, case.queries)
    assert block.keys == (case.keys // 4, max(case.keys // 2, 1))
    np.testing.assert_allclose(as_float64(block.weights), softmax.weights[:, :, queries, keys], rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(as_float64(block.scores), softmax.score[:, :, queries, keys], rtol=1e-6, atol=1e-6)
    raw = reference.compute_raw_scores(problem)[:, :, queries, keys]
    np.testing.assert_allclose(as_float64(block.raw_scores), raw, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_planted_key_has_its_weight(target: str, dtype: str) -> None:
    arguments = get_arguments(Case(dtype, batch=1, key_heads=1, group=2, queries=9, keys=500, head_dim=64))
    arguments["key"][:, :, 321] = arguments["query"][:, :1, 4] * 3
    block = kw.attention_weights(**arguments, queries=slice(4, 5), keys=slice(320, 323))
    assert block.weights[0, 0, 0, 1] > 0.9
    assert block.weights[0, 0, 0, 0] < 0.05


def test_the_default_is_the_whole_matrix_with_rows_that_sum_to_one(target: str) -> None:
    arguments = get_arguments(Case(queries=20, keys=70, mask="causal"))
    weights = kw.attention_weights(**arguments).weights
    assert isinstance(weights, torch.Tensor)
    assert tuple(weights.shape) == (2, 4, 20, 70)
    np.testing.assert_allclose(as_float64(weights).sum(axis=-1), 1.0, atol=1e-5)
    numpy_arguments = {**arguments, "query": arguments["query"].numpy(), "key": arguments["key"].numpy()}
    assert isinstance(kw.attention_weights(**numpy_arguments).weights, np.ndarray)


def test_a_query_that_sees_nan_has_weights_of_nan_and_one_without_keys_has_none(target: str) -> None:
    arguments = get_arguments(Case(queries=3, keys=6, head_dim=8))
    arguments["mask"] = np.tri(3, 6, -1, bool)
    arguments["key"][:, :, 1] = np.nan
    weights = as_float64(kw.attention_weights(**arguments).weights)
    assert (weights[:, :, 0] == 0).all()
    np.testing.assert_allclose(weights[:, :, 1], [[[1, 0, 0, 0, 0, 0]] * 4] * 2, atol=1e-6)
    assert np.isnan(weights[:, :, 2, :2]).all()


def test_memory_is_that_of_the_block() -> None:
    arguments = get_arguments(
        Case("float32", batch=1, key_heads=1, group=1, queries=3000, keys=3000, head_dim=16, mask="causal")
    )
    tracemalloc.start()
    kw.attention_weights(**arguments, queries=slice(100, 110), keys=slice(0, 50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000, "the matrix has 36,000,000 bytes"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"queries": 3}, DtypeError, r"queries must be a slice, such as slice\(0, 64\), got 3"),
        ({"keys": slice(0.5, 2)}, DtypeError, "keys must be a slice of integers"),
        ({"keys": slice(0, 6, 2)}, OptionError, "keys must be a slice without step that holds some of the 70"),
        ({"keys": slice(70, 80)}, OptionError, "keys must be a slice without step that holds some of the 70"),
        ({"queries": slice(5, 5)}, OptionError, "queries must be a slice without step that holds some of the 20"),
        ({"mask": np.ones((3, 3), bool)}, ShapeError, "mask must"),
        ({"key": np.ones((2, 2, 70), np.float32)}, ShapeError, "key must"),
        ({"key": "text"}, DtypeError, "key must"),
    ],
)
def test_blocks_that_cannot_be_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kw.attention_weights(**{**get_arguments(Case(queries=20, keys=70)), **options})
