"""Predict the output of attention with each known fault.

A hypothesis evaluates the definition on a changed problem. It explains an observed output that lies within rounding of
its prediction and not of the output of attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from keywise.attention import reference
from keywise.attention.arrays import Array, HostArray
from keywise.attention.problem import Chunk, Problem
from keywise.attention.visibility import Visibility
from keywise.diagnosis.definition import compute_weights, get_visible, select_queries

MAX_STORED_TOKENS = 512
"""Largest number of queries and of keys for the few hypotheses that need every weight."""


class Prediction(NamedTuple):
    """A fault's description, and its output [B, Hq, R, Dv] for the sampled queries."""

    description: str
    output: Array


Predict = Callable[[Problem, Array], Iterator[Prediction]]
"""Yields the variants of a fault for a problem and sampled queries; nothing where the fault cannot occur."""


class Hypothesis(NamedTuple):
    """A known fault."""

    code: str
    predict: Predict
    undetectable: str
    """Why the fault cannot be detected if its predictions equal the output of attention."""


# --- masks -----------------------------------------------------------------------------------------------------------


def _predict_lost_mask(problem: Problem, queries: Array) -> Iterator[Prediction]:
    rule = problem.visibility
    no_starts = np.zeros_like(rule.starts)
    bare = rule._replace(left=-1, right=-1, starts=no_starts, documents=None, allowed=None)
    has_window = rule.left >= 0 or rule.right >= 0
    rules = [has_window, bool(rule.starts.any()), rule.documents is not None]
    # One lost rule alone has a code of its own.
    if rule.allowed is not None or sum(rules) > 1:
        description = "attention under no mask but the causal one" if rule.causal else "attention without the mask"
        yield Prediction(description, _evaluate(problem._replace(visibility=bare), queries))
        if rule.causal:
            every_key = np.ones_like(reference.find_visible_keys(problem, queries))
            yield Prediction("attention without the mask", _evaluate(problem, queries, every_key))


def _predict_inverted_mask(problem: Problem, queries: Array) -> Iterator[Prediction]:
    if problem.visibility.allowed is not None or problem.visibility.causal:
        hidden = ~reference.find_visible_keys(problem, queries)
        yield Prediction("attention to exactly the keys that are hidden", _evaluate(problem, queries, hidden))


def _predict_added_mask(problem: Problem, queries: Array) -> Iterator[Prediction]:
    visible = reference.find_visible_keys(problem, queries)
    if visible.all():
        return
    sample = select_queries(problem, queries, np.ones_like(visible))
    own_bias = 0.0 if sample.bias is None else sample.bias.floats(np.float64)
    bias = own_bias + visible.astype(np.float64)
    yield Prediction(
        "attention to every key, with the mask's ones and zeros added to the scores",
        reference.evaluate(sample._replace(bias=HostArray(bias, "float64", bias))).output,
    )


def _predict_top_left_causal(problem: Problem, queries: Array) -> Iterator[Prediction]:
    if problem.visibility.causal and problem.shape.queries < problem.shape.keys:
        visible = _shift_causal(problem, queries, 0, from_first_key=True)
        yield Prediction("causal attention aligned at the first key", _evaluate(problem, queries, visible))


def _predict_lost_causal(problem: Problem, queries: Array) -> Iterator[Prediction]:
    rule = problem.visibility
    if not rule.causal:
        return
    yield Prediction(
        "attention without the causal mask", _evaluate_under(problem, queries, rule._replace(causal=False))
    )
    if rule.left >= 0:
        both_sides = rule._replace(causal=False, right=rule.left)
        yield Prediction("attention in a window to both sides", _evaluate_under(problem, queries, both_sides))


def _predict_shifted_causal(problem: Problem, queries: Array) -> Iterator[Prediction]:
    if not problem.visibility.causal:
        return
    for shift, description in (
        (-1, "causal attention that hides the query's own key"),
        (1, "causal attention one key too far"),
    ):
        yield Prediction(description, _evaluate(problem, queries, _shift_causal(problem, queries, shift)))


