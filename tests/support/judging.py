"""The one comparison every test uses: error at most twice that of plain arithmetic, both against the definition.

The output is held to plain arithmetic in its own dtype. Readings are float32 whatever the inputs, so they are held to
plain float32. Plain arithmetic is done both usual ways, scaling queries or scores, and the larger error counts: with
few rows one of them is often right by luck. A floor covers what plain computes exactly: a few units in the last place,
and for float32 what rounding the largest score once may do to a weight. test_accuracy.py holds the rule without floors
where there are rows enough.
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
from tests.support.plain import plain

SINGLE_STEP = float(np.finfo(np.float32).eps)
READINGS = ("lse", "entropy", "top_weights", "key_mass", "segment_mass")
CAUSAL: dict[str, Any] = {"mask": kw.Mask(causal=True), "bias": None, "scale": None, "softcap": None, "sinks": None}
"""The options of a problem that is causal and nothing else."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """The truth about a problem and how far from it each result may lie."""

    problem: Problem
    truth: reference.Result
    score: np.ndarray
    tolerance: dict[str, float]


@lru_cache(maxsize=4)
def arguments_of(case: Case) -> dict[str, Any]:
    """Make a case's arrays once for all targets."""
    return case.arguments()


@lru_cache(maxsize=4)
def verdict_of(case: Case) -> Verdict:
    """Judge a case once for all targets."""
    return verdict(case.problem())


def verdict(problem: Problem) -> Verdict:
    """Evaluate the definition and the plain rivals."""
    truth = reference.evaluate(problem)
    score = reference.compute_scores(problem)
    finite = np.abs(score[np.isfinite(score)])
    largest_score = float(finite.max(initial=0.0))
    dtype = getattr(torch, problem.dtype)
    singles = [plain(problem, torch.float32, scale_first=first) for first in (False, True)]
    rivals = singles
    if dtype != torch.float32:
        rivals = [plain(problem, dtype, scale_first=first) for first in (False, True)]
    single_floor = SINGLE_STEP * (4 + largest_score)
    floor = max(torch.finfo(dtype).eps, single_floor) * size(truth.output)
    tolerance = {"output": 2 * max(worst(rival.output, truth.output) for rival in rivals) + floor}
    for name in READINGS:
        right = getattr(truth, name)
        if right is not None:
            # Logarithms and entropies are of the size of the scores they are computed from.
            floor = 4 * SINGLE_STEP * (1 + largest_score) if name in {"lse", "entropy"} else single_floor * size(right)
            tolerance[name] = 2 * max(worst(getattr(single, name), right) for single in singles) + floor
    return Verdict(problem, truth, score, tolerance)


def size(right: np.ndarray) -> float:
    return float(np.abs(right[np.isfinite(right)]).max(initial=0.0))


def worst(got: np.ndarray, right: np.ndarray) -> float:
    """Return the largest error; infinities must agree, and NaN is infinitely wrong."""
    if got.shape != right.shape:
        return np.inf
    same = (got == right) | (np.isnan(got) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(got - right))
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0.0))


def numbers(array: Any) -> np.ndarray:
    """Return any result as float64 NumPy."""
    if isinstance(array, torch.Tensor):
        return array.to(torch.float64).numpy()
    return np.asarray(array).astype(np.float64)


def check_case(case: Case) -> None:
    """Hold `attend` and `read` on the target in use to the error rule."""
    verdict = verdict_of(case)
    arguments = arguments_of(case)
    check_output(kw.attend(**arguments), verdict)
    check_stats(kw.attention_stats(**arguments, **case.stats_arguments()), verdict)


def check_output(output: Any, verdict: Verdict) -> None:
    """Hold an output to the error rule; rows without keys must be exactly 0."""
    got = numbers(output)
    _hold("output", got, verdict.truth.output, verdict.tolerance["output"])
    empty = np.isneginf(verdict.score).all(axis=3)
    assert not got[empty].any(), "a row without keys has output"


def check_stats(stats: kw.AttentionStats, verdict: Verdict) -> None:
    """Hold every reading to the error rule, and the named keys to being the heaviest."""
    check_output(stats.output, verdict)
    for name in READINGS:
        right = getattr(verdict.truth, name)
        if right is not None:
            _hold(name, numbers(getattr(stats, name)), right, verdict.tolerance[name])
    _check_top_keys(np.asarray(stats.top_keys), verdict)
    top_mass = numbers(stats.top_weights).sum(axis=3)
    _hold("top_mass", numbers(stats.top_mass), top_mass, 4 * SINGLE_STEP * size(top_mass))
    visible = ~np.isneginf(verdict.score)
    assert not numbers(stats.key_mass)[~visible.any(axis=2)].any(), "a hidden key has mass"
    assert not numbers(stats.entropy)[~visible.any(axis=3)].any(), "a row without keys has entropy"


def _check_top_keys(top_keys: np.ndarray, verdict: Verdict) -> None:
    """Hold the named keys to weights as heavy as the heaviest, within rounding; no key twice, none hidden."""
    truth, score = verdict.truth, verdict.score
    assert top_keys.shape == truth.top_keys.shape
    named = top_keys >= 0
    assert (named == (truth.top_keys >= 0)).all(), "a row names too many or too few keys"
    if not named.any():
        return
    at = np.maximum(top_keys, 0)
    assert not np.isneginf(np.take_along_axis(score, at, axis=3))[named].any(), "a hidden key is named"
    ordered = np.sort(np.where(named, top_keys, -1 - np.arange(top_keys.shape[3])), axis=3)
    assert (np.diff(ordered, axis=3) != 0).all(), "a key is named twice"
    with np.errstate(invalid="ignore"):
        weights = np.where(named, np.exp(np.take_along_axis(score, at, axis=3) - truth.lse[..., None]), 0.0)
    _hold("weights of top_keys", weights, truth.top_weights, verdict.tolerance["top_weights"])


def _hold(name: str, got: np.ndarray, right: np.ndarray, tolerance: float) -> None:
    assert got.shape == right.shape, f"{name} has shape {got.shape}, not {right.shape}"
    error = worst(got, right)
    assert error <= tolerance, f"{name} is wrong by {error:.3g}, more than {tolerance:.3g}"
