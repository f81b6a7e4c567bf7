"""`keywise ask`: an answer about files, or from a library, with the sentences that mattered."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import keywise
from keywise.cli.options import AsJson, Dtype, MaxTokens, Model, Threads, Top, use_threads
from keywise.cli.terminal import progress_bar, write, write_json
from keywise.documents import Ablation, Answer, Reader, read_file
from keywise.documents.report import (
    answer_runs,
    caveat,
    evidence_table,
    to_json,
    with_sources,
    write_html,
)
from keywise.errors import FormatError, OptionError
from keywise.library.asking import passages_for
from keywise.library.encoder import SentenceEncoder
from keywise.library.passages import placed
from keywise.models.loading import load_model
from keywise.util.terminal_text import replace_controls

ASK_EXAMPLES = """
Examples:

  keywise ask "Who kept the light?" lighthouse.md

  keywise ask "What is the fee?" contract.pdf terms.docx --html answer.html

  keywise ask "When was it built?" page.html --json --top 3

  keywise ask -- "-5 degrees: when was that?" weather.txt

  keywise ask "Who kept the light?" --library papers.library
"""

PROVED_SENTENCES = 3


def ask(  # noqa: PLR0917 - each is an argument or option of the command
    question: Annotated[
        str,
        typer.Argument(
            metavar="QUESTION",
            help="What you want to know. Put -- before one that begins with a dash.",
            show_default=False,
        ),
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Text, Markdown, HTML, PDF or DOCX files.", show_default=False),
    ] = None,
    library: Annotated[
        str | None,
        typer.Option(metavar="LIBRARY", help="Ask this library of documents, instead of FILEs; see `library`."),
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
            help="Sentences to quote the answer from; 0 lets the model write it from everything. Default: tuned.",
        ),
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--prove", help="Also tell how much the answer loses without each top sentence.")
    ] = False,
    meaning: Annotated[
        bool,
        typer.Option("--meaning", help="Rank sentences by a sentence encoder too, not by attention and words alone."),
    ] = False,
    dtype: Dtype = None,
    threads: Threads = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Read everything anew, and keep nothing of it on disk.")
    ] = False,
) -> None:
    """Answer a QUESTION about FILEs, with the sentences that mattered.

    A language model on this machine reads the files and answers. Below the answer stand the sentences that the
    question's attention and words point to, each with its share, its file and its span in characters. What was read
    is kept on disk (see `keywise cache`): the next question about the same files need not wait for the reading.
    """
    files = files or []
    if not question.strip():
        raise OptionError("QUESTION is empty; ask in words")
    if bool(files) == (library is not None):
        raise OptionError("name one or more FILEs to ask, or a library with --library")
    _check_files(question, files)
    if html is not None:
        _check_page(html, files)
    sources = [read_file(name) for name in files]
    opened = None if library is None else keywise.Library.open(library)

    console, notices = Console(), Console(stderr=True)
    use_threads(threads)

    def notify(line: str) -> None:
        notices.print(replace_controls(line), style="dim", markup=False, highlight=False)

    encode = SentenceEncoder().encode if meaning else None
    loaded = load_model(model, dtype=dtype, pack_linear=True, status=notify)
    passages = [] if opened is None else passages_for(opened, question, loaded)
    reader = Reader(loaded, encode=encode, keep=not no_cache, status=notify)
    with progress_bar(notices, "AttentionStats", "tokens") as progress:
        document = reader.read([*sources, *(passage.source for passage in passages)], progress=progress)
    notify(f"Read {document.tokens - document.reused_tokens:,} tokens, took {document.reused_tokens:,} from the cache")

    def said(piece: str) -> None:
        if not as_json:
            write(piece)

    answer = document.ask(question, max_tokens=max_tokens, sentences=sentences, on_token=said)
    proofs = document.ablate(answer, top=PROVED_SENTENCES) if ablate and answer.text else []
    shown = replace(answer, evidence=placed(answer.evidence, passages)) if passages else answer
    _show_answer(shown, proofs, console, top=top, as_json=as_json)
    if html is not None:
        write_html(html, answer, document.sources)
        notify(f"Wrote {html}")


def _show_answer(answer: Answer, proofs: Sequence[Ablation], console: Console, *, top: int, as_json: bool) -> None:
    """Show what stands below an answer that was written out as it came; or all of it as JSON."""
    if as_json:
        proved = [{"rank": each.evidence.rank, "drop": each.drop, "compared": each.compared} for each in proofs]
        write_json({**to_json(answer, top=top), **({"proof": proved} if proofs else {})})
        return
    runs = answer_runs(answer)
    marks = "".join(f" [{rank}]" for rank in runs[0][1]) if len(runs) == 1 else ""
    write(f"{marks}{'' if answer.complete else ' …'}\n\n")
    if not marks and (marked := with_sources(answer)) != answer.text:
        write(f"{marked}\n\n")
    if (warning := caveat(answer)) is not None:
        write(f"{warning}\n\n")
    console.print(evidence_table(answer.evidence, top=top))
    for each in proofs:
        behind = ", from far behind" if each.compared else ""
        write(f"without sentence {each.evidence.rank}{behind} the answer loses {each.drop:.1f} nats\n")


def _check_files(question: str, files: list[str]) -> None:
    # os.path takes a question of any length, where Path raises.
    if os.path.isfile(question) and (gone := [name for name in files if not os.path.exists(name)]):
        raise FormatError(
            f"{gone[0]!r}: there is no such file, but the question {question!r} is one; the question comes first"
        )
    names: dict[str, str] = {}
    for name in files:
        first = names.setdefault(os.path.realpath(name), name)
        if first is not name:
            raise FormatError(f"{name!r} is named twice (first as {first!r}); name each file once")


def _check_page(html: str, files: list[str]) -> None:
    """Refuse an --html that cannot be written, or would replace a document, before the model is at work."""
    page = Path(html)
    if not html.strip():
        raise OptionError(f"--html {html!r} names no file; give a name such as answer.html")
    try:
        if page.is_dir():
            raise OptionError(f"--html {html!r} is a folder; name a file in it")
        if not page.absolute().parent.is_dir():
            raise OptionError(f"--html {html!r}: there is no folder {str(page.parent)!r}; make it first")
        if page.exists():
            if any(os.path.exists(name) and page.samefile(name) for name in files):
                raise OptionError(f"--html {html!r} is a document to read and would be replaced; name another file")
            if not page.is_file() or not os.access(page, os.W_OK):
                raise OptionError(f"--html {html!r} is no file that can be replaced; name another file")
        with tempfile.TemporaryFile(dir=page.absolute().parent):
            pass  # the folder takes new files
    except OSError as error:
        raise OptionError(f"--html {html!r} cannot be written: {error.strerror}; name another file") from error
