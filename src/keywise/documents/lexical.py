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

_WORD = regex.compile(r"[\w\p{M}]+")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\r?\n")

Scores = NDArray[np.float64]


class LexicalIndex:
    r"""Words of sentences and paragraphs, counted once for all questions.

    Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009).

    Parameters
    ----------
    sources
        The texts; their sentences are numbered in order.
    contexts
        For each sentence the text that tells what it is about; see `keywise.documents.context.find_contexts`.

    Attributes
    ----------
    paragraph_ids : int array [sentences]
        The paragraph of each sentence.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> text = "The lamp is lit. Its keeper was Ann.\n\nRain comes. It is wet."
    >>> index = LexicalIndex([Source("note", text)], [""] * 4)
    >>> index.paragraph_ids.tolist()
    [0, 0, 1, 1]
    >>> index.score_sentences("Who was the keeper?").round(2).tolist()
    [0.2, 0.41, 0.0, 0.0]
    >>> index.score_paragraphs("Who was the keeper?").round(2).tolist()
    [0.22, 0.22, 0.0, 0.0]
    """

    def __init__(self, sources: Sequence[Source], contexts: Sequence[str]) -> None:
        sentences = [stem_words(quote.text) for source in sources for quote in source.quotes]
        self.paragraph_ids = _number_paragraphs(sources)
        self._words = [{*words, *stem_words(context)} for words, context in zip(sentences, contexts, strict=True)]
        self._paragraph_counts = [Counter[str]() for _ in range(int(self.paragraph_ids.max(initial=-1)) + 1)]
        for paragraph, words in zip(self.paragraph_ids, sentences, strict=True):
            self._paragraph_counts[paragraph].update(words)
        self._sentences_with = Counter(word for words in sentences for word in set(words))

    def score_sentences(self, question: str) -> Scores:
        """Return the share of the question's words, by their rarity, in each sentence or its context.

        Returns
        -------
        float64 array [sentences]
            From 0 to 1.
        """
        rarity = self._compute_rarity(question)
        shared = [sum(rarity[word] for word in rarity if word in words) for words in self._words]
        return np.array(shared, dtype=np.float64) / (sum(rarity.values()) or 1.0)

    def score_paragraphs(self, question: str) -> Scores:
        """Return the BM25 score of each sentence's paragraph, divided by the rarity of the question's words.

        Returns
        -------
        float64 array [sentences]
            From 0 to 1.
        """
        rarity = self._compute_rarity(question)
        lengths = np.array([counts.total() for counts in self._paragraph_counts], dtype=np.float64)
        damping = K1 * (1 - B + B * lengths / max(lengths.mean(), 1.0)) if lengths.size else lengths
        scores = np.zeros(lengths.size)
        for word, weight in rarity.items():
            count = np.array([counts[word] for counts in self._paragraph_counts], dtype=np.float64)
            scores += weight * count / (count + damping)
        shares: Scores = scores[self.paragraph_ids] / (sum(rarity.values()) or 1.0)
        return shares

    def _compute_rarity(self, question: str) -> dict[str, float]:
        """Return the inverse document frequency of each word of a question."""
        total = len(self._words)
        words = dict.fromkeys(stem_words(question))
        return {word: inverse_document_frequency(self._sentences_with[word], total) for word in words}


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