def _shift_causal(problem: Problem, queries: Array, shift: int, *, from_first_key: bool = False) -> Array:
    """Return the mask with its causal rule shifted, or aligned at the first key."""
    not_causal = problem._replace(visibility=problem.visibility._replace(causal=False))
    visible = reference.find_visible_keys(not_causal, queries)
    key_position = problem.first_key + np.arange(problem.shape.keys)
    for item, length in enumerate(problem.visibility.lengths):
        offset = 0 if from_first_key else int(length) - problem.shape.queries
        visible[item] &= key_position <= (queries + offset + shift)[:, None]
    return visible


def _predict_document_leak(problem: Problem, queries: Array) -> Iterator[Prediction]:
    rule = problem.visibility
    if rule.documents is not None:
        without = rule._replace(documents=None)
        yield Prediction("attention across documents", _evaluate_under(problem, queries, without))


def _predict_visible_padding(problem: Problem, queries: Array) -> Iterator[Prediction]:
    rule = problem.visibility
    if rule.starts.any():
        without = rule._replace(starts=np.zeros_like(rule.starts))
        yield Prediction("attention to the padding on the left", _evaluate_under(problem, queries, without))
    if rule.allowed is not None and _hides_keys_from_all(rule.allowed):
        without = rule._replace(allowed=None)
        yield Prediction("attention to the padding", _evaluate_under(problem, queries, without))
    end = problem.first_key + problem.shape.keys
    if not rule.causal and (rule.lengths < end).any():
        without = rule._replace(lengths=np.full_like(rule.lengths, end))
        yield Prediction("attention to the padding on the right", _evaluate_under(problem, queries, without))


def _hides_keys_from_all(allowed: Array) -> bool:
    """Return whether a boolean mask hides the same keys from every query, as padding does."""
    return allowed.strides[1] == 0 and allowed.strides[2] == 0 and not allowed[:, 0, 0].all()


def _predict_dropped_window(problem: Problem, queries: Array) -> Iterator[Prediction]:
    rule = problem.visibility
    if rule.left >= 0 or rule.right >= 0:
        without = rule._replace(left=-1, right=-1)
        yield Prediction("attention without the window", _evaluate_under(problem, queries, without))


def _predict_resized_window(problem: Problem, queries: Array) -> Iterator[Prediction]:
    rule = problem.visibility
    if rule.left < 0:
        return
    for left in dict.fromkeys((rule.left + 1, rule.left - 1, 2 * rule.left, 2 * rule.left + 1)):
        if left >= 0 and left != rule.left:
            right = left if rule.right == rule.left else rule.right
            description = f"attention in a window of {left + 1} keys that ends at the query's own, not {rule.left + 1}"
            output = _evaluate_under(problem, queries, rule._replace(left=left, right=right))
            yield Prediction(description, output)


# --- heads -----------------------------------------------------------------------------------------------------------


def _predict_tiled_heads(problem: Problem, queries: Array) -> Iterator[Prediction]:
    query_heads, key_heads = problem.shape.query_heads, problem.shape.key_heads
    if key_heads in {1, query_heads}:
        return
    order = np.arange(query_heads) % key_heads
    chunks = tuple(Chunk(*(array._replace(data=array.data[:, order]) for array in chunk)) for chunk in problem.chunks)
    tiled = problem._replace(chunks=chunks, shape=problem.shape._replace(key_heads=query_heads))
    yield Prediction(f"query head h with key head h % {key_heads}", _evaluate(tiled, queries))


# --- scores ----------------------------------------------------------------------------------------------------------


def _predict_scales(list_scales: Callable[[Problem], tuple[tuple[str, float], ...]]) -> Predict:
    """Return a prediction for every wrong scale of a list of (description, scale)."""

    def predict(problem: Problem, queries: Array) -> Iterator[Prediction]:
        for formula, scale in list_scales(problem):
            if not math.isclose(scale, problem.scale, rel_tol=1e-6):
                description = f"attention with scale {formula} {scale:.4g} instead of {problem.scale:.4g}"
                yield Prediction(description, _evaluate(problem._replace(scale=scale), queries))

    return predict


