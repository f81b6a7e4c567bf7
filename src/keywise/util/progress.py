"""Types of callbacks that report progress."""

from __future__ import annotations

from collections.abc import Callable

Status = Callable[[str], None]
"""Called with a line of text before each slow step."""

Progress = Callable[[int, int], None]
"""Called with the number of units done, such as tokens, and the total number."""


class InterruptedReading(Exception):  # noqa: N818 - a request of the caller, not an error
    """Stop a computation from one of its callbacks, because nobody waits for its result any more."""


def ignore_status(_line: str) -> None:
    """Report nothing, as a `Status`."""
