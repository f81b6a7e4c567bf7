"""How well sentences, and the paragraphs that they stand in, match the words of a question. Knows nothing of models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from keywise.documents.files import Source

# BM25 with the parameters of most search engines: how soon a word's repetition saturates, how much length counts.
SATURATION: Final = 1.5
LENGTH: Final = 0.75
# Words that begin with the same letters count as one: most endings are inflections.
STEM_LETTERS: Final = 6
# A heading, or an item of a list, is no paragraph of its own: it counts with what follows.
PARAGRAPH_SENTENCES: Final = 2

_WORD = re.compile(r"\w+")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\r?\n")

Scores = NDArray[np.float64]


class Words:
    r"""The words of sentences, counted once for all questions.

    Parameters
    ----------
    sources
        The texts; their sentences are numbered through.

    Attributes
    ----------
    paragraph_of
        int array [sentences], for each sentence the number of its paragraph.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> words = Words([Source("note", "The lamp is lit. Its keeper was Ann.\n\nRain comes. It is wet.")])
    >>> words.paragraph_of.tolist()
    [0, 0, 1, 1]
    >>> words.sentences("Who was the keeper?").round(2).tolist()
    [0.33, 0.67, 0.0, 0.0]
    >>> words.paragraphs("Who was the keeper?").tolist()
    [1.0, 1.0, 0.0, 0.0]
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        said = [words_of_text(source.text[a:b]) for source in sources for a, b in source.sentences]
        self.paragraph_of = _paragraphs(sources)
        self._sentences = [Counter(words) for words in said]
        self._paragraphs = [Counter[str]() for _ in range(int(self.paragraph_of.max(initial=-1)) + 1)]
        for number, words in zip(self.paragraph_of, said, strict=True):
            self._paragraphs[number].update(words)
        self._holding = Counter(word for counted in self._sentences for word in counted)

    def sentences(self, question: str) -> Scores:
        """Give each sentence's part of the question's matches: [sentences], which sum to 1 if there is any."""
        return self._parts(self._sentences, question)

    def paragraphs(self, question: str) -> Scores:
        """Give each sentence the part that its paragraph has of all paragraphs' matches: [sentences]."""
        return self._parts(self._paragraphs, question)[self.paragraph_of]

    def _parts(self, texts: Sequence[Counter[str]], question: str) -> Scores:
        lengths = np.array([text.total() for text in texts], dtype=np.float64)
        damping = SATURATION * (1 - LENGTH + LENGTH * lengths / max(lengths.mean(), 1.0)) if texts else lengths
        scores = np.zeros(len(texts))
        for word in dict.fromkeys(words_of_text(question)):
            count = np.array([text[word] for text in texts], dtype=np.float64)
            scores += rarity(self._holding[word], len(self._sentences)) * count / (count + damping)
        parts: Scores = scores / (scores.sum() or 1.0)
        return parts


def rarity(holding: int, sentences: int) -> float:
    """Give the weight of a word that so many of the sentences hold (BM25's inverse document frequency), above 0.

    Examples
    --------
    >>> rarity(1, 30) > rarity(10, 30) > rarity(30, 30) > 0
    True
    """
    return float(np.log1p((sentences - holding + 0.5) / (holding + 0.5)))


def words_of_text(text: str) -> list[str]:
    """Give the first letters of every word of a text, whatever their capitals.

    Examples
    --------
    >>> words_of_text("Lighthouses of Ann")
    ['lighth', 'of', 'ann']
    """
    return [word[:STEM_LETTERS] for word in _WORD.findall(text.casefold())]


def _paragraphs(sources: Sequence[Source]) -> NDArray[np.intp]:
    number, numbers = 0, list[int]()
    for source in sources:
        first, end = len(numbers), 0
        for start, next_end in source.sentences:
            if len(numbers) - first >= PARAGRAPH_SENTENCES and _BLANK_LINE.search(source.text, end, start):
                number, first = number + 1, len(numbers)
            numbers.append(number)
            end = next_end
        number += 1
    return np.array(numbers, dtype=np.intp)
