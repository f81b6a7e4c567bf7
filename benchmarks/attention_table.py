"""Runs of `keywise bench attention` as Markdown: ratios of medians, the machine's limit, and who was not timed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import groupby

from benchmarks.backends import KEYWISE, OURS, READ, RIVALS, TORCH
from benchmarks.cases import GROUPS
from benchmarks.machine import Limits
from benchmarks.markdown import number, table, thread_count
from benchmarks.timing import Timed

LEGEND = (
    "ms, GFLOP/s and GB/s are keywise's without readings, from medians; operations of hidden keys do not count, keys "
    "and values count once. *of limit*: the time that the operations at the measured peak, or reading keys and values "
    "at the measured bandwidth of memory, take at least, over keywise's time (keys and values that stay in a cache can "
    "pass it). *spread*: the distance of keywise's quartiles over its median. *read*: time with every reading over "
    "that without. Under each rival: its time over keywise's, above 1 where keywise is faster; the fastest in bold."
)


def attention_tables(runs: Sequence[tuple[Sequence[Timed], Sequence[Limits]]]) -> str:
    """Write one table per group, target, number of threads and run, whose own limits it is held to; sweeps are one."""
    order = list(GROUPS)
    known = {(run, limit.target, limit.threads): limit for run, (_, limits) in enumerate(runs) for limit in limits}
    members = [(run, timed) for run, (timings, _) in enumerate(runs) for timed in timings]

    def place(member: tuple[int, Timed]) -> tuple[int, str, int, int]:
        run, timed = member
        return order.index(timed.group), timed.target, timed.threads, 0 if timed.group == "sweep" else run

    parts = [LEGEND]
    for (number_of_group, target, count, _), found in groupby(sorted(members, key=place), key=place):
        together, group = list(found), order[number_of_group]
        limit, those = known[together[0][0], target, count], [timed for _, timed in together]
        heading = f"**{group}**, {thread_count(count)}: {GROUPS[group].what}. {_limits(limit)}"
        parts += [heading, _sweep(those) if group == "sweep" else _table(those, limit)]
    return "\n\n".join(parts)


def _limits(limits: Limits) -> str:
    peaks = limits.operations_per_second
    plain, pairs = peaks["float32"] / 1e9, peaks["bfloat16"] / 1e9
    return (
        f"Target {limits.target}; measured limits: {plain:.0f} GFLOP/s in float32, {pairs:.0f} in bfloat16, "
        f"{limits.read_bytes_per_second / 1e9:.1f} GB/s read."
    )


def _table(timings: Sequence[Timed], limits: Limits) -> str:
    rivals = [name for name in RIVALS if name not in OURS and any(name in timed.samples for timed in timings)]
    columns = ["case", "ms", "GFLOP/s", "GB/s", "of limit", "spread", "read", *rivals]
    rows = [_row(timed, limits, rivals) for timed in timings if KEYWISE in timed.samples]
    return "\n\n".join([table(columns, rows), *_left_out(timings)])


def _row(timed: Timed, limits: Limits, rivals: Sequence[str]) -> list[str]:
    own = timed.seconds(KEYWISE)
    ratios = {name: timed.seconds(name) / own for name in rivals if name in timed.samples}
    fastest = min(ratios, key=lambda name: ratios[name], default="")
    written = {name: f"**{ratio:.2f}**" if name == fastest else f"{ratio:.2f}" for name, ratio in ratios.items()}
    return [
        timed.case.name,
        number(own * 1e3),
        number(timed.case.operations / own / 1e9),
        number(timed.case.key_value_bytes / own / 1e9),
        f"{limits.least_seconds(timed.case) / own:.0%}",
        f"{timed.spread(KEYWISE):.0%}",
        f"{timed.seconds(READ) / own:.2f}" if READ in timed.samples else "",
        *(written.get(name, "") for name in rivals),
    ]


def _left_out(timings: Sequence[Timed]) -> Iterator[str]:
    """Say who was not timed and why, the cases by name where it was not all of them."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for timed in timings:
        for name, reason in timed.excluded.items():
            reasons.setdefault((name, reason), []).append(timed.case.name)
    if reasons:
        said = (
            f"{name}{'' if len(cases) == len(timings) else f' in {len(cases)} of {len(timings)} cases'} ({reason})"
            for (name, reason), cases in reasons.items()
        )
        yield f"Not timed: {'; '.join(said)}."


def _sweep(timings: Sequence[Timed]) -> str:
    """Sum a sweep up, and list where torch was faster."""
    both = [timed for timed in timings if KEYWISE in timed.samples and TORCH in timed.samples]
    ratios = {timed.case: timed.seconds(TORCH) / timed.seconds(KEYWISE) for timed in both}
    slower = sorted(
        (ratio, case.name, timed) for timed in both for case, ratio in [(timed.case, ratios[timed.case])] if ratio < 1
    )
    said = (
        f"{len(both)} problems; torch's time over keywise's: median {statistics.median(ratios.values()):.2f}, "
        f"least {min(ratios.values()):.2f}; torch was faster in {len(slower)}."
    )
    rows = [[name, number(timed.seconds(KEYWISE) * 1e3), f"{ratio:.2f}"] for ratio, name, timed in slower]
    return "\n\n".join([said, *([table(["case", "ms", "torch"], rows)] if rows else []), *_left_out(timings)])
