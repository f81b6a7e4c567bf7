"""Answers from a library: attention chooses passages, and a language model reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keywise.documents import Answer, Reader
from keywise.library.passages import Passage, choose_passages, locate_evidence
from keywise.models.loading import LoadedModel
from keywise.util.checks import check_int
from keywise.util.progress import Progress, Status

if TYPE_CHECKING:
    from keywise.library.library import Library

PASSAGE_TOKENS: Final = 1024
"""Default number of tokens to read; a CPU takes seconds for so many."""

ANSWER_TOKENS: Final = 128
"""Default length of an answer."""

MAX_SEPARATOR_TOKENS: Final = 4
"""Most tokens that a prompt has between two passages."""


@dataclass(frozen=True)
class LibraryAnswer:
    """An answer from a library.

    Attributes
    ----------
    answer
        The model's answer; its evidence names documents and the characters in them.
    passages
        The passages that the model read, heaviest first.
    """

    answer: Answer
    passages: list[Passage]


def choose_passages_for(
    library: Library,
    question: str,
    model: LoadedModel,
    *,
    passage_tokens: int = PASSAGE_TOKENS,
    where: str | None = None,
) -> list[Passage]:
    """Choose the passages that a model reads to answer a question.

    Parameters
    ----------
    library
        A library of documents.
    question
        A question in natural language.
    model
        The model, whose tokenizer counts.
    passage_tokens
        Most tokens of all passages together.
    where
        Lance's SQL; only sentences for which it holds are considered.

    Returns
    -------
    list of Passage
        Heaviest first.

    Raises
    ------
    OptionError
        The library is empty, `where` holds for no sentence, or no sentence fits.
    """

    def count_tokens(text: str) -> int:
        token_ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return len(token_ids) + MAX_SEPARATOR_TOKENS

    max_tokens = check_int("passage_tokens", passage_tokens, minimum=1)
    return choose_passages(library, question, max_tokens=max_tokens, count_tokens=count_tokens, where=where)


def ask_library(
    library: Library,
    question: str,
    model: LoadedModel,
    *,
    passage_tokens: int = PASSAGE_TOKENS,
    max_tokens: int = ANSWER_TOKENS,
    where: str | None = None,
    keep: bool = True,
    status: Status | None = None,
    progress: Progress | None = None,
    on_token: Callable[[str], None] | None = None,
) -> LibraryAnswer:
    """Answer a question from a library of documents.

    The passages are read in order of weight, so that a later question about the same ones reuses the prefilled tokens.

    Parameters
    ----------
    library
        A library of documents.
    question
        A question in natural language.
    model
        The language model, from `keywise.models.load_model`.
    passage_tokens
        Most tokens of all passages together.
    max_tokens
        Most tokens of the answer.
    where
        Lance's SQL; only sentences for which it holds are considered.
    keep, status
        See `keywise.documents.Reader`.
    progress, on_token
        See `Reader.read` and `Document.ask`.

    Returns
    -------
    LibraryAnswer
        The answer and the passages that were read.

    Raises
    ------
    OptionError
        The library has no such sentences, or question, passages and answer do not fit the model's context.

    Examples
    --------
    >>> import keywise as kw
    >>> from keywise.library.answer import ask_library
    >>> from keywise.models.loading import load_model
    >>> library = kw.Library.open("papers.library")  # doctest: +SKIP
    >>> ask_library(library, "Who was the keeper?", load_model()).answer.text  # doctest: +SKIP
    'Ann Low.'
    """
    passages = choose_passages_for(library, question, model, passage_tokens=passage_tokens, where=where)
    reader = Reader(model, keep=keep, status=status)
    document = reader.read([passage.source for passage in passages], progress=progress)
    answer = document.ask(question, max_tokens=max_tokens, on_token=on_token)
    evidence = locate_evidence(answer.evidence, passages)
    return LibraryAnswer(replace(answer, evidence=evidence), passages)
