"""What keys and weights look like: collapsed, saturated, uniform, dead, or leaning on a sink."""

from __future__ import annotations

import numpy as np

from keywise.attention.arrays import Array
from keywise.attention.problem import Problem
from keywise.diagnosis.finding import Examination, Where
from keywise.diagnosis.judge import LARGEST_FLOAT16
from keywise.diagnosis.sample import UNITS, Truth

NEARLY_ALL = 0.95
"""A layer is accused only when this share of the rows of every head agrees."""
FEWEST_KEYS = 8
"""Rows that see fewer keys say nothing about saturated or uniform weights."""
FEWEST_ROWS = 8
SATURATED = 1 - UNITS["bfloat16"]
"""Weight of the heaviest key above which bfloat16 would round all the others away beside it."""
EVEN_NATS = UNITS["bfloat16"] ** 2 / 2
"""Weights within a relative e of 1/n have an entropy within e^2 / 2 nats of ln n; here e is bfloat16's rounding."""
SINK_SHARE = 0.3
"""Share of the weight on the first key, in some head, from which it is reported as a sink."""


def inspect(examination: Examination, problem: Problem, right: Truth, place: str) -> None:
    """Record what keys, values and the sampled rows' weights look like."""
    _keys(examination, problem, place)
    _values(examination, problem, place)
    _range(examination, problem, right, place)
    _weights(examination, right, place)


def _keys(examination: Examination, problem: Problem, place: str) -> None:
    key = problem.key_floats(np.float64)
    tokens = problem.shape.keys
    if tokens < FEWEST_KEYS:
        examination.untestable(f"fewer than {FEWEST_KEYS} keys", "keys-identical")
        return
    if not np.isfinite(key).all():
        examination.untestable("some keys are not finite", "keys-identical")
        return
    spread = np.abs(key - key.mean(axis=2, keepdims=True)).max(axis=(2, 3))
    # Equal numbers differ from their mean by the mean's own rounding only; the dtype's rounding is allowed for.
    same = spread <= 4 * UNITS[problem.dtype] * np.abs(key).max(axis=(2, 3))
    if same.all():
        measured = f"the {tokens} keys of every head differ by at most {spread.max():.2g} in any element"
        examination.found("keys-identical", measured, Where((place,)), spread=float(spread.max()))
    elif same.any():
        heads = tuple(np.flatnonzero(same.any(axis=0)).tolist())
        measured = f"the {tokens} keys of key heads {list(heads)} are the same; those of the others differ"
        examination.found("keys-identical", measured, Where((place,), heads), severity="warning")
    else:
        examination.clean("keys-identical")


def _values(examination: Examination, problem: Problem, place: str) -> None:
    value = problem.value_floats(np.float64)
    dead = ~value.any(axis=(0, 2, 3))
    if dead.any():
        heads = tuple(np.flatnonzero(dead).tolist())
        measured = f"the values of {len(heads)} of {dead.size} key heads are all 0"
        examination.found("head-dead", measured, Where((place,), heads), heads=len(heads))
    else:
        examination.clean("head-dead")


def _range(examination: Examination, problem: Problem, right: Truth, place: str) -> None:
    if problem.dtype != "float16":
        examination.untestable(f"query and key are {problem.dtype}", "float16-range")
    elif right.largest_product > LARGEST_FLOAT16:
        measured = f"query . key reaches {right.largest_product:.6g}; float16 ends at {LARGEST_FLOAT16:g}"
        examination.found("float16-range", measured, Where((place,)), largest_product=right.largest_product)
    else:
        examination.clean("float16-range")


def _weights(examination: Examination, right: Truth, place: str) -> None:
    counts = right.seen.sum(axis=3)
    if not right.alive.all():
        dead = int((~right.alive).any(axis=(0, 1)).sum())
        measured = f"{dead} of {counts.shape[2]} sampled queries see no key"
        examination.found("rows-without-keys", measured, Where((place,)), rows=dead)
    else:
        examination.clean("rows-without-keys")
    several = (counts >= FEWEST_KEYS) & np.isfinite(right.entropy)
    _sink(examination, right, several & right.seen[..., 0], place)
    if several.sum(axis=(0, 2)).min() < FEWEST_ROWS:
        reason = f"fewer than {FEWEST_ROWS} sampled rows see {FEWEST_KEYS} keys or more"
        examination.untestable(reason, "softmax-saturated", "weights-uniform")
        return
    largest = np.log(np.maximum(counts, 2))
    ratio = float(np.median((right.entropy / largest)[several]))
    saturated = _shares(right.heaviest > SATURATED, several)
    if saturated.min() >= NEARLY_ALL:
        measured = f"one key takes over {SATURATED:.1%} in at least {saturated.min():.0%} of the rows of every head"
        examination.found("softmax-saturated", measured, Where((place,)), entropy_ratio=ratio)
    else:
        examination.clean("softmax-saturated")
    even = _shares(largest - right.entropy <= EVEN_NATS, several)
    if even.min() >= NEARLY_ALL and right.scale != 0:
        measured = f"the entropy is {ratio:.5f} of the largest possible, in every head"
        examination.found("weights-uniform", measured, Where((place,)), entropy_ratio=ratio)
    else:
        examination.clean("weights-uniform")


def _shares(rows: Array, counted: Array) -> Array:
    """Give the share of the counted rows [B, Hq, R] that fulfil a condition, per head."""
    return np.asarray((rows & counted).sum(axis=(0, 2)) / counted.sum(axis=(0, 2)))


def _sink(examination: Examination, right: Truth, asked: Array, place: str) -> None:
    if asked.sum(axis=(0, 2)).min() < FEWEST_ROWS:
        examination.untestable("too few rows see the first key", "attention-sink")
        return
    share = np.where(asked, right.first_key, 0.0).sum(axis=(0, 2)) / asked.sum(axis=(0, 2))
    if share.max() > SINK_SHARE:
        heads = tuple(np.flatnonzero(share > SINK_SHARE).tolist())
        measured = f"the first key takes up to {share.max():.0%} of the weight, {share.mean():.0%} on average"
        examination.found("attention-sink", measured, Where((place,), heads), share=float(share.max()))
    else:
        examination.clean("attention-sink")
