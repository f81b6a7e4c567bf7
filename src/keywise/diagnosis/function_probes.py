"""Compare a function's outputs with the definition, and before and after changes of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from keywise.attention.arrays import Array, as_host_array
from keywise.attention.problem import Problem
from keywise.diagnosis.definition import compute_expected, select_queries
from keywise.diagnosis.explanation import check_output
from keywise.diagnosis.findings import Location
from keywise.diagnosis.function_under_test import BATCH, FEW_TOKENS, TOKENS, FunctionUnderTest, to_float64
from keywise.diagnosis.results import CheckResults

PADDING_TOKENS = 9
OVERFLOW_FACTOR = 8192.0
"""Queries multiplied by this give scores far above 88.7, the logarithm of float32's largest number, and products above
float16's largest number, while the queries themselves stay below it."""

MASK_CODES = ("mask-inverted", "mask-added-as-numbers", "mask-lost", "padding-visible", "hidden-key-leak")
KEYLESS_CODES = ("dead-row-nan", "dead-row-uniform")
EVERY_QUERY = slice(None)
EVERY_ITEM = slice(None)


def check_prerequisites(tested: FunctionUnderTest) -> CheckResults:
    """Check the output's shape, that inputs are not modified, and that two calls agree."""
    results = CheckResults()
    inputs = tested.draw_inputs()
    originals = [_read(array).copy() for array in inputs]
    output = tested.call(inputs)
    expected_shape = (BATCH, tested.query_heads, TOKENS, tested.head_dim)
    if tuple(getattr(output, "shape", ())) != expected_shape:
        shape = list(getattr(output, "shape", ())) or type(output).__name__
        measured = f"the output has shape {shape}, expected {list(expected_shape)}"
        results.add_finding("output-shape", measured, shape=shape, expected=list(expected_shape))
        return results
    results.add_clean("output-shape")
    modified: dict[str, Any] = {
        name: int((_read(array) != original).sum())
        for name, array, original in zip(("query", "key", "value"), inputs, originals, strict=True)
    }
    if any(modified.values()):
        words = " and ".join(f"{count} elements of {name}" for name, count in modified.items() if count)
        results.add_finding("inputs-modified", f"the call changed {words}", **modified)
        return results
    results.add_clean("inputs-modified")
    difference = _measure_difference(to_float64(output), tested.compute_output(inputs))
    if difference.max() > float(_compute_tolerance(tested.make_problem(inputs)).max()):
        measured = f"two calls on the same input differ by up to {difference.max():.3g}"
        results.add_finding("not-deterministic", measured, difference=float(difference.max()))
        return results
    results.add_clean("not-deterministic")
    return results


def check_outputs(tested: FunctionUnderTest) -> CheckResults:
    """Compare outputs on several inputs with the definition, up to the first error of a call."""
    results = CheckResults()
    for place, queries in (
        ("as many queries as keys", TOKENS),
        ("few queries", FEW_TOKENS),
        ("one query", 1),
    ):
        inputs = tested.draw_inputs(queries)
        problem, observed = tested.make_problem(inputs), tested.compute_output(inputs)
        results.merge(
            check_output(problem, np.arange(queries), observed, place, known_clean=results.clean_codes).results
        )
        if results.has_call_errors:
            return results
    if tested.mask_argument is None:
        results.add_untestable("mask_argument was not given", *MASK_CODES, *KEYLESS_CODES)
    else:
        _check_masks(results, tested)
    return results


