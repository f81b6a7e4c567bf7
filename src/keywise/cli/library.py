"""`keywise library`: search the sentences of many documents, and ask questions about them."""

# ruff: noqa: PLR0917  (each parameter of a function is an argument or option of the command)

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

import keywise
from keywise.cli.ask import ask as ask_documents
from keywise.cli.exits import FAILURE
from keywise.cli.options import AsJson, MaxTokens, Model, Top
from keywise.cli.terminal import print_notice, show_steps, write, write_json

HELP = "Add documents to a library, search their sentences and ask questions about them."
EXAMPLES = """
Examples:

  keywise library add papers.library papers/ notes.md

  keywise library search papers.library "Who kept the light?"

  keywise library ask papers.library "Who kept the light?"
"""

SHOWN_NAMES = 10

LibraryPath = Annotated[
    str, typer.Argument(metavar="LIBRARY", help="A folder, or an address such as s3://bucket/library.")
]
EncoderName = Annotated[
    str | None,
    typer.Option(help="Hub id or folder of a sentence encoder. Default: the library's own, else all-MiniLM-L6-v2."),
]
Where = Annotated[str | None, typer.Option(metavar="SQL", help="Use only sentences for which this Lance SQL holds.")]
Version = Annotated[int | None, typer.Option(min=1, help="Open this version. Default: the latest.")]


def add(
    path: LibraryPath,
    paths: Annotated[list[str], typer.Argument(metavar="FILE", help="Files, and folders whose files are all added.")],
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Also remove documents of these FILEs and folders that do not exist any more."),
    ] = False,
    encoder: EncoderName = None,
    engine: Annotated[str, typer.Option(help="local, or ray to encode on a Ray cluster.")] = "local",
    as_json: AsJson = False,
) -> None:
    """Add documents, and update those that changed.

    Documents whose content is stored already are left unchanged; those whose files were moved keep their keys. What is
    encoded is stored every few seconds, so an interrupted command can be given again. Files that cannot be read are
    skipped and listed; the exit code is then 1.
    """
    opened_library = keywise.Library.open(path, "a", encoder=encoder)
    stored_before = len(opened_library.documents())
    try:
        with show_steps(Console(stderr=True)) as (status, progress):
            result = opened_library.add(
                paths,
                prune=prune,
                progress=progress,
                status=status,
                engine=engine,  # type: ignore[arg-type]  # checked there
            )
    except KeyboardInterrupt:
        stored = len(opened_library.documents())
        if stored > stored_before:
            print_notice(f"{stored - stored_before:,} documents were stored; the same command continues from there")
        raise
    if as_json:
        write_json(asdict(result))
    else:
        counts = f"{len(result.added)} added, {len(result.updated)} updated, {len(result.unchanged)} unchanged"
        counts += "".join(
            f", {len(names)} {what}" for names, what in ((result.moved, "moved"), (result.removed, "removed")) if names
        )
        write(f"{counts}; {result.sentences:,} sentences encoded, version {result.version}\n")
    for name in result.gone[:SHOWN_NAMES]:
        print_notice(f"gone: {_format_name(name)}")
    if result.gone:
        more = f", {len(result.gone) - SHOWN_NAMES} not shown" if len(result.gone) > SHOWN_NAMES else ""
        print_notice(f"stored documents without a file: {len(result.gone)}{more}; --prune removes them")
    for reason in result.skipped.values():
        print_notice(f"skipped: {reason}")
    if result.skipped:
        raise typer.Exit(FAILURE)


def remove(
    path: LibraryPath,
    documents: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Documents, or folders whose documents are all removed.")
    ],
    as_json: AsJson = False,
) -> None:
    """Remove documents from a library.

    Their files are not touched, and older versions of the library still contain them.
    """
    existing_library = keywise.Library.open(path)  # with mode 'a' a missing library would be created
    removed = keywise.Library.open(existing_library.path, "a").remove(documents)
    if as_json:
        write_json({"removed": removed})
    else:
        write(f"{len(removed)} removed\n")


def search(
    path: LibraryPath,
    text: Annotated[str, typer.Argument(metavar="QUESTION", help="A question, or other text.")],
    top: Top = 5,
    where: Where = None,
    version: Version = None,
    encoder: EncoderName = None,
    keys_only: Annotated[
        bool, typer.Option("--keys-only", help="Rank by the encoder alone, not by common words too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the sentences that a question attends to most, by their keys and by common words.

    Each has its weight, its share by keys alone, and its share of the words of the question (BM25).
    """
    opened_library = keywise.Library.open(path, encoder=encoder, version=version)
    with show_steps(Console(stderr=True)) as (status, progress):
        hits = opened_library.search(text, top=top, where=where, keys_only=keys_only, progress=progress, status=status)
    top_mass = sum(hit.weight for hit in hits)
    if as_json:
        write_json({"top_mass": top_mass, "sentences": [asdict(hit) for hit in hits]})
        return
    for hit in hits:
        sentence = " ".join(hit.text.split())
        document = _format_name(hit.document)
        shares = "" if hit.lexical is None else f"; keys {hit.semantic:.1%}, words {hit.lexical:.1%}"
        write(f"{hit.weight:7.2%}  {sentence}\n         {document}, characters {hit.start} to {hit.end}{shares}\n")
    if not hits:
        write("No sentence was found" + (f" where {where}" if where else "") + ".\n")
        return
    write(f"{top_mass:7.2%}  of all attention\n")


def ask(
    path: LibraryPath,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="A question in natural language.")],
    model: Model = None,
    as_json: AsJson = False,
    top: Top = 5,
    max_tokens: MaxTokens = 128,
) -> None:
    """Answer a QUESTION from the documents of a library.

    `keywise ask --library` does the same and has more options.
    """
    ask_documents(question, library=path, model=model, as_json=as_json, top=top, max_tokens=max_tokens)


def show_info(path: LibraryPath, version: Version = None, as_json: AsJson = False) -> None:
    """Show the size, encoder and versions of a library."""
    opened_library = keywise.Library.open(path, version=version)
    description = asdict(opened_library.info())
    versions = opened_library.versions()
    if as_json:
        write_json({**description, "versions": versions})
        return
    for name, value in description.items():
        cell = ", ".join(value) if name == "columns" else value
        write(f"{name:<12} {cell}\n")
    first, last = versions[0], versions[-1]
    write(f"versions     {first['version']} to {last['version']}, since {first['timestamp']}\n")


def list_documents(path: LibraryPath, version: Version = None, as_json: AsJson = False) -> None:
    """List the documents of a library."""
    documents = keywise.Library.open(path, version=version).documents()
    if as_json:
        write_json({"documents": [{"name": name, "hash": documents[name]} for name in sorted(documents)]})
        return
    for name in sorted(documents):
        write(f"{_format_name(name)}\n")


def _format_name(name: str) -> str:
    """Return a document's name in one line."""
    return name.replace("\n", "\ufffd").replace("\t", "\ufffd")


COMMANDS: dict[str, Callable[..., None]] = {
    "add": add,
    "list": list_documents,
    "remove": remove,
    "search": search,
    "ask": ask,
    "info": show_info,
}
