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
from tests.support.judging import Expectation, check_output, check_stats, make_expectation

Arguments = dict[str, Any]
STATS_OPTIONS = {"top_k": 4, "segment_bounds": [0, 9, 20, 40]}
LENGTHS = np.array([36, 38])
PLANTED = 40 // 3


@lru_cache
def make_correct_arguments(dtype: str, peaky: bool) -> Arguments:
    """Return a problem that uses every argument; the keys past `lengths` are stale but look like the others."""
    case = Case(dtype, queries=6, keys=40, head_dim=32, group=2, bias="per pair", softcap=3.0, sinks=True, peaky=peaky)
    arguments = case.arguments()
    for name in ("query", "key", "value"):
        arguments[name] = as_numpy(arguments[name])
    sinks = np.array([1, 5, 2, 4], np.float32)  # Some near the row's own lse in either kind of input.
    return {**arguments, "sinks": sinks, "mask": kw.Mask(causal=True, window=(20, None), lengths=LENGTHS)}


@lru_cache
def make_correct_expectation(dtype: str, peaky: bool) -> Expectation:
    return make_expectation(make_problem(**make_correct_arguments(dtype, peaky), stats=StatsRequest(**STATS_OPTIONS)))


def make_weights_uniform(arguments: Arguments) -> Arguments:
    return {**arguments, "scale": 0.0}


def drop_key(arguments: Arguments) -> Arguments:
    return {**arguments, "mask": replace(arguments["mask"], allowed=np.arange(40) != PLANTED + 10)}


def swap_keys(arguments: Arguments) -> Arguments:
    order = np.arange(40)
    order[[PLANTED + 10, PLANTED + 12]] = order[[PLANTED + 12, PLANTED + 10]]
    return {**arguments, "key": arguments["key"][:, :, order]}


def swap_values(arguments: Arguments) -> Arguments:
    order = np.arange(40)
    order[[PLANTED + 10, PLANTED + 12]] = order[[PLANTED + 12, PLANTED + 10]]
    return {**arguments, "value": arguments["value"][:, :, order]}


def shift_mask(arguments: Arguments) -> Arguments:
    seen = np.roll(reference.find_visible_keys(make_problem(**arguments)), 1, axis=3)
    return {**arguments, "mask": seen}


def shift_causal_mask(arguments: Arguments) -> Arguments:
    return {**arguments, "mask": replace(arguments["mask"], causal=False, window=(20, 1))}


def align_upper_left(arguments: Arguments) -> Arguments:
    seen = np.tril(np.ones((6, 40), bool)) & ~np.tril(np.ones((6, 40), bool), -21)
    return {**arguments, "mask": seen}


def ignore_window(arguments: Arguments) -> Arguments:
    return {**arguments, "mask": replace(arguments["mask"], window=None)}


def shift_window(arguments: Arguments) -> Arguments:
    return {**arguments, "mask": replace(arguments["mask"], window=(19, None))}


def tile_heads(arguments: Arguments) -> Arguments:
    tiled = {name: np.tile(arguments[name], (1, 2, 1, 1)) for name in ("key", "value")}
    return {**arguments, **tiled}


def leak_stale_token(arguments: Arguments) -> Arguments:
    seen = reference.find_visible_keys(make_problem(**arguments))
    seen[np.arange(2), :, :, LENGTHS] = True
    return {**arguments, "mask": seen}


def omit_scale(arguments: Arguments) -> Arguments:
    return {**arguments, "scale": 1.0}


def ignore_softcap(arguments: Arguments) -> Arguments:
    return {**arguments, "softcap": None}


def ignore_bias(arguments: Arguments) -> Arguments:
    return {**arguments, "bias": None}


def ignore_sinks(arguments: Arguments) -> Arguments:
    return {**arguments, "sinks": None}


def shift_sinks(arguments: Arguments) -> Arguments:
    return {**arguments, "sinks": np.roll(arguments["sinks"], 1)}


