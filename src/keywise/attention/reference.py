"""The definition of attention and of its statistics in float64 NumPy.

It shares no code with the kernels and stores every score, so its memory grows with Q x N. No other file writes out a
softmax. Source: Vaswani et al., "Attention Is All You Need" (2017), with softcap (Gemma 2) and sinks (gpt-oss).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keywise.attention.arrays import Array, round_to, to_library
from keywise.attention.dropout import compute_dropout_factors
from keywise.attention.problem import Problem
from keywise.attention.stats_request import ResolvedStats

ALL = slice(None)
_PARTIAL_NAMES = ("running_max", "running_sum", "values")
_STATS_NAMES = ("lse", "entropy", "top_keys", "top_weights", "top_mass", "key_mass", "segment_mass")


@dataclass(frozen=True, eq=False)
class Result:
    """The results of the definition in float64.

    `running_max`, `running_sum` and `values` are the partial, without sinks; `output` is values / running_sum, with
    sinks. `query_lse` is that of every query. A query that may see no key has running_max -inf, running_sum 0,
    values 0, output 0, lse -inf.
    """

    output: Array
    running_max: Array | None = None
    running_sum: Array | None = None
    values: Array | None = None
    query_lse: Array | None = None
    lse: Array | None = None
    entropy: Array | None = None
    top_keys: Array | None = None
    top_weights: Array | None = None
    top_mass: Array | None = None
    key_mass: Array | None = None
    segment_mass: Array | None = None

    def convert(
        self, problem: Problem, *, transposed_output: bool, partial: bool, for_training: bool = False
    ) -> dict[str, Any]:
        """Round the results and convert them to the query's library, as the kernels do.

        Parameters
        ----------
        problem
            The problem that was evaluated.
        transposed_output
            Store the output as [B, Q, Hq, Dv].
        partial
            Return the partial in place of the output, and only NumPy arrays.
        for_training
            Return the LSE of every query too, and statistics of float64 inputs in float64.

        Returns
        -------
        dict of str to array
            The results by name.
        """
        like = np.empty(0) if partial else problem.query.like
        results: dict[str, Any] = {}
        if partial:
            dtype = np.float64 if problem.dtype == "float64" else np.float32
            for name, array in zip(_PARTIAL_NAMES, self._fit_partial(dtype), strict=True):
                results[name] = array.astype(dtype)
        else:
            output = round_to(self.output, problem.dtype)
            if transposed_output:
                output = output.swapaxes(1, 2)
            results["output"] = to_library(np.ascontiguousarray(output), like)
        single = np.float64 if for_training and problem.dtype == "float64" else np.float32
        if for_training:
            assert self.query_lse is not None
            rounded = self.query_lse.astype(single)
            with np.errstate(invalid="ignore"):
                rest = np.where(np.isfinite(rounded), self.query_lse - rounded, 0.0)
            results["query_lse"] = to_library(rounded, like)
            results["query_lse_rest"] = to_library(rest.astype(single), like)
        if problem.stats is None:
            return results
        for name in _STATS_NAMES:
            array = getattr(self, name)
            if array is not None:
                rounded = array.astype(np.int32 if name == "top_keys" else single)
                results[name] = to_library(np.ascontiguousarray(rounded), like)
        return results

    def _fit_partial(self, dtype: type[np.floating]) -> tuple[Array, Array, Array]:
        """Return the partial; a row that overflows in `dtype` is relative to a larger running max."""
        assert self.running_max is not None
        assert self.running_sum is not None
        assert self.values is not None
        largest = np.abs(self.values).max(axis=3)
        overflows = np.isfinite(largest) & (largest > np.finfo(dtype).max)
        raised = np.where(overflows, self.running_max + 40 * np.log(2), self.running_max).astype(dtype)
        with np.errstate(invalid="ignore"):
            factor = np.where(overflows, np.exp(self.running_max - raised), 1.0)
        return raised, self.running_sum * factor, self.values * factor[..., None]


def find_visible_keys(problem: Problem, queries: Array | None = None) -> Array:
    """Return which keys each query may see.

    Parameters
    ----------
    problem
        The call.
    queries
        Numbers of the queries [R]; default all.

    Returns
    -------
    bool [B, Hq, R, N]
    """
    batch, query_heads, _, query_count, keys, _, _ = problem.shape
    visibility = problem.visibility
    if queries is None:
        queries = np.arange(query_count)
    key_position = problem.first_key + np.arange(keys)
    visible = np.ones((batch, query_heads, queries.size, keys), bool)
    for item in range(batch):
        start = int(visibility.starts[item])
        end = int(visibility.lengths[item])
        query_position = end - query_count + queries[:, None]
        visible[item] &= (key_position >= start) & (key_position < end)
        if visibility.causal:
            visible[item] &= key_position <= query_position
        in_window = np.ones((queries.size, keys), bool)
        if visibility.left >= 0:
            in_window &= key_position >= query_position - visibility.left
        if visibility.right >= 0:
            in_window &= key_position <= query_position + visibility.right
        visible[item] &= in_window | (key_position < start + visibility.keep_first)
        if visibility.documents is not None:
            visible[item] &= _find_same_document(visibility.documents[item], query_position, key_position)
    if visibility.allowed is not None:
        visible &= visibility.allowed[:, :, queries]
    return visible


def _find_same_document(documents: Array, query_position: Array, key_position: Array) -> Array:
    """Return [R, N] whether query and key are in the same document."""
    if not documents.size:
        return np.zeros((query_position.shape[0], key_position.size), bool)
    has_document = (query_position >= 0) & (query_position < documents.size)
    query_document = documents[np.clip(query_position, 0, documents.size - 1)]
    return np.asarray(has_document & (documents[key_position] == query_document))


def compute_raw_scores(problem: Problem, queries: slice = ALL, keys: slice = ALL) -> Array:
    """Compute query · key * scale in float64, before softcap, bias and mask.

    Parameters
    ----------
    problem
        The call.
    queries, keys
        Those to compute.

    Returns
    -------
    [B, Hq, q, k]
    """
    group = problem.shape[1] // problem.shape[2]
    key = np.repeat(problem.key_floats(np.float64)[:, :, keys], group, axis=1)
    query = problem.query.floats(np.float64)[:, :, queries]
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.matmul(query, key.swapaxes(2, 3)) * problem.scale)


def compute_scores(problem: Problem, queries: slice = ALL, keys: slice = ALL) -> Array:
    """Compute the scores after softcap, bias and mask.

    Parameters
    ----------
    problem
        The call.
    queries, keys
        Those to compute.

    Returns
    -------
    [B, Hq, q, k]
        A hidden key has score -inf.
    """
    score = compute_raw_scores(problem, queries, keys)
    if problem.softcap is not None:
        score = problem.softcap * np.tanh(score / problem.softcap)
    if problem.bias is not None:
        score = score + problem.bias._replace(data=problem.bias.data[:, :, queries, keys]).floats(np.float64)
    numbers = np.arange(problem.shape.queries)[queries]
    return np.where(find_visible_keys(problem, numbers)[..., keys], score, -np.inf)


def compute_weights(scores: Array, lse: Array) -> Array:
    """Compute the weights of some keys from their scores and the log-sum-exp over all keys.

    Parameters
    ----------
    scores
        [B, Hq, q, k] -inf for hidden keys.
    lse
        [B, Hq, q] sinks included.

    Returns
    -------
    [B, Hq, q, k]
        0 for hidden keys.
    """
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(scores), 0.0, np.exp(scores - lse[..., None]))


def _find_hidden_keys(problem: Problem, score: Array) -> Array:
    """Return [B, Hq, Q, N] whether the mask or a bias of -inf hides a key from a query."""
    hidden = ~find_visible_keys(problem)
    if problem.bias is not None:
        hidden |= np.isneginf(problem.bias.floats(np.float64)) & ~np.isnan(score)
    return hidden


def evaluate(problem: Problem) -> Result:
    """Compute attention in float64, and its statistics if they are requested.

    Where a query sees a key with a score of NaN or inf, its weights are NaN for all keys that it sees: its output and
    its statistics are NaN, and it has no top keys. A value of NaN makes the output NaN of every query that sees it,
    however small its weight is.

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
    softmax = compute_softmax(problem)
    exponential, share = softmax.exponential, softmax.share[..., None]
    with np.errstate(invalid="ignore"):
        kept = exponential if problem.dropout is None else exponential * softmax.dropout_factors
    values = np.where(softmax.has_keys[..., None], sum_visible(kept, softmax.hidden, _group_values(problem)), 0.0)
    output = np.where(softmax.has_keys[..., None], values * share, 0.0)
    result = Result(
        output=output,
        running_max=softmax.running_max,
        running_sum=softmax.running_sum,
        values=values,
        query_lse=softmax.lse,
        lse=softmax.lse,
    )
    if problem.stats is None:
        return result
    queries = slice(problem.stats.first_query, problem.stats.last_query)
    return _add_stats(problem.stats, result, softmax.weights[:, :, queries], softmax.score[:, :, queries], queries)


