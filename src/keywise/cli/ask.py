"""`keywise ask`: answer questions about files or a library, with supporting sentences."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

import keywise
from keywise.cli.conversation import converse, make_page
from keywise.cli.exits import FAILURE
from keywise.cli.inputs import STANDARD_INPUT, read_sources, split_question
from keywise.cli.options import (
    AnswerModelName,
    AsJson,
    Dtype,
    MaxTokens,
    Model,
    Sentences,
    Threads,
    Top,
    use_threads,
)
from keywise.cli.output_file import check_output_file
from keywise.cli.questions import ask_questions, read_questions
from keywise.cli.replies import write_reply
from keywise.cli.session import AskOptions, Session
from keywise.cli.terminal import print_notice, write, write_json
from keywise.documents.reader import MAX_WINDOWS
from keywise.documents.report import write_text_file
from keywise.errors import KeywiseError, OptionError

if TYPE_CHECKING:
    from keywise import Library

ASK_EXAMPLES = """
Examples:

  keywise ask "Who kept the light?" lighthouse.md

  keywise ask "What is the fee?" contract.pdf terms.docx --html answer.html

  keywise ask "When was it built?" page.html --json --top 3

  keywise ask "What is the fee?" contracts/ "letters/*.docx"

  keywise ask manual.pdf    (a conversation: ask at the prompt, /help lists its commands)

  keywise ask --questions questions.txt manual.pdf --json

  keywise ask "What is the fee?" contract.pdf --answer-model qwen2.5-1.5b-instruct-q4_k_m.gguf

  pdftotext scan.pdf - | keywise ask "What is the fee?" -

  keywise ask -- "-5 degrees: when was that?" weather.txt

  keywise ask "Who kept the light?" --library papers.library
"""


def ask(  # noqa: PLR0917 - each is an argument or option of the command
    question: Annotated[
        str | None,
        typer.Argument(
            metavar="QUESTION",
            help="A question in natural language. Put -- before one that begins with a dash. Without a question, a "
            "conversation begins.",
            show_default=False,
        ),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Documents, folders of documents, and patterns such as '*.pdf'; - is text from standard input.",
            show_default=False,
        ),
    ] = None,
    library: Annotated[
        str | None,
        typer.Option(metavar="LIBRARY", help="Ask this library of documents instead of FILEs; see `library`."),
    ] = None,
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Answer the questions in this file: one per line, or a .json list; - reads lines of standard input.",
        ),
    ] = None,
    model: Model = None,
    answer_model: AnswerModelName = None,
    as_json: AsJson = False,
    html: Annotated[
        str | None, typer.Option(metavar="OUT", help="Also write a page with the documents shaded by evidence.")
    ] = None,
    top: Top = 5,
    max_tokens: MaxTokens = 128,
    sentences: Sentences = None,
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
    windows: Annotated[
        int,
        typer.Option(
            min=0, help="Most windows of a document longer than the model's context to read for one question; 0: all."
        ),
    ] = MAX_WINDOWS,
    dtype: Dtype = None,
    threads: Threads = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither reuse nor store prefilled documents.")] = False,
) -> None:
    """Answer a QUESTION about FILEs, with the sentences that support the answer.

    A language model on this machine answers. The best sentences follow, ranked by the question's attention and by
    common words, each with its share and its place. Prefilled documents are stored (see `keywise cache`), so that the
    next question about the same files starts at once. Without a QUESTION a conversation begins.
    """
    words = [word for word in (question, *(files or [])) if word is not None]
    if not words and library is None:
        raise typer.BadParameter("name a QUESTION and FILEs, or FILEs for a conversation")
    listed = None if questions is None else read_questions(questions)
    asked, names = split_question(words, asks_one=questions is None)
    if not names and library is None:
        raise OptionError("files", "must name one file or more", remedy="or ask a library with --library")
    if names and library is not None:
        raise OptionError("files", "must be left out with --library", got=names, remedy="ask one of the two")
    is_conversation = listed is None and asked is None
    if is_conversation:
        _check_conversation(names, as_json=as_json)
    if questions == STANDARD_INPUT and STANDARD_INPUT in names:
        raise OptionError("files", "must not read standard input, as --questions does", got=names)
    if html is not None:
        if listed is not None:
            raise OptionError("html", "must be left out with --questions", got=html, remedy="ask one question")
        check_output_file("html", html, inputs=names)
    sources = read_sources(names, lambda line: print_notice(line[:1].lower() + line[1:]))
    if html is not None:
        check_output_file("html", html, inputs=[source.name for source in sources])
    opened_library = None if library is None else _open_library(library)

    use_threads(threads)
    options = AskOptions(
        model=model,
        answer_model=answer_model,
        dtype=dtype,
        keep=not no_cache,
        semantic=semantic,
        windows=windows,
        top=top,
        max_tokens=max_tokens,
        sentences=sentences,
        ablate=ablate,
        tells_model=not as_json,
    )
    session = Session(options, sources, opened_library)
    if listed is not None:
        if not ask_questions(session, listed, as_json=as_json):
            raise typer.Exit(FAILURE)
    elif asked is None:
        converse(session, html=html, reads_documents=opened_library is None)
    else:
        _ask_one(session, asked, as_json=as_json, html=html)


def _ask_one(session: Session, question: str, *, as_json: bool, html: str | None) -> None:
    reply = session.ask(question, on_token=None if as_json else write)
    if as_json:
        write_json(reply.to_json(session.options))
    else:
        write_reply(reply, session.console, session.options, is_written=True)
    if html is not None:
        write_text_file(html, make_page(reply))
        session.notify(f"Wrote {os.path.abspath(html)}")


def _open_library(path: str) -> "Library":
    try:
        return keywise.Library.open(path)
    except KeywiseError as error:
        if error.argument == "path":
            error.argument = "library"  # as the command names it
        raise


def _check_conversation(names: list[str], *, as_json: bool) -> None:
    if as_json:
        remedy = "a conversation is for a terminal: ask a question, or name --questions"
        raise OptionError("as_json", "must be left out without a question", remedy=remedy)
    if STANDARD_INPUT in names:
        rule = "must not name standard input in a conversation, whose questions come from there"
        raise OptionError("files", rule, remedy="save the text as a file")
    if not sys.stdin.isatty():
        remedy = "a conversation needs a terminal: put a question first, or name --questions"
        raise OptionError("question", "must come before the files", got=names, remedy=remedy)
