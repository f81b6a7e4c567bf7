"""Check the inputs and the weights of one attention call; no observed output is needed."""

from __future__ import annotations

import numpy as np

from keywise.attention import reference
from keywise.attention.arrays import Array
from keywise.attention.problem import Problem
from keywise.diagnosis.definition import MAX_FLOAT16, ROUNDING_UNITS, Expected
from keywise.diagnosis.findings import Location
from keywise.diagnosis.results import CheckResults

MIN_SHARE = 0.95
"""Share of the queries of every head that must agree before a layer is reported."""
MIN_KEYS = 8
"""Queries that see fewer keys are ignored when weights are called saturated or uniform."""
MIN_QUERIES = 8
SATURATED_WEIGHT = 1 - ROUNDING_UNITS["bfloat16"]
"""Weight of the heaviest key above which bfloat16 would round all others away beside it."""
UNIFORM_NATS = ROUNDING_UNITS["bfloat16"] ** 2 / 2
"""Weights within a relative e of 1/n have an entropy within e^2 / 2 nats of ln n; here e is bfloat16's rounding."""
SINK_SHARE = 0.3
"""Share of the weight on the first key, in some head, from which it is reported as a sink."""


def check_finite_inputs(problem: Problem, queries: Array, place: str) -> tuple[CheckResults, bool]:
    """Look for NaN and infinity in queries and in the keys and values that they see.

    Parameters
    ----------
    problem : Problem
        The problem that attention should solve.
    queries : int [R]
        Indices of the queries to look at.
    place : str
        Name of the layer or input, for the findings.

    Returns
    -------
    results : CheckResults
    finite : bool
        Whether these queries and all keys and values, hidden ones included, are finite.
    """
    results = CheckResults()
    query = problem.query.floats(np.float64)[:, :, queries]
    key, value = problem.key_floats(np.float64), problem.value_floats(np.float64)
    group = problem.shape.query_heads // problem.shape.key_heads
    bad_keys = np.repeat(~(np.isfinite(key).all(axis=3) & np.isfinite(value).all(axis=3)), group, axis=1)
    visible = reference.find_visible_keys(problem, queries)
    affected: Array = np.asarray((visible & bad_keys[:, :, None]).any(axis=3) | ~np.isfinite(query).all(axis=3))
    if affected.any():
        heads = tuple(np.flatnonzero(affected.any(axis=(0, 2))).tolist())
        affected_queries = tuple(queries[affected.any(axis=(0, 1))].tolist())
        count = int(affected.sum())
        measured = f"{count} of {affected.size} sampled queries meet NaN or infinity in query, key or value"
        results.add_finding("input-not-finite", measured, Location((place,), heads, affected_queries), queries=count)
    else:
        results.add_clean("input-not-finite")
    if not bad_keys.any():
        results.add_untestable("every key and value is finite", "hidden-nan-leak")
    return results, not bad_keys.any() and not affected.any()


def inspect_call(problem: Problem, expected: Expected, place: str) -> CheckResults:
    """Check keys, values, the range of the scores, and the weights of the sampled queries.

    Parameters
    ----------
    problem : Problem
        The problem that attention should solve; all inputs are finite.
    expected : Expected
        The definition's results for the sampled queries.
    place : str
        Name of the layer or input, for the findings.

    Returns
    -------
    CheckResults
    """
    results = CheckResults()
    _check_keys(results, problem, place)
    _check_values(results, problem, place)
    _check_float16_range(results, problem, expected, place)
    _check_fully_masked(results, expected, place)
    _check_weights(results, expected, place)
    return results


def _check_keys(results: CheckResults, problem: Problem, place: str) -> None:
    key = problem.key_floats(np.float64)
    tokens = problem.shape.keys
    if tokens < MIN_KEYS:
        results.add_untestable(f"fewer than {MIN_KEYS} keys", "keys-identical")
        return
    if not np.isfinite(key).all():
        results.add_untestable("some keys are not finite", "keys-identical")
        return
    spread = np.abs(key - key.mean(axis=2, keepdims=True)).max(axis=(2, 3))
    # Equal numbers differ from their mean by the mean's own rounding only; the dtype's rounding is allowed for.
    identical = spread <= 4 * ROUNDING_UNITS[problem.dtype] * np.abs(key).max(axis=(2, 3))
    if identical.all():
        measured = f"the {tokens} keys of every head differ by at most {spread.max():.2g} in any element"
        results.add_finding("keys-identical", measured, Location((place,)), spread=float(spread.max()))
    elif identical.any():
        heads = tuple(np.flatnonzero(identical.any(axis=0)).tolist())
        measured = f"the {tokens} keys of key heads {list(heads)} are identical; those of the others differ"
        results.add_finding("keys-identical", measured, Location((place,), heads), severity="warning")
    else:
        results.add_clean("keys-identical")


