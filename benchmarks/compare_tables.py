"""Tables of comparisons of two builds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.compare import BUILDS, compute_median
from benchmarks.markdown import format_number, format_table
from benchmarks.results import Run


def format_tables(runs: Sequence[Run]) -> str:
    """Format one table of ratios per run, and their geometric means."""
    return "\n\n".join(_format_run(run.results) for run in runs)


def _format_run(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        medians = [compute_median(result["seconds_per_call"][name]) * 1e6 for name in BUILDS]
        low, high = result["ratio_interval"]
        agreement = "same bits" if result["same_bits"] else f"off by {result['largest_difference']:.1g}"
        rows.append(
            [
                f"{result['group']}: {result['name']}",
                *map(format_number, medians),
                f"{result['ratio']:.3f}",
                f"{low:.3f} to {high:.3f}",
                agreement if result["agrees"] else f"**{agreement}**",
            ]
        )
    table = format_table(["case", "before, µs", "after, µs", "after ÷ before", "95 % interval", "results"], rows)
    ratios: dict[str, list[float]] = {}
    for result in results:
        ratios.setdefault(result["group"], []).append(result["ratio"])
    means = ", ".join(f"{group} {statistics.geometric_mean(several):.3f}" for group, several in ratios.items())
    overall = statistics.geometric_mean(result["ratio"] for result in results)
    disagreeing = sum(not result["agrees"] for result in results)
    return (
        f"{table}\n\nafter ÷ before, geometric mean of {len(results)} cases: {overall:.3f} ({means}). Results disagree "
        f"beyond the tolerance in {disagreeing} cases and have the same bits in "
        f"{sum(result['same_bits'] for result in results)}."
    )
