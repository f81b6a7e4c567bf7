"""Attention gone wrong in the ways people get it wrong: what each known fault would have computed.

A suspect is evaluated by the definition itself, on a changed problem. It explains an observed output when that lies
within rounding of what the suspect computes and not of what attention computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from keywise.attention import reference
from keywise.attention.arrays import Array, HostArray
from keywise.attention.problem import Chunk, Problem
from keywise.diagnosis.sample import at_rows, weights_of

MOST_STORED = 512
"""Largest number of queries and of keys for the few suspects that need every weight."""

Outcome = tuple[str, Array]
"""What a fault does, in words, and the output that it would give the sampled rows [B, Hq, R, Dv]."""


class Suspect(NamedTuple):
    """A known fault: its code, what it would compute (several variants), and when it cannot be told from attention."""

    code: str
    outcomes: Callable[[Problem, Array], Iterator[Outcome]]
    invisible: str


def _evaluated(problem: Problem, rows: Array, seen: Array | None = None) -> Array:
    return reference.evaluate(at_rows(problem, rows, seen)).output


def _positional(problem: Problem) -> bool:
    return problem.visibility.causal


def _mask_lost(problem: Problem, rows: Array) -> Iterator[Outcome]:
    rule = problem.visibility
    batch = rule.lengths.size
    bare = rule._replace(left=-1, right=-1, starts=np.zeros(batch, np.int64), documents=None, allowed=None)
    several = [rule.left >= 0 or rule.right >= 0, bool(rule.starts.any()), rule.documents is not None]
    # One lost rule alone has a code of its own.
    if rule.allowed is not None or sum(several) > 1:
        yield (
            "attention under no mask but the causal one" if rule.causal else "attention without the mask",
            _evaluated(problem._replace(visibility=bare), rows),
        )
        if rule.causal:
            yield "attention without the mask", _evaluated(problem, rows, np.ones_like(_seen(problem, rows)))


def _seen(problem: Problem, rows: Array) -> Array:
    return reference.visible(problem, rows)


def _mask_inverted(problem: Problem, rows: Array) -> Iterator[Outcome]:
    if problem.visibility.allowed is not None or problem.visibility.causal:
        yield "attention to exactly the keys that are hidden", _evaluated(problem, rows, ~_seen(problem, rows))


def _mask_added(problem: Problem, rows: Array) -> Iterator[Outcome]:
    seen = _seen(problem, rows)
    if seen.all():
        return
    sample = at_rows(problem, rows, np.ones_like(seen))
    own = 0.0 if sample.bias is None else sample.bias.floats(np.float64)
    bias = own + seen.astype(np.float64)
    yield (
        "attention to every key, with the mask's ones and zeros added to the scores",
        reference.evaluate(sample._replace(bias=HostArray(bias, "float64", bias))).output,
    )


def _with_positions(problem: Problem, rows: Array, ahead: int, *, from_first_key: bool = False) -> Array:
    """Give what rows see when the causal mask ends `ahead` keys later, or is aligned at the first key."""
    uncausal = problem._replace(visibility=problem.visibility._replace(causal=False))
    seen = reference.visible(uncausal, rows)
    for item, length in enumerate(problem.visibility.lengths):
        own = rows + (0 if from_first_key else int(length) - problem.shape.queries) + ahead
        seen[item] &= problem.first_key + np.arange(problem.shape.keys) <= own[:, None]
    return seen


def _top_left(problem: Problem, rows: Array) -> Iterator[Outcome]:
    if _positional(problem) and problem.shape.queries < problem.shape.keys:
        aligned = _with_positions(problem, rows, 0, from_first_key=True)
        yield "causal attention aligned at the first key", _evaluated(problem, rows, aligned)


def _causal_lost(problem: Problem, rows: Array) -> Iterator[Outcome]:
    if _positional(problem):
        without = problem._replace(visibility=problem.visibility._replace(causal=False))
        yield "attention without the causal mask", _evaluated(without, rows)
        if problem.visibility.left >= 0:
            side = problem.visibility._replace(causal=False, right=problem.visibility.left)
            yield "attention in a window to both sides", _evaluated(problem._replace(visibility=side), rows)


def _causal_off(problem: Problem, rows: Array) -> Iterator[Outcome]:
    if _positional(problem):
        for ahead, words in ((-1, "causal attention that hides the own key"), (1, "causal attention one key too far")):
            yield words, _evaluated(problem, rows, _with_positions(problem, rows, ahead))


def _documents(problem: Problem, rows: Array) -> Iterator[Outcome]:
    if problem.visibility.documents is not None:
        apart = problem.visibility._replace(documents=None)
        yield "attention across documents", _evaluated(problem._replace(visibility=apart), rows)


def _padding(problem: Problem, rows: Array) -> Iterator[Outcome]:
    rule = problem.visibility
    if rule.starts.any():
        shown = rule._replace(starts=np.zeros_like(rule.starts))
        yield "attention to the padding on the left", _evaluated(problem._replace(visibility=shown), rows)
    if rule.allowed is not None and _hides_keys_from_all(rule.allowed):
        shown = rule._replace(allowed=None)
        yield "attention to the padding", _evaluated(problem._replace(visibility=shown), rows)
    ends = problem.first_key + problem.shape.keys
    if not rule.causal and (rule.lengths < ends).any():
        shown = rule._replace(lengths=np.full_like(rule.lengths, ends))
        yield "attention to the padding on the right", _evaluated(problem._replace(visibility=shown), rows)


def _hides_keys_from_all(allowed: Array) -> bool:
    """Whether a boolean mask hides the same keys from every query, as padding does."""
    return allowed.strides[1] == 0 and allowed.strides[2] == 0 and not allowed[:, 0, 0].all()


def _window_dropped(problem: Problem, rows: Array) -> Iterator[Outcome]:
    rule = problem.visibility
    if rule.left >= 0 or rule.right >= 0:
        wide = rule._replace(left=-1, right=-1)
        yield "attention without the window", _evaluated(problem._replace(visibility=wide), rows)


def _window_off(problem: Problem, rows: Array) -> Iterator[Outcome]:
    rule = problem.visibility
    for left in dict.fromkeys((rule.left + 1, rule.left - 1, 2 * rule.left, 2 * rule.left + 1)):
        if rule.left >= 0 and left >= 0 and left != rule.left:
            right = left if rule.right == rule.left else rule.right
            other = problem._replace(visibility=rule._replace(left=left, right=right))
            words = f"attention in a window of {left + 1} keys up to the own one, not {rule.left + 1}"
            yield words, _evaluated(other, rows)


def _grouped(problem: Problem, rows: Array) -> Iterator[Outcome]:
    heads, shared = problem.shape.query_heads, problem.shape.key_heads
    if shared not in {1, heads}:
        other = tuple(
            Chunk(*(array._replace(data=array.data[:, np.arange(heads) % shared]) for array in chunk))
            for chunk in problem.chunks
        )
        tiled = problem._replace(chunks=other, shape=problem.shape._replace(key_heads=heads))
        yield f"query head h with key head h % {shared}", _evaluated(tiled, rows)


def _scaled(name: str) -> Callable[[Problem, Array], Iterator[Outcome]]:
    def outcomes(problem: Problem, rows: Array) -> Iterator[Outcome]:
        scale, (_, heads, _, _, keys, head_dim, _) = problem.scale, problem.shape
        wrong = {
            "missing": (("left out,", 1.0),),
            "twice": (("applied twice,", scale * scale),),
            "not rooted": (("1 / head_dim =", 1 / head_dim),),
            "wrong size": (
                ("1 / sqrt(heads x head_dim) =", 1 / math.sqrt(heads * head_dim)),
                ("1 / sqrt(heads) =", 1 / math.sqrt(heads)),
                ("1 / sqrt(keys) =", 1 / math.sqrt(keys)),
                ("1 / sqrt(head_dim) =", 1 / math.sqrt(head_dim)),
            ),
            "inverted": (
                ("sqrt(head_dim) =", math.sqrt(head_dim)),
                ("divided by instead of multiplied,", 1 / scale if scale else 1.0),
            ),
        }[name]
        for words, other in wrong:
            if not math.isclose(other, scale, rel_tol=1e-6):
                changed = problem._replace(scale=other)
                yield f"attention with scale {words} {other:.4g} instead of {scale:.4g}", _evaluated(changed, rows)

    return outcomes


def _uncapped(problem: Problem, rows: Array) -> Iterator[Outcome]:
    if problem.softcap is not None:
        yield "attention without the softcap", _evaluated(problem._replace(softcap=None), rows)


def _capped_mask(problem: Problem, rows: Array) -> Iterator[Outcome]:
    if problem.softcap is None:
        return
    sample = at_rows(problem, rows)
    seen = sample.visibility.allowed
    assert seen is not None  # at_rows() gives every sample one
    score = np.where(seen, reference.scores(sample), -problem.softcap)
    yield "a softcap that bounds the mask too", _attend_by_scores(sample, score)


def _attend_by_scores(sample: Problem, score: Array) -> Array:
    """Evaluate the definition with these scores [B, Hq, R, N] in place of the problem's own, every key visible."""
    assert sample.visibility.allowed is not None  # at_rows() gives every sample one
    rule = sample.visibility._replace(allowed=np.ones_like(sample.visibility.allowed))
    bias = HostArray(np.ascontiguousarray(score), "float64", score)
    return reference.evaluate(sample._replace(scale=0.0, softcap=None, bias=bias, visibility=rule)).output


