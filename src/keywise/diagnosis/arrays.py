"""Examines one call of attention from its arrays, and somebody's output of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keywise.attention import reference
from keywise.attention.arrays import FLOATS, Array, as_host_array
from keywise.attention.problem import Problem, make_problem
from keywise.diagnosis.finding import Diagnosis, Examination, Where
from keywise.diagnosis.judge import finite_inputs, judge
from keywise.diagnosis.sample import UNITS, at_rows, choose_rows, truth
from keywise.diagnosis.statistics import inspect
from keywise.errors import DtypeError, ShapeError
from keywise.util.checks import check_int

ROWS = 64


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
    rows: int = ROWS,
) -> Diagnosis:
    """Say what is wrong with one call of attention, and with somebody's output of it.

    A sample of the query rows is compared with the float64 definition, so memory is linear in the number of keys.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks
        As in `keywise.attend`: what should be computed.
    output : [B, Hq, Q, Dv], optional
        What somebody computed from them, in the query's dtype or a wider one.
    lse : [B, Hq, Q], optional
        Their log-sum-exp of the scores, in nats, sinks included.
    rows : int
        Most query rows to look at.

    Returns
    -------
    Diagnosis

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        Naming the argument, its value and what would work.

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
    chosen = choose_rows(problem.shape.queries, check_int("rows", rows, minimum=1))
    given = {
        name: _given(name, array, shape)
        for name, array, shape in (
            ("output", output, (*_rows_shape(problem), problem.shape.value_dim)),
            ("lse", lse, _rows_shape(problem)),
        )
        if array is not None
    }
    examination = Examination()
    batch, query_heads, _, queries, keys, head_dim, _ = problem.shape
    subject = f"attention [{batch}, {query_heads}, {queries}, {head_dim}] over {keys} keys in {problem.dtype}"
    if keys and queries:
        finite = finite_inputs(examination, problem, chosen, "the arrays")
        right = truth(at_rows(problem, chosen))
        if "output" in given:
            judge(examination, problem, chosen, given["output"][:, :, chosen], "output", right=right)
        if finite:
            inspect(examination, problem, right, "the arrays")
            if "lse" in given:
                _lse(examination, problem, chosen, given["lse"][:, :, chosen])
    return examination.diagnosis(subject)


def _rows_shape(problem: Problem) -> tuple[int, int, int]:
    return problem.shape.batch, problem.shape.query_heads, problem.shape.queries


def _given(name: str, array: Any, shape: tuple[int, ...]) -> Array:
    taken = as_host_array(name, array)
    if taken.dtype not in FLOATS:
        raise DtypeError(f"{name} has dtype {taken.dtype}; it is one of {', '.join(FLOATS)}")
    if taken.data.shape != shape:
        raise ShapeError(f"{name} has shape {list(taken.data.shape)}; it needs {list(shape)}")
    return taken.floats(np.float64)


def _lse(examination: Examination, problem: Problem, rows: Array, observed: Array) -> None:
    sample = at_rows(problem, rows)
    right = reference.evaluate(sample).lse
    assert right is not None
    alive = np.isfinite(right)
    largest = float(np.abs(reference.raw_scores(sample)).max(initial=0.0))
    unit = max(UNITS[problem.dtype], UNITS["float32"])
    tolerance = (4 + problem.shape.head_dim) * unit * (1 + largest)
    error = float(np.abs(observed[alive] - right[alive]).max(initial=0.0))
    if error <= tolerance and np.isneginf(observed[~alive]).all():
        examination.clean("lse-base", "lse-differs")
        return
    base_two = float(np.abs(observed[alive] * math.log(2) - right[alive]).max(initial=0.0))
    if base_two <= tolerance:
        measured = f"lse is {1 / math.log(2):.4f} times that of the scores: within {base_two:.2g} of base 2"
        examination.found("lse-base", measured, Where(("lse",)), error=error, error_in_base_2=base_two)
    else:
        measured = f"lse is up to {error:.3g} from that of the scores; rounding explains {tolerance:.2g}"
        examination.found("lse-differs", measured, Where(("lse",)), error=error, tolerance=tolerance)
