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
from keywise.cli.terminal import print_notice, show_progress, write, write_json

HELP = "Add documents to a library, search their sentences and ask questions about them."
EXAMPLES = """
Examples:

  keywise library add papers.library papers/ notes.md

  keywise library search papers.library "Who kept the light?"

  keywise library ask papers.library "Who kept the light?"
"""

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
    encoder: EncoderName = None,
    engine: Annotated[str, typer.Option(help="local, or ray to encode on a Ray cluster.")] = "local",
    as_json: AsJson = False,
) -> None:
    """Add documents, and update those that changed.

    Documents whose content is stored already are left unchanged. Files that cannot be read are skipped and listed; the
    exit code is then 1.
    """
    opened_library = keywise.Library.open(path, "a", encoder=encoder)
    with show_progress(Console(stderr=True), "Encoding", "sentences") as progress:
        result = opened_library.add(paths, progress=progress, engine=engine)  # type: ignore[arg-type]  # checked there
    if as_json:
        write_json(asdict(result))
    else:
        counts = f"{len(result.added)} added, {len(result.updated)} updated, {len(result.unchanged)} unchanged"
        write(f"{counts}; {result.sentences:,} sentences encoded, version {result.version}\n")
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
    as_json: AsJson = False,
) -> None:
    """Show the sentences that a question attends to most, with their weights."""
    opened_library = keywise.Library.open(path, encoder=encoder, version=version)
    hits = opened_library.search(text, top=top, where=where)
    top_mass = sum(hit.weight for hit in hits)
    if as_json:
        write_json({"top_mass": top_mass, "sentences": [asdict(hit) for hit in hits]})
        return
    for hit in hits:
        sentence = " ".join(hit.text.split())
        document = _format_name(hit.document)
        write(f"{hit.weight:7.2%}  {sentence}\n         {document}, characters {hit.start} to {hit.end}\n")
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
