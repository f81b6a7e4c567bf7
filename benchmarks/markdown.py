"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table; the first column is text, the others are numbers.

    Examples
    --------
    >>> print(table(["case", "ms"], [["small", "0.5"]]))
    | case | ms |
    | --- | ---: |
    | small | 0.5 |
    """
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Write a number with three digits that say something.

    Examples
    --------
    >>> [number(value) for value in (0.01234, 1.5, 98.76, 1234.5)]
    ['0.0123', '1.50', '98.8', '1234']
    """
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value < 0.1 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def thread_count(count: int) -> str:
    """Name a number of threads."""
    return f"{count} thread{'s' if count > 1 else ''}"
