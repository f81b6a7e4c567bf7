"""The definition of attention and of its statistics in float64 NumPy.

It shares no code with the kernels and stores every score, so its memory grows with Q x N. No other file writes a
softmax out. Source: Vaswani et al., "Attention Is All You Need" (2017), with softcap (Gemma 2) and sinks (gpt-oss).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from keywise.attention.arrays import Array, round_to, to_library
from keywise.attention.problem import Problem
from keywise.attention.stats_request import ResolvedStats


@dataclass(frozen=True, eq=False)
class Result:
    """The results of the definition in float64.

    `running_max`, `running_sum` and `values` are the partial, without sinks; `output` is values / running_sum, with
    sinks. A query that may see no key has running_max -inf, running_sum 0, values 0, output 0, lse -inf.
    """

    output: Array
    running_max: Array | None = None
    running_sum: Array | None = None
    values: Array | None = None
    lse: Array | None = None
    entropy: Array | None = None
    top_keys: Array | None = None
    top_weights: Array | None = None
    top_mass: Array | None = None
    key_mass: Array | None = None
    segment_mass: Array | None = None

    def in_library(self, problem: Problem, *, transposed_output: bool, partial: bool) -> dict[str, Any]:
        """Return the results by name, rounded and in the query's library, as a kernel returns them.

        Parameters
        ----------
        problem
            The problem that was evaluated.
        transposed_output
            Store the output as [B, Q, Hq, Dv].
        partial
            Return the partial in place of the output, and NumPy arrays whatever the query is.
        """
        like = np.empty(0) if partial else problem.query.like
        results: dict[str, Any] = {}
        if partial:
            dtype = np.float64 if problem.dtype == "float64" else np.float32
            for name in ("running_max", "running_sum", "values"):
                results[name] = getattr(self, name).astype(dtype)
        else:
            output = round_to(self.output, problem.dtype)
            output = np.ascontiguousarray(output.swapaxes(1, 2) if transposed_output else output)
            results["output"] = to_library(output, like)
        if problem.stats is None:
            return results
        for name in [field.name for field in fields(self)][4:]:
            array = getattr(self, name)
            if array is not None:
                rounded = array.astype(np.int32 if name == "top_keys" else np.float32)
                results[name] = to_library(np.ascontiguousarray(rounded), like)
        return results


def visible(problem: Problem, rows: Array | None = None) -> Array:
    """Return which keys each query may see.

    Parameters
    ----------
    problem
        The call.
    rows
        Query rows [R]; default all.

    Returns
    -------
    bool [B, Hq, R, N]
    """
    batch, query_heads, _, all_queries, keys, _, _ = problem.shape
    rule = problem.visibility
    key_position = problem.first_key + np.arange(keys)
    rows = np.arange(all_queries) if rows is None else rows
    queries = rows.size
    seen = np.ones((batch, query_heads, queries, keys), bool)
    for item in range(batch):
        own = int(rule.lengths[item]) - all_queries + rows[:, None]
        start, end = int(rule.starts[item]), int(rule.lengths[item])
        inside = np.broadcast_to((key_position >= start) & (key_position < end), (queries, keys)).copy()
        if rule.causal:
            inside &= key_position <= own
        near = np.ones((queries, keys), bool)
        if rule.left >= 0:
            near &= key_position >= own - rule.left
        if rule.right >= 0:
            near &= key_position <= own + rule.right
        inside &= near | (key_position < start + rule.keep_first)
        if rule.documents is not None:
            document = rule.documents[item]
            has_document = (own >= 0) & (own < document.size)
            own_document = document[np.clip(own, 0, max(document.size - 1, 0))] if document.size else own
            inside &= has_document & (document[key_position] == own_document)
        seen[item] &= inside
    if rule.allowed is not None:
        seen &= rule.allowed[:, :, rows]
    return seen


def raw_scores(problem: Problem) -> Array:
    """Compute query · key * scale in float64, before softcap, bias and mask.

    Parameters
    ----------
    problem
        The call.

    Returns
    -------
    [B, Hq, Q, N]
    """
    group = problem.shape[1] // problem.shape[2]
    key = np.repeat(problem.key_floats(np.float64), group, axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.matmul(problem.query.floats(np.float64), key.swapaxes(2, 3)) * problem.scale)


def scores(problem: Problem) -> Array:
    """Compute the scores after softcap, bias and mask.

    Parameters
    ----------
    problem
        The call.

    Returns
    -------
    [B, Hq, Q, N]
        A hidden key has score -inf.
    """
    score = raw_scores(problem)
    if problem.softcap is not None:
        score = problem.softcap * np.tanh(score / problem.softcap)
    if problem.bias is not None:
        score = score + problem.bias.floats(np.float64)
    return np.where(visible(problem), score, -np.inf)


def evaluate(problem: Problem) -> Result:
    """Compute attention in float64 and, if the problem asks for them, its statistics.

    Parameters
    ----------
    problem
        The call.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention import reference
    >>> from keywise.attention.problem import make_problem
    >>> x = np.ones((1, 1, 2, 8))
    >>> reference.evaluate(make_problem(x, x, x)).running_sum.tolist()
    [[[2.0, 2.0]]]
    """
    score = scores(problem)
    running_max = score.max(axis=3, initial=-np.inf)
    alive = ~np.isneginf(running_max)
    with np.errstate(invalid="ignore"):
        exponential = np.where(np.isneginf(score), 0.0, np.exp(score - np.where(alive, running_max, 0.0)[..., None]))
    running_sum = exponential.sum(axis=3)
    values = _weighted_values(exponential, problem)
    with np.errstate(divide="ignore"):
        lse = np.where(alive, running_max + np.log(running_sum), -np.inf)
    if problem.sinks is not None:
        lse = np.where(alive, np.logaddexp(lse, problem.sinks[:, None]), -np.inf)
    # From the running sum, not from lse: beside a running max of -3e38 the sum's logarithm would vanish.
    denominator = np.where(alive, running_sum, 1.0)
    if problem.sinks is not None:
        with np.errstate(over="ignore"):
            denominator = denominator + np.exp(problem.sinks[:, None] - np.where(alive, running_max, 0.0))
    share = np.where(alive, 1.0 / denominator, 0.0)
    output = np.where(alive[..., None], values * share[..., None], 0.0)
    result = Result(output=output, running_max=running_max, running_sum=running_sum, values=values, lse=lse)
    if problem.stats is None:
        return result
    rows = slice(problem.stats.first_query, problem.stats.last_query)
    weights = (exponential * share[..., None])[:, :, rows]
    return _add_stats(problem.stats, result, weights, score[:, :, rows], rows)


def _weighted_values(exponential: Array, problem: Problem) -> Array:
    """Sum exponential x value over the keys; a key of weight 0 adds nothing, NaN included."""
    group = problem.shape[1] // problem.shape[2]
    value = np.repeat(problem.value_floats(np.float64), group, axis=1)
    finite = np.isfinite(value)
    values = np.asarray(np.matmul(exponential, np.where(finite, value, 0.0)))
    for item, head, key in np.argwhere(~finite.all(axis=3) & (exponential != 0.0).any(axis=2)):
        poisoned = np.where(finite[item, head, key], 0.0, value[item, head, key])
        column = exponential[item, head, :, key]
        touched = column != 0.0
        with np.errstate(invalid="ignore"):
            values[item, head, touched] += column[touched, None] * poisoned
    return values


def _add_stats(stats: ResolvedStats, result: Result, weights: Array, score: Array, rows: slice) -> Result:
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(weights > 0, weights * np.log(weights), 0.0).sum(axis=3)
        entropy = np.where(np.isnan(weights).any(axis=3), np.nan, entropy)
    top_keys = _find_top_keys(score, stats.top_k)
    top_weights = np.take_along_axis(weights, np.maximum(top_keys, 0), axis=3) if weights.shape[3] else top_keys
    top_weights = np.where(top_keys < 0, 0.0, top_weights)
    key_mass = None
    if stats.key_mass:
        query_weights = 1.0 if stats.query_weights is None else stats.query_weights[:, :, rows, None].astype(np.float64)
        key_mass = (np.where(query_weights == 0.0, 0.0, weights) * query_weights).sum(axis=2)
    segment_mass = None
    if stats.segment_count is not None and stats.segment_ranges is not None:
        segment_mass = np.zeros((*weights.shape[:3], stats.segment_count))
        for begin, end, segment in stats.segment_ranges:
            segment_mass[..., segment] += weights[..., begin:end].sum(axis=3)
    assert result.lse is not None
    return replace(
        result,
        lse=result.lse[:, :, rows],
        entropy=entropy,
        top_keys=top_keys,
        top_weights=top_weights,
        top_mass=top_weights.sum(axis=3),
        key_mass=key_mass,
        segment_mass=segment_mass,
    )


def _find_top_keys(score: Array, top_k: int) -> Array:
    """Return the keys of the `top_k` largest scores per row, ties to the lower key, filled with -1."""
    found = min(top_k, score.shape[3])
    if not found:
        return np.full((*score.shape[:3], top_k), -1)
    order = np.argsort(-score, axis=3, kind="stable")[..., :found]
    order = np.where(np.isneginf(np.take_along_axis(score, order, axis=3)), -1, order)
    return np.pad(order, [(0, 0)] * 3 + [(0, top_k - found)], constant_values=-1)
