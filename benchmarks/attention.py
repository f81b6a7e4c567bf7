"""Attention alone: keywise and its rivals on the named cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby

import keywise as kw
from benchmarks.backends import RIVALS
from benchmarks.cases import GROUPS, Case
from benchmarks.machine import Limits, measure_limits
from benchmarks.processes import stream
from benchmarks.timing import Effort, Timed, measure
from keywise.errors import OptionError

# What holds torch's own kernels, MKL's and oneDNN's to a target's instructions; they read it when they are loaded.
HELD_TO = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}


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
        Threads of everyone.
    target
        The target that everyone is held to; None for the best of each.
    rivals
        Who takes part.
    effort
        How long to time it.
    """

    case: Case
    group: str
    threads: int
    target: str | None
    rivals: tuple[str, ...]
    effort: Effort


def plan(
    groups: Sequence[str],
    *,
    threads: Sequence[int],
    rivals: Sequence[str] = (),
    only: str = "",
    seconds: float | None = None,
) -> list[Job]:
    """List what there is to measure.

    Parameters
    ----------
    groups
        Names of groups.
    threads
        Numbers of threads, each a run of its own.
    rivals
        Who takes part besides keywise; empty for all.
    only
        Part of the name of the cases wanted.
    seconds
        Time for the rounds of a case; default that of its group.

    Raises
    ------
    OptionError
        If a name is unknown, or no case is left.

    Examples
    --------
    >>> from benchmarks.attention import plan
    >>> [job.rivals for job in plan(["sweep"], threads=[1], only="N=1 D=64")][:1]
    [('keywise', 'torch')]
    """
    for kind, names, known in (("GROUP", groups, GROUPS), ("--rival", rivals, RIVALS)):
        if unknown := sorted(set(names) - set(known)):
            raise OptionError(f"{kind} {unknown[0]!r} is not known; there are {', '.join(known)}")
    jobs = [
        Job(
            case,
            group,
            count,
            GROUPS[group].target,
            _taking_part(group, rivals),
            Effort(GROUPS[group].seconds if seconds is None else seconds),
        )
        for count in threads
        for group in groups
        for case in GROUPS[group].cases
        if only in case.name
    ]
    if not jobs:
        raise OptionError(f"--only {only!r} is in the name of no case of {', '.join(groups)}")
    return sorted(jobs, key=lambda job: (job.threads, job.target or ""))


def _taking_part(group: str, rivals: Sequence[str]) -> tuple[str, ...]:
    possible = GROUPS[group].rivals or tuple(RIVALS)
    return tuple(name for name in possible if not rivals or name in rivals or name.startswith("keywise"))


def run(jobs: Sequence[Job]) -> Iterator[Limits | Timed]:
    """Measure: yields the limits at the beginning of each process, then what each case gave.

    Everyone takes turns in one process per number of threads and target.
    """
    for (threads, target), together in groupby(jobs, key=lambda job: (job.threads, job.target)):
        yield from stream(_measure_all, list(together), target, threads=threads, environment=HELD_TO.get(target or ""))


def _measure_all(jobs: Sequence[Job], target: str | None) -> Iterator[Limits | Timed]:
    with kw.using(target) if target else nullcontext():
        limits = measure_limits(kw.get_num_threads())
        yield limits
        for job in jobs:
            timed = Timed(job.case, job.group, limits.threads, limits.target)
            measure(timed, {name: RIVALS[name] for name in job.rivals}, job.effort)
            yield timed
