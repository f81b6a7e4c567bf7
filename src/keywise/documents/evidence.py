"""From attention readings to ranked sentences. Knows no model: it works on arrays of mass per head and sentence.

The mass that the rows of a question give to the document is compared with what the rows of a null question give to it:
only the difference tells about this question. What both share (sinks, favoured positions) falls away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.heads import Head, Heads

if TYPE_CHECKING:
    from keywise.documents.files import Source
    from keywise.hf import LayerReading

NULL_QUESTION: Final = "N/A"
# Added to a share before its logarithm: one kind of head that saw nothing must not rule a sentence out.
LEAST_SHARE: Final = 0.02

_TINY: Final = 1e-9

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
    share
        How likely it is the one that answers, from 0 to 1. The shares of all sentences and that of none of them sum
        to 1; see docs/evidence.md for how true they are.
    matching, copying
        Its part of the mass of the heads that match the question's words, and of those that look for an answer's
        first word; each sums to 1 over the document. 0 where no such heads are read.
    mass
        Attention mass of the question's rows, averaged over them and summed over the matching heads, above the mass
        that a null question gives. Negative if the null question looks here more.
    rank
        1 for the sentence with the largest share.
    """

    text: str
    start: int
    end: int
    source: str
    share: float
    matching: float
    copying: float
    mass: float
    rank: int


@dataclass(frozen=True, eq=False)
class Look:
    """Where one question looked: mass per head and sentence, averaged over the rows of each kind.

    Attributes
    ----------
    matching
        float64 [matching heads, sentences], of the question's rows.
    copying
        float64 [copying heads, sentences], of the rows that begin an answer.
    """

    matching: Mass
    copying: Mass

    def __sub__(self, other: Look) -> Look:
        return Look(self.matching - other.matching, self.copying - other.copying)


def mass_of_heads(records: Iterable[LayerReading], heads: Sequence[Head], sentences: int, rows: slice) -> Mass:
    """Give the mass of heads on sentences, averaged over some of the rows of one call of a model.

    Parameters
    ----------
    records
        Readings of one call with a batch of one, `segment_mass` of the document's sentences included.
    heads
        (layer, head) of each.
    sentences
        Number of sentences.
    rows
        Which rows of the call.

    Returns
    -------
    float64 array [len(heads), sentences]
    """
    by_layer = {record.layer: record.reading.segment_mass for record in records}
    mass = np.zeros((len(heads), sentences))
    for number, (layer, head) in enumerate(heads):
        found = np.asarray(by_layer[layer][0, head, rows], dtype=np.float64).mean(axis=0)
        mass[number, : found.size] = found  # the last sentences may have no token
    return mass


def shares_of_heads(look: Look, heads: Heads) -> tuple[Mass, Mass]:
    """Give each sentence's part of the matching heads' and of the copying heads' mass above null.

    Chosen heads each have a voice: the roots of their parts are averaged. All heads of whole layers only tell
    something together: their mass is summed.
    """
    pooled = _roots_averaged if heads.tuned_on else _summed
    return pooled(look.matching), pooled(look.copying)


def sentence_shares(matching: Mass, copying: Mass, heads: Heads) -> Mass:
    """Multiply the powers of what the heads found; the shares sum to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.documents.heads import untuned
    >>> sentence_shares(np.array([0.1, 0.9]), np.zeros(2), untuned(4, 2)).round(3).tolist()
    [0.017, 0.983]
    """
    product = np.ones(matching.size)
    for part, power in (
        (matching, heads.matching_power),
        (copying, heads.copying_power),
        (previous(matching), heads.previous_power),
    ):
        product *= (part + LEAST_SHARE) ** power
    shares: Mass = product / product.sum()
    return shares


def previous(part: Mass) -> Mass:
    """Give each sentence the part of the one before it; the first has none before it.

    Examples
    --------
    >>> import numpy as np
    >>> previous(np.array([0.1, 0.9])).tolist()
    [0.0, 0.1]
    """
    return np.concatenate([np.zeros(1), part[:-1]])


def none_share(look: Look, heads: Heads) -> float:
    """Give the probability that no sentence answers, from the most mass that any has; 0 where it was never learned."""
    if not heads.none_power:
        return 0.0
    largest = float(look.matching.sum(axis=0).max(initial=0.0))
    odds: float = (largest / heads.none_mass) ** heads.none_power
    return 1.0 / (1.0 + odds)


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


def rank_sentences(sources: Sequence[Source], look: Look, heads: Heads) -> list[Evidence]:
    """Rank all sentences of all sources by their shares, the largest first; equal ones keep the text's order.

    Parameters
    ----------
    sources
        The texts; their sentences are numbered through.
    look
        Where the question looked, a null question's look subtracted.
    heads
        The heads that looked.
    """
    spans = [(source, start, end) for source in sources for start, end in source.sentences]
    matching, copying = shares_of_heads(look, heads)
    shares = sentence_shares(matching, copying, heads) * (1.0 - none_share(look, heads))
    mass = look.matching.sum(axis=0)
    return [
        Evidence(
            text=spans[number][0].text[spans[number][1] : spans[number][2]],
            start=spans[number][1],
            end=spans[number][2],
            source=spans[number][0].name,
            share=float(shares[number]),
            matching=float(matching[number]),
            copying=float(copying[number]),
            mass=float(mass[number]),
            rank=rank,
        )
        for rank, number in enumerate(np.argsort(-shares, kind="stable"), start=1)
    ]


def _roots_averaged(mass: Mass) -> Mass:
    if not mass.size:
        return np.zeros(mass.shape[1])
    positive = np.maximum(mass, 0.0)
    parts = positive / np.maximum(positive.sum(axis=1, keepdims=True), _TINY)
    return _part(np.sqrt(parts).mean(axis=0) ** 2)


def _summed(mass: Mass) -> Mass:
    return _part(np.maximum(mass.sum(axis=0), 0.0))


def _part(mass: Mass) -> Mass:
    part: Mass = mass / np.maximum(mass.sum(), _TINY)
    return part
