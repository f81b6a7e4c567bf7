"""From attention readings and words to ranked sentences. Knows no model: it works on arrays of clues per sentence.

The mass that the rows of a question give to the document is compared with what the rows of a null question give to it:
only the difference tells about this question. What both share (sinks, favoured positions) falls away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.heads import ATTENTION, MEANING, WORDS, Head, Heads

if TYPE_CHECKING:
    from keywise.documents.files import Source
    from keywise.hf import LayerStats

NULL_QUESTION: Final = "N/A"
# Added to a share before its logarithm: one kind of head that saw nothing must not rule a sentence out.
LEAST_SHARE: Final = 0.02
# Clues that are logarithms of odds.
COSINES: Final = ("meaning", "paragraph_meaning")

_TINY: Final = 1e-9

Mass = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """A sentence with what speaks for it as the answer to a question.

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
    attention
        The share that it would have by attention alone; these too sum to 1 with that of none.
    matching, copying
        Its part of the mass of the heads that match the question's words, and of those that look for an answer's
        first word; each sums to 1 over the document. 0 where no such heads are read.
    mass
        Attention mass of the question's rows, averaged over them and summed over the matching heads, above the mass
        that a null question gives. Negative if the null question looks here more.
    words, paragraph_words
        Its part of the matches with the question's words (BM25), and its paragraph's part of those of all paragraphs.
    meaning, paragraph_meaning
        Cosine of the meanings of the question and of the sentence with the one before it, and the mean over its
        paragraph; None unless the reader was given an encoder.
    rank
        1 for the sentence with the largest share.
    """

    text: str
    start: int
    end: int
    source: str
    share: float
    attention: float
    matching: float
    copying: float
    mass: float
    words: float
    paragraph_words: float
    meaning: float | None
    paragraph_meaning: float | None
    rank: int


@dataclass(frozen=True, eq=False)
class Look:
    """Where one question looked: mass per head and sentence, averaged over the rows of each kind.

    Attributes
    ----------
    matching
        float64 [matching heads, sentences], of the question's rows, rare words counting most.
    copying
        float64 [copying heads, sentences], of the rows that begin an answer.
    """

    matching: Mass
    copying: Mass

    def __sub__(self, other: Look) -> Look:
        return Look(self.matching - other.matching, self.copying - other.copying)


def mass_of_heads(
    records: Iterable[LayerStats],
    heads: Sequence[Head],
    sentences: int,
    rows: slice,
    weights: NDArray[np.float64] | None = None,
) -> Mass:
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
    weights
        How much each of these rows counts: float64 [rows]; default all the same.

    Returns
    -------
    float64 array [len(heads), sentences]
    """
    by_layer = {record.layer: record.stats.segment_mass for record in records}
    mass = np.zeros((len(heads), sentences))
    for number, (layer, head) in enumerate(heads):
        found = np.average(np.asarray(by_layer[layer][0, head, rows], dtype=np.float64), axis=0, weights=weights)
        mass[number, : found.size] = found  # the last sentences may have no token
    return mass


def shares_of_heads(look: Look, heads: Heads) -> tuple[Mass, Mass]:
    """Give each sentence's part of the matching heads' and of the copying heads' mass above null.

    Chosen heads each have a voice: the roots of their parts are averaged. All heads of whole layers only tell
    something together: their mass is summed.
    """
    pooled = _roots_averaged if heads.tuned_on else _summed
    return pooled(look.matching), pooled(look.copying)


def clue_odds(look: Look, text: Mapping[str, Mass], heads: Heads) -> dict[str, Mass]:
    """Give what every clue says for each sentence as the one that answers: shares are products of powers of these.

    Clues are a sentence's parts of the mass of the matching and of the copying heads; the matching part of the sentence
    before it, which a sentence often goes on from ("Its keeper ..."); and those of its text.

    Parameters
    ----------
    look
        Where the question looked, a null question's look subtracted.
    text
        By name, clues that need no attention: ``words`` and ``paragraph_words``, which are parts too, and if there is
        an encoder ``meaning`` and ``paragraph_meaning``, cosines, which are the odds' logarithms.
    heads
        The heads that looked.

    Returns
    -------
    dict of float64 arrays [sentences]
    """
    matching, copying = shares_of_heads(look, heads)
    parts = {"matching": matching, "copying": copying, "previous": previous(matching), **text}
    return {name: np.power(np.e, part) if name in COSINES else part + LEAST_SHARE for name, part in parts.items()}


def sentence_shares(odds: Mapping[str, Mass], powers: Mapping[str, float]) -> Mass:
    """Multiply powers of the odds that clues give; the shares sum to 1.

    Examples
    --------
    >>> import numpy as np
    >>> sentence_shares({"matching": np.array([0.1, 0.9])}, {"matching": 2.0}).round(3).tolist()
    [0.012, 0.988]
    """
    product = np.prod([odds[clue] ** power for clue, power in powers.items()], axis=0)
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


def no_answer_share(look: Look, heads: Heads) -> float:
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


def rank_sentences(sources: Sequence[Source], look: Look, text: Mapping[str, Mass], heads: Heads) -> list[Evidence]:
    """Rank all sentences of all sources by their shares, the largest first; equal ones keep the text's order.

    They are ranked by attention and words, and by meaning too if the text's clues have it.

    Parameters
    ----------
    sources
        The texts; their sentences are numbered through.
    look, text, heads
        As in `clue_odds`.
    """
    spans = [(source, start, end) for source in sources for start, end in source.sentences]
    matching, copying = shares_of_heads(look, heads)
    odds = clue_odds(look, text, heads)
    any_of_these = 1.0 - no_answer_share(look, heads)
    shares = sentence_shares(odds, heads.powers[MEANING if "meaning" in text else WORDS]) * any_of_these
    attention = sentence_shares(odds, heads.powers[ATTENTION]) * any_of_these
    found = {
        "share": shares,
        "attention": attention,
        "matching": matching,
        "copying": copying,
        "mass": look.matching.sum(axis=0),
        **text,
    }
    # Lists, because single numbers are picked from them.
    numbers = dict.fromkeys(COSINES, [None] * len(spans)) | {name: array.tolist() for name, array in found.items()}
    return [
        Evidence(
            text=source.text[start:end],
            start=start,
            end=end,
            source=source.name,
            rank=rank,
            **{name: column[number] for name, column in numbers.items()},
        )
        for rank, number in enumerate(np.argsort(-shares, kind="stable").tolist(), start=1)
        for source, start, end in [spans[number]]
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
