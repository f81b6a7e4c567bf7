"""Runs as a picture: throughput against length, log-log, with the machine's limit drawn in."""

# ruff: noqa: PLC0415  (matplotlib is optional)

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.backends import OURS, RIVALS
from benchmarks.cases import Case
from benchmarks.machine import Limits
from benchmarks.markdown import thread_count
from benchmarks.timing import Timed
from keywise.documents.report import write_text_file
from keywise.errors import OptionError
from keywise.util.optional_imports import require_modules

FEWEST_LENGTHS = 3
LIMIT = "measured limit"
KINDS = (".svg", ".png", ".pdf")


def draw(path: Path, timings: Sequence[Timed], limits: Sequence[Limits]) -> None:
    """Draw one panel per shape that was timed at several lengths.

    Prefill is drawn in GFLOP/s, decoding in GB/s of keys and values; the dashed line is the measured limit.

    Parameters
    ----------
    path
        An .svg, .png or .pdf file.
    timings, limits
        What was measured.

    Raises
    ------
    OptionError
        If no shape has three lengths, or the file is of another kind.
    ModelError
        If matplotlib is not installed.
    """
    if path.suffix not in KINDS:
        raise OptionError(f"--out {str(path)!r}: a picture is one of {', '.join(KINDS)}")
    panels = _panels(timings)
    if not panels:
        raise OptionError(
            f"no shape was timed at {FEWEST_LENGTHS} lengths or more; run `keywise bench attention lengths`"
        )
    require_modules("bench", "matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    known = {(limit.target, limit.threads): limit for limit in limits}
    for axis, members in zip(axes, panels, strict=False):
        _panel(axis, members, known[members[0].target, members[0].threads])
    for axis in axes[len(panels) :]:
        axis.remove()
    lines = {str(line.get_label()): line for axis in figure.axes for line in axis.get_lines()}
    labels = sorted(lines, key=[*RIVALS, LIMIT].index)
    figure.legend([lines[label] for label in labels], labels, loc="outside lower center", ncols=5, fontsize=8)
    # Without a date and with fixed names, the same run gives the same file.
    picture = io.BytesIO()
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "keywise", "svg.fonttype": "none"}):
        figure.savefig(picture, format=path.suffix[1:], metadata=metadata, dpi=150)
    write_text_file(path, picture.getvalue())


def _panels(timings: Sequence[Timed]) -> list[list[Timed]]:
    panels: dict[Any, list[Timed]] = {}
    for timed in timings:
        shape = replace(timed.case, keys=0, queries=1 if timed.case.queries == 1 else 0)
        if timed.case.queries in {1, timed.case.keys}:
            panels.setdefault((shape, timed.target, timed.threads), []).append(timed)
    unique = [list({timed.case.keys: timed for timed in members}.values()) for members in panels.values()]
    return [sorted(m, key=lambda timed: timed.case.keys) for m in unique if len(m) >= FEWEST_LENGTHS]


def _panel(axis: Any, members: Sequence[Timed], limits: Limits) -> None:
    case = members[0].case
    decodes = case.queries == 1
    limit = limits.read_bytes_per_second if decodes else limits.operations_per_second[case.dtype]
    for index, name in enumerate(RIVALS):
        points = [
            (timed.case.keys, _work(timed.case) / timed.seconds(name) / 1e9)
            for timed in members
            if name in timed.samples
        ]
        if points:
            width = 2.5 if name in OURS else 1.2
            axis.plot(
                *zip(*points, strict=True), marker="o", markersize=3, color=f"C{index}", linewidth=width, label=name
            )
    axis.axhline(limit / 1e9, color="black", linestyle="--", linewidth=1, label=LIMIT)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter("{x:g}")
    axis.set_xlabel("keys" if decodes else "tokens")
    axis.set_ylabel("GB/s of keys and values" if decodes else "GFLOP/s")
    kind = "decoding" if decodes else "causal prefill" if case.causal else "full prefill"
    heads = f"{case.query_heads}/{case.key_heads} heads of {case.head_dim}"
    axis.set_title(f"{kind}, {case.dtype}, {heads}, {thread_count(members[0].threads)}", fontsize=10)
    axis.grid(visible=True, which="both", alpha=0.2)


def _work(case: Case) -> int:
    return case.key_value_bytes if case.queries == 1 else case.operations