def _list_scales_of_wrong_size(problem: Problem) -> tuple[tuple[str, float], ...]:
    heads, keys, head_dim = problem.shape.query_heads, problem.shape.keys, problem.shape.head_dim
    return (
        ("1 / sqrt(heads x head_dim) =", 1 / math.sqrt(heads * head_dim)),
        ("1 / sqrt(heads) =", 1 / math.sqrt(heads)),
        ("1 / sqrt(keys) =", 1 / math.sqrt(keys)),
        ("1 / sqrt(head_dim) =", 1 / math.sqrt(head_dim)),
    )


def _list_inverted_scales(problem: Problem) -> tuple[tuple[str, float], ...]:
    return (
        ("sqrt(head_dim) =", math.sqrt(problem.shape.head_dim)),
        ("divided by instead of multiplied,", 1 / problem.scale if problem.scale else 1.0),
    )


def _predict_dropped_softcap(problem: Problem, queries: Array) -> Iterator[Prediction]:
    if problem.softcap is not None:
        yield Prediction("attention without the softcap", _evaluate(problem._replace(softcap=None), queries))


def _predict_softcap_after_mask(problem: Problem, queries: Array) -> Iterator[Prediction]:
    if problem.softcap is None:
        return
    sample = select_queries(problem, queries)
    scores = np.where(get_visible(sample), reference.compute_scores(sample), -problem.softcap)
    yield Prediction("a softcap that bounds the mask too", _evaluate_scores(sample, scores))


def _predict_dropped_sinks(problem: Problem, queries: Array) -> Iterator[Prediction]:
    if problem.sinks is not None:
        yield Prediction("attention without sinks", _evaluate(problem._replace(sinks=None), queries))


def _predict_dropped_bias(problem: Problem, queries: Array) -> Iterator[Prediction]:
    if problem.bias is not None:
        yield Prediction("attention without the bias", _evaluate(problem._replace(bias=None), queries))


def _predict_scaled_bias(problem: Problem, queries: Array) -> Iterator[Prediction]:
    if problem.bias is not None and problem.scale != 1.0:
        bias = problem.bias.floats(np.float64) * problem.scale
        scaled = problem._replace(bias=HostArray(bias, "float64", bias))
        yield Prediction("attention with the bias multiplied by the scale", _evaluate(scaled, queries))


# --- arrays and axes -------------------------------------------------------------------------------------------------


def _predict_swapped_arrays(problem: Problem, queries: Array) -> Iterator[Prediction]:
    if problem.shape.head_dim == problem.shape.value_dim:
        chunks = tuple(Chunk(chunk.value, chunk.key) for chunk in problem.chunks)
        swapped = problem._replace(chunks=chunks)
        yield Prediction("attention with keys and values exchanged", _evaluate(swapped, queries))


def _predict_wrong_softmax_axis(problem: Problem, queries: Array) -> Iterator[Prediction]:
    """Predict a softmax over the queries.

    Attention is evaluated with the roles of query and key exchanged.
    """
    if not _is_small(problem) or problem.shape.queries == 1 or problem.sinks is not None or problem.softcap is not None:
        return
    sample = select_queries(problem, np.arange(problem.shape.queries))
    group = problem.shape.query_heads // problem.shape.key_heads
    query_count, key_count = problem.shape.queries, problem.shape.keys
    key = np.repeat(problem.key_floats(np.float64), group, axis=1)
    query = problem.query.floats(np.float64)
    bias = None if sample.bias is None else sample.bias.floats(np.float64).swapaxes(2, 3)
    exchanged = sample._replace(
        query=HostArray(key, "float64", key),
        chunks=(Chunk(HostArray(query, "float64", query), HostArray(query, "float64", query)),),
        shape=problem.shape._replace(
            key_heads=problem.shape.query_heads,
            queries=key_count,
            keys=query_count,
            value_dim=problem.shape.head_dim,
        ),
        bias=None if bias is None else HostArray(bias, "float64", bias),
        visibility=sample.visibility._replace(
            allowed=get_visible(sample).swapaxes(2, 3),
            lengths=np.full_like(sample.visibility.lengths, problem.first_key + query_count),
        ),
    )
    weights = compute_weights(exchanged).swapaxes(2, 3)
    value = np.repeat(problem.value_floats(np.float64), group, axis=1)
    yield Prediction("weights that sum to 1 over the queries", np.matmul(weights, value)[:, :, queries])


