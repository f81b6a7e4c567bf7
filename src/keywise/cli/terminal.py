"""What commands say: results on stdout, everything else on stderr, and nothing that a terminal would obey."""

# ruff: noqa: PLC0415  (`main` imports this before it can tell a Ctrl-C, and without what is optional)

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def write(text: str) -> None:
    """Write a result, or the next piece of one."""
    from keywise.util.terminal_text import replace_controls

    sys.stdout.write(replace_controls(text))
    sys.stdout.flush()


def write_json(value: dict[str, Any]) -> None:
    """Write a result as JSON."""
    from keywise.util.terminal_text import format_json

    write(format_json(value))


def say(message: str) -> None:
    """Say something beside the result."""
    from keywise.util.terminal_text import replace_controls

    sys.stderr.write(f"keywise: {replace_controls(message)}\n")


@contextmanager
def progress_bar(console: "Console", doing: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while something is done; give what is called with how much is done and how much there is."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    # Where there is no terminal, a bar would leave an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
