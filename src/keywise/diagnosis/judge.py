"""Holds somebody's output against the definition, and names the fault that explains the difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from keywise.attention import reference
from keywise.attention.arrays import Array
from keywise.attention.problem import Problem
from keywise.diagnosis.finding import Examination, Where
from keywise.diagnosis.sample import Truth, at_rows, truth
from keywise.diagnosis.suspects import SUSPECTS

LARGEST_FLOAT16 = 65504.0
INEXACT = 1e-2
"""An error beyond rounding but below this share of the largest value is called inexact, not wrong."""
UNEXPLAINED_SHARE = 0.005
"""A fault explains an error when at most this share of it remains, beyond rounding."""
GENERIC = ("output-differs", "output-not-finite", "inexact")


def judge(
    examination: Examination,
    problem: Problem,
    rows: Array,
    observed: Array,
    place: str,
    *,
    right: Truth | None = None,
) -> str | None:
    """Compare an output with the definition and record what explains it.

    Parameters
    ----------
    problem
        What attention was asked to compute.
    rows : int [R]
        The query rows observed.
    observed : [B, Hq, R, Dv]
        Their output, as float64.
    place
        Where it comes from, for the findings.
    right : optional
        What the definition says of these rows, where that is known already.

    Returns
    -------
    str or None
        The code found, None when the output is that of attention.
    """
    right = truth(at_rows(problem, rows)) if right is None else right
    judgement = Judgement(examination, problem, rows, observed, place, right)
    of_dead_rows = judgement.dead_rows()
    return judgement.living_rows() or of_dead_rows


def finite_inputs(examination: Examination, problem: Problem, rows: Array, place: str) -> bool:
    """Look for NaN and infinity where somebody sees them; tell whether every input is finite."""
    query = problem.query.floats(np.float64)[:, :, rows]
    key, value = problem.key_floats(np.float64), problem.value_floats(np.float64)
    group = problem.shape.query_heads // problem.shape.key_heads
    poisoned = np.repeat(~(np.isfinite(key).all(axis=3) & np.isfinite(value).all(axis=3)), group, axis=1)
    seen = reference.visible(problem, rows)
    spoiled: Array = np.asarray((seen & poisoned[:, :, None]).any(axis=3) | ~np.isfinite(query).all(axis=3))
    if spoiled.any():
        heads = tuple(np.flatnonzero(spoiled.any(axis=(0, 2))).tolist())
        wrong_rows = tuple(rows[spoiled.any(axis=(0, 1))].tolist())
        measured = f"{int(spoiled.sum())} of {spoiled.size} rows looked at meet NaN or infinity in query, key or value"
        examination.found("input-not-finite", measured, Where((place,), heads, wrong_rows), rows=int(spoiled.sum()))
    else:
        examination.clean("input-not-finite")
    if not poisoned.any():
        examination.untestable("every key and value is finite", "hidden-nan-leak")
    return not poisoned.any() and not spoiled.any()


@dataclass(frozen=True, eq=False)
class Judgement:
    """An output beside the truth."""

    examination: Examination
    problem: Problem
    rows: Array
    observed: Array
    place: str
    right: Truth

    def where(self, wrong: Array) -> Where:
        """Name heads and rows in which any of [B, Hq, R] is wrong."""
        heads = np.flatnonzero(wrong.any(axis=(0, 2)))
        every = heads.size == wrong.shape[1]
        wrong_rows = self.rows[wrong.any(axis=(0, 1))]
        return Where((self.place,), () if every else tuple(heads.tolist()), tuple(wrong_rows.tolist()))

    def real_rows(self) -> Array:
        """Tell which rows stand at a key that `starts` and `lengths` leave visible, so are no padding: bool [B, R]."""
        rule = self.problem.visibility
        own = rule.lengths[:, None] - self.problem.shape.queries + self.rows
        return np.asarray((own >= rule.starts[:, None]) & (own < rule.lengths[:, None]))

    def dead_rows(self) -> str | None:
        """Judge the rows that may see no key and are no padding: their output is 0."""
        right, observed = self.right, self.observed
        dead = ~right.alive & self.real_rows()[:, None]
        if not dead.any():
            reason = "every query that is no padding sees a key"
            self.examination.untestable(reason, "dead-row-nan", "dead-row-uniform")
            return None
        broken = dead & ~np.isfinite(observed).all(axis=3)
        if broken.any():
            measured = f"{int(broken.sum())} rows without a visible key are NaN or infinite, expected 0"
            self.examination.found("dead-row-nan", measured, self.where(broken), rows=int(broken.sum()))
            return "dead-row-nan"
        filled = dead & (np.abs(observed) > right.tolerance).any(axis=3)
        if not filled.any():
            self.examination.clean("dead-row-nan", "dead-row-uniform")
            return None
        every_key = at_rows(self.problem, self.rows, np.ones_like(right.seen))
        even = reference.evaluate(every_key._replace(scale=0.0, bias=None, sinks=None)).output
        mean = bool((np.abs(observed - even) <= np.maximum(right.tolerance, INEXACT * np.abs(even)))[filled].all())
        measured = (
            f"{int(filled.sum())} rows without a visible key have output up to {np.abs(observed[filled]).max():.3g}"
            f"{', the mean of all values' if mean else ''}; expected 0"
        )
        self.examination.found("dead-row-uniform", measured, self.where(filled), rows=int(filled.sum()), mean=mean)
        return "dead-row-uniform"

    def living_rows(self) -> str | None:
        """Judge the rows that see a key."""
        right, observed = self.right, self.observed
        finite = right.alive & np.isfinite(right.output).all(axis=3)
        broken = finite & ~np.isfinite(observed).all(axis=3)
        if broken.any():
            return self._not_finite(broken)
        if not np.isfinite(self.problem.value_floats(np.float64)).all():
            self.examination.clean("hidden-nan-leak")
        counted = finite & np.isfinite(right.tolerance[..., 0])
        if not counted.any():
            reason = f"{self.problem.dtype} cannot hold these scores (up to {right.largest_score:.3g}) well enough"
            self.examination.untestable(reason, *(suspect.code for suspect in SUSPECTS), *GENERIC)
            return None
        with np.errstate(invalid="ignore"):
            error = np.abs(observed - right.output)
        wrong = counted & (error > right.tolerance).any(axis=3)
        if not wrong.any():
            self.examination.clean(*GENERIC, "float16-overflow")
            self._note_what_would_show(counted)
            return None
        return self._explained(counted, error, self.where(wrong))

    def _explained(self, counted: Array, error: Array, where: Where) -> str:
        """Name the fault that would have given this output."""
        right = self.right
        worst, bound = float(error[counted].max()), float(right.tolerance[counted].max())
        for suspect in SUSPECTS:
            for words, output in suspect.outcomes(self.problem, self.rows):
                left = np.abs(self.observed - output)
                if (left <= right.tolerance + UNEXPLAINED_SHARE * worst)[counted].all():
                    measured = (
                        f"the output is {words}: within {float(left[counted].max()):.2g} of that, and {worst:.3g} from "
                        f"attention, of which rounding explains {bound:.2g}"
                    )
                    evidence: dict[str, Any] = {"error": worst, "tolerance": bound, "explanation": words}
                    self.examination.found(suspect.code, measured, where, **evidence)
                    return suspect.code
        size = float(np.abs(right.output[counted]).max())
        code = "inexact" if worst <= INEXACT * size else "output-differs"
        measured = f"the output is up to {worst:.3g} from attention, of size {size:.3g}; rounding explains {bound:.2g}"
        self.examination.found(code, measured, where, error=worst, tolerance=bound)
        return code

    def _not_finite(self, broken: Array) -> str:
        problem, right = self.problem, self.right
        key, value = problem.key_floats(np.float64), problem.value_floats(np.float64)
        poisoned = int((~(np.isfinite(key).all(axis=3) & np.isfinite(value).all(axis=3))).sum())
        count, largest = int(broken.sum()), right.largest_product
        if poisoned:
            code = "hidden-nan-leak"
            measured = (
                f"{count} rows are NaN though the {poisoned} keys or values that are not finite are hidden from them"
            )
        elif problem.dtype == "float16" and largest > LARGEST_FLOAT16:
            code = "float16-overflow"
            measured = f"query . key reaches {largest:.6g}, above {LARGEST_FLOAT16:g}; {count} rows are lost"
        else:
            code = "output-not-finite"
            measured = f"{count} rows are NaN or infinite; scores are at most {right.largest_score:.4g}"
        self.examination.found(code, measured, self.where(broken), rows=count, largest_product=largest)
        return code

    def _note_what_would_show(self, counted: Array) -> None:
        """Say of every suspect whether these inputs would have given it away."""
        for suspect in SUSPECTS:
            if self.examination.is_clean(suspect.code):
                continue
            shows = any(
                bool((np.abs(output - self.right.output) > 4 * self.right.tolerance)[counted].any())
                for _, output in suspect.outcomes(self.problem, self.rows)
            )
            if shows:
                self.examination.clean(suspect.code)
            else:
                self.examination.untestable(suspect.invisible, suspect.code)
