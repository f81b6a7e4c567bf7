"""Explain the difference between an observed and an expected output by a known fault."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

import numpy as np

from keywise.attention import reference
from keywise.attention.arrays import Array
from keywise.attention.problem import Problem
from keywise.diagnosis.comparison import Comparison, compare_output
from keywise.diagnosis.definition import MAX_FLOAT16, Expected, select_queries
from keywise.diagnosis.hypotheses import HYPOTHESES
from keywise.diagnosis.results import CheckResults

INEXACT_SHARE = 1e-2
"""An error beyond rounding but below this share of the largest output is called inexact, not wrong."""
UNEXPLAINED_SHARE = 0.005
"""A hypothesis explains an error when at most this share of it remains, beyond rounding."""
DETECTABLE_FACTOR = 4
"""A fault is detectable if its output differs from the expected one by this many tolerances."""
UNEXPLAINED_CODES = ("output-differs", "output-not-finite", "inexact")


class Explanation(NamedTuple):
    """The code that explains an output, and the results of all checks.

    The code is None for a correct output.
    """

    code: str | None
    results: CheckResults


def check_output(
    problem: Problem,
    queries: Array,
    observed: Array,
    place: str,
    *,
    expected: Expected | None = None,
    known_clean: Set[str] = frozenset(),
) -> Explanation:
    """Compare an output with the definition and explain the difference.

    Parameters
    ----------
    problem, queries, observed, place, expected
        As in `compare_output`.
    known_clean : set of str
        Codes known to be clean already; they are not shown to be clean again, which costs time.

    Returns
    -------
    Explanation
    """
    return explain_comparison(compare_output(problem, queries, observed, place, expected=expected), known_clean)


def explain_comparison(comparison: Comparison, known_clean: Set[str] = frozenset()) -> Explanation:
    """Return the fault that explains a comparison, and the results of all checks.

    Parameters
    ----------
    comparison : Comparison
        An observed output beside the expected one.
    known_clean : set of str
        Codes known to be clean already.

    Returns
    -------
    Explanation
    """
    results = CheckResults()
    masked_code = _check_fully_masked_queries(comparison, results)
    code = _check_other_queries(comparison, results, known_clean)
    return Explanation(code or masked_code, results)


def _check_fully_masked_queries(comparison: Comparison, results: CheckResults) -> str | None:
    """Check that queries without a visible key have output 0, unless they are padding."""
    observed, expected = comparison.observed, comparison.expected
    masked = ~expected.has_keys & _find_unpadded_queries(comparison)[:, None]
    if not masked.any():
        results.add_untestable("every query that is no padding sees a key", "dead-row-nan", "dead-row-uniform")
        return None
    not_finite = masked & ~np.isfinite(observed).all(axis=3)
    if not_finite.any():
        count = int(not_finite.sum())
        measured = f"{count} queries without a visible key are NaN or infinite, expected 0"
        results.add_finding("dead-row-nan", measured, comparison.locate(not_finite), queries=count)
        return "dead-row-nan"
    not_zero = masked & (np.abs(observed) > expected.tolerance).any(axis=3)
    if not not_zero.any():
        results.add_clean("dead-row-nan", "dead-row-uniform")
        return None
    is_mean = _is_mean_of_values(comparison, not_zero)
    mean_words = ", the mean of all values" if is_mean else ""
    measured = (
        f"{int(not_zero.sum())} queries without a visible key have output up to "
        f"{np.abs(observed[not_zero]).max():.3g}{mean_words}; expected 0"
    )
    location = comparison.locate(not_zero)
    results.add_finding("dead-row-uniform", measured, location, queries=int(not_zero.sum()), mean=is_mean)
    return "dead-row-uniform"


def _find_unpadded_queries(comparison: Comparison) -> Array:
    """Return which queries are inside `starts` and `lengths`, so are no padding: bool [B, R]."""
    rule = comparison.problem.visibility
    position = rule.lengths[:, None] - comparison.problem.shape.queries + comparison.queries
    return np.asarray((position >= rule.starts[:, None]) & (position < rule.lengths[:, None]))


def _is_mean_of_values(comparison: Comparison, queries: Array) -> bool:
    """Return whether the queries [B, Hq, R] have the mean of all values as output."""
    expected, observed = comparison.expected, comparison.observed
    unmasked = select_queries(comparison.problem, comparison.queries, np.ones_like(expected.visible))
    mean = reference.evaluate(unmasked._replace(scale=0.0, bias=None, sinks=None)).output
    limit = np.maximum(expected.tolerance, INEXACT_SHARE * np.abs(mean))
    return bool((np.abs(observed - mean) <= limit)[queries].all())


def _check_other_queries(comparison: Comparison, results: CheckResults, known_clean: Set[str]) -> str | None:
    """Check the queries that see a key."""
    problem, expected = comparison.problem, comparison.expected
    if comparison.not_finite.any():
        return _explain_not_finite(comparison, results)
    if not np.isfinite(problem.value_floats(np.float64)).all():
        results.add_clean("hidden-nan-leak")
    if not comparison.comparable.any():
        reason = f"scores up to {expected.largest_score:.3g} are too large for the precision of {problem.dtype}"
        results.add_untestable(reason, *(hypothesis.code for hypothesis in HYPOTHESES), *UNEXPLAINED_CODES)
        return None
    if not comparison.differs.any():
        results.add_clean(*UNEXPLAINED_CODES, "float16-overflow")
        _record_detectable_faults(comparison, results, known_clean)
        return None
    return _explain_difference(comparison, results)


def _explain_difference(comparison: Comparison, results: CheckResults) -> str:
    """Record the hypothesis that predicts the observed output."""
    expected, comparable = comparison.expected, comparison.comparable
    location = comparison.locate(comparison.differs)
    largest_error = float(comparison.error[comparable].max())
    largest_tolerance = float(expected.tolerance[comparable].max())
    for hypothesis in HYPOTHESES:
        for description, output in hypothesis.predict(comparison.problem, comparison.queries):
            remaining = np.abs(comparison.observed - output)
            limit = expected.tolerance + UNEXPLAINED_SHARE * largest_error
            if (remaining <= limit)[comparable].all():
                measured = (
                    f"the output is {description}: within {float(remaining[comparable].max()):.2g} of that, and "
                    f"{largest_error:.3g} from attention, of which rounding explains {largest_tolerance:.2g}"
                )
                results.add_finding(
                    hypothesis.code,
                    measured,
                    location,
                    error=largest_error,
                    tolerance=largest_tolerance,
                    explanation=description,
                )
                return hypothesis.code
    size = float(np.abs(expected.output[comparable]).max())
    code = "inexact" if largest_error <= INEXACT_SHARE * size else "output-differs"
    measured = (
        f"the output is up to {largest_error:.3g} from attention, whose largest value is {size:.3g}; "
        f"rounding explains {largest_tolerance:.2g}"
    )
    results.add_finding(code, measured, location, error=largest_error, tolerance=largest_tolerance)
    return code


def _explain_not_finite(comparison: Comparison, results: CheckResults) -> str:
    """Record why an output is NaN or infinite where the definition is finite."""
    problem, expected = comparison.problem, comparison.expected
    key, value = problem.key_floats(np.float64), problem.value_floats(np.float64)
    hidden = int((~(np.isfinite(key).all(axis=3) & np.isfinite(value).all(axis=3))).sum())
    count, largest = int(comparison.not_finite.sum()), expected.largest_product
    if hidden:
        code = "hidden-nan-leak"
        measured = f"{count} queries are NaN though the {hidden} keys or values that are not finite are hidden"
    elif problem.dtype == "float16" and largest > MAX_FLOAT16:
        code = "float16-overflow"
        measured = f"query . key reaches {largest:.6g}, above {MAX_FLOAT16:g}; {count} queries are NaN or infinite"
    else:
        code = "output-not-finite"
        measured = f"{count} queries are NaN or infinite; scores are at most {expected.largest_score:.4g}"
    location = comparison.locate(comparison.not_finite)
    results.add_finding(code, measured, location, queries=count, largest_product=largest)
    return code


def _record_detectable_faults(comparison: Comparison, results: CheckResults, known_clean: Set[str]) -> None:
    """Record for every hypothesis whether these inputs would have shown its fault."""
    expected = comparison.expected
    for hypothesis in HYPOTHESES:
        if hypothesis.code in known_clean:
            continue
        for _, output in hypothesis.predict(comparison.problem, comparison.queries):
            detectable = np.abs(output - expected.output) > DETECTABLE_FACTOR * expected.tolerance
            if detectable[comparison.comparable].any():
                results.add_clean(hypothesis.code)
                break
        else:
            results.add_untestable(hypothesis.undetectable, hypothesis.code)
