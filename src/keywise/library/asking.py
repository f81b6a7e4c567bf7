"""A question to a library: its sentences' attention chooses passages, a language model reads them and answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keywise.documents import Answer, Reader
from keywise.documents.document import ANSWER_TOKENS
from keywise.documents.prefilled_context import Progress
from keywise.library.passages import Passage, choose_passages, placed
from keywise.models.loading import LoadedModel
from keywise.util.checks import check_int
from keywise.util.progress import Status

if TYPE_CHECKING:
    from keywise.library.library import Library

PASSAGE_TOKENS: Final = 1024
"""Unless said otherwise, what passages may take: a longer text takes long to read on a CPU."""

BETWEEN_TOKENS: Final = 4
"""At most what stands between two passages."""


@dataclass(frozen=True)
class LibraryAnswer:
    """An answer from a library.

    Attributes
    ----------
    answer
        What the model answered; its evidence names files and characters in them.
    passages
        What it read, heaviest first.
    """

    answer: Answer
    passages: list[Passage]


def passages_for(
    library: Library,
    question: str,
    model: LoadedModel,
    *,
    passage_tokens: int = PASSAGE_TOKENS,
    where: str | None = None,
) -> list[Passage]:
    """Choose what a model is to read for a question: whole paragraphs, heaviest first, of so many of its tokens.

    Raises
    ------
    OptionError
        When the library is empty, or no sentence fulfils `where`.
    """

    def count_tokens(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) + BETWEEN_TOKENS

    most_tokens = check_int("passage_tokens", passage_tokens, minimum=1)
    return choose_passages(library, question, most_tokens=most_tokens, count_tokens=count_tokens, where=where)


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

    Passages are read heaviest first, so that a question about the same ones goes on from what was read before.

    Parameters
    ----------
    library
        A library of documents.
    question
        The question.
    model
        The language model that reads, as `keywise.models.loading.load_model` gave it.
    passage_tokens
        What all passages may take together, in the model's tokens.
    max_tokens
        Longest answer, in tokens.
    where
        Lance's SQL: which sentences to consider.
    keep, status
        As in `keywise.documents.Reader`.
    progress, on_token
        As in `Reader.read` and `Document.ask`.

    Raises
    ------
    OptionError
        When the library has no such sentences, or question, passages and answer do not fit into the model's context.

    Examples
    --------
    >>> import keywise as kw
    >>> from keywise.models.loading import load_model
    >>> from keywise.library.asking import ask_library
    >>> library = kw.Library.open("papers.library")  # doctest: +SKIP
    >>> ask_library(library, "Who was the keeper?", load_model()).answer.text  # doctest: +SKIP
    'Ann Low.'
    """
    passages = passages_for(library, question, model, passage_tokens=passage_tokens, where=where)
    document = Reader(model, keep=keep, status=status).read([each.source for each in passages], progress=progress)
    answer = document.ask(question, max_tokens=max_tokens, on_token=on_token)
    return LibraryAnswer(replace(answer, evidence=placed(answer.evidence, passages)), passages)
