"""The comparison that every test uses: errors are at most twice those of plain arithmetic.

Both errors are measured against the float64 definition. The output is compared with plain arithmetic in its own dtype,
statistics with plain float32, because they are float32 for inputs of any dtype. Plain arithmetic scales the queries or
the scores, and the larger error of the two counts: for few queries one of them is often exact by chance. A floor is
added for results that plain arithmetic computes exactly: a few units in the last place, and for float32 the change of a
weight when the largest score is rounded once. test_accuracy.py checks the rule without a floor on many queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

import keywise as kw
from keywise.attention import reference
from keywise.attention.problem import Problem
from tests.support.cases import Case
from tests.support.plain import attend_plainly

SINGLE_STEP = float(np.finfo(np.float32).eps)
STATISTICS = ("lse", "entropy", "top_weights", "key_mass", "segment_mass")
CAUSAL: dict[str, Any] = {"mask": kw.Mask(causal=True), "bias": None, "scale": None, "softcap": None, "sinks": None}
"""The options of a problem that is causal and nothing else."""


@dataclass(frozen=True, eq=False)
class Expectation:
    """The expected results of a problem, and the tolerance of each."""

    problem: Problem
    reference_result: reference.Result
    score: np.ndarray
    tolerance: dict[str, float]


@lru_cache(maxsize=4)
def make_arguments(case: Case) -> dict[str, Any]:
    """Return a case's arrays, made once for all targets."""
    return case.arguments()


@lru_cache(maxsize=4)
def expect_case(case: Case) -> Expectation:
    """Return the expectation of a case, computed once for all targets."""
    return make_expectation(case.problem())


def make_expectation(problem: Problem) -> Expectation:
    """Evaluate the definition, and derive tolerances from plain arithmetic."""
    reference_result = reference.evaluate(problem)
    score = reference.compute_scores(problem)
    finite = np.abs(score[np.isfinite(score)])
    largest_score = float(finite.max(initial=0.0))
    dtype = getattr(torch, problem.dtype)
    singles = [attend_plainly(problem, torch.float32, scale_first=first) for first in (False, True)]
    baselines = singles
    if dtype != torch.float32:
        baselines = [attend_plainly(problem, dtype, scale_first=first) for first in (False, True)]
    single_floor = SINGLE_STEP * (4 + largest_score)
    floor = max(torch.finfo(dtype).eps, single_floor) * find_largest_size(reference_result.output)
    plain_error = max(find_largest_error(baseline.output, reference_result.output) for baseline in baselines)
    tolerance = {"output": 2 * plain_error + floor}
    for name in STATISTICS:
        expected = getattr(reference_result, name)
        if expected is not None:
            # Logarithms and entropies are of the size of the scores they are computed from.
            if name in {"lse", "entropy"}:
                floor = 4 * SINGLE_STEP * (1 + largest_score)
            else:
                floor = single_floor * find_largest_size(expected)
            plain_error = max(find_largest_error(getattr(single, name), expected) for single in singles)
            tolerance[name] = 2 * plain_error + floor
    return Expectation(problem, reference_result, score, tolerance)


def find_largest_size(expected: np.ndarray) -> float:
    return float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))


def find_largest_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest error; infinities must agree, and NaN is infinitely wrong."""
    if actual.shape != expected.shape:
        return np.inf
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(actual - expected))
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0.0))


def as_float64(array: Any) -> np.ndarray:
    """Return any result as float64 NumPy."""
    if isinstance(array, torch.Tensor):
        return array.to(torch.float64).numpy()
    return np.asarray(array).astype(np.float64)


def check_case(case: Case) -> None:
    """Check the errors of `attend` and `attention_stats` on the current target."""
    expectation = expect_case(case)
    arguments = make_arguments(case)
    check_output(kw.attend(**arguments), expectation)
    check_stats(kw.attention_stats(**arguments, **case.stats_arguments()), expectation)


def check_output(output: Any, expectation: Expectation) -> None:
    """Check the error of an output; for queries without keys it must be exactly 0."""
    actual = as_float64(output)
    _check_error("output", actual, expectation.reference_result.output, expectation.tolerance["output"])
    empty = np.isneginf(expectation.score).all(axis=3)
    assert not actual[empty].any(), "a query without keys has output"


def check_stats(stats: kw.AttentionStats, expectation: Expectation) -> None:
    """Check the error of every statistic, and that the top keys are the heaviest."""
    check_output(stats.output, expectation)
    for name in STATISTICS:
        expected = getattr(expectation.reference_result, name)
        if expected is not None:
            _check_error(name, as_float64(getattr(stats, name)), expected, expectation.tolerance[name])
    _check_top_keys(np.asarray(stats.top_keys), expectation)
    top_mass = as_float64(stats.top_weights).sum(axis=3)
    _check_error("top_mass", as_float64(stats.top_mass), top_mass, 4 * SINGLE_STEP * find_largest_size(top_mass))
    visible = ~np.isneginf(expectation.score)
    assert not as_float64(stats.key_mass)[~visible.any(axis=2)].any(), "a hidden key has mass"
    assert not as_float64(stats.entropy)[~visible.any(axis=3)].any(), "a query without keys has entropy"


def _check_top_keys(top_keys: np.ndarray, expectation: Expectation) -> None:
    """Check that the top keys have the largest weights within rounding, none twice and none hidden."""
    reference_result, score = expectation.reference_result, expectation.score
    assert top_keys.shape == reference_result.top_keys.shape
    named = top_keys >= 0
    assert (named == (reference_result.top_keys >= 0)).all(), "a query has too many or too few top keys"
    if not named.any():
        return
    at = np.maximum(top_keys, 0)
    assert not np.isneginf(np.take_along_axis(score, at, axis=3))[named].any(), "a hidden key is a top key"
    ordered = np.sort(np.where(named, top_keys, -1 - np.arange(top_keys.shape[3])), axis=3)
    assert (np.diff(ordered, axis=3) != 0).all(), "a top key is listed twice"
    with np.errstate(invalid="ignore"):
        weights = np.where(named, np.exp(np.take_along_axis(score, at, axis=3) - reference_result.lse[..., None]), 0.0)
    _check_error("weights of top_keys", weights, reference_result.top_weights, expectation.tolerance["top_weights"])


def _check_error(name: str, actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert actual.shape == expected.shape, f"{name} has shape {actual.shape}, not {expected.shape}"
    error = find_largest_error(actual, expected)
    assert error <= tolerance, f"{name} is wrong by {error:.3g}, more than {tolerance:.3g}"
