"""Types of callbacks that report progress."""

from __future__ import annotations

from collections.abc import Callable

Status = Callable[[str], None]
"""Called with a line of text before each slow step."""

Progress = Callable[[int, int], None]
"""Called with the number of tokens done and the total number."""
