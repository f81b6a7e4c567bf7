"""Measurement of whether the answers of a model may change the order of the sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keywise.documents.tune import find_gold_sentences

if TYPE_CHECKING:
    from keywise.documents.document import Document
    from keywise.documents.evidence import Evidence
    from keywise.documents.reader import Reader
    from keywise.documents.squad import GoldDocument, GoldQuestion
    from keywise.util.progress import Progress

# Fewer questions than this tell too little.
MIN_QUESTIONS: Final = 10


@dataclass(frozen=True)
class MovedSentences:
    """How often the first sentence has the answer, before and after a model's answers moved sentences.

    Attributes
    ----------
    questions
        Number of questions.
    before, after
        Number of questions whose first sentence is right.
    """

    questions: int
    before: int
    after: int

    @property
    def is_gain(self) -> bool | None:
        """Whether more first sentences are right afterwards; None if too few questions were asked."""
        return self.after > self.before if self.questions >= MIN_QUESTIONS else None


def measure_moves(
    reader: Reader, documents: Sequence[GoldDocument], *, max_questions: int, progress: Progress | None = None
) -> MovedSentences:
    """Ask questions whose answers are known, and count right first sentences with and without moves.

    Parameters
    ----------
    reader
        A reader whose answering model moves sentences.
    documents
        The documents, each within the model's context.
    max_questions
        Number of questions, taken in turns from all documents.
    progress
        Called after every question with the number of questions done and of all.
    """
    chosen = _choose_questions(documents, max_questions)
    total = sum(len(questions) for questions in chosen)
    asked = before = after = 0
    for gold_document, questions in zip(documents, chosen, strict=True):
        if not questions:
            continue
        document = reader.read(gold_document.text, split=False)
        for question in questions:
            before += _is_right(document, question, document.evidence(question.text)[0])
            after += _is_right(document, question, document.ask(question.text).evidence[0])
            asked += 1
            if progress is not None:
                progress(asked, total)
    return MovedSentences(asked, before, after)


def _choose_questions(documents: Sequence[GoldDocument], max_questions: int) -> list[list[GoldQuestion]]:
    """Return the first questions of each document: so many that there are at most `max_questions` of all."""
    chosen: list[list[GoldQuestion]] = [[] for _ in documents]
    longest = max((len(document.questions) for document in documents), default=0)
    turns = [
        (document, number)
        for number in range(longest)
        for document in range(len(documents))
        if number < len(documents[document].questions)
    ]
    for document, number in turns[:max_questions]:
        chosen[document].append(documents[document].questions[number])
    return chosen


def _is_right(document: Document, question: GoldQuestion, first: Evidence) -> bool:
    spans = document.sources[0].sentences
    return first.start in {spans[number][0] for number in find_gold_sentences(document, question)}
