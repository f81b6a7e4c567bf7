"""Evaluate the definition of attention on a sample of queries, and bound the rounding error.

Every check compares with these float64 values. A sample keeps all keys, so memory is linear in the number of keys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keywise.attention import reference
from keywise.attention.arrays import Array, HostArray
from keywise.attention.problem import Problem
from keywise.attention.stats_request import ResolvedStats
from keywise.attention.visibility import Visibility
from keywise.util.checks import MAX_TOKENS

FLOAT32_UNIT = 2.0**-24
ROUNDING_UNITS = {"float64": 2.0**-53, "float32": FLOAT32_UNIT, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of one rounding, by dtype."""

MAX_FLOAT16 = 65504.0
"""Largest float16 number."""

MAX_SCORE_ERROR = 0.25
"""Largest score error for which the linear bound on the output error holds."""


class Expected(NamedTuple):
    """The definition's results for sampled queries: float64 arrays [B, Hq, R, ...]."""

    output: Array
    """[B, Hq, R, Dv]."""
    tolerance: Array
    """[B, Hq, R, 1]: bound on the rounding error of `output` in the problem's dtype; inf where there is none."""
    visible: Array
    """[B, Hq, R, N] bool: which keys each query may see."""
    has_keys: Array
    """[B, Hq, R] bool: whether the query sees a key."""
    entropy: Array
    """[B, Hq, R], in nats."""
    largest_weight: Array
    """[B, Hq, R]: the largest weight, sinks excluded."""
    first_key_weight: Array
    """[B, Hq, R]: the weight of key 0."""
    largest_product: float
    """Largest |query . key| before scaling, over visible keys."""
    scale: float

    @property
    def largest_score(self) -> float:
        """Return the largest |query . key x scale|."""
        return self.largest_product * abs(self.scale)


def choose_queries(count: int, limit: int) -> Array:
    """Return at most `limit` of `count` query indices, evenly spaced, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64))


def select_queries(problem: Problem, queries: Array, visible: Array | None = None) -> Problem:
    """Return the problem restricted to these queries, its mask as booleans.

    Parameters
    ----------
    problem : Problem
        The complete problem.
    queries : int [R]
        Indices of the queries to keep.
    visible : bool [B, Hq, R, N], optional
        Replaces the problem's own mask.

    Returns
    -------
    Problem
        With `visibility.allowed` set and every other rule switched off.
    """
    if visible is None:
        visible = reference.find_visible_keys(problem, queries)
    batch = problem.shape.batch
    query, bias = problem.query, problem.bias
    return problem._replace(
        query=query._replace(data=query.data[:, :, queries]),
        shape=problem.shape._replace(queries=queries.size),
        bias=None if bias is None else bias._replace(data=bias.data[:, :, queries]),
        visibility=Visibility(
            causal=False,
            left=-1,
            right=-1,
            lengths=np.full(batch, problem.first_key + problem.shape.keys, np.int64),
            starts=np.zeros(batch, np.int64),
            keep_first=0,
            documents=None,
            allowed=visible,
        ),
        stats=None,
    )


def get_visible(sample: Problem) -> Array:
    """Return the boolean mask of a problem made by `select_queries`."""
    visible = sample.visibility.allowed
    assert visible is not None  # select_queries() sets it
    return visible


def compute_weights(problem: Problem) -> Array:
    """Return the weights [B, Hq, Q, N] of a small problem.

    It is evaluated with unit vectors as values.
    """
    keys = problem.shape.keys
    unit_vectors = np.broadcast_to(np.eye(keys), (problem.shape.batch, problem.shape.key_heads, keys, keys))
    value = HostArray(unit_vectors, "float64", unit_vectors)
    key = HostArray(problem.key_floats(np.float64), "float64", unit_vectors)
    chunk = problem.chunks[0]._replace(key=key, value=value)
    with_unit_values = problem._replace(chunks=(chunk,), shape=problem.shape._replace(value_dim=keys), stats=None)
    return reference.evaluate(with_unit_values).output


def compute_expected(sample: Problem) -> Expected:
    """Evaluate the definition on sampled queries and bound the rounding error of the output.

    The bound is the usual one for attention in the problem's dtype with sums in float32 (Higham, "Accuracy and
    Stability of Numerical Algorithms", 2002, section 3.1): query scaled, score and bias rounded once each in the dtype,
    head_dim products summed in float32; weights summed over the keys in float32 and rounded, the output rounded.

    Parameters
    ----------
    sample : Problem
        Made by `select_queries`.

    Returns
    -------
    Expected
    """
    visible = get_visible(sample)
    has_keys: Array = np.asarray(visible.any(axis=3))
    largest_product, score_error = _bound_scores(sample, visible)
    result = reference.evaluate(sample._replace(stats=_REQUEST))
    assert result.running_sum is not None
    assert result.entropy is not None
    assert result.segment_mass is not None  # _REQUEST requests them
    return Expected(
        output=result.output,
        tolerance=_bound_output(sample, score_error)[..., None],
        visible=visible,
        has_keys=has_keys,
        entropy=result.entropy,
        # The running sum counts exponentials relative to the largest score, whose own is 1.
        largest_weight=1 / np.where(has_keys, result.running_sum, 1.0),
        first_key_weight=result.segment_mass[..., 0],
        largest_product=largest_product,
        scale=sample.scale,
    )


def _bound_scores(sample: Problem, visible: Array) -> tuple[float, Array]:
    """Return the largest product and the bound [B, Hq, R] on a score's error."""
    unit = ROUNDING_UNITS[sample.dtype]
    group = sample.shape.query_heads // sample.shape.key_heads
    query = sample.query.floats(np.float64)
    key = np.repeat(sample.key_floats(np.float64), group, axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        product = np.where(visible, np.matmul(query, key.swapaxes(2, 3)), 0.0)
        size = np.where(visible, np.matmul(np.abs(query), np.abs(key).swapaxes(2, 3)), 0.0).max(axis=3, initial=0.0)
        # Keys with almost no weight are counted too; the bound need not know which they are.
        size = size * abs(sample.scale)
        bias: Array | float = 0.0
        if sample.bias is not None:
            bias = np.where(visible, np.abs(sample.bias.floats(np.float64)), 0.0).max(axis=3)
        error = 3 * unit * size + sample.shape.head_dim * min(FLOAT32_UNIT, unit) * size + 2 * unit * bias
    return float(np.nan_to_num(np.abs(product)).max(initial=0.0)), error


def _bound_output(sample: Problem, score_error: Array) -> Array:
    """Return the bound [B, Hq, R] on the error of the output.

    It is infinite where the scores are too inexact.
    """
    unit = ROUNDING_UNITS[sample.dtype]
    group = sample.shape.query_heads // sample.shape.key_heads
    value = sample.value_floats(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        largest_value = np.where(np.isfinite(value), np.abs(value), 0.0).max(axis=(2, 3), initial=0.0)
        largest_value = np.repeat(largest_value, group, axis=1)[..., None]
        tolerance = (3 * score_error + sample.shape.keys * min(FLOAT32_UNIT, unit) + 4 * unit) * largest_value
    return np.where(score_error <= MAX_SCORE_ERROR, tolerance, np.inf)


_REQUEST = ResolvedStats(
    top_k=0,
    key_mass=False,
    first_query=0,
    last_query=MAX_TOKENS,
    segment_count=1,
    segment_ranges=np.array([[0, 1, 0]], np.int64),
)
"""Entropy, and the first key as a segment of its own."""
