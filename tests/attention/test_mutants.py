"""Mutants: the comparison that every test uses must reject each wrong definition, in every dtype, on every target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

import keywise as kw
from keywise.attention import reference
from keywise.attention.problem import make_problem
from keywise.attention.stats_request import StatsRequest
from tests.support.cases import DTYPES, Case, as_numpy
from tests.support.judging import Verdict, check_output, check_stats, verdict

Arguments = dict[str, Any]
READING = {"top_k": 4, "segment_bounds": [0, 9, 20, 40]}
LENGTHS = np.array([36, 38])
PLANTED = 40 // 3


@lru_cache
def healthy(dtype: str, peaky: bool) -> Arguments:
    """Return a problem that uses every argument; the keys past `lengths` are stale but look like the others."""
    case = Case(dtype, queries=6, keys=40, head_dim=32, group=2, bias="per pair", softcap=3.0, sinks=True, peaky=peaky)
    arguments = case.arguments()
    for name in ("query", "key", "value"):
        arguments[name] = as_numpy(arguments[name])
    sinks = np.array([1, 5, 2, 4], np.float32)  # Some near the row's own lse in either kind of input.
    return {**arguments, "sinks": sinks, "mask": kw.Mask(causal=True, window=(20, None), lengths=LENGTHS)}


@lru_cache
def healthy_verdict(dtype: str, peaky: bool) -> Verdict:
    return verdict(make_problem(**healthy(dtype, peaky), stats=StatsRequest(**READING)))


def uniform_weights(arguments: Arguments) -> Arguments:
    return {**arguments, "scale": 0.0}


def key_dropped(arguments: Arguments) -> Arguments:
    return {**arguments, "mask": replace(arguments["mask"], allowed=np.arange(40) != PLANTED + 10)}


def keys_swapped(arguments: Arguments) -> Arguments:
    order = np.arange(40)
    order[[PLANTED + 10, PLANTED + 12]] = order[[PLANTED + 12, PLANTED + 10]]
    return {**arguments, "key": arguments["key"][:, :, order]}


def values_swapped(arguments: Arguments) -> Arguments:
    order = np.arange(40)
    order[[PLANTED + 10, PLANTED + 12]] = order[[PLANTED + 12, PLANTED + 10]]
    return {**arguments, "value": arguments["value"][:, :, order]}


def mask_shifted(arguments: Arguments) -> Arguments:
    seen = np.roll(reference.visible(make_problem(**arguments)), 1, axis=3)
    return {**arguments, "mask": seen}


def causal_off_by_one(arguments: Arguments) -> Arguments:
    return {**arguments, "mask": replace(arguments["mask"], causal=False, window=(20, 1))}


def aligned_upper_left(arguments: Arguments) -> Arguments:
    seen = np.tril(np.ones((6, 40), bool)) & ~np.tril(np.ones((6, 40), bool), -21)
    return {**arguments, "mask": seen}


def window_ignored(arguments: Arguments) -> Arguments:
    return {**arguments, "mask": replace(arguments["mask"], window=None)}


def window_off_by_one(arguments: Arguments) -> Arguments:
    return {**arguments, "mask": replace(arguments["mask"], window=(19, None))}


def wrong_group_order(arguments: Arguments) -> Arguments:
    tiled = {name: np.tile(arguments[name], (1, 2, 1, 1)) for name in ("key", "value")}
    return {**arguments, **tiled}


def stale_row_leaks(arguments: Arguments) -> Arguments:
    seen = reference.visible(make_problem(**arguments))
    seen[np.arange(2), :, :, LENGTHS] = True
    return {**arguments, "mask": seen}


def scale_missing(arguments: Arguments) -> Arguments:
    return {**arguments, "scale": 1.0}


def softcap_ignored(arguments: Arguments) -> Arguments:
    return {**arguments, "softcap": None}


def bias_ignored(arguments: Arguments) -> Arguments:
    return {**arguments, "bias": None}


def sinks_ignored(arguments: Arguments) -> Arguments:
    return {**arguments, "sinks": None}


def sinks_of_the_wrong_head(arguments: Arguments) -> Arguments:
    return {**arguments, "sinks": np.roll(arguments["sinks"], 1)}


MUTANTS = (
    uniform_weights,
    key_dropped,
    keys_swapped,
    values_swapped,
    mask_shifted,
    causal_off_by_one,
    aligned_upper_left,
    window_ignored,
    window_off_by_one,
    wrong_group_order,
    stale_row_leaks,
    scale_missing,
    softcap_ignored,
    bias_ignored,
    sinks_ignored,
    sinks_of_the_wrong_head,
)


def mean_over_the_group(truth: reference.Result) -> reference.Result:
    assert truth.key_mass is not None
    return replace(truth, key_mass=truth.key_mass / 2)


def mass_of_another_head(truth: reference.Result) -> reference.Result:
    assert truth.key_mass is not None
    return replace(truth, key_mass=truth.key_mass[:, [1, 0, 3, 2]])


def mass_of_one_row_missing(truth: reference.Result) -> reference.Result:
    assert truth.key_mass is not None
    assert truth.segment_mass is not None
    return replace(truth, key_mass=truth.key_mass * 5 / 6)


def lse_in_base_two(truth: reference.Result) -> reference.Result:
    assert truth.lse is not None
    return replace(truth, lse=truth.lse / math.log(2))


def entropy_in_bits(truth: reference.Result) -> reference.Result:
    assert truth.entropy is not None
    return replace(truth, entropy=truth.entropy / math.log(2))


def segments_shifted(truth: reference.Result) -> reference.Result:
    assert truth.segment_mass is not None
    return replace(truth, segment_mass=np.roll(truth.segment_mass, 1, axis=3))


def second_heaviest_key_first(truth: reference.Result) -> reference.Result:
    assert truth.top_weights is not None
    return replace(truth, top_weights=truth.top_weights[..., [1, 0, 2, 3]])


READING_MUTANTS = (
    mean_over_the_group,
    mass_of_another_head,
    mass_of_one_row_missing,
    lse_in_base_two,
    entropy_in_bits,
    segments_shifted,
    second_heaviest_key_first,
)

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
BOTH_INPUTS = pytest.mark.parametrize("peaky", [False, True], ids=["normal", "peaky"])


@EVERY_DTYPE
@BOTH_INPUTS
def test_correct_results_pass_the_comparison(target: str, dtype: str, peaky: bool) -> None:
    arguments, judged = healthy(dtype, peaky), healthy_verdict(dtype, peaky)
    check_output(kw.attend(**arguments), judged)
    check_stats(kw.attention_stats(**arguments, **READING), judged)


@EVERY_DTYPE
@BOTH_INPUTS
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_wrong_output_fails_the_comparison(
    target: str, dtype: str, peaky: bool, mutant: Callable[[Arguments], Arguments]
) -> None:
    arguments, judged = healthy(dtype, peaky), healthy_verdict(dtype, peaky)
    wrong = make_problem(**mutant(arguments), stats=StatsRequest(**READING))
    mutated = replace(judged, truth=reference.evaluate(wrong), score=reference.scores(wrong))
    with pytest.raises(AssertionError, match="output"):
        check_output(kw.attend(**arguments), mutated)
    if mutant is values_swapped:
        return
    # What concerns the weights must be caught by the readings alone too.
    stats = kw.attention_stats(**arguments, **READING)
    mutated = replace(mutated, truth=replace(mutated.truth, output=judged.truth.output))
    with pytest.raises(AssertionError, match=r"^(lse|entropy|top|key|segment|weights|a )"):
        check_stats(stats, mutated)


@EVERY_DTYPE
@BOTH_INPUTS
@pytest.mark.parametrize("mutant", READING_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_wrong_statistics_fail_the_comparison(
    target: str, dtype: str, peaky: bool, mutant: Callable[[reference.Result], reference.Result]
) -> None:
    arguments, judged = healthy(dtype, peaky), healthy_verdict(dtype, peaky)
    stats = kw.attention_stats(**arguments, **READING)
    with pytest.raises(AssertionError):
        check_stats(stats, replace(judged, truth=mutant(judged.truth)))
