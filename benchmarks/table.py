"""Runs as Markdown, and pages whose tables are made from committed runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cache, evidence, library, memory, model
from benchmarks.attention_table import attention_tables
from benchmarks.machine import Limits
from benchmarks.results import Run, read_run
from benchmarks.timing import Timed
from keywise.errors import FormatError

_BLOCK = re.compile(r"(<!-- keywise bench table ([^\n]*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def tables(runs: Sequence[Run]) -> str:
    """Write the tables of some runs in Markdown, those of one kind together.

    Raises
    ------
    FormatError
        If a run is damaged.
    """
    kinds = {
        "attention": _attention,
        "model": model.tables,
        "memory": memory.tables,
        "cache": cache.tables,
        "evidence": evidence.tables,
        "library": library.tables,
    }
    parts = [*dict.fromkeys(_machine(run) for run in runs)]
    for kind in dict.fromkeys(run.kind for run in runs):
        if kind not in kinds:
            raise FormatError(f"there is no table for a run of kind {kind!r}; there are {', '.join(kinds)}")
        parts.append(kinds[kind]([run for run in runs if run.kind == kind]))
    return "\n\n".join(parts)


def updated(page: str, folder: Path) -> str:
    """Give a page with its tables made anew.

    A table stands between the lines ``<!-- keywise bench table FILE... -->`` and ``<!-- end of table -->``.

    Parameters
    ----------
    page
        The page in Markdown.
    folder
        The folder that its file names count from.

    Raises
    ------
    FormatError
        If the page has no such lines, or a file cannot be used.
    """
    page, count = _BLOCK.subn(
        lambda found: f"{found[1]}\n{tables([read_run(folder / name) for name in found[2].split()])}\n\n{found[3]}",
        page,
    )
    if not count:
        raise FormatError("the page has no <!-- keywise bench table FILE... --> with <!-- end of table --> after it")
    return page


def timings_of(runs: Sequence[Run]) -> tuple[list[Timed], list[Limits]]:
    """Give the timings of runs of `keywise bench attention`, and the limits measured in them.

    Raises
    ------
    FormatError
        If a run is of another kind, or damaged.
    """
    for run in runs:
        if run.kind != "attention":
            raise FormatError(f"{str(run.path)!r} is a run of `keywise bench {run.kind}`; give runs of attention")
    try:
        limits = [Limits(**found) for run in runs for found in run.limits]
    except TypeError as error:
        raise FormatError(f"the limits of a run are damaged: {error}; measure again") from error
    return [Timed.from_plain(found) for run in runs for found in run.results], limits


def _attention(runs: Sequence[Run]) -> str:
    return attention_tables([timings_of([run]) for run in runs])


def _machine(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.machine["versions"].items())
    cut = " Interrupted before the end." if run.interrupted else ""
    return (
        f"{run.machine['cpu']}, {run.machine['cpus']} CPUs; {run.machine['system']}; {versions}. `{run.command}`.{cut}"
    )