MUTANTS = (
    make_weights_uniform,
    drop_key,
    swap_keys,
    swap_values,
    shift_mask,
    shift_causal_mask,
    align_upper_left,
    ignore_window,
    shift_window,
    tile_heads,
    leak_stale_token,
    omit_scale,
    ignore_softcap,
    ignore_bias,
    ignore_sinks,
    shift_sinks,
)


def average_group(reference_result: reference.Result) -> reference.Result:
    assert reference_result.key_mass is not None
    return replace(reference_result, key_mass=reference_result.key_mass / 2)


def shift_key_mass(reference_result: reference.Result) -> reference.Result:
    assert reference_result.key_mass is not None
    return replace(reference_result, key_mass=reference_result.key_mass[:, [1, 0, 3, 2]])


def omit_mass_of_one_query(reference_result: reference.Result) -> reference.Result:
    assert reference_result.key_mass is not None
    assert reference_result.segment_mass is not None
    return replace(reference_result, key_mass=reference_result.key_mass * 5 / 6)


def convert_lse_to_base_2(reference_result: reference.Result) -> reference.Result:
    assert reference_result.lse is not None
    return replace(reference_result, lse=reference_result.lse / math.log(2))


def convert_entropy_to_bits(reference_result: reference.Result) -> reference.Result:
    assert reference_result.entropy is not None
    return replace(reference_result, entropy=reference_result.entropy / math.log(2))


def shift_segments(reference_result: reference.Result) -> reference.Result:
    assert reference_result.segment_mass is not None
    return replace(reference_result, segment_mass=np.roll(reference_result.segment_mass, 1, axis=3))


def swap_top_keys(reference_result: reference.Result) -> reference.Result:
    assert reference_result.top_weights is not None
    return replace(reference_result, top_weights=reference_result.top_weights[..., [1, 0, 2, 3]])


READING_MUTANTS = (
    average_group,
    shift_key_mass,
    omit_mass_of_one_query,
    convert_lse_to_base_2,
    convert_entropy_to_bits,
    shift_segments,
    swap_top_keys,
)

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
BOTH_INPUTS = pytest.mark.parametrize("peaky", [False, True], ids=["normal", "peaky"])


@EVERY_DTYPE
@BOTH_INPUTS
def test_correct_results_pass_the_comparison(target: str, dtype: str, peaky: bool) -> None:
    arguments, expectation = make_correct_arguments(dtype, peaky), make_correct_expectation(dtype, peaky)
    check_output(kw.attend(**arguments), expectation)
    check_stats(kw.attention_stats(**arguments, **STATS_OPTIONS), expectation)


@EVERY_DTYPE
@BOTH_INPUTS
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_wrong_output_fails_the_comparison(
    target: str, dtype: str, peaky: bool, mutant: Callable[[Arguments], Arguments]
) -> None:
    arguments, expectation = make_correct_arguments(dtype, peaky), make_correct_expectation(dtype, peaky)
    wrong = make_problem(**mutant(arguments), stats=StatsRequest(**STATS_OPTIONS))
    mutated = replace(expectation, reference_result=reference.evaluate(wrong), score=reference.compute_scores(wrong))
    with pytest.raises(AssertionError, match="output"):
        check_output(kw.attend(**arguments), mutated)
    if mutant is swap_values:
        return
    # What concerns the weights must be caught by the readings alone too.
    stats = kw.attention_stats(**arguments, **STATS_OPTIONS)
    mutated = replace(
        mutated, reference_result=replace(mutated.reference_result, output=expectation.reference_result.output)
    )
    with pytest.raises(AssertionError, match=r"^(lse|entropy|top|key|segment|weights|a )"):
        check_stats(stats, mutated)


@EVERY_DTYPE
@BOTH_INPUTS
@pytest.mark.parametrize("mutant", READING_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_wrong_statistics_fail_the_comparison(
    target: str, dtype: str, peaky: bool, mutant: Callable[[reference.Result], reference.Result]
) -> None:
    arguments, expectation = make_correct_arguments(dtype, peaky), make_correct_expectation(dtype, peaky)
    stats = kw.attention_stats(**arguments, **STATS_OPTIONS)
    with pytest.raises(AssertionError):
        check_stats(stats, replace(expectation, reference_result=mutant(expectation.reference_result)))
