"""Questions from a file or standard input, answered one after the other."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from keywise.cli.command import describe_option
from keywise.cli.inputs import STANDARD_INPUT
from keywise.cli.replies import write_reply
from keywise.cli.session import Session
from keywise.cli.terminal import print_notice, show_progress, write
from keywise.documents.files import read_bytes
from keywise.errors import FormatError, KeywiseError
from keywise.util.terminal_text import format_json

COMMENT = "#"
SHOWN_CHARACTERS = 60


def read_questions(name: str) -> list[str]:
    """Return the questions of a file.

    Parameters
    ----------
    name
        A ``.json`` file with a list of texts, a text with one question per line, or "-" for lines of standard input.
        Empty lines and those that begin with ``#`` are left out.

    Raises
    ------
    FormatError
        The file cannot be read, or has no questions.
    """
    try:
        content = sys.stdin.buffer.read() if name == STANDARD_INPUT else read_bytes(name)
    except FormatError as error:
        error.argument = "questions"
        raise
    try:
        text = content.decode("utf-8-sig")
    except UnicodeError as error:
        remedy = "save it as UTF-8"
        raise FormatError("questions", "must name a text file in UTF-8", got=name, remedy=remedy) from error
    if Path(name).suffix.lower() == ".json":
        return _parse_json(text, name)
    lines = [line.strip() for line in text.splitlines()]
    questions = [line for line in lines if line and not line.startswith(COMMENT)]
    if not questions:
        raise FormatError("questions", "must name a file with a question per line", got=name, remedy="it has none")
    return questions


def _parse_json(text: str, name: str) -> list[str]:
    try:
        questions = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError("questions", "must name a valid JSON file", got=name, remedy=str(error)) from error
    is_list = isinstance(questions, list) and bool(questions)
    if not is_list or not all(isinstance(question, str) and question.strip() for question in questions):
        raise FormatError("questions", "must name a JSON file with a list of questions", got=name)
    return list(questions)


def shorten(question: str) -> str:
    """Return the beginning of a question for a message."""
    return question if len(question) <= SHOWN_CHARACTERS else f"{question[:SHOWN_CHARACTERS]}…"


def ask_questions(session: Session, questions: Sequence[str], *, as_json: bool) -> bool:
    """Answer questions one after the other; one that fails is reported, and the next is answered.

    Parameters
    ----------
    session
        What is asked.
    questions
        The questions.
    as_json
        Whether to write one JSON object per line.

    Returns
    -------
    bool
        Whether all questions were answered.
    """
    failed = 0
    with show_progress(session.notices, "Answering", "questions", is_shown=not sys.stdout.isatty()) as progress:
        for number, question in enumerate(questions, start=1):
            if not as_json:
                write(f"{question}\n")
            try:
                reply = session.ask(question)
            except KeywiseError as error:
                failed += 1
                message = error.describe(describe_option(error.argument))
                print_notice(f"question {number}, {shorten(question)!r}, is not answered: {message}")
                write(format_json({"question": question, "error": message}, indent=None) if as_json else "\n")
            else:
                if as_json:
                    write(format_json(reply.to_json(session.options), indent=None))
                else:
                    write_reply(reply, session.console, session.options, has_table=False)
            progress(number, len(questions))
    if failed:
        print_notice(f"{failed} of {len(questions)} questions are not answered")
    return not failed
