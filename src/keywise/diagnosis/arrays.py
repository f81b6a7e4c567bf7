"""Examine one attention call from its arrays: `check`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keywise.attention import reference
from keywise.attention.arrays import FLOATS, Array, as_host_array
from keywise.attention.problem import Problem, make_problem
from keywise.diagnosis.definition import ROUNDING_UNITS, choose_queries, compute_expected, select_queries
from keywise.diagnosis.explanation import check_output
from keywise.diagnosis.findings import Diagnosis, Location
from keywise.diagnosis.inspection import check_finite_inputs, inspect_call
from keywise.diagnosis.results import CheckResults
from keywise.errors import DtypeError, ShapeError
from keywise.util.checks import check_int

SAMPLED_QUERIES = 64
PLACE = "the arrays"


def check(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    output: Any = None,
    lse: Any = None,
    rows: int = SAMPLED_QUERIES,
) -> Diagnosis:
    """Diagnose one call of attention from its inputs and its output.

    A sample of the queries is compared with the float64 definition, so memory is linear in the number of keys.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks
        The problem that attention should solve, as in `keywise.attend`.
    output : float array [B, Hq, Q, Dv], optional
        The output to check, in the query's dtype or a wider one.
    lse : float array [B, Hq, Q], optional
        The log-sum-exp of the scores to check, in nats, sinks included.
    rows : int
        Largest number of queries to compare.

    Returns
    -------
    Diagnosis

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used.

    Examples
    --------
    >>> import numpy as np, keywise as kw, keywise.diagnosis
    >>> x = np.random.default_rng(0).normal(size=(1, 2, 12, 8)).astype(np.float32)
    >>> wrong = kw.attend(x, x, x, mask=kw.Mask(causal=True), scale=1.0)
    >>> keywise.diagnosis.check(x, x, x, mask=kw.Mask(causal=True), output=wrong).codes
    ('scale-missing',)
    """
    problem = make_problem(
        query, key, value, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, first_key=0
    )
    shape = problem.shape
    queries = choose_queries(shape.queries, check_int("rows", rows, minimum=1))
    lse_shape = (shape.batch, shape.query_heads, shape.queries)
    observed_output = None if output is None else _read_array("output", output, (*lse_shape, shape.value_dim))
    observed_lse = None if lse is None else _read_array("lse", lse, lse_shape)
    results = CheckResults()
    if shape.keys and shape.queries:
        finite_results, finite = check_finite_inputs(problem, queries, PLACE)
        results.merge(finite_results)
        expected = compute_expected(select_queries(problem, queries))
        if observed_output is not None:
            explained = check_output(problem, queries, observed_output[:, :, queries], "output", expected=expected)
            results.merge(explained.results)
        if finite:
            results.merge(inspect_call(problem, expected, PLACE))
        if finite and observed_lse is not None:
            results.merge(_check_lse(problem, queries, observed_lse[:, :, queries]))
    query_shape = f"[{shape.batch}, {shape.query_heads}, {shape.queries}, {shape.head_dim}]"
    return results.make_diagnosis(f"attention {query_shape} over {shape.keys} keys in {problem.dtype}")


def _read_array(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """Return an observed array as float64."""
    array = as_host_array(name, value)
    if array.dtype not in FLOATS:
        raise DtypeError(name, f"must have dtype {', '.join(FLOATS)}", got=array.dtype)
    if array.data.shape != shape:
        raise ShapeError(name, f"must have shape {list(shape)}", got=list(array.data.shape))
    return array.floats(np.float64)


def _check_lse(problem: Problem, queries: Array, observed: Array) -> CheckResults:
    """Compare a log-sum-exp with that of the scores, in base e and in base 2."""
    results = CheckResults()
    sample = select_queries(problem, queries)
    expected = reference.evaluate(sample).lse
    assert expected is not None
    finite = np.isfinite(expected)
    largest_score = float(np.abs(reference.compute_raw_scores(sample)).max(initial=0.0))
    unit = max(ROUNDING_UNITS[problem.dtype], ROUNDING_UNITS["float32"])
    tolerance = (4 + problem.shape.head_dim) * unit * (1 + largest_score)
    error = float(np.abs(observed[finite] - expected[finite]).max(initial=0.0))
    if error <= tolerance and np.isneginf(observed[~finite]).all():
        results.add_clean("lse-base", "lse-differs")
        return results
    base_2_error = float(np.abs(observed[finite] * math.log(2) - expected[finite]).max(initial=0.0))
    if base_2_error <= tolerance:
        measured = f"lse is {1 / math.log(2):.4f} times that of the scores: within {base_2_error:.2g} of base 2"
        results.add_finding("lse-base", measured, Location(("lse",)), error=error, error_in_base_2=base_2_error)
    else:
        measured = f"lse is up to {error:.3g} from that of the scores; rounding explains {tolerance:.2g}"
        results.add_finding("lse-differs", measured, Location(("lse",)), error=error, tolerance=tolerance)
    return results
