"""Cosine similarity of sentences and a question, by an encoder of the user's choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from keywise.documents.files import Source

Encode = Callable[[Sequence[str]], Any]
"""Returns the vectors of texts, one row each: `keywise.library.SentenceEncoder().encode` is one."""

Scores = NDArray[np.float64]


class SemanticIndex:
    """Vectors of sentences, made once for all questions.

    A sentence is encoded together with the one before it in its paragraph, which it often refers to.

    Parameters
    ----------
    encode
        Returns the vectors of texts, one row each.
    sources
        The texts; their sentences are numbered in order.
    paragraph_ids
        int array [sentences], the paragraph of each sentence.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> count_letters = lambda texts: [[text.count("a"), text.count("o")] for text in texts]
    >>> index = SemanticIndex(count_letters, [Source("note", "A lamp. Oh no.")], [0, 1])
    >>> index.score_sentences("o").round(2).tolist(), index.score_paragraphs("o").round(2).tolist()
    ([0.0, 1.0], [0.0, 1.0])
    """

    def __init__(self, encode: Encode, sources: Sequence[Source], paragraph_ids: ArrayLike) -> None:
        self._encode = encode
        self._paragraph_ids = np.asarray(paragraph_ids, dtype=np.intp)
        sentences = [quote.text for source in sources for quote in source.quotes]
        texts: list[str] = []
        for number, sentence in enumerate(sentences):
            follows = number > 0 and self._paragraph_ids[number] == self._paragraph_ids[number - 1]
            texts.append(f"{sentences[number - 1]} {sentence}" if follows else sentence)
        self._vectors = _normalise(encode(texts))

    def score_sentences(self, question: str) -> Scores:
        """Return the cosine similarity of the question and each sentence: float64 [sentences]."""
        cosines: Scores = self._vectors @ _normalise(self._encode([question]))[0]
        return cosines

    def score_paragraphs(self, question: str) -> Scores:
        """Return for each sentence the mean cosine similarity of its paragraph: float64 [sentences]."""
        sums = np.bincount(self._paragraph_ids, self.score_sentences(question))
        sizes = np.bincount(self._paragraph_ids)
        means: Scores = sums / np.maximum(sizes, 1)
        return means[self._paragraph_ids]


def _normalise(vectors: Any) -> NDArray[np.float64]:
    """Return vectors of length 1; a vector of zeros stays."""
    rows = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    directions: NDArray[np.float64] = rows / np.where(lengths > 0, lengths, 1.0)
    return directions