@dataclass(frozen=True, eq=False)
class Softmax:
    """The softmax of a problem, with every score stored.

    Attributes
    ----------
    score
        [B, Hq, Q, N] -inf where the mask hides a key.
    hidden
        [B, Hq, Q, N] whether the mask or a bias of -inf hides a key.
    exponential
        [B, Hq, Q, N] exp(score - running max), 0 for hidden keys.
    running_max, running_sum, lse
        [B, Hq, Q] as in `Result`.
    share
        [B, Hq, Q] 1 / denominator, sinks included; 0 for a query without keys.
    dropout_factors
        [B, Hq, Q, N] or the number 1 without dropout.
    """

    score: Array
    hidden: Array
    exponential: Array
    running_max: Array
    running_sum: Array
    lse: Array
    share: Array
    dropout_factors: Any

    @property
    def has_keys(self) -> Array:
        """[B, Hq, Q] whether the query may see a key."""
        return np.asarray(~np.isneginf(self.running_max))

    @property
    def weights(self) -> Array:
        """[B, Hq, Q, N] the weights before dropout."""
        with np.errstate(invalid="ignore"):
            return np.where(self.hidden, 0.0, self.exponential * self.share[..., None])


def compute_softmax(problem: Problem) -> Softmax:
    """Compute the weights of a problem in float64.

    Parameters
    ----------
    problem
        The call.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.problem import make_problem
    >>> x = np.ones((1, 1, 2, 8))
    >>> compute_softmax(make_problem(x, x, x)).weights.tolist()
    [[[[0.5, 0.5], [0.5, 0.5]]]]
    """
    score = compute_scores(problem)
    hidden = _find_hidden_keys(problem, score)
    running_max = score.max(axis=3, initial=-np.inf)
    has_keys = ~np.isneginf(running_max)
    finite_max = np.where(has_keys, running_max, 0.0)
    with np.errstate(invalid="ignore"):
        exponential = np.where(np.isneginf(score), 0.0, np.exp(score - finite_max[..., None]))
    running_sum = exponential.sum(axis=3)
    with np.errstate(divide="ignore"):
        lse = np.where(has_keys, running_max + np.log(running_sum), -np.inf)
    if problem.sinks is not None:
        lse = np.where(has_keys, np.logaddexp(lse, problem.sinks[:, None]), -np.inf)
    # From the running sum and not from lse: added to a running max of -3e38, the sum's logarithm is rounded away.
    denominator = np.where(has_keys, running_sum, 1.0)
    if problem.sinks is not None:
        with np.errstate(over="ignore"):
            denominator = denominator + np.exp(problem.sinks[:, None] - finite_max)
    factors = 1.0 if problem.dropout is None else compute_dropout_factors(problem.dropout, problem.shape)
    return Softmax(
        score=score,
        hidden=hidden,
        exponential=exponential,
        running_max=running_max,
        running_sum=running_sum,
        lse=lse,
        share=np.where(has_keys, 1.0 / denominator, 0.0),
        dropout_factors=factors,
    )


