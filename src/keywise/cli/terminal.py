"""Output of commands: results on stdout, notices on stderr, no control characters in either."""

# ruff: noqa: PLC0415  (`main` imports this before it can handle Ctrl-C, and without optional packages)

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def write(text: str) -> None:
    """Write a result, or the next part of one, to stdout."""
    from keywise.util.terminal_text import replace_controls

    sys.stdout.write(replace_controls(text))
    sys.stdout.flush()


def write_json(value: dict[str, Any]) -> None:
    """Write a result to stdout as JSON."""
    from keywise.util.terminal_text import format_json

    write(format_json(value))


def write_json_line(value: dict[str, Any]) -> None:
    """Write one of several results to stdout as a line of JSON."""
    from keywise.util.terminal_text import format_json

    write(format_json(value, indent=None))


def print_notice(message: str) -> None:
    """Print a line on stderr, after the program's name."""
    from keywise.util.terminal_text import replace_controls

    sys.stderr.write(f"keywise: {replace_controls(message)}\n")


@contextmanager
def show_progress(
    console: "Console", label: str, unit: str, *, is_shown: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar inside the block.

    Parameters
    ----------
    console
        Where to draw it; nothing is drawn unless this is a terminal.
    label
        Name of the activity, shown in front of the bar.
    unit
        Name of the unit that is counted.
    is_shown
        False to draw nothing.

    Yields
    ------
    callable
        Called with the number of units done and the total number.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    # Without a terminal, a bar would leave an empty line.
    with Progress(*columns, console=console, transient=True, disable=not (is_shown and console.is_terminal)) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def show_steps(console: "Console") -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """Show the steps of a long task inside the block, each with a progress bar and the time left.

    Parameters
    ----------
    console
        Where to draw them; nothing is drawn unless this is a terminal.

    Yields
    ------
    status : callable
        Called with the name of each step when it begins.
    progress : callable
        Called with the number of units done in this step and the total number.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def begin_step(line: str) -> None:
            nonlocal task
            bar.remove_task(task)  # the time left counts from the step's beginning
            task = bar.add_task(line, total=None)

        yield begin_step, lambda done, total: bar.update(task, completed=done, total=total)
