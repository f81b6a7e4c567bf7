"""Messages of commands beside their results: errors in one line, and progress."""

# ruff: noqa: PLC0415  (rich and the tables are only needed while a command measures)

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from keywise.errors import KeywiseError
from keywise.util.terminal_text import replace_controls

if TYPE_CHECKING:
    from benchmarks.results import Run

FAILURE, USER_ERROR, INTERRUPTED = 1, 2, 130
"""Exit codes."""

POSITIONAL = {"groups": "GROUP", "files": "FILE"}
"""Arguments of commands that are not options, and their names in the help."""

BUILD_OPTIONS = ("--before", "--after")
"""Options that name the folder of a build."""


def print_error(message: str) -> None:
    """Print an error in one line to stderr."""
    sys.stderr.write(f"benchmarks: {' '.join(replace_controls(message).split())}\n")


@contextmanager
def report_errors(options: Iterable[str]) -> Iterator[None]:
    """Print an error of keywise in one line, and exit with `USER_ERROR`.

    Parameters
    ----------
    options
        Names of the command's arguments; an error of one of them is described by its option.
    """
    try:
        yield
    except KeywiseError as error:
        message = str(error)
        if error.argument in options:
            option = error.argument.replace("_", "-")
            message = error.describe(POSITIONAL.get(error.argument, f"--{option}"))
        print_error(message)
        raise typer.Exit(USER_ERROR) from error


def format_command(arguments: Sequence[str]) -> str:
    """Return the command that repeats a run, without the file that it fills.

    Absolute paths are shortened to their last part; those of builds to their last two, because folders of packages
    often have the same name.

    Examples
    --------
    >>> from benchmarks.console import format_command
    >>> format_command(["evidence", "--data", "/home/ann/squad.json", "--json", "run.json"])
    'python -m benchmarks evidence --data squad.json'
    >>> format_command(["compare", "--before=/builds/main/src", "--after=/builds/fast/src"])
    'python -m benchmarks compare --before main/src --after fast/src'
    """
    repeated: list[str] = []
    option = ""
    for word in chain.from_iterable(map(_split_option, arguments)):
        is_option = word.startswith("--")
        owner = word if is_option else option
        if owner != "--json":
            repeated.append(_shorten_path(word, parts=2 if owner in BUILD_OPTIONS else 1))
        option = word if is_option else ""
    return shlex.join(["python", "-m", "benchmarks", *repeated])


def _split_option(argument: str) -> list[str]:
    """Split ``--option=value`` into its two words."""
    return argument.split("=", 1) if argument.startswith("--") else [argument]


def _shorten_path(word: str, parts: int) -> str:
    """Return the last parts of an absolute path; other words as they are."""
    path = Path(word)
    return str(Path(*path.parts[1:][-parts:])) if path.is_absolute() else word


@contextmanager
def record_run(kind: str, path: Path | None, total: int) -> Iterator[tuple[Run, Callable[[str], None]]]:
    """Record a run with a progress bar, and print its table at the end.

    Results that exist when Ctrl-C ends the run are kept and printed too.

    Parameters
    ----------
    kind
        Kind of the run.
    path
        File for the results; None for none.
    total
        Number of results expected.

    Yields
    ------
    tuple
        The run, and a function that prints a line for a finished result.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from benchmarks.results import Run
    from benchmarks.tables import format_tables

    run = Run(kind, format_command(sys.argv[1:]), path)
    run.save()
    console = Console(stderr=True)
    columns = (TextColumn("Measuring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total)

            def report(line: str) -> None:
                bar.advance(task)
                console.print(replace_controls(line), style="dim", markup=False, highlight=False, soft_wrap=True)

            yield run, report
    except KeyboardInterrupt:
        run.interrupted = True
        raise
    finally:
        run.save()
        if run.results:
            sys.stdout.write(format_tables([run]) + "\n")
