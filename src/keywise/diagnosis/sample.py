"""A few query rows of a problem against all its keys: what the definition says of them, and how far rounding may go."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keywise.attention import reference
from keywise.attention.arrays import Array, HostArray
from keywise.attention.problem import Problem
from keywise.attention.stats_request import ResolvedStats
from keywise.attention.visibility import Visibility
from keywise.util.checks import MAX_TOKENS

SINGLE_UNIT = 2.0**-24
UNITS = {"float64": 2.0**-53, "float32": SINGLE_UNIT, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The largest relative error of one rounding, by dtype."""

LARGEST_SCORE_ERROR = 0.25
"""Beyond it the linear bound on the weights' error no longer holds, and the dtype says nothing about them."""


class Truth(NamedTuple):
    """What the definition says of the sampled rows; all float64, [B, Hq, R, ...]."""

    output: Array
    tolerance: Array
    """[B, Hq, R, 1]: how far rounding in the problem's dtype may lead from `output`; inf where it says nothing."""
    seen: Array
    """[B, Hq, R, N] bool."""
    alive: Array
    """[B, Hq, R]: whether the row sees a key."""
    entropy: Array
    """[B, Hq, R], in nats."""
    heaviest: Array
    """[B, Hq, R]: the heaviest weight, sinks aside."""
    first_key: Array
    """[B, Hq, R]: the weight of key 0."""
    largest_product: float
    """Largest |query . key| before the scale, over visible keys."""
    scale: float

    @property
    def largest_score(self) -> float:
        """Largest |query . key x scale|."""
        return self.largest_product * abs(self.scale)


def choose_rows(queries: int, most: int) -> Array:
    """Choose at most `most` query rows, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, queries - 1, min(queries, most)).round().astype(np.int64))


def at_rows(problem: Problem, rows: Array, seen: Array | None = None) -> Problem:
    """Give the problem of these query rows; `seen` [B, Hq, R, N] replaces what its mask shows them."""
    if seen is None:
        seen = reference.visible(problem, rows)
    batch, keys = problem.shape.batch, problem.shape.keys
    query, bias = problem.query, problem.bias
    everything = np.full(batch, problem.first_key + keys, np.int64)
    return problem._replace(
        query=query._replace(data=query.data[:, :, rows]),
        shape=problem.shape._replace(queries=rows.size),
        bias=None if bias is None else bias._replace(data=bias.data[:, :, rows]),
        visibility=Visibility(
            causal=False,
            left=-1,
            right=-1,
            lengths=everything,
            starts=np.zeros(batch, np.int64),
            keep_first=0,
            documents=None,
            allowed=seen,
        ),
        stats=None,
    )


def weights_of(problem: Problem) -> Array:
    """Give the weights [B, Hq, Q, N] of a small problem: what the definition makes of unit values."""
    keys = problem.shape.keys
    unit = np.broadcast_to(np.eye(keys), (problem.shape.batch, problem.shape.key_heads, keys, keys))
    value = HostArray(unit, "float64", unit)
    key = HostArray(problem.key_floats(np.float64), "float64", unit)
    chunk = problem.chunks[0]._replace(key=key, value=value)
    unit_values = problem._replace(chunks=(chunk,), shape=problem.shape._replace(value_dim=keys), stats=None)
    return reference.evaluate(unit_values).output


def truth(sample: Problem) -> Truth:
    """Evaluate the definition on sampled rows, and bound what rounding may do to it.

    The bound is the usual one for attention in the problem's dtype with sums in float32 (Higham, "Accuracy and
    Stability of Numerical Algorithms", 2002, section 3.1): query scaled, score and bias rounded once each in the dtype,
    head_dim products summed in float32; weights summed over the keys in float32 and rounded, the output rounded.
    """
    seen = sample.visibility.allowed
    assert seen is not None  # at_rows() gives every sample one
    unit, head_dim, keys = UNITS[sample.dtype], sample.shape.head_dim, sample.shape.keys
    single = min(SINGLE_UNIT, unit)
    group = sample.shape.query_heads // sample.shape.key_heads
    query, key = sample.query.floats(np.float64), np.repeat(sample.key_floats(np.float64), group, axis=1)
    value = sample.value_floats(np.float64)
    alive: Array = np.asarray(seen.any(axis=3))
    with np.errstate(invalid="ignore", over="ignore"):
        product = np.where(seen, np.matmul(query, key.swapaxes(2, 3)), 0.0)
        reach = np.where(seen, np.matmul(np.abs(query), np.abs(key).swapaxes(2, 3)), 0.0).max(axis=3, initial=0.0)
        # Keys of next to no weight move nothing, but which those are the bound need not know.
        reach = reach * abs(sample.scale)
        bias = 0.0 if sample.bias is None else np.where(seen, np.abs(sample.bias.floats(np.float64)), 0.0).max(axis=3)
        score_error = 3 * unit * reach + head_dim * single * reach + 2 * unit * bias
        largest_value = np.where(np.isfinite(value), np.abs(value), 0.0).max(axis=(2, 3), initial=0.0)
        largest_value = np.repeat(largest_value, group, axis=1)[..., None]
        tolerance = (3 * score_error + keys * single + 4 * unit) * largest_value
    tolerance = np.where(score_error <= LARGEST_SCORE_ERROR, tolerance, np.inf)
    result = reference.evaluate(sample._replace(stats=_PLAN))
    assert result.running_sum is not None
    assert result.entropy is not None
    assert result.segment_mass is not None  # the plan asks for them
    return Truth(
        output=result.output,
        tolerance=tolerance[..., None],
        seen=seen,
        alive=alive,
        entropy=result.entropy,
        # The total counts exponentials from the peak, whose own is 1.
        heaviest=1 / np.where(alive, result.running_sum, 1.0),
        first_key=result.segment_mass[..., 0],
        largest_product=float(np.nan_to_num(np.abs(product)).max(initial=0.0)),
        scale=sample.scale,
    )


_PLAN = ResolvedStats(
    top_k=0,
    key_mass=False,
    first_query=0,
    last_query=MAX_TOKENS,
    segment_count=1,
    segment_ranges=np.array([[0, 1, 0]], np.int64),
)
"""Entropy, and the first key as a segment of its own."""