def _no_sinks(problem: Problem, rows: Array) -> Iterator[Outcome]:
    if problem.sinks is not None:
        yield "attention without sinks", _evaluated(problem._replace(sinks=None), rows)


def _no_bias(problem: Problem, rows: Array) -> Iterator[Outcome]:
    if problem.bias is not None:
        yield "attention without the bias", _evaluated(problem._replace(bias=None), rows)


def _scaled_bias(problem: Problem, rows: Array) -> Iterator[Outcome]:
    if problem.bias is not None and problem.scale != 1.0:
        bias = problem.bias.floats(np.float64) * problem.scale
        scaled = problem._replace(bias=HostArray(bias, "float64", bias))
        yield "attention with the bias multiplied by the scale", _evaluated(scaled, rows)


def _swapped(problem: Problem, rows: Array) -> Iterator[Outcome]:
    if problem.shape.head_dim == problem.shape.value_dim:
        chunks = tuple(Chunk(chunk.value, chunk.key) for chunk in problem.chunks)
        yield "attention with keys and values exchanged", _evaluated(problem._replace(chunks=chunks), rows)


def _small(problem: Problem) -> bool:
    return max(problem.shape.queries, problem.shape.keys) <= MOST_STORED


def _wrong_axis(problem: Problem, rows: Array) -> Iterator[Outcome]:
    """Normalise over the queries: the weights of attention in which keys ask queries."""
    if not _small(problem) or problem.shape.queries == 1 or problem.sinks is not None or problem.softcap is not None:
        return
    every_row = at_rows(problem, np.arange(problem.shape.queries))
    group = problem.shape.query_heads // problem.shape.key_heads
    queries, keys = problem.shape.queries, problem.shape.keys
    key = np.repeat(problem.key_floats(np.float64), group, axis=1)
    query = problem.query.floats(np.float64)
    bias = None if every_row.bias is None else every_row.bias.floats(np.float64).swapaxes(2, 3)
    seen = every_row.visibility.allowed
    assert seen is not None  # at_rows() gives every sample one
    asked = every_row._replace(
        query=HostArray(key, "float64", key),
        chunks=(Chunk(HostArray(query, "float64", query), HostArray(query, "float64", query)),),
        shape=problem.shape._replace(
            key_heads=problem.shape.query_heads, queries=keys, keys=queries, value_dim=problem.shape.head_dim
        ),
        bias=None if bias is None else HostArray(bias, "float64", bias),
        visibility=every_row.visibility._replace(
            allowed=seen.swapaxes(2, 3), lengths=np.full_like(every_row.visibility.lengths, problem.first_key + queries)
        ),
    )
    weights = weights_of(asked).swapaxes(2, 3)
    value = np.repeat(problem.value_floats(np.float64), group, axis=1)
    yield "weights that sum to 1 over the queries", np.matmul(weights, value)[:, :, rows]