def _check_values(results: CheckResults, problem: Problem, place: str) -> None:
    value = problem.value_floats(np.float64)
    all_zero = ~value.any(axis=(0, 2, 3))
    if all_zero.any():
        heads = tuple(np.flatnonzero(all_zero).tolist())
        measured = f"the values of {len(heads)} of {all_zero.size} key heads are all 0"
        results.add_finding("head-dead", measured, Location((place,), heads), heads=len(heads))
    else:
        results.add_clean("head-dead")


def _check_float16_range(results: CheckResults, problem: Problem, expected: Expected, place: str) -> None:
    largest = expected.largest_product
    if problem.dtype != "float16":
        results.add_untestable(f"query and key are {problem.dtype}", "float16-range")
    elif largest > MAX_FLOAT16:
        measured = f"query . key reaches {largest:.6g}; the largest float16 is {MAX_FLOAT16:g}"
        results.add_finding("float16-range", measured, Location((place,)), largest_product=largest)
    else:
        results.add_clean("float16-range")


def _check_fully_masked(results: CheckResults, expected: Expected, place: str) -> None:
    if expected.has_keys.all():
        results.add_clean("rows-without-keys")
        return
    count = int((~expected.has_keys).any(axis=(0, 1)).sum())
    measured = f"{count} of {expected.visible.shape[2]} sampled queries see no key"
    results.add_finding("rows-without-keys", measured, Location((place,)), queries=count)


def _check_weights(results: CheckResults, expected: Expected, place: str) -> None:
    key_counts = expected.visible.sum(axis=3)
    counted = (key_counts >= MIN_KEYS) & np.isfinite(expected.entropy)
    _check_sink(results, expected, counted & expected.visible[..., 0], place)
    if counted.sum(axis=(0, 2)).min() < MIN_QUERIES:
        reason = f"fewer than {MIN_QUERIES} sampled queries see {MIN_KEYS} keys or more"
        results.add_untestable(reason, "softmax-saturated", "weights-uniform")
        return
    max_entropy = np.log(np.maximum(key_counts, 2))
    entropy_ratio = float(np.median((expected.entropy / max_entropy)[counted]))
    saturated = _compute_shares(expected.largest_weight > SATURATED_WEIGHT, counted)
    if saturated.min() >= MIN_SHARE:
        measured = (
            f"one key takes over {SATURATED_WEIGHT:.1%} in at least {saturated.min():.0%} of the queries of every head"
        )
        results.add_finding("softmax-saturated", measured, Location((place,)), entropy_ratio=entropy_ratio)
    else:
        results.add_clean("softmax-saturated")
    uniform = _compute_shares(max_entropy - expected.entropy <= UNIFORM_NATS, counted)
    if uniform.min() >= MIN_SHARE and expected.scale != 0:
        measured = f"the entropy is {entropy_ratio:.5f} of the largest possible, in every head"
        results.add_finding("weights-uniform", measured, Location((place,)), entropy_ratio=entropy_ratio)
    else:
        results.add_clean("weights-uniform")


def _compute_shares(condition: Array, counted: Array) -> Array:
    """Return the share of the counted queries [B, Hq, R] that fulfil a condition, per head."""
    return np.asarray((condition & counted).sum(axis=(0, 2)) / counted.sum(axis=(0, 2)))


def _check_sink(results: CheckResults, expected: Expected, counted: Array, place: str) -> None:
    if counted.sum(axis=(0, 2)).min() < MIN_QUERIES:
        results.add_untestable("too few queries see the first key", "attention-sink")
        return
    share = np.where(counted, expected.first_key_weight, 0.0).sum(axis=(0, 2)) / counted.sum(axis=(0, 2))
    if share.max() > SINK_SHARE:
        heads = tuple(np.flatnonzero(share > SINK_SHARE).tolist())
        measured = f"the first key takes up to {share.max():.0%} of the weight, {share.mean():.0%} on average"
        results.add_finding("attention-sink", measured, Location((place,), heads), share=float(share.max()))
    else:
        results.add_clean("attention-sink")
