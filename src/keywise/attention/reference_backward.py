"""The gradients of attention and of its statistics in float64 NumPy, written out from the definition.

It shares no code with the kernels and stores every weight. With weights P = exp(score - lse), the gradient of a weight
is dP, and that of a score dS = P (dP - sum(P dP) + dlse).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from keywise.attention.arrays import Array
from keywise.attention.gradients import BackwardCall, StatsGradients
from keywise.attention.problem import Problem
from keywise.attention.reference import Softmax, compute_raw_scores, compute_sink_weights, compute_softmax, sum_visible


@dataclass(frozen=True, eq=False)
class GradientResult:
    """The gradients of the definition in float64; those of bias and sinks are None without them.

    `bias` has the shape [B, Hq, Q, N]: the sum over the axes that the bias does not have is left to the caller.
    """

    query: Array
    key: Array
    value: Array
    bias: Array | None
    sinks: Array | None


def evaluate_backward(problem: Problem, call: BackwardCall) -> GradientResult:
    """Compute the gradients of attention and of its statistics in float64.

    Hidden keys add nothing to any gradient, not even NaN, and get none. A query that may see no key has gradient 0.

    Parameters
    ----------
    problem
        The problem of the forward pass.
    call
        The gradients of its results. The saved results are not needed: they are computed again.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.gradients import BackwardCall, StatsGradients
    >>> from keywise.attention.problem import make_problem
    >>> x = np.ones((1, 1, 2, 8))
    >>> call = BackwardCall(x, x, np.zeros((1, 1, 2)), None, None, None, StatsGradients())
    >>> evaluate_backward(make_problem(x, x, x), call).value.ravel()[0]
    np.float64(1.0)
    """
    softmax = compute_softmax(problem)
    visible = ~softmax.hidden
    weights = softmax.weights
    output_gradient = np.asarray(call.output_gradient, np.float64)
    value = _repeat_heads(problem, problem.value_floats(np.float64))
    with np.errstate(invalid="ignore", over="ignore"):
        weight_gradient = np.matmul(output_gradient, value.swapaxes(2, 3)) * softmax.dropout_factors
        weight_gradient = weight_gradient + _compute_stats_gradient(problem, call.stats_gradients, softmax)
        mean = np.where(visible, weights * weight_gradient, 0.0).sum(axis=3, keepdims=True)
        lse_gradient = _widen(problem, call.stats_gradients.lse)[..., None]
        score_gradient = np.where(visible, weights * (weight_gradient - mean + lse_gradient), 0.0)
        raw_gradient = np.where(visible, score_gradient * _compute_softcap_slope(problem) * problem.scale, 0.0)
    kept = np.where(visible, weights * softmax.dropout_factors, 0.0)
    hidden = softmax.hidden
    query = problem.query.floats(np.float64)
    key = _repeat_heads(problem, problem.key_floats(np.float64))
    sinks = None
    if problem.sinks is not None:
        sink_weights = compute_sink_weights(problem, softmax)
        with np.errstate(invalid="ignore"):
            per_query = np.where(softmax.has_keys, sink_weights * (lse_gradient - mean)[..., 0], 0.0)
        sinks = per_query.sum(axis=(0, 2))
    return GradientResult(
        query=sum_visible(raw_gradient, hidden, key),
        key=_sum_heads(problem, _sum_queries(raw_gradient, hidden, query)),
        value=_sum_heads(problem, _sum_queries(kept, hidden, output_gradient)),
        bias=None if problem.bias is None else score_gradient,
        sinks=sinks,
    )


def _repeat_heads(problem: Problem, rows: Array) -> Array:
    """Return rows [B, Hkv, N, D] as [B, Hq, N, D]."""
    return np.repeat(rows, problem.shape.query_heads // problem.shape.key_heads, axis=1)


def _sum_heads(problem: Problem, rows: Array) -> Array:
    """Return rows [B, Hq, N, D] summed over the query heads of each key head."""
    batch, query_heads, key_heads, *_ = problem.shape
    return np.asarray(rows.reshape(batch, key_heads, query_heads // key_heads, *rows.shape[2:]).sum(axis=2))


def _sum_queries(weights: Array, hidden: Array, rows: Array) -> Array:
    """Sum weight x row over the queries that see a key."""
    return sum_visible(weights.swapaxes(2, 3), hidden.swapaxes(2, 3), rows)


def _widen(problem: Problem, gradient: Any) -> Array:
    """Return a gradient of the queries with statistics as one of all queries [B, Hq, Q, ...]."""
    shape = problem.shape
    if gradient is None or problem.stats is None:
        return np.zeros((shape.batch, shape.query_heads, shape.queries))
    gradient = np.asarray(gradient, np.float64)
    wide = np.zeros((*gradient.shape[:2], shape.queries, *gradient.shape[3:]))
    wide[:, :, problem.stats.first_query : problem.stats.last_query] = gradient
    return wide


def _compute_stats_gradient(problem: Problem, gradients: StatsGradients, softmax: Softmax) -> Array:
    """Compute what entropy, key mass and segment mass add to the gradients of the weights."""
    stats = problem.stats
    total = np.zeros(problem.shape.scores)
    if stats is None:
        return total
    queries = slice(stats.first_query, stats.last_query)
    if gradients.entropy is not None:
        # d(-w ln w) = -(ln w + 1) dw; a weight of 0 has no gradient of its score in any case.
        weights = softmax.weights
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithm = np.where(weights > 0, softmax.score - softmax.lse[..., None], 0.0)
        total -= _widen(problem, gradients.entropy)[..., None] * (logarithm + 1.0)
    if gradients.key_mass is not None:
        query_weights = np.ones((1, 1, problem.shape.queries))
        if stats.query_weights is not None:
            query_weights = stats.query_weights.astype(np.float64)
        key_mass = np.asarray(gradients.key_mass, np.float64)[:, :, None]
        total[:, :, queries] += query_weights[:, :, queries, None] * key_mass
    if gradients.segment_mass is not None and stats.segment_ranges is not None:
        segment_mass = _widen(problem, gradients.segment_mass)
        for begin, end, segment in stats.segment_ranges:
            total[..., begin:end] += segment_mass[..., segment, None]
    return total


def _compute_softcap_slope(problem: Problem) -> Array | float:
    """Compute the derivative of the softcap at every score."""
    if problem.softcap is None:
        return 1.0
    return np.asarray(1.0 - np.tanh(compute_raw_scores(problem) / problem.softcap) ** 2)
