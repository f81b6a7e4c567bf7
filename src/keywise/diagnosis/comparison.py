"""Compare an observed output with the output of the definition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keywise.attention.arrays import Array
from keywise.attention.problem import Problem
from keywise.diagnosis.definition import Expected, compute_expected, select_queries
from keywise.diagnosis.findings import Location


class Comparison(NamedTuple):
    """An observed output, the expected one, and where the two differ."""

    problem: Problem
    """The problem that attention should solve."""
    queries: Array
    """[R] int: indices of the queries observed."""
    place: str
    """Name of the layer or input, for the findings."""
    observed: Array
    """[B, Hq, R, Dv] float64."""
    expected: Expected
    not_finite: Array
    """[B, Hq, R] bool: the expected output is finite and the observed one is not."""
    comparable: Array
    """[B, Hq, R] bool: the expected output is finite and its rounding error is bounded."""
    error: Array
    """[B, Hq, R, Dv]: |observed - expected|."""
    differs: Array
    """[B, Hq, R] bool: comparable, and the error is beyond rounding."""

    def locate(self, wrong: Array) -> Location:
        """Return the heads and queries in which any of [B, Hq, R] is wrong."""
        heads = np.flatnonzero(wrong.any(axis=(0, 2)))
        in_every_head = heads.size == wrong.shape[1]
        queries = self.queries[wrong.any(axis=(0, 1))]
        return Location((self.place,), () if in_every_head else tuple(heads.tolist()), tuple(queries.tolist()))


def compare_output(
    problem: Problem, queries: Array, observed: Array, place: str, *, expected: Expected | None = None
) -> Comparison:
    """Compare an output with the definition.

    Parameters
    ----------
    problem : Problem
        The problem that attention should solve.
    queries : int [R]
        Indices of the queries observed.
    observed : [B, Hq, R, Dv]
        Their output, as float64.
    place : str
        Name of the layer or input, for the findings.
    expected : Expected, optional
        The definition's output for these queries, if it is known already.

    Returns
    -------
    Comparison
    """
    if expected is None:
        expected = compute_expected(select_queries(problem, queries))
    finite = expected.has_keys & np.isfinite(expected.output).all(axis=3)
    comparable = finite & np.isfinite(expected.tolerance[..., 0])
    with np.errstate(invalid="ignore"):
        error = np.abs(observed - expected.output)
    return Comparison(
        problem=problem,
        queries=queries,
        place=place,
        observed=observed,
        expected=expected,
        not_finite=finite & ~np.isfinite(observed).all(axis=3),
        comparable=comparable,
        error=error,
        differs=comparable & (error > expected.tolerance).any(axis=3),
    )
