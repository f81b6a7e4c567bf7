"""A plot of throughput against length, with the machine's measured limit."""

# ruff: noqa: PLC0415  (matplotlib is optional)

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.backends import BACKENDS, KEYWISE_BACKENDS
from benchmarks.cases import Case
from benchmarks.machine import Limits
from benchmarks.markdown import format_threads
from benchmarks.results import write_file
from benchmarks.timing import Timing
from keywise.errors import OptionError
from keywise.util.optional_imports import require_modules

MIN_LENGTHS = 3
LIMIT = "measured limit"
PICTURE_SUFFIXES = (".svg", ".png", ".pdf")


def plot_throughput(path: Path, timings: Sequence[Timing], limits: Sequence[Limits]) -> None:
    """Draw one panel per shape that was timed at several lengths.

    Prefill is drawn in GFLOP/s, decoding in GB/s of keys and values. The dashed line is the measured limit.

    Parameters
    ----------
    path
        An .svg, .png or .pdf file.
    timings, limits
        Results of a run, and the limits measured in it.

    Raises
    ------
    OptionError
        No shape has three lengths, or the file is of another kind.
    ModelError
        matplotlib is not installed.
    """
    if path.suffix not in PICTURE_SUFFIXES:
        raise OptionError("out", f"must end with {', '.join(PICTURE_SUFFIXES)}", got=str(path))
    panels = _group_panels(timings)
    if not panels:
        raise OptionError(
            "files",
            f"must hold a shape that was timed at {MIN_LENGTHS} lengths or more",
            remedy="run `python -m benchmarks attention lengths`",
        )
    require_modules("bench", "matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    known_limits = {(limit.target, limit.threads): limit for limit in limits}
    for axis, members in zip(axes, panels, strict=False):
        _draw_panel(axis, members, known_limits[members[0].target, members[0].threads])
    for axis in axes[len(panels) :]:
        axis.remove()
    lines = {str(line.get_label()): line for axis in figure.axes for line in axis.get_lines()}
    labels = sorted(lines, key=[*BACKENDS, LIMIT].index)
    figure.legend([lines[label] for label in labels], labels, loc="outside lower center", ncols=5, fontsize=8)
    # Without a date and with fixed identifiers, the same run gives the same file.
    picture = io.BytesIO()
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "keywise", "svg.fonttype": "none"}):
        figure.savefig(picture, format=path.suffix[1:], metadata=metadata, dpi=150)
    write_file(path, picture.getvalue())


def _group_panels(timings: Sequence[Timing]) -> list[list[Timing]]:
    panels: dict[Any, dict[int, Timing]] = {}
    for timing in timings:
        decodes = timing.case.queries == 1
        if decodes or timing.case.queries == timing.case.keys:
            shape = replace(timing.case, keys=0, queries=1 if decodes else 0)
            panels.setdefault((shape, timing.target, timing.threads), {})[timing.case.keys] = timing
    long_enough = [members for members in panels.values() if len(members) >= MIN_LENGTHS]
    return [[members[keys] for keys in sorted(members)] for members in long_enough]


def _draw_panel(axis: Any, members: Sequence[Timing], limits: Limits) -> None:
    case = members[0].case
    decodes = case.queries == 1
    limit = limits.read_bytes_per_second if decodes else limits.operations_per_second[case.dtype]
    for number, name in enumerate(BACKENDS):
        timings = [timing for timing in members if name in timing.seconds_per_call]
        if timings:
            axis.plot(
                [timing.case.keys for timing in timings],
                [_get_work(timing.case) / timing.median_seconds(name) / 1e9 for timing in timings],
                marker="o",
                markersize=3,
                color=f"C{number}",
                linewidth=2.5 if name in KEYWISE_BACKENDS else 1.2,
                label=name,
            )
    axis.axhline(limit / 1e9, color="black", linestyle="--", linewidth=1, label=LIMIT)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter("{x:g}")
    axis.set_xlabel("keys" if decodes else "tokens")
    axis.set_ylabel("GB/s of keys and values" if decodes else "GFLOP/s")
    heads = f"{case.query_heads}/{case.key_heads} heads of {case.head_dim}"
    kind = "decoding" if decodes else f"{case.mask_name} prefill"
    axis.set_title(f"{kind}, {case.dtype}, {heads}, {format_threads(members[0].threads)}", fontsize=10)
    axis.grid(visible=True, which="both", alpha=0.2)


def _get_work(case: Case) -> int:
    return case.key_value_bytes if case.queries == 1 else case.operations