def _check_masks(results: CheckResults, tested: FunctionUnderTest) -> None:
    """Compare outputs under a random mask, left padding, and a fully masked query."""
    inputs = tested.draw_inputs()

    def compare(mask_fields: dict[str, Any], visible: Array, place: str) -> None:
        problem = tested.make_problem(inputs, tested.make_mask(**mask_fields))
        observed = tested.compute_output(inputs, visible)
        explanation = check_output(problem, np.arange(TOKENS), observed, place, known_clean=results.clean_codes)
        results.merge(explanation.results)

    own_key = np.eye(TOKENS, dtype=bool)
    random_mask = (np.random.default_rng(5).random((BATCH, 1, TOKENS, TOKENS)) < 0.6) | own_key
    compare({"allowed": random_mask}, random_mask, "mask")
    unpadded = np.ones((BATCH, 1, TOKENS, TOKENS), bool)
    unpadded[1, ..., :PADDING_TOKENS] = False
    compare({"starts": [0, PADDING_TOKENS]}, unpadded, "left padding")
    if results.has_errors:
        return
    without_keys = random_mask.copy()
    without_keys[0, :, TOKENS // 2] = False
    compare({"allowed": without_keys}, without_keys, "a query without keys")


def check_large_scores(tested: FunctionUnderTest, *, wrong_already: bool) -> CheckResults:
    """Check that scores beyond the range of the exponential give a finite output."""
    results = CheckResults()
    inputs = tested.draw_inputs(query_size=OVERFLOW_FACTOR)
    problem, observed = tested.make_problem(inputs), tested.compute_output(inputs)
    large = check_output(problem, np.arange(TOKENS), observed, "large scores").results
    not_finite, overflow = large.get_finding("output-not-finite"), large.get_finding("float16-overflow")
    if not_finite is not None and not wrong_already:
        results.add_finding("softmax-overflow", not_finite.measured, not_finite.where, **not_finite.evidence)
    elif overflow is not None:
        results.add_finding("float16-overflow", overflow.measured, overflow.where, **overflow.evidence)
    else:
        results.add_clean("softmax-overflow")
    return results


def check_hidden_nan(tested: FunctionUnderTest, *, wrong_already: bool) -> CheckResults:
    """Check that NaN in a hidden value does not reach the output.

    The finding is a warning: the function would pass the NaN on, but its own inputs may never hold one.
    """
    results = CheckResults()
    if wrong_already or not (tested.mask.causal or tested.mask_argument):
        results.add_untestable("no hidden key to put NaN into, or the output is wrong anyway", "hidden-nan-leak")
        return results
    inputs = tested.draw_inputs()
    value = to_float64(inputs[2]).copy()
    value[:, :, -1] = np.nan
    inputs[2] = tested.make_array(value)
    visible, mask = None, tested.mask
    if tested.mask_argument:
        visible = np.ones((BATCH, 1, TOKENS, TOKENS), bool)
        visible[..., -1] = False
        mask = tested.make_mask(allowed=visible)
    queries = np.arange(TOKENS - 1)
    observed = tested.compute_output(inputs, visible)[:, :, queries]
    place = "NaN in a hidden value"
    leak = check_output(tested.make_problem(inputs, mask), queries, observed, place).results.get_finding(
        "hidden-nan-leak"
    )
    if leak is not None:
        results.add_finding(leak.code, leak.measured, leak.where, severity="warning", **leak.evidence)
    else:
        results.add_clean("hidden-nan-leak")
    return results


class Probe(NamedTuple):
    """A change of the inputs, and the outputs that must not move."""

    code: str
    description: str
    change: Callable[[], list[Any]]
    queries: slice = EVERY_QUERY
    items: slice = EVERY_ITEM


def run_probes(tested: FunctionUnderTest) -> CheckResults:
    """Make changes that must not matter and measure whether the output moves."""
    results = CheckResults()
    inputs = tested.draw_inputs()
    before = tested.compute_output(inputs)
    tolerance = _compute_tolerance(tested.make_problem(inputs))
    for probe in _list_probes(tested, inputs, results):
        moved = _measure_difference(tested.compute_output(probe.change()), before)[probe.items, :, probe.queries]
        _record_probe(results, probe, moved, 2 * tolerance[probe.items, :, probe.queries])
    if tested.mask_argument:
        _probe_hidden_key(results, tested, inputs, tolerance)
    return results


def _list_probes(tested: FunctionUnderTest, inputs: list[Any], results: CheckResults) -> list[Probe]:
    """Return the probes that fit the function's mask; record the others as not testable."""
    probes = [
        Probe(
            "strides-misread",
            "passing views that are not contiguous",
            lambda: [_make_strided(array) for array in inputs],
        ),
        Probe(
            "batch-leak",
            "changing batch item 0",
            lambda: [tested.make_array(_change_item(array, 0)) for array in inputs],
            items=slice(1, 2),
        ),
    ]
    if tested.mask.causal:
        probes.append(
            Probe(
                "future-leak",
                "changing the last key and value",
                lambda: _change_key_and_value(tested, inputs, -1),
                slice(0, TOKENS - 1),
            )
        )
    else:
        results.add_untestable("not causal", "future-leak")
    left, right = tested.mask.window or (None, None)
    if left is not None and left + 1 < TOKENS:
        probes.append(
            Probe(
                "window-leak",
                "changing the first key and value",
                lambda: _change_key_and_value(tested, inputs, 0),
                slice(left + 1, None),
            )
        )
    else:
        results.add_untestable("no window to the left", "window-leak")
    if not tested.mask.causal and left is None and right is None:
        probes.append(
            Probe("key-order-matters", "reordering keys and values together", lambda: _reverse_key_and_value(inputs))
        )
    else:
        results.add_untestable("the mask depends on the order of the keys", "key-order-matters")
    return probes


def _record_probe(results: CheckResults, probe: Probe, moved: Array, limit: Array) -> None:
    wrong: Array = np.asarray((moved > limit).any(axis=3))
    if not wrong.any():
        results.add_clean(probe.code)
        return
    queries = np.arange(TOKENS)[probe.queries][wrong.any(axis=(0, 1))]
    largest = float(moved.max())
    measured = f"{probe.description} moves outputs by up to {largest:.3g}, expected 0 (rounding: {limit.max():.2g})"
    results.add_finding(probe.code, measured, Location(("probes",), (), tuple(queries.tolist())), moved=largest)


def _probe_hidden_key(results: CheckResults, tested: FunctionUnderTest, inputs: list[Any], tolerance: Array) -> None:
    """Change a key and value that the mask hides from all other positions."""
    hidden = FEW_TOKENS
    visible = np.ones((BATCH, 1, TOKENS, TOKENS), bool)
    visible[..., hidden] = False
    visible[:, :, hidden, hidden] = True
    queries = np.delete(np.arange(TOKENS), hidden)
    changed = _change_key_and_value(tested, inputs, hidden)
    after, before = tested.compute_output(changed, visible), tested.compute_output(inputs, visible)
    moved = _measure_difference(after, before)[:, :, queries]
    if (moved <= 2 * tolerance[:, :, queries]).all():
        results.add_clean("hidden-key-leak")
    else:
        measured = f"changing a hidden key and value moves outputs by up to {moved.max():.3g}, expected 0"
        results.add_finding("hidden-key-leak", measured, Location(("probes",)), moved=float(moved.max()))


def _read(array: Any) -> Array:
    return as_host_array("input", array).data


def _compute_tolerance(problem: Problem) -> Array:
    """Return the rounding bound [B, Hq, Q, 1] of every query."""
    return compute_expected(select_queries(problem, np.arange(problem.shape.queries))).tolerance


def _measure_difference(first: Array, second: Array) -> Array:
    """Return |first - second|.

    It is 0 where both are NaN or the same infinity, and infinite where only one is.
    """
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        return np.where(same, 0.0, np.nan_to_num(np.abs(first - second), nan=np.inf))


def _make_strided(array: Any) -> Any:
    """Return the same numbers stored [batch, tokens, heads, head_dim], as most models pass them."""
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array.swapaxes(1, 2)).swapaxes(1, 2)
    return array.transpose(1, 2).contiguous().transpose(1, 2)


def _change_item(array: Any, item: int) -> Array:
    numbers = to_float64(array).copy()
    numbers[item] = 1.5 - numbers[item]
    return numbers


def _change_key_and_value(tested: FunctionUnderTest, inputs: list[Any], position: int) -> list[Any]:
    """Return inputs with another key and value at one position."""
    changed = [inputs[0]]
    for array in inputs[1:]:
        numbers = to_float64(array).copy()
        numbers[:, :, position] = 1.5 - numbers[:, :, position]
        changed.append(tested.make_array(numbers))
    return changed


def _reverse_key_and_value(inputs: list[Any]) -> list[Any]:
    """Return inputs with keys and values in the reverse order."""
    order = np.arange(TOKENS)[::-1]
    indices = order if isinstance(inputs[0], np.ndarray) else order.tolist()
    return [inputs[0], *(array[:, :, indices] for array in inputs[1:])]
