"""From attention readings to ranked sentences. Knows no model: it works on arrays of mass per document token.

The mass that the rows of a question give to the document is compared with what the rows of a null question give to it:
only the difference tells about this question. What both share (sinks, favoured positions) falls away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from keywise.documents.files import Source
    from keywise.hf import LayerReading

NULL_QUESTION = "N/A"

Mass = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """A sentence with the attention that a question gave to it.

    Attributes
    ----------
    text
        The sentence: ``source_text[start:end]``.
    start, end
        Its span in the text of its source, in characters.
    source
        The name of its source.
    mass
        Attention mass of the question's rows, averaged over them and summed over the heads that were read, above the
        mass that a null question gives. Negative if the null question looks here more.
    share
        Its part of all positive mass, from 0 to 1. The shares of a document sum to 1, or are all 0 without such mass.
    answer_mass
        The same as `mass` for the rows of the answer's tokens: where the answer's words looked. None without an answer.
    rank
        1 for the sentence with the most `mass`.
    """

    text: str
    start: int
    end: int
    source: str
    mass: float
    share: float
    answer_mass: float | None
    rank: int


def middle_layers(count: int) -> range:
    """Give the layers between a quarter and three quarters of a model's depth, where attention finds content.

    Examples
    --------
    >>> middle_layers(30)
    range(7, 22)
    """
    return range(count // 4, max(count // 4 + 1, count * 3 // 4))


def mass_of_tokens(records: Iterable[LayerReading], tokens: range) -> Mass:
    """Sum the key mass of readings over layers and heads for a range of token positions, averaged over the rows read.

    Parameters
    ----------
    records
        Readings of one call of a model with a batch of one, `key_mass` included.
    tokens
        Token positions wanted. Where a sliding layer has dropped keys already, they get no mass from it.

    Returns
    -------
    float64 array [len(tokens)]
    """
    total = np.zeros(len(tokens))
    for record in records:
        first_row, last_row = record.rows
        mass = np.asarray(record.reading.key_mass, dtype=np.float64)[0].sum(axis=0) / (last_row - first_row)
        first = max(tokens.start, record.first_key)
        last = min(tokens.stop, record.first_key + mass.size)
        if first < last:
            total[first - tokens.start : last - tokens.start] += mass[
                first - record.first_key : last - record.first_key
            ]
    return total


def above_null(mass: Mass, null: Mass) -> Mass:
    """Subtract the null question's mass, and set to zero the few tokens that fall far below all others.

    Examples
    --------
    >>> import numpy as np
    >>> above_null(np.array([0.5, 0.2]), np.array([0.5, 0.1])).tolist()
    [0.0, 0.1]
    """
    difference = mass - null
    # Sinks lose mass as soon as a question gives the model something to look at; they say nothing of their sentence.
    outliers = difference <= difference.mean() - 2 * difference.std()
    return np.where(outliers & (difference < 0), 0.0, difference)


def sentence_of_token(offsets: Sequence[tuple[int, int]], sentences: Sequence[tuple[int, int]]) -> NDArray[np.intp]:
    """Give for each token, by its character span, the number of the sentence it lies in; -1 for none.

    Examples
    --------
    >>> sentence_of_token([(0, 2), (2, 5), (5, 6), (6, 9)], [(0, 5), (6, 9)]).tolist()
    [0, 0, -1, 1]
    """
    spans = np.asarray(sentences, dtype=np.intp).reshape(-1, 2)
    tokens = np.asarray(offsets, dtype=np.intp).reshape(-1, 2)
    # A token may begin with the space before a sentence: what counts is the first sentence that it reaches.
    number = np.searchsorted(spans[:, 1], tokens[:, 0], side="right")
    starts = np.append(spans[:, 0], np.iinfo(np.intp).max)
    return np.where(tokens[:, 1] > starts[number], number, -1)


def rank_sentences(
    sources: Sequence[Source], sentence_of: NDArray[np.intp], mass: Mass, answer_mass: Mass | None
) -> list[Evidence]:
    """Sum mass per sentence and rank all sentences of all sources, heaviest first; equal ones keep the text's order.

    Parameters
    ----------
    sources
        The texts; their sentences are numbered through.
    sentence_of
        Sentence number of each token, -1 for none; see `sentence_of_token`.
    mass, answer_mass
        Mass above null of each token, from the question's and the answer's rows.
    """
    spans = [(source, start, end) for source in sources for start, end in source.sentences]

    def per_sentence(token_mass: Mass) -> Mass:
        inside = sentence_of >= 0
        return np.bincount(sentence_of[inside], token_mass[inside], len(spans)).astype(np.float64)

    sums = per_sentence(mass)
    answer_sums = None if answer_mass is None else per_sentence(answer_mass)
    positive = np.maximum(sums, 0.0)
    shares = positive / (positive.sum() or 1.0)
    return [
        Evidence(
            text=spans[number][0].text[spans[number][1] : spans[number][2]],
            start=spans[number][1],
            end=spans[number][2],
            source=spans[number][0].name,
            mass=float(sums[number]),
            share=float(shares[number]),
            answer_mass=None if answer_sums is None else float(answer_sums[number]),
            rank=rank,
        )
        for rank, number in enumerate(np.argsort(-sums, kind="stable"), start=1)
    ]
