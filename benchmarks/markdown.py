"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table; the first column is text, the others are numbers.

    Examples
    --------
    >>> print(format_table(["case", "ms"], [["small", "0.5"]]))
    | case | ms |
    | --- | ---: |
    | small | 0.5 |
    """
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_number(value: float) -> str:
    """Format a number with three significant digits.

    Examples
    --------
    >>> [format_number(value) for value in (0.01234, 1.5, 98.76, 1234.5)]
    ['0.0123', '1.50', '98.8', '1234']
    """
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3g}"


def format_threads(count: int) -> str:
    """Format a number of threads.

    Examples
    --------
    >>> format_threads(1), format_threads(2)
    ('1 thread', '2 threads')
    """
    return f"{count} thread{'s' if count > 1 else ''}"
