"""Short tables for docs/performance.md: each answers a user's question, over several machines."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence

from benchmarks import cache, memory, model
from benchmarks.backends import KEYWISE, KEYWISE_STATISTICS
from benchmarks.cases import Case
from benchmarks.markdown import format_number, format_table
from benchmarks.results import Run
from benchmarks.timing import Timing
from benchmarks.timings import collect_timings

THREADS = 2
BASELINE_COLUMNS = {
    "torch": ("torch",),
    "torch eager": ("torch eager",),
    "ONNX Runtime": ("ONNX Runtime MHA", "ONNX Runtime GQA"),
    "OpenVINO": ("OpenVINO", "OpenVINO cache"),
    "JAX": ("JAX",),
}
"""Columns of a summary, and the baselines of which each shows the fastest."""


def format_summary(name: str, runs: Sequence[Run]) -> str:
    """Format a summary, and the commands of its runs.

    Parameters
    ----------
    name
        A name in `SUMMARIES`.
    runs
        The runs; the folder of each one's file names its machine.
    """
    machines: dict[str, list[str]] = {}
    for run in runs:
        machines.setdefault(run.command, []).append(_name_machine(run))
    commands = "; ".join(f"`{command}` ({', '.join(members)})" for command, members in machines.items())
    return f"{SUMMARIES[name](runs)}\n\n{commands}."


def _name_machine(run: Run) -> str:
    return run.path.parent.name if run.path else "this machine"


def _format_machines(runs: Sequence[Run]) -> str:
    rows: dict[str, list[str]] = {}
    for run in runs:
        limits = next(limits for limits in collect_timings([run])[1] if limits.threads == THREADS)
        rows[_name_machine(run)] = [
            _name_machine(run),
            f"{run.machine['cpu']}, {run.machine['cpus']} CPUs",
            f"{limits.operations_per_second['float32'] / 1e9:.0f}",
            f"{limits.operations_per_second['bfloat16'] / 1e9:.0f}",
            f"{limits.read_bytes_per_second / 1e9:.0f}",
        ]
    columns = ["", "machine", "GFLOP/s, float32", "GFLOP/s, bfloat16", "GB/s read"]
    return format_table(columns, rows.values())


def _select_timings(runs: Sequence[Run], is_selected: Callable[[Timing], bool]) -> Iterator[tuple[str, Timing]]:
    for run in runs:
        for timing in collect_timings([run])[0]:
            if timing.threads == THREADS and KEYWISE in timing.seconds_per_call and is_selected(timing):
                yield _name_machine(run), timing


def _format_ratios(timings: Sequence[tuple[str, Timing]], describe: Callable[[Case], str]) -> str:
    rows = []
    for machine, timing in sorted(timings, key=lambda pair: describe(pair[1].case)):
        seconds = timing.median_seconds(KEYWISE)
        cells = []
        for names in BASELINE_COLUMNS.values():
            times = [timing.median_seconds(name) for name in names if name in timing.seconds_per_call]
            cells.append(f"{min(times) / seconds:.2f}" if times else "")
        rows.append([describe(timing.case), machine, format_number(seconds * 1e3), *cells])
    return format_table(["", "machine", "keywise, ms", *BASELINE_COLUMNS], rows)


def _format_prefill(runs: Sequence[Run]) -> str:
    def is_shown(timing: Timing) -> bool:
        case = timing.case
        return (case.query_heads, case.key_heads, case.head_dim) == (8, 8, 64)

    def describe(case: Case) -> str:
        return f"{case.dtype}, {case.mask_name}, {case.queries} tokens"

    return _format_ratios(list(_select_timings(runs, is_shown)), describe)


def _format_decode(runs: Sequence[Run]) -> str:
    def is_shown(timing: Timing) -> bool:
        case = timing.case
        return case.keys == 8192 and case.query_heads != 9

    def describe(case: Case) -> str:
        return f"{case.dtype}, {case.query_heads}/{case.key_heads} heads of {case.head_dim}, {case.keys} keys"

    return _format_ratios(list(_select_timings(runs, is_shown)), describe)


def _format_statistics(runs: Sequence[Run]) -> str:
    ratios: dict[str, dict[str, list[float]]] = {}
    machines = list(dict.fromkeys(_name_machine(run) for run in runs))
    for machine, timing in _select_timings(runs, lambda timing: KEYWISE_STATISTICS in timing.seconds_per_call):
        label = f"{timing.group}, {timing.case.dtype}"
        ratio = timing.median_seconds(KEYWISE_STATISTICS) / timing.median_seconds(KEYWISE)
        ratios.setdefault(label, {}).setdefault(machine, []).append(ratio)
    rows = []
    for label, members in ratios.items():
        cells = []
        for machine in machines:
            several = members.get(machine)
            cells.append(f"{statistics.geometric_mean(several):.2f} ({max(several):.2f})" if several else "")
        rows.append([label, *cells])
    return format_table(["", *machines], rows)


def _format_model(runs: Sequence[Run]) -> str:
    names = (model.SDPA, model.EAGER, model.KEYWISE, model.KEYWISE_CACHE, model.KEYWISE_STATISTICS)
    rows = []
    for run in runs:
        for result in run.results:
            seconds = model.compute_token_seconds(result)
            cells = [model.format_speed(result, seconds[name]) if name in seconds else "" for name in names]
            fastest = min(seconds[name] for name in names[2:] if name in seconds)
            label = f"{result['dtype']}, {model.describe_task(result)}"
            rows.append([label, _name_machine(run), *cells, f"{seconds[model.SDPA] / fastest:.2f}"])
    rows.sort(key=lambda row: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row[0])])
    return format_table(["", "machine", *names, "sdpa ÷ fastest keywise"], rows)


def _format_questions(runs: Sequence[Run]) -> str:
    results = [result for run in runs for result in run.results if result["task"] == "question"]
    return cache.format_questions(results)


SUMMARIES: dict[str, Callable[[Sequence[Run]], str]] = {
    "machines": _format_machines,
    "prefill": _format_prefill,
    "decode": _format_decode,
    "statistics": _format_statistics,
    "model": _format_model,
    "memory": memory.format_tables,
    "questions": _format_questions,
}
"""A function that formats each summary."""