def _predict_misread_axes(problem: Problem, queries: Array) -> Iterator[Prediction]:
    """Predict heads and tokens exchanged, or viewed instead of transposed.

    The inputs, the output or both may be misread.
    """
    batch, query_heads, key_heads, query_count, key_count, _, value_dim = problem.shape
    if not _is_small(problem) or query_heads != key_heads or query_count != key_count or query_heads == 1:
        return
    every_query = np.arange(query_count)
    visible = reference.find_visible_keys(problem, every_query)
    if problem.bias is None and problem.sinks is None and visible.all():
        description = "attention among the heads of a token instead of among tokens"
        yield Prediction(description, _evaluate_among_heads(problem)[:, :, queries])
    output = reference.evaluate(select_queries(problem, every_query, visible)).output
    stored_by_token = output.swapaxes(1, 2).reshape(batch, query_heads, query_count, value_dim)
    yield Prediction(
        "an output stored [batch, tokens, heads, dim] and read as [batch, heads, tokens, dim]",
        stored_by_token[:, :, queries],
    )
    yield Prediction(
        "an output stored [batch, heads, tokens, dim] and read as [batch, tokens, heads, dim]",
        _view_by_token(output)[:, :, queries],
    )
    misread = _misread_inputs(problem)
    yield Prediction(
        "inputs stored [batch, heads, tokens, dim] and read as [batch, tokens, heads, dim]",
        _evaluate(misread, queries),
    )
    misread_output = reference.evaluate(select_queries(misread, every_query)).output
    yield Prediction(
        "inputs and output with heads and tokens viewed, not transposed",
        misread_output.swapaxes(1, 2).reshape(batch, query_heads, query_count, value_dim)[:, :, queries],
    )


def _evaluate_among_heads(problem: Problem) -> Array:
    """Evaluate attention among the heads of each token: [B, H, Q, Dv]."""
    query = problem.query.floats(np.float64)
    exchanged = [
        array.swapaxes(1, 2) for array in (query, problem.key_floats(np.float64), problem.value_floats(np.float64))
    ]
    heads, tokens = problem.shape.query_heads, problem.shape.queries
    ends = np.full_like(problem.visibility.lengths, problem.first_key + heads)
    among_heads = problem._replace(
        query=HostArray(exchanged[0], "float64", query),
        chunks=(Chunk(HostArray(exchanged[1], "float64", query), HostArray(exchanged[2], "float64", query)),),
        shape=problem.shape._replace(query_heads=tokens, key_heads=tokens, queries=heads, keys=heads),
        visibility=problem.visibility._replace(allowed=None, lengths=ends),
        stats=None,
    )
    return reference.evaluate(among_heads).output.swapaxes(1, 2)


def _misread_inputs(problem: Problem) -> Problem:
    """Return the problem whose query, key and value are viewed as [batch, tokens, heads, dim]."""
    query = problem.query.floats(np.float64)
    viewed = [
        _view_by_token(array) for array in (query, problem.key_floats(np.float64), problem.value_floats(np.float64))
    ]
    return problem._replace(
        query=HostArray(viewed[0], "float64", query),
        chunks=(Chunk(HostArray(viewed[1], "float64", query), HostArray(viewed[2], "float64", query)),),
    )


def _view_by_token(array: Array) -> Array:
    batch, heads, tokens, size = array.shape
    return np.ascontiguousarray(array).reshape(batch, tokens, heads, size).swapaxes(1, 2)