def _axes(problem: Problem, rows: Array) -> Iterator[Outcome]:
    batch, heads, shared, queries, keys, _, value_dim = problem.shape
    if not _small(problem) or heads != shared or queries != keys or heads == 1:
        return
    every = np.arange(queries)
    query, key, value = (
        problem.query.floats(np.float64),
        problem.key_floats(np.float64),
        problem.value_floats(np.float64),
    )
    if problem.bias is None and problem.sinks is None and (seen := _seen(problem, every)).all():
        across = [array.swapaxes(1, 2) for array in (query, key, value)]
        turned = problem.shape._replace(query_heads=keys, key_heads=keys, queries=heads, keys=heads)
        ends = np.full_like(problem.visibility.lengths, problem.first_key + heads)
        rule = problem.visibility._replace(allowed=None, lengths=ends)
        swapped = problem._replace(
            query=HostArray(across[0], "float64", query),
            chunks=(Chunk(HostArray(across[1], "float64", query), HostArray(across[2], "float64", query)),),
            shape=turned,
            visibility=rule,
        )
        yield (
            "attention among the heads of a token instead of among tokens",
            reference.evaluate(swapped._replace(stats=None)).output.swapaxes(1, 2)[:, :, rows],
        )
    else:
        seen = _seen(problem, every)
    right = reference.evaluate(at_rows(problem, every, seen)).output
    # Heads and tokens are viewed, not transposed: on the way out, on the way in, or both.
    yield (
        "an output stored [batch, tokens, heads, dim] and read as [batch, heads, tokens, dim]",
        right.swapaxes(1, 2).reshape(batch, heads, queries, value_dim)[:, :, rows],
    )
    yield (
        "an output stored [batch, heads, tokens, dim] and read as [batch, tokens, heads, dim]",
        _viewed(right)[:, :, rows],
    )
    viewed = [_viewed(array) for array in (query, key, value)]
    misread = problem._replace(
        query=HostArray(viewed[0], "float64", query),
        chunks=(Chunk(HostArray(viewed[1], "float64", query), HostArray(viewed[2], "float64", query)),),
    )
    yield (
        "inputs stored [batch, heads, tokens, dim] and read as [batch, tokens, heads, dim]",
        _evaluated(misread, rows),
    )
    every_row = reference.evaluate(at_rows(misread, every)).output
    yield (
        "inputs and output with heads and tokens viewed, not transposed",
        every_row.swapaxes(1, 2).reshape(batch, heads, queries, value_dim)[:, :, rows],
    )


