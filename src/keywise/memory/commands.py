"""The commands of `keywise library`."""

# ruff: noqa: PLC0415, PLR0917  (a command imports what it needs; each of its arguments is one of the user)

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keywise.documents.report import json_text, printable

if TYPE_CHECKING:
    from keywise.memory import Library

HELP = "A library of sentences from many documents: add files once, then search and ask all of them."
EXAMPLES = """
Examples:

  keywise library add papers.library papers/ notes.md

  keywise library search papers.library "Who kept the light?"

  keywise library ask papers.library "Who kept the light?"
"""

Path = Annotated[str, typer.Argument(metavar="LIBRARY", help="A folder, or an address such as s3://bucket/library.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
EncoderName = Annotated[
    str | None, typer.Option(help="Sentence encoder: hub id or folder. Default: the library's, else all-MiniLM-L6-v2.")
]
Where = Annotated[str | None, typer.Option(metavar="SQL", help="Only sentences for which this holds (Lance's SQL).")]
Version = Annotated[int | None, typer.Option(min=1, help="Open the library as it was. Default: the latest version.")]


def add(
    library: Path,
    paths: Annotated[list[str], typer.Argument(metavar="FILE", help="Files, and folders with all files in them.")],
    encoder: EncoderName = None,
    engine: Annotated[str, typer.Option(help="local, or ray to encode on a cluster.")] = "local",
    as_json: AsJson = False,
) -> None:
    """Add documents; those whose content is there already are left alone, changed ones are replaced.

    What cannot be read is skipped and named, and the exit code is 1 then.
    """
    from keywise.memory.library import checked_engine

    checked_engine(engine)
    opened = _open(library, "a", encoder)
    with _progress_bar() as progress:
        done = opened.add(paths, progress=progress, engine=engine)  # type: ignore[arg-type]  # checked above
    if as_json:
        _write_json(asdict(done))
    else:
        counts = [(done.added, "added"), (done.replaced, "replaced"), (done.unchanged, "unchanged")]
        said = ", ".join(f"{len(names)} {what}" for names, what in counts)
        _write(f"{said}; {done.sentences:,} sentences encoded, version {done.version}\n")
    for reason in done.skipped.values():
        sys.stderr.write(printable(f"keywise: skipped: {reason}\n"))
    if done.skipped:
        raise typer.Exit(1)


def search(
    library: Path,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to look for, in words.")],
    top: Annotated[int, typer.Option(min=1, help="Number of sentences to show.")] = 5,
    where: Where = None,
    version: Version = None,
    encoder: EncoderName = None,
    as_json: AsJson = False,
) -> None:
    """Show the sentences that a question attends to most, each with its share of all attention."""
    found = _open(library, "r", encoder, version).search(question, top=top, where=where)
    covered = sum(sentence.weight for sentence in found)
    if as_json:
        _write_json({"covered": covered, "sentences": [asdict(sentence) for sentence in found]})
        return
    for sentence in found:
        text = " ".join(sentence.text.split())
        place = f"{sentence.document}, characters {sentence.start} to {sentence.end}"
        _write(printable(f"{sentence.weight:7.2%}  {text}\n         {place}\n"))
    _write(f"{covered:7.2%}  of all attention\n")


def info(library: Path, version: Version = None, as_json: AsJson = False) -> None:
    """Show what a library holds, and its versions."""
    opened = _open(library, "r", None, version)
    facts = {**asdict(opened.info()), "versions": opened.versions(), "document_names": sorted(opened.documents())}
    if as_json:
        _write_json(facts)
        return
    versions, names = facts.pop("versions"), facts.pop("document_names")
    for name, value in facts.items():
        said = ", ".join(value) if isinstance(value, list) else value
        _write(printable(f"{name:<12} {said}\n"))
    _write(f"versions     {versions[0]['version']} to {versions[-1]['version']}, since {versions[0]['timestamp']}\n")
    for name in names:
        _write(printable(f"  {name}\n"))


def remove(
    library: Path,
    documents: Annotated[list[str], typer.Argument(metavar="FILE", help="Documents, or folders of them.")],
    as_json: AsJson = False,
) -> None:
    """Remove documents from a library; the files stay, and so do older versions of the library."""
    opened = _open(library, "r", None)  # a library that is not there must not be made
    removed = _open(opened.path, "a", None).remove(documents)
    if as_json:
        _write_json({"removed": removed})
    else:
        _write(f"{len(removed)} removed\n")


COMMANDS: tuple[Callable[..., None], ...] = (add, search, info, remove)
"""Every command but `ask`, which the command line makes of its own."""


def _open(path: str, mode: str, encoder: str | None, version: int | None = None) -> "Library":
    from keywise.memory import Library

    return Library.open(path, mode, encoder=encoder, version=version)  # type: ignore[arg-type]  # "r" or "a"


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("Encoding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sentences"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _write(text: str) -> None:
    sys.stdout.write(text)


def _write_json(value: dict[str, Any]) -> None:
    _write(json_text(value))