# --- evaluation ------------------------------------------------------------------------------------------------------


def _evaluate(problem: Problem, queries: Array, visible: Array | None = None) -> Array:
    return reference.evaluate(select_queries(problem, queries, visible)).output


def _evaluate_under(problem: Problem, queries: Array, visibility: Visibility) -> Array:
    return _evaluate(problem._replace(visibility=visibility), queries)


def _evaluate_scores(sample: Problem, scores: Array) -> Array:
    """Evaluate the definition with these scores [B, Hq, R, N] and every key visible."""
    rule = sample.visibility._replace(allowed=np.ones_like(get_visible(sample)))
    bias = HostArray(np.ascontiguousarray(scores), "float64", scores)
    return reference.evaluate(sample._replace(scale=0.0, softcap=None, bias=bias, visibility=rule)).output


def _is_small(problem: Problem) -> bool:
    return max(problem.shape.queries, problem.shape.keys) <= MAX_STORED_TOKENS


_NO_MASK = "no mask hides any key"
_NOT_CAUSAL = "this attention is not causal, or every key is visible anyway"
_SAME_OUTPUT = "on these inputs the output would be the same"
_NO_WINDOW = "no window, or no more keys than it holds"

HYPOTHESES = (
    Hypothesis("mask-lost", _predict_lost_mask, "no mask with more than one rule"),
    Hypothesis("mask-inverted", _predict_inverted_mask, _NO_MASK),
    Hypothesis("mask-added-as-numbers", _predict_added_mask, _NO_MASK),
    Hypothesis("causal-top-left", _predict_top_left_causal, "not causal, or no call with fewer queries than keys"),
    Hypothesis("causal-mask-lost", _predict_lost_causal, _NOT_CAUSAL),
    Hypothesis("causal-off-by-one", _predict_shifted_causal, _NOT_CAUSAL),
    Hypothesis("document-leak", _predict_document_leak, "no packed documents"),
    Hypothesis("padding-visible", _predict_visible_padding, "no padding"),
    Hypothesis("window-dropped", _predict_dropped_window, _NO_WINDOW),
    Hypothesis("window-off-by-one", _predict_resized_window, _NO_WINDOW),
    Hypothesis("heads-grouped-wrong", _predict_tiled_heads, "query heads do not share key heads, or all share one"),
    Hypothesis("scale-missing", _predict_scales(lambda _: (("omitted,", 1.0),)), "the scale is 1"),
    Hypothesis(
        "scale-twice",
        _predict_scales(lambda problem: (("applied twice,", problem.scale * problem.scale),)),
        "the scale is 1",
    ),
    Hypothesis(
        "scale-not-rooted",
        _predict_scales(lambda problem: (("1 / head_dim =", 1 / problem.shape.head_dim),)),
        _SAME_OUTPUT,
    ),
    Hypothesis("scale-inverted", _predict_scales(_list_inverted_scales), "the scale is 1"),
    Hypothesis("scale-wrong-size", _predict_scales(_list_scales_of_wrong_size), _SAME_OUTPUT),
    Hypothesis("softcap-dropped", _predict_dropped_softcap, "no softcap, or no score near it"),
    Hypothesis("softcap-after-mask", _predict_softcap_after_mask, "no softcap, or no mask hides any key"),
    Hypothesis("sinks-dropped", _predict_dropped_sinks, "no sinks"),
    Hypothesis("bias-dropped", _predict_dropped_bias, "no bias"),
    Hypothesis("bias-scaled", _predict_scaled_bias, "no bias, or a scale of 1"),
    Hypothesis("key-value-swapped", _predict_swapped_arrays, "head_dim and value_dim differ"),
    Hypothesis(
        "softmax-wrong-axis",
        _predict_wrong_softmax_axis,
        f"one query, softcap, sinks, or more than {MAX_STORED_TOKENS} tokens",
    ),
    Hypothesis(
        "axes-misread",
        _predict_misread_axes,
        f"one head, shared key heads, a cache, or more than {MAX_STORED_TOKENS} tokens",
    ),
)