def _viewed(array: Array) -> Array:
    batch, heads, tokens, size = array.shape
    return np.ascontiguousarray(array).reshape(batch, tokens, heads, size).swapaxes(1, 2)


_NO_MASK = "nothing here is hidden by a mask"
_NOT_CAUSAL = "this attention is not causal, or every key is visible anyway"
_NO_DIFFERENCE = "on these inputs it would give the same output"

SUSPECTS = (
    Suspect("mask-lost", _mask_lost, "no mask with more than one rule"),
    Suspect("mask-inverted", _mask_inverted, _NO_MASK),
    Suspect("mask-added-as-numbers", _mask_added, _NO_MASK),
    Suspect("causal-top-left", _top_left, "not causal, or no call with fewer queries than keys"),
    Suspect("causal-mask-lost", _causal_lost, _NOT_CAUSAL),
    Suspect("causal-off-by-one", _causal_off, _NOT_CAUSAL),
    Suspect("document-leak", _documents, "no packed documents"),
    Suspect("padding-visible", _padding, "no padding"),
    Suspect("window-dropped", _window_dropped, "no window, or no more keys than it holds"),
    Suspect("window-off-by-one", _window_off, "no window, or no more keys than it holds"),
    Suspect("heads-grouped-wrong", _grouped, "query heads do not share key heads, or all share one"),
    Suspect("scale-missing", _scaled("missing"), "the scale is 1"),
    Suspect("scale-twice", _scaled("twice"), "the scale is 1"),
    Suspect("scale-not-rooted", _scaled("not rooted"), _NO_DIFFERENCE),
    Suspect("scale-inverted", _scaled("inverted"), "the scale is 1"),
    Suspect("scale-wrong-size", _scaled("wrong size"), _NO_DIFFERENCE),
    Suspect("softcap-dropped", _uncapped, "no softcap, or no score near it"),
    Suspect("softcap-after-mask", _capped_mask, "no softcap, or nothing hidden"),
    Suspect("sinks-dropped", _no_sinks, "no sinks"),
    Suspect("bias-dropped", _no_bias, "no bias"),
    Suspect("bias-scaled", _scaled_bias, "no bias, or a scale of 1"),
    Suspect("key-value-swapped", _swapped, "head_dim and value_dim differ"),
    Suspect("softmax-wrong-axis", _wrong_axis, f"one query, softcap, sinks, or more than {MOST_STORED} tokens"),
    Suspect("axes-misread", _axes, f"one head, shared key heads, a cache, or more than {MOST_STORED} tokens"),
)
