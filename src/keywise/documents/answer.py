"""An answer, and for each of its words the sentences that it came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from keywise.documents.evidence import Evidence, Mass
    from keywise.documents.files import Source

# A word has this part of its attention on a sentence that is named as its source; at most two sentences are.
SOURCE_PART: Final = 0.3
SOURCES_OF_A_WORD: Final = 2
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class AnswerWord:
    """A word of an answer and where it came from.

    Attributes
    ----------
    start, end
        Its span in the answer's text, in characters.
    sources
        Ranks of the sentences it came from, the most likely first. For a quoted answer they are where the words stand;
        for a written one, where the model looked when it wrote the word. Empty if no sentence stood out.
    """

    start: int
    end: int
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What a model answered, and which sentences the question looked at.

    Attributes
    ----------
    text
        The answer.
    evidence
        All sentences, the likeliest to answer first.
    question
        The question as asked.
    model
        The model's name.
    complete
        Whether the answer is whole; False if `max_tokens` cut it.
    document_tokens, answer_tokens
        Their lengths in tokens.
    reused_tokens
        How many of the document's tokens were not read this time, but taken from disk.
    none_share
        How likely it is that no sentence answers; with the shares of all sentences it sums to 1.
    sentences
        From how many of the first sentences the answer was quoted; 0 if it was written from the whole document.
    words
        The answer's words with their sources.
    tuned_on
        What the heads that were read were chosen on; None if they are a guess from the model's depth.
    windows
        In how many windows the document was read; 1 if it fits into the model's context.
    """

    text: str
    evidence: list[Evidence]
    question: str
    model: str
    complete: bool
    document_tokens: int
    answer_tokens: int
    reused_tokens: int = 0
    no_answer_share: float = 0.0
    sentences: int = 0
    words: list[AnswerWord] = field(default_factory=list)
    tuned_on: str | None = None
    windows: int = 1


def words_of(text: str, sources_of: Callable[[int, int], Sequence[int]]) -> list[AnswerWord]:
    """Cut an answer into words; `sources_of` gives the ranks of the sentences that a span of it came from.

    Examples
    --------
    >>> [(word.start, word.sources) for word in words_of("Ann Low", lambda start, end: [1])]
    [(0, (1,)), (4, (1,))]
    """
    return [
        AnswerWord(match.start(), match.end(), tuple(sources_of(match.start(), match.end())))
        for match in _WORD.finditer(text)
    ]


def heaviest_sentences(mass: Mass) -> NDArray[np.intp]:
    """Give the sentences with much of a mass, the heaviest first, by number.

    Examples
    --------
    >>> import numpy as np
    >>> heaviest_sentences(np.array([0.1, -0.2, 0.5, 0.4])).tolist()
    [2, 3]
    """
    positive = np.maximum(mass, 0.0)
    first = np.argsort(-positive, kind="stable")[:SOURCES_OF_A_WORD]
    heavy: NDArray[np.intp] = first[positive[first] > SOURCE_PART * positive.sum()]
    return heavy


def in_order(sources: Sequence[Source], evidence: Sequence[Evidence]) -> list[Evidence]:
    """Give sentences in the order of the text.

    Examples
    --------
    >>> in_order([], [])
    []
    """
    place = {source.name: number for number, source in enumerate(sources)}
    return sorted(evidence, key=lambda item: (place[item.source], item.start))


def joined(evidence: Sequence[Evidence]) -> tuple[str, list[tuple[int, Evidence]]]:
    """Write sentences one after the other, and give for each the character of that text at which it ends.

    Examples
    --------
    >>> joined([])
    ('', [])
    """
    text, ends = "", list[tuple[int, "Evidence"]]()
    for item in evidence:
        text = f"{text} {item.text}" if text else item.text
        ends.append((len(text), item))
    return text, ends