def compute_sink_weights(problem: Problem, softmax: Softmax) -> Array:
    """Compute the weight of the sink of every query [B, Hq, Q].

    Parameters
    ----------
    problem
        A call with sinks.
    softmax
        Its softmax.
    """
    assert problem.sinks is not None
    with np.errstate(invalid="ignore"):
        return np.where(softmax.has_keys, np.exp(problem.sinks[:, None] - softmax.lse), 0.0)


def _group_values(problem: Problem) -> Array:
    """Return the values [B, Hq, N, Dv], those of a key head repeated for its query heads."""
    return np.repeat(problem.value_floats(np.float64), problem.shape[1] // problem.shape[2], axis=1)


def sum_visible(weights: Array, hidden: Array, rows: Array) -> Array:
    """Sum weight x row over the visible rows; a hidden row never adds NaN.

    Parameters
    ----------
    weights
        [B, H, M, N], 0 where hidden.
    hidden
        [B, H, M, N].
    rows
        [B, H, N, D].

    Returns
    -------
    [B, H, M, D]

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.array([[1.0], [np.nan]])[None, None]
    >>> sum_visible(np.array([[[[0.5, 0.0]]]]), np.array([[[[False, True]]]]), rows).item()
    0.5
    """
    finite = np.isfinite(rows)
    with np.errstate(invalid="ignore"):
        sums = np.asarray(np.matmul(weights, np.where(finite, rows, 0.0)))
        for item, head, row in np.argwhere(~finite.all(axis=3) & (~hidden).any(axis=2)):
            nonfinite = np.where(finite[item, head, row], 0.0, rows[item, head, row])
            affected = ~hidden[item, head, :, row]
            sums[item, head, affected] += weights[item, head, affected, row, None] * nonfinite
    return sums


def _add_stats(stats: ResolvedStats, result: Result, weights: Array, score: Array, queries: slice) -> Result:
    undefined = np.asarray(np.isnan(weights).any(axis=3))
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(weights > 0, weights * np.log(weights), 0.0).sum(axis=3)
        entropy = np.where(undefined, np.nan, entropy)
    top_keys = np.where(undefined[..., None], -1, _find_top_keys(score, stats.top_k))
    top_weights = np.zeros(top_keys.shape)
    if weights.shape[3]:
        top_weights = np.where(top_keys < 0, 0.0, np.take_along_axis(weights, np.maximum(top_keys, 0), axis=3))
    top_weights[undefined] = np.nan
    key_mass = None
    if stats.key_mass:
        query_weights = np.ones(1)
        if stats.query_weights is not None:
            query_weights = stats.query_weights[:, :, queries, None].astype(np.float64)
        # A query of weight 0 adds nothing, not even NaN.
        key_mass = (np.where(query_weights == 0.0, 0.0, weights) * query_weights).sum(axis=2)
    segment_mass = None
    if stats.segment_count is not None and stats.segment_ranges is not None:
        segment_mass = np.zeros((*weights.shape[:3], stats.segment_count))
        for begin, end, segment in stats.segment_ranges:
            segment_mass[..., segment] += weights[..., begin:end].sum(axis=3)
        segment_mass[undefined] = np.nan
    assert result.lse is not None
    return replace(
        result,
        lse=result.lse[:, :, queries],
        entropy=entropy,
        top_keys=top_keys,
        top_weights=top_weights,
        top_mass=top_weights.sum(axis=3),
        key_mass=key_mass,
        segment_mass=segment_mass,
    )


def _find_top_keys(score: Array, top_k: int) -> Array:
    """Return the keys of the `top_k` largest scores, ties to the lower key.

    Where a query sees fewer keys, -1 follows.
    """
    count = min(top_k, score.shape[3])
    if not count:
        return np.full((*score.shape[:3], top_k), -1)
    order = np.argsort(-score, axis=3, kind="stable")[..., :count]
    order = np.where(np.isneginf(np.take_along_axis(score, order, axis=3)), -1, order)
    return np.pad(order, [(0, 0)] * 3 + [(0, top_k - count)], constant_values=-1)
