"""Tables of attention runs: ratios of medians, the machine's limits, and the excluded backends."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import groupby

from benchmarks.backends import BASELINES, KEYWISE, KEYWISE_STATISTICS, TORCH
from benchmarks.cases import GROUPS
from benchmarks.machine import Limits
from benchmarks.markdown import format_number, format_table, format_threads
from benchmarks.timing import Timing

LEGEND = (
    "ms, GFLOP/s and GB/s are those of `kw.attend`, from medians; operations of hidden keys do not count, keys and "
    "values count once. *of limit*: the least time of the case by the measured limits of arithmetic and memory, "
    "divided by keywise's time (keys and values that stay in a cache can exceed it). *spread*: interquartile range "
    "divided by the median. *statistics*: time of `kw.attention_stats` with every statistic, divided by that of "
    "`kw.attend`. Under each baseline: its time divided by keywise's, above 1 where keywise is faster; the fastest "
    "baseline in bold."
)


def format_attention_tables(runs: Sequence[tuple[Sequence[Timing], Sequence[Limits]]]) -> str:
    """Format one table per group, target, number of threads and run.

    The cases of a run are compared with its own limits. Sweeps of several runs share one table.
    """
    order = list(GROUPS)
    known_limits = {
        (run, limits.target, limits.threads): limits for run, (_, several) in enumerate(runs) for limits in several
    }
    members = [(run, timing) for run, (timings, _) in enumerate(runs) for timing in timings]

    def get_place(member: tuple[int, Timing]) -> tuple[int, str, int, int]:
        run, timing = member
        return order.index(timing.group), timing.target, timing.threads, 0 if timing.group == "sweep" else run

    parts = [LEGEND]
    for (group_number, target, threads, _), grouped in groupby(sorted(members, key=get_place), key=get_place):
        same_place = list(grouped)
        group = order[group_number]
        limits = known_limits[same_place[0][0], target, threads]
        timings = [timing for _, timing in same_place]
        heading = f"**{group}**, {format_threads(threads)}: {GROUPS[group].description}. {_describe_limits(limits)}"
        parts += [heading, _format_sweep(timings) if group == "sweep" else _format_cases(timings, limits)]
    return "\n\n".join(parts)


def _describe_limits(limits: Limits) -> str:
    rates = limits.operations_per_second
    return (
        f"Target {limits.target}; measured limits: {rates['float32'] / 1e9:.0f} GFLOP/s in float32, "
        f"{rates['bfloat16'] / 1e9:.0f} in bfloat16, {limits.read_bytes_per_second / 1e9:.1f} GB/s read."
    )


def _format_cases(timings: Sequence[Timing], limits: Limits) -> str:
    names = [name for name in BASELINES if any(name in timing.seconds_per_call for timing in timings)]
    columns = ["case", "ms", "GFLOP/s", "GB/s", "of limit", "spread", "statistics", *names]
    rows = [_format_case(timing, limits, names) for timing in timings if KEYWISE in timing.seconds_per_call]
    return "\n\n".join([format_table(columns, rows), *_format_excluded(timings)])


def _format_case(timing: Timing, limits: Limits, names: Sequence[str]) -> list[str]:
    seconds = timing.median_seconds(KEYWISE)
    ratios = {name: timing.median_seconds(name) / seconds for name in names if name in timing.seconds_per_call}
    fastest = min(ratios, key=lambda name: ratios[name], default="")
    cells = {name: f"**{ratio:.2f}**" if name == fastest else f"{ratio:.2f}" for name, ratio in ratios.items()}
    has_statistics = KEYWISE_STATISTICS in timing.seconds_per_call
    return [
        timing.case.name,
        format_number(seconds * 1e3),
        format_number(timing.case.operations / seconds / 1e9),
        format_number(timing.case.key_value_bytes / seconds / 1e9),
        f"{limits.compute_min_seconds(timing.case) / seconds:.0%}",
        f"{timing.relative_spread(KEYWISE):.0%}",
        f"{timing.median_seconds(KEYWISE_STATISTICS) / seconds:.2f}" if has_statistics else "",
        *(cells.get(name, "") for name in names),
    ]


def _format_excluded(timings: Sequence[Timing]) -> Iterator[str]:
    """List the excluded backends and their reasons.

    The number of cases is added where it is not all of them.
    """
    cases: dict[tuple[str, str], int] = {}
    for timing in timings:
        for reason in timing.excluded.items():
            cases[reason] = cases.get(reason, 0) + 1
    if cases:
        parts = (
            f"{name}{'' if count == len(timings) else f' in {count} of {len(timings)} cases'} ({reason})"
            for (name, reason), count in cases.items()
        )
        yield f"Not timed: {'; '.join(parts)}."


def _format_sweep(timings: Sequence[Timing]) -> str:
    """Summarise a sweep, and list the cases in which torch was faster."""
    both = [timing for timing in timings if {KEYWISE, TORCH} <= set(timing.seconds_per_call)]
    ratios = [timing.median_seconds(TORCH) / timing.median_seconds(KEYWISE) for timing in both]
    summary = (
        f"{len(both)} problems; torch's time divided by keywise's: median {statistics.median(ratios):.2f}, "
        f"least {min(ratios):.2f}; torch was faster in {sum(ratio < 1 for ratio in ratios)}."
    )
    rows = [
        [timing.case.name, format_number(timing.median_seconds(KEYWISE) * 1e3), f"{ratio:.2f}"]
        for ratio, timing in sorted(zip(ratios, both, strict=True), key=lambda pair: (pair[0], pair[1].case.name))
        if ratio < 1
    ]
    table = [format_table(["case", "ms", "torch"], rows)] if rows else []
    return "\n\n".join([summary, *table, *_format_excluded(timings)])
