"""Timings and limits of attention runs."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.machine import Limits
from benchmarks.results import CREATE_AGAIN, Run
from benchmarks.timing import Timing
from keywise.errors import FormatError


def collect_timings(runs: Sequence[Run]) -> tuple[list[Timing], list[Limits]]:
    """Return the timings of attention runs, and the limits measured in them.

    Raises
    ------
    FormatError
        A run is of another kind, or damaged.
    """
    timings: list[Timing] = []
    limits: list[Limits] = []
    for run in runs:
        if run.kind != "attention":
            raise FormatError("path", f"{str(run.path)!r} must be a run of kind attention, got kind {run.kind!r}")
        try:
            limits += [Limits(**values) for values in run.limits]
            timings += [Timing.from_dict(values) for values in run.results]
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError("path", f"{str(run.path)!r} is damaged: {error!r}", remedy=CREATE_AGAIN) from error
    return timings, limits
