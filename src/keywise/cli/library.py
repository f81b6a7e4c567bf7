"""`keywise library`: sentences of many documents, searched and asked."""

# ruff: noqa: PLR0917  (each argument of a command is one of the user)

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

import keywise
from keywise.cli.ask import ask as keywise_ask
from keywise.cli.exits import FAILURE
from keywise.cli.options import AsJson, MaxTokens, Model, Top
from keywise.cli.terminal import progress_bar, say, write, write_json

HELP = "A library of sentences from many documents: add files once, then search and ask all of them."
EXAMPLES = """
Examples:

  keywise library add papers.library papers/ notes.md

  keywise library search papers.library "Who kept the light?"

  keywise library ask papers.library "Who kept the light?"
"""

Path = Annotated[str, typer.Argument(metavar="LIBRARY", help="A folder, or an address such as s3://bucket/library.")]
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
    opened = keywise.Library.open(library, "a", encoder=encoder)
    with progress_bar(Console(stderr=True), "Encoding", "sentences") as progress:
        done = opened.add(paths, progress=progress, engine=engine)  # type: ignore[arg-type]  # checked there
    if as_json:
        write_json(asdict(done))
    else:
        counts = [(done.added, "added"), (done.updated, "updated"), (done.unchanged, "unchanged")]
        said = ", ".join(f"{len(names)} {what}" for names, what in counts)
        write(f"{said}; {done.sentences:,} sentences encoded, version {done.version}\n")
    for reason in done.skipped.values():
        say(f"skipped: {reason}")
    if done.skipped:
        raise typer.Exit(FAILURE)


def search(
    library: Path,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to look for, in words.")],
    top: Top = 5,
    where: Where = None,
    version: Version = None,
    encoder: EncoderName = None,
    as_json: AsJson = False,
) -> None:
    """Show the sentences that a question attends to most, each with its share of all attention."""
    found = keywise.Library.open(library, encoder=encoder, version=version).search(question, top=top, where=where)
    top_mass = sum(sentence.weight for sentence in found)
    if as_json:
        write_json({"top_mass": top_mass, "sentences": [asdict(sentence) for sentence in found]})
        return
    for sentence in found:
        text = " ".join(sentence.text.split())
        place = f"{sentence.document}, characters {sentence.start} to {sentence.end}"
        write(f"{sentence.weight:7.2%}  {text}\n         {place}\n")
    write(f"{top_mass:7.2%}  of all attention\n")


def info(library: Path, version: Version = None, as_json: AsJson = False) -> None:
    """Show what a library holds, and its versions."""
    opened = keywise.Library.open(library, version=version)
    facts = {**asdict(opened.info()), "versions": opened.versions(), "document_names": sorted(opened.documents())}
    if as_json:
        write_json(facts)
        return
    versions, names = facts.pop("versions"), facts.pop("document_names")
    for name, value in facts.items():
        said = ", ".join(value) if isinstance(value, list) else value
        write(f"{name:<12} {said}\n")
    write(f"versions     {versions[0]['version']} to {versions[-1]['version']}, since {versions[0]['timestamp']}\n")
    for name in names:
        write(f"  {name}\n")


def remove(
    library: Path,
    documents: Annotated[list[str], typer.Argument(metavar="FILE", help="Documents, or folders of them.")],
    as_json: AsJson = False,
) -> None:
    """Remove documents from a library; the files stay, and so do older versions of the library."""
    opened = keywise.Library.open(library)  # a library that is not there must not be made
    removed = keywise.Library.open(opened.path, "a").remove(documents)
    if as_json:
        write_json({"removed": removed})
    else:
        write(f"{len(removed)} removed\n")


def ask(
    library: Path,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know.")],
    model: Model = None,
    as_json: AsJson = False,
    top: Top = 5,
    max_tokens: MaxTokens = 128,
) -> None:
    """Answer a QUESTION from a library: `keywise ask --library`, which has more options."""
    keywise_ask(question, library=library, model=model, as_json=as_json, top=top, max_tokens=max_tokens)


COMMANDS: tuple[Callable[..., None], ...] = (add, search, info, remove, ask)
