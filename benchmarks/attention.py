"""Attention alone: keywise and its baselines on the named cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby

import keywise as kw
from benchmarks.backends import BACKENDS, KEYWISE_BACKENDS
from benchmarks.cases import GROUPS, Case
from benchmarks.choices import check_choices
from benchmarks.machine import Limits, measure_limits
from benchmarks.processes import run_in_process
from benchmarks.timing import TimeBudget, Timing, measure_case
from keywise.errors import OptionError

# torch, MKL and oneDNN read these when they are loaded.
TARGET_ENVIRONMENT = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}
"""Environment that restricts torch to a target's instructions."""


@dataclass(frozen=True)
class Job:
    """One case to measure.

    Attributes
    ----------
    case
        The case.
    group
        The name of its group.
    threads
        Number of threads of every backend.
    target
        The target that every backend is restricted to; None for the best of each.
    backends
        Names of the backends.
    budget
        How long to time it.
    """

    case: Case
    group: str
    threads: int
    target: str | None
    backends: tuple[str, ...]
    budget: TimeBudget


def plan_jobs(
    groups: Sequence[str],
    *,
    threads: Sequence[int],
    baselines: Sequence[str] = (),
    only: str = "",
    seconds: float | None = None,
) -> list[Job]:
    """List the cases to measure.

    Parameters
    ----------
    groups
        Names of groups.
    threads
        Numbers of threads, each a run of its own.
    baselines
        Names of the baselines; empty for all.
    only
        Text that the names of the cases must contain.
    seconds
        Time for the rounds of a case; default that of its group.

    Raises
    ------
    OptionError
        A name is unknown, or no case is left.

    Examples
    --------
    >>> from benchmarks.attention import plan_jobs
    >>> [job.backends for job in plan_jobs(["sweep"], threads=[1], only="N=1 D=64")][:1]
    [('keywise', 'torch')]
    """
    check_choices("groups", groups, GROUPS)
    check_choices("baseline", baselines, BACKENDS)
    jobs = [
        Job(
            case,
            group,
            count,
            GROUPS[group].target,
            _select_backends(group, baselines),
            TimeBudget(GROUPS[group].seconds if seconds is None else seconds),
        )
        for count in threads
        for group in groups
        for case in GROUPS[group].cases
        if only in case.name
    ]
    if not jobs:
        raise OptionError("only", f"must be part of the name of a case of {', '.join(groups)}", got=only)
    return sorted(jobs, key=lambda job: (job.threads, job.target or ""))


def _select_backends(group: str, baselines: Sequence[str]) -> tuple[str, ...]:
    possible = GROUPS[group].backends or tuple(BACKENDS)
    return tuple(name for name in possible if not baselines or name in baselines or name in KEYWISE_BACKENDS)


def run_jobs(jobs: Sequence[Job]) -> Iterator[Limits | Timing]:
    """Measure jobs, in one process per number of threads and target.

    Yields
    ------
    Limits or Timing
        The limits at the beginning of each process, then the result of each case.
    """
    for (threads, target), members in groupby(jobs, key=lambda job: (job.threads, job.target)):
        environment = TARGET_ENVIRONMENT.get(target or "")
        yield from run_in_process(_measure_jobs, list(members), target, threads=threads, environment=environment)


def _measure_jobs(jobs: Sequence[Job], target: str | None) -> Iterator[Limits | Timing]:
    with kw.using(target) if target else nullcontext():
        limits = measure_limits(kw.get_num_threads())
        yield limits
        for job in jobs:
            timing = Timing(job.case, job.group, limits.threads, limits.target)
            measure_case(timing, {name: BACKENDS[name] for name in job.backends}, job.budget)
            yield timing
