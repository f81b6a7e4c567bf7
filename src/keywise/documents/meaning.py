"""How near the meanings of sentences are to that of a question, by an encoder of the user's choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from keywise.documents.files import Source

Encode = Callable[[Sequence[str]], Any]
"""Gives the vectors of some texts, one row each: `keywise.library.SentenceEncoder().encode` is one."""


class Meaning:
    """The meanings of sentences, each together with the one before it in its paragraph, which it goes on from.

    Parameters
    ----------
    encode
        Gives vectors of texts.
    sources
        The texts; their sentences are numbered through.
    paragraph_of
        int array [sentences], for each sentence the number of its paragraph.

    Examples
    --------
    >>> from keywise.documents import Source
    >>> count_letters = lambda texts: [[text.count("a"), text.count("o")] for text in texts]
    >>> meaning = Meaning(count_letters, [Source("note", "A lamp. Oh no.")], [0, 1])
    >>> meaning.sentences("o").round(2).tolist(), meaning.paragraphs("o").round(2).tolist()
    ([0.0, 1.0], [0.0, 1.0])
    """

    def __init__(self, encode: Encode, sources: Sequence[Source], paragraph_of: ArrayLike) -> None:
        self._encode, self._paragraph_of = encode, np.asarray(paragraph_of, dtype=np.intp)
        sentences = [source.text[start:end] for source in sources for start, end in source.sentences]
        goes_on = np.append(False, self._paragraph_of[1:] == self._paragraph_of[:-1])
        texts = [f"{sentences[n - 1]} {said}" if goes_on[n] else said for n, said in enumerate(sentences)]
        self._vectors = _directions(encode(texts))

    def paragraphs(self, question: str) -> NDArray[np.float64]:
        """Give for each sentence the mean cosine of those of its paragraph: [sentences]."""
        sums, sizes = np.bincount(self._paragraph_of, self.sentences(question)), np.bincount(self._paragraph_of)
        means: NDArray[np.float64] = sums / np.maximum(sizes, 1)
        return means[self._paragraph_of]

    def sentences(self, question: str) -> NDArray[np.float64]:
        """Give the cosine of the angle between a question and each sentence: [sentences]."""
        cosines: NDArray[np.float64] = self._vectors @ _directions(self._encode([question]))[0]
        return cosines


def _directions(vectors: Any) -> NDArray[np.float64]:
    found = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    directions: NDArray[np.float64] = found / np.where(lengths > 0, lengths, 1.0)
    return directions
