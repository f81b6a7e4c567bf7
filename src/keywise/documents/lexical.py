"""BM25 scores of sentences and paragraphs for the words of a question."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import regex
from numpy.typing import NDArray

from keywise.documents.units import has_unspaced_script

if TYPE_CHECKING:
    from keywise.documents.files import Source

# BM25's k1 (how soon repetitions saturate) and b (how much length counts), at the values of most search engines.
K1: Final = 1.5
B: Final = 0.75
# Words with the same first letters count as one: most endings are inflections.
STEM_LETTERS: Final = 6
# A heading or list item alone is not a paragraph: it belongs to the text after it.
MIN_PARAGRAPH_SENTENCES: Final = 2

# A question repeats another if it has this share of its words, weighted by rarity.
MIN_REPEATED_SHARE: Final = 0.6

_WORD = regex.compile(r"[\w\p{M}]+")
_QUESTION_END = re.compile(r"[?\uff1f\u061f\u037e][\s\"'\u2019\u201d\u00bb)*_]*$")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\r?\n")

Scores = NDArray[np.float64]


class LexicalIndex:
    r"""Word counts of sentences and paragraphs, made once for all questions.

    Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009).

    Parameters
    ----------
    sources
        The texts; their sentences are numbered in order.

    Attributes
    ----------
    paragraph_ids : int array [sentences]
        The paragraph of each sentence.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> index = LexicalIndex([Source("note", "The lamp is lit. Its keeper was Ann.\n\nRain comes. It is wet.")])
    >>> index.paragraph_ids.tolist()
    [0, 0, 1, 1]
    >>> index.score_sentences("Who was the keeper?").round(2).tolist()
    [0.33, 0.67, 0.0, 0.0]
    >>> index.score_paragraphs("Who was the keeper?").tolist()
    [1.0, 1.0, 0.0, 0.0]
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        sentences = [stem_words(quote.text) for source in sources for quote in source.quotes]
        self.paragraph_ids = _number_paragraphs(sources)
        self._sentence_counts = [Counter(words) for words in sentences]
        self._paragraph_counts = [Counter[str]() for _ in range(int(self.paragraph_ids.max(initial=-1)) + 1)]
        for paragraph, words in zip(self.paragraph_ids, sentences, strict=True):
            self._paragraph_counts[paragraph].update(words)
        self._are_questions = [bool(_QUESTION_END.search(quote.text)) for source in sources for quote in source.quotes]
        self._sentences_with = Counter(word for counts in self._sentence_counts for word in counts)

    def score_sentences(self, question: str) -> Scores:
        """Return the BM25 score of each sentence as a share of all: float64 [sentences].

        The shares sum to 1, or are all 0 if no word of the question occurs.
        """
        return self._score(self._sentence_counts, question)

    def score_paragraphs(self, question: str) -> Scores:
        """Return for each sentence the BM25 share of its paragraph: float64 [sentences]."""
        return self._score(self._paragraph_counts, question)[self.paragraph_ids]

    def find_repetitions(self, question: str) -> NDArray[np.bool_]:
        """Return whether each sentence is a question with most words of this one: bool [sentences]."""
        words = dict.fromkeys(stem_words(question))
        total = len(self._sentence_counts)
        rarity = {word: inverse_document_frequency(self._sentences_with[word], total) for word in words}
        needed = MIN_REPEATED_SHARE * sum(rarity.values())
        return np.array(
            [
                is_question and sum(rarity[word] for word in words if word in counts) > needed
                for is_question, counts in zip(self._are_questions, self._sentence_counts, strict=True)
            ],
            dtype=np.bool_,
        )

    def _score(self, texts: Sequence[Counter[str]], question: str) -> Scores:
        lengths = np.array([text.total() for text in texts], dtype=np.float64)
        damping = K1 * (1 - B + B * lengths / max(lengths.mean(), 1.0)) if texts else lengths
        scores = np.zeros(len(texts))
        for word in dict.fromkeys(stem_words(question)):
            count = np.array([text[word] for text in texts], dtype=np.float64)
            rarity = inverse_document_frequency(self._sentences_with[word], len(self._sentence_counts))
            scores += rarity * count / (count + damping)
        shares: Scores = scores / (scores.sum() or 1.0)
        return shares


def inverse_document_frequency(sentences_with: int, sentences: int) -> float:
    """Return BM25's weight of a word: log(1 + (N - n + 0.5) / (n + 0.5)).

    Parameters
    ----------
    sentences_with
        Number n of sentences that contain the word.
    sentences
        Number N of all sentences.

    Examples
    --------
    >>> inverse_document_frequency(1, 30) > inverse_document_frequency(10, 30) > inverse_document_frequency(30, 30) > 0
    True
    """
    return float(np.log1p((sentences - sentences_with + 0.5) / (sentences_with + 0.5)))


def stem_words(text: str) -> list[str]:
    """Return the first six letters of every word of a text, in lower case.

    Where a script has no spaces between words, every two characters in a row are a word.

    Examples
    --------
    >>> stem_words("Lighthouses of Ann"), stem_words("料金は")
    (['lighth', 'of', 'ann'], ['料金', '金は'])
    """
    words: list[str] = []
    for word in _WORD.findall(text.casefold()):
        if len(word) > 1 and has_unspaced_script(word):
            words += [word[start : start + 2] for start in range(len(word) - 1)]
        else:
            words.append(word[:STEM_LETTERS])
    return words


def _number_paragraphs(sources: Sequence[Source]) -> NDArray[np.intp]:
    """Return the paragraph of each sentence; blank lines and sources separate paragraphs."""
    paragraph = 0
    paragraph_ids: list[int] = []
    for source in sources:
        first_sentence = len(paragraph_ids)
        previous_end = 0
        for start, end in source.sentences:
            long_enough = len(paragraph_ids) - first_sentence >= MIN_PARAGRAPH_SENTENCES
            if long_enough and _BLANK_LINE.search(source.text, previous_end, start):
                paragraph += 1
                first_sentence = len(paragraph_ids)
            paragraph_ids.append(paragraph)
            previous_end = end
        paragraph += 1
    return np.array(paragraph_ids, dtype=np.intp)
