"""`keywise ask`: answer a question about files or a library, with supporting sentences."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

import keywise
from keywise.cli.options import AsJson, Dtype, MaxTokens, Model, Threads, Top, use_threads
from keywise.cli.output_file import check_output_file
from keywise.cli.terminal import show_progress, write, write_json
from keywise.documents import Ablation, Answer, Reader, Source, read_file
from keywise.documents.report import (
    describe_doubt,
    list_sources,
    make_evidence_table,
    to_json,
    write_html,
)
from keywise.errors import FormatError, MissingFileError, OptionError
from keywise.library.answer import choose_passages_for
from keywise.library.passages import locate_evidence
from keywise.models.loading import load_model
from keywise.models.sentence_encoder import SentenceEncoder
from keywise.util.terminal_text import replace_controls

ASK_EXAMPLES = """
Examples:

  keywise ask "Who kept the light?" lighthouse.md

  keywise ask "What is the fee?" contract.pdf terms.docx --html answer.html

  keywise ask "When was it built?" page.html --json --top 3

  keywise ask -- "-5 degrees: when was that?" weather.txt

  keywise ask "Who kept the light?" --library papers.library
"""

ABLATED_SENTENCES = 3


def ask(  # noqa: PLR0917 - each is an argument or option of the command
    question: Annotated[
        str,
        typer.Argument(
            metavar="QUESTION",
            help="A question in natural language. Put -- before one that begins with a dash.",
            show_default=False,
        ),
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Text, Markdown, HTML, PDF or DOCX files.", show_default=False),
    ] = None,
    library: Annotated[
        str | None,
        typer.Option(metavar="LIBRARY", help="Ask this library of documents instead of FILEs; see `library`."),
    ] = None,
    model: Model = None,
    as_json: AsJson = False,
    html: Annotated[
        str | None, typer.Option(metavar="OUT", help="Also write a page with the documents shaded by evidence.")
    ] = None,
    top: Top = 5,
    max_tokens: MaxTokens = 128,
    sentences: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of best sentences to quote the answer from; 0 writes it from the whole document. "
            "Default: as tuned.",
        ),
    ] = None,
    ablate: Annotated[
        bool,
        typer.Option("--ablate", help="Also measure how much less likely the answer is without each top sentence."),
    ] = False,
    semantic: Annotated[
        bool | None,
        typer.Option(
            "--semantic/--no-semantic",
            help="Whether to rank sentences by a sentence encoder too. Default: if its package is installed.",
            show_default=False,
        ),
    ] = None,
    dtype: Dtype = None,
    threads: Threads = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither reuse nor store prefilled documents.")] = False,
) -> None:
    """Answer a QUESTION about FILEs, with the sentences that support the answer.

    A language model on this machine answers. The best sentences follow, ranked by the question's attention and by
    common words, each with its share, its file and its span in characters. Prefilled documents are stored (see
    `keywise cache`), so that the next question about the same files starts at once.
    """
    files = files or []
    if not question.strip():
        raise OptionError("question", "must not be empty", got=question)
    if not files and library is None:
        raise OptionError("files", "must name one file or more", remedy="or ask a library with --library")
    if files and library is not None:
        raise OptionError("files", "must be left out with --library", got=files, remedy="ask one of the two")
    _check_files(question, files)
    if html is not None:
        check_output_file("html", html, inputs=files)
    sources = _read_files(files)
    opened_library = None if library is None else keywise.Library.open(library)

    console = Console()
    notices = Console(stderr=True)
    use_threads(threads)

    def notify(line: str) -> None:
        notices.print(replace_controls(line), style="dim", markup=False, highlight=False)

    def write_token(text: str) -> None:
        if not as_json:
            write(text)

    loaded = load_model(model, dtype=dtype, pack_linear=True, status=notify)
    passages = [] if opened_library is None else choose_passages_for(opened_library, question, loaded)
    encode = SentenceEncoder().encode if semantic else semantic is None
    reader = Reader(loaded, keep=not no_cache, encode=encode, status=notify)
    with show_progress(notices, "Reading", "tokens") as progress:
        document = reader.read([*sources, *(passage.source for passage in passages)], progress=progress)
        answer = document.ask(
            question, max_tokens=max_tokens, sentences=sentences, on_token=write_token, progress=progress
        )
    notify(f"Computed {document.read_tokens - document.reused_tokens:,} tokens, reused {document.reused_tokens:,}")
    ablations = document.ablate(answer, top=ABLATED_SENTENCES) if ablate and answer.text else []
    # Evidence of a library names the documents that its passages come from.
    reported = replace(answer, evidence=locate_evidence(answer.evidence, passages)) if passages else answer
    if as_json:
        write_json(to_json(reported, top=top, ablations=ablations))
    else:
        _write_report(reported, ablations, console, top=top)
    if html is not None:
        write_html(html, answer, document.sources)
        notify(f"Wrote {html}")


def _write_report(answer: Answer, ablations: Sequence[Ablation], console: Console, *, top: int) -> None:
    """Write citations, evidence and ablations below the answer, whose text was written token by token."""
    ellipsis = "" if answer.complete else " …"
    marks = "".join(f" [{rank}]" for rank in list_sources(answer, top=top))
    write(f"{ellipsis}{marks}\n\n")
    doubt = describe_doubt(answer)
    if doubt is not None:
        write(f"{doubt}\n\n")
    console.print(make_evidence_table(answer.evidence, top=top))
    for ablation in ablations:
        control = " (control)" if ablation.control else ""
        write(f"without sentence {ablation.evidence.rank}{control} the answer loses {ablation.drop_nats:.1f} nats\n")


def _check_files(question: str, files: list[str]) -> None:
    # os.path accepts a question of any length, for which Path raises an error.
    if os.path.isfile(question):
        for name in files:
            if not os.path.exists(name):
                remedy = f"there is no such file, but the question {question!r} is one: the question comes first"
                raise MissingFileError("files", "must name existing files", got=name, remedy=remedy)
    first_names: dict[str, str] = {}
    for name in files:
        first_name = first_names.setdefault(os.path.realpath(name), name)
        if first_name is not name:
            remedy = f"it is the same file as {first_name!r}"
            raise FormatError("files", "must not name a file twice", got=name, remedy=remedy)


def _read_files(files: list[str]) -> list[Source]:
    try:
        return [read_file(name) for name in files]
    except FormatError as error:
        error.argument = "files"  # as the command names the paths
        raise
