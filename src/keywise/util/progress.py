"""Callbacks that report what long work is doing."""

from __future__ import annotations

from collections.abc import Callable

Status = Callable[[str], None]
"""Called with a line of text before every slow step."""

Progress = Callable[[int, int], None]
"""Called with the number of tokens done and the number of all."""
