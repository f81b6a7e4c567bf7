"""From sentences that a question attends to, to passages that a model reads, and from its evidence back to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from keywise.documents import Evidence, Source
from keywise.errors import OptionError
from keywise.library.sql import quoted

if TYPE_CHECKING:
    from keywise.library.found import Sentence
    from keywise.library.library import Library

CONSIDERED_SENTENCES: Final = 64


@dataclass(frozen=True)
class Passage:
    """A paragraph of a document: its text is the document's from character `start` on."""

    document: str
    start: int
    text: str
    weight: float

    @property
    def end(self) -> int:
        """The character after its last."""
        return self.start + len(self.text)

    @property
    def source(self) -> Source:
        """The text as a model reads it; no two passages of a library have the same name."""
        return Source(f"{self.document}, characters {self.start} to {self.end}", self.text)


def choose_passages(
    library: Library,
    question: str,
    *,
    most_tokens: int,
    count_tokens: Callable[[str], int],
    where: str | None = None,
) -> list[Passage]:
    """Give the paragraphs around the sentences that a question attends to most, as many as fit, heaviest first.

    A passage's weight is that of its sentences among those considered. The last is cut to the
    sentences around its heaviest one where it does not fit whole.

    Parameters
    ----------
    library
        A library of documents.
    question
        The question.
    most_tokens
        What all passages may take together.
    count_tokens
        Gives the number of tokens of a text.
    where
        Lance's SQL: which sentences to consider.
    """
    found = library.search(question, top=CONSIDERED_SENTENCES, where=where)
    if not found:
        raise OptionError(f"where={where!r} holds for no sentence of the library; leave it out or ask for others")
    chosen: list[Passage] = []
    left = most_tokens
    for sentence in found:
        if any(_holds(passage, sentence) for passage in chosen):
            continue
        passage = _paragraph(library, sentence)
        whole = count_tokens(passage.text) <= left
        if not whole:
            passage = _cut(passage, sentence, left, count_tokens)
        left -= count_tokens(passage.text)
        if left >= 0:
            chosen.append(passage)
        if left <= 0 or not whole:
            break
    if not chosen:
        raise OptionError(f"{most_tokens} tokens for passages do not hold the first sentence; allow more")
    return [replace(passage, weight=sum(s.weight for s in found if _holds(passage, s))) for passage in chosen]


def placed(evidence: Sequence[Evidence], passages: Sequence[Passage]) -> list[Evidence]:
    """Give evidence found in passages with the files, and the characters in them, that it stands at."""
    of = {passage.source.name: passage for passage in passages}
    return [
        replace(item, source=there.document, start=there.start + item.start, end=there.start + item.end)
        for item in evidence
        for there in [of[item.source]]
    ]


def _holds(passage: Passage, sentence: Sentence) -> bool:
    return passage.document == sentence.document and passage.start <= sentence.start and sentence.end <= passage.end


def _paragraph(library: Library, sentence: Sentence) -> Passage:
    here = f"document = {quoted(sentence.document)}"
    rows = _rows(library, f"{here} AND start = {sentence.start}", ["paragraph"])
    rows = _rows(library, f"{here} AND paragraph = {rows[0]['paragraph']}", ["sentence", "gap", "text", "start"])
    rows.sort(key=lambda row: row["sentence"])
    first = rows[0]
    text = first["text"] + "".join(row["gap"] + row["text"] for row in rows[1:])
    return Passage(sentence.document, first["start"], text, 0.0)


def _rows(library: Library, where: str, columns: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = library.dataset.to_table(columns=columns, filter=where).to_pylist()
    return found


def _cut(passage: Passage, sentence: Sentence, most_tokens: int, count_tokens: Callable[[str], int]) -> Passage:
    """Leave as many whole sentences around one as fit."""
    spans = [(passage.start + start, passage.start + end) for start, end in passage.source.sentences]
    best = Passage(passage.document, sentence.start, sentence.text, 0.0)
    for start, end in _growing(spans, sentence):
        text = passage.text[start - passage.start : end - passage.start]
        if count_tokens(text) > most_tokens:
            break
        best = Passage(passage.document, start, text, 0.0)
    return best


def _growing(spans: Sequence[tuple[int, int]], sentence: Sentence) -> Iterator[tuple[int, int]]:
    """Give spans around a sentence, each a sentence longer, first after it and then before it."""
    start, end = sentence.start, sentence.end
    after = [span for span in spans if span[0] >= end]
    before = [span for span in spans if span[1] <= start]
    while after or before:
        if after:
            end = after.pop(0)[1]
            yield start, end
        if before:
            start = before.pop()[0]
            yield start, end
