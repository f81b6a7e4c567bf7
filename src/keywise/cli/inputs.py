"""Arguments of `keywise ask` as documents: files, folders, patterns and standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from keywise.documents import Source, read_file
from keywise.documents.file_tree import find_files, match_pattern
from keywise.documents.files import read_stream
from keywise.errors import FormatError, MissingFileError, OptionError

STANDARD_INPUT = "-"
STANDARD_INPUT_NAME = "standard input"
LISTED_FILES = 5


def split_question(words: Sequence[str], *, asks_one: bool) -> tuple[str | None, list[str]]:
    """Return the question among the arguments of the command, or None, and the files.

    Parameters
    ----------
    words
        The arguments.
    asks_one
        Whether a question may be among them.

    Raises
    ------
    MissingFileError
        The question stands behind a file.
    OptionError
        The question is empty.
    """
    if not words or not asks_one or all(names_documents(word) for word in words):
        return None, list(words)
    question, *files = words
    if not question.strip():
        raise OptionError("question", "must not be empty", got=question)
    # os.path accepts a question of any length, for which Path raises an error.
    if os.path.isfile(question):
        for name in files:
            if not names_documents(name):
                remedy = f"there is no such file, but the question {question!r} is one: the question comes first"
                raise MissingFileError("files", "must name existing files", got=name, remedy=remedy)
    return question, files


def names_documents(word: str) -> bool:
    """Return whether an argument names standard input, something that exists, or a pattern that matches."""
    return word == STANDARD_INPUT or os.path.lexists(word) or bool(match_pattern(word))


def read_sources(names: Sequence[str], notify: Callable[[str], None]) -> list[Source]:
    """Read the documents at some paths; files that only a folder or a pattern names are passed over if unreadable.

    Parameters
    ----------
    names
        Files, folders, patterns, and "-" for standard input.
    notify
        Called with a line about each file that is passed over.

    Raises
    ------
    FormatError
        A named file cannot be read, or no file can be read.
    """
    try:
        return _read_sources(names, notify)
    except FormatError as error:
        error.argument = "files"  # as the command names the paths
        raise


def _read_sources(names: Sequence[str], notify: Callable[[str], None]) -> list[Source]:
    if list(names).count(STANDARD_INPUT) > 1:
        raise FormatError("files", "must not name standard input twice", got=list(names))
    paths = [name for name in names if name != STANDARD_INPUT]
    found = find_files(paths)
    passed_over = dict(found.passed_over)
    sources: list[Source] = []
    for name in found.files:
        try:
            sources.append(read_file(name))
        except FormatError as error:
            if name in found.named:
                raise
            passed_over[name] = error.describe("it")
    for name, reason in list(passed_over.items())[:LISTED_FILES]:
        notify(f"Passed over {name!r}: {reason}")
    if len(passed_over) > LISTED_FILES:
        notify(f"Passed over {len(passed_over) - LISTED_FILES} more")
    if STANDARD_INPUT in names:
        sources.insert(0, read_stream(sys.stdin.buffer, STANDARD_INPUT_NAME))
    elif not sources and paths:
        raise FormatError("files", "must name a document that can be read", got=paths)
    return sources
