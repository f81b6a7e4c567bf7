"""Cosine similarity of sentences and a question, by an encoder of the user's choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from keywise.documents.files import Source

COSINE_DECIMALS: Final = 5

Encode = Callable[[Sequence[str]], Any]
"""Returns the vectors of texts, one row each: `keywise.library.SentenceEncoder().encode` is one."""

Scores = NDArray[np.float64]


class SemanticIndex:
    """Vectors of sentences, each made once for all questions when it is first needed.

    A sentence is encoded after its context, or after the sentence before it in its block, which it often refers to.

    Parameters
    ----------
    encode
        Returns the vectors of texts, one row each.
    sources
        The texts; their sentences are numbered in order.
    contexts
        For each sentence the text that tells what it is about; see `keywise.documents.context.find_contexts`.
    paragraph_ids
        int array [sentences], the paragraph of each sentence.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.documents import Source
    >>> count_letters = lambda texts: [[text.count("a"), text.count("o")] for text in texts]
    >>> index = SemanticIndex(count_letters, [Source("note", "A lamp. Oh no.")], ["", "Go:"], [0, 1])
    >>> sentences, paragraphs = index.score("o", np.array([0, 1]))
    >>> sentences.round(2).tolist(), paragraphs.round(2).tolist()
    ([0.0, 0.89], [0.0, 0.89])
    """

    def __init__(
        self, encode: Encode, sources: Sequence[Source], contexts: Sequence[str], paragraph_ids: ArrayLike
    ) -> None:
        self._encode = encode
        self._paragraph_ids = np.asarray(paragraph_ids, dtype=np.intp)
        self._texts: list[str] = []
        quotes = [quote for source in sources for quote in source.quotes]
        for number, (quote, context) in enumerate(zip(quotes, contexts, strict=True)):
            follows = number > 0 and quotes[number - 1].block is quote.block and quotes[number - 1].text not in context
            previous = quotes[number - 1].text if follows else ""
            self._texts.append(" ".join(part for part in (context, previous, quote.text) if part))
        self._vectors: NDArray[np.float64] | None = None
        self._is_encoded = np.zeros(len(self._texts), dtype=np.bool_)

    def score(self, question: str, sentences: NDArray[np.intp]) -> tuple[Scores, Scores]:
        """Return the cosine similarity of the question and each sentence, and its mean over each one's paragraph.

        Parameters
        ----------
        question
            The question.
        sentences
            int array, numbers of the sentences; the mean is taken over those of a paragraph.

        Returns
        -------
        sentences, paragraphs : float64 array [sentences]
        """
        missing = sentences[~self._is_encoded[sentences]]
        question_vector = _normalise(self._encode([question]))[0]
        if self._vectors is None:
            self._vectors = np.zeros((len(self._texts), question_vector.size))
        if missing.size:
            self._vectors[missing] = _normalise(self._encode([self._texts[number] for number in missing]))
            self._is_encoded[missing] = True
        # The last bits of a vector depend on the texts that it is encoded with.
        cosines: Scores = np.round(self._vectors[sentences] @ question_vector, COSINE_DECIMALS)
        _, paragraphs = np.unique(self._paragraph_ids[sentences], return_inverse=True)
        means: Scores = np.bincount(paragraphs, cosines) / np.maximum(np.bincount(paragraphs), 1)
        return cosines, means[paragraphs]


def _normalise(vectors: Any) -> NDArray[np.float64]:
    """Return vectors of length 1; a vector of zeros stays."""
    rows = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    directions: NDArray[np.float64] = rows / np.where(lengths > 0, lengths, 1.0)
    return directions
