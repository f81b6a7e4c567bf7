"""Sentences ranked by attention and text: arrays of scores in, a list of evidence out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.blocks import BlockKind, Box
from keywise.documents.heads import ATTENTION, BIAS, LEXICAL, SEMANTIC, Heads

if TYPE_CHECKING:
    from keywise.documents.files import Source
    from keywise.documents.scoring import EvidenceStats

# Added to every score before it is raised to its power, so that 0 by one of them excludes no sentence.
SMOOTHING: Final = 0.02
LEXICAL_SMOOTHING: Final = 0.05
# The attention on a row is mostly that on its table: rows are so alike that the row's own share has only this power.
ROW_POWER: Final = 0.1
MIN_TABLE_ROWS: Final = 3
# What the text of a question and its best sentence counts beside the question's own scores.
SECOND_LOOK_POWER: Final = 0.3
# Smaller masses are no different from 0.
MIN_MASS: Final = 1e-3
# Features that are logarithms of odds; the others are shares.
COSINE_FEATURES: Final = ("semantic", "paragraph_semantic")

_TINY: Final = 1e-9

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """A sentence and its scores as the answer to a question.

    Attributes
    ----------
    text
        The sentence as a reader sees it: without marks, a table row with the names of its columns.
    start, end
        Its span in the text of its source, in characters.
    source
        Name of its source.
    share
        Probability that this sentence answers, from 0 to 1. The shares of all sentences and `Answer.no_answer_share`
        sum to 1. docs/evidence.md shows how well they are calibrated.
    attention
        The share by attention alone. These sum to 1 with `Answer.no_answer_share` too.
    matching, copying
        Share of the attention mass of the matching and of the copying heads; each sums to 1 over the document, or is 0
        where there are no such heads.
    mass
        Attention mass of the question's tokens above the null question's: mean over tokens, sum over matching heads.
        It is negative if the null question attends more to this sentence.
    lexical, paragraph_lexical
        Share of the question's words, by their rarity, in the sentence or its context (headings, or the line that
        announces it); the same for its paragraph by BM25.
    semantic, paragraph_semantic
        Cosine similarity of the question and the sentence in its context, and its mean over the paragraph; None unless
        the reader has an encoder.
    rank
        1 for the sentence with the largest share.
    page
        Number of the page on which it begins, from 1; 0 if its source has no pages.
    boxes
        Its place on the pages of a PDF, a box per line.
    heading_path
        The headings that it stands under, outermost first.
    kind
        Kind of its block.

    Examples
    --------
    >>> best = document.evidence("Who was the keeper?")[0]  # doctest: +SKIP
    >>> best.text, best.share > 0.5  # doctest: +SKIP
    ('Its keeper was Ann Low.', True)
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
    lexical: float
    paragraph_lexical: float
    semantic: float | None
    paragraph_semantic: float | None
    rank: int
    page: int = 0
    boxes: tuple[Box, ...] = ()
    heading_path: tuple[str, ...] = ()
    kind: BlockKind = BlockKind.PARAGRAPH


@dataclass(frozen=True, eq=False)
class SentenceRoles:
    """Which sentences do not answer a question by themselves.

    Attributes
    ----------
    leads_on
        bool [sentences]: headings, questions, and lines that end with a colon. What they say belongs to the next
        sentence.
    lists_parts
        bool [sentences]: headers of tables and lines of contents.
    tables
        int [sentences]: the table of each row, -1 for other sentences.
    """

    leads_on: NDArray[np.bool_]
    lists_parts: NDArray[np.bool_]
    tables: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class SentenceScores:
    """The scores of sentences for a question: float64 [sentences] each; see `Evidence`.

    Attributes
    ----------
    share, attention, matching, copying, mass
        As in `Evidence`.
    text
        Scores of the text, by name: see `keywise.documents.text_index.TextIndex.score`.
    no_answer_share
        Probability that no sentence answers; with all shares it sums to 1.
    """

    share: Scores
    attention: Scores
    matching: Scores
    copying: Scores
    mass: Scores
    text: Mapping[str, Scores]
    no_answer_share: float

    @property
    def columns(self) -> dict[str, Scores]:
        """All scores by their names in `Evidence`."""
        names = ("share", "attention", "matching", "copying", "mass")
        return {**{name: getattr(self, name) for name in names}, **self.text}


def score_sentences(
    stats: EvidenceStats, text_scores: Mapping[str, Scores], heads: Heads, roles: SentenceRoles | None = None
) -> SentenceScores:
    """Return the scores of sentences from the attention on them and from their text.

    Semantic scores count if `text_scores` has them. A sentence that does not answer by itself has no share.

    Parameters
    ----------
    stats
        Attention mass per head and sentence, above the null question's.
    text_scores
        Scores from the text alone: see `keywise.documents.text_index.TextIndex.score`.
    heads
        The heads of `stats`, and the power of each feature.
    roles
        Which sentences do not answer by themselves; None for none.
    """
    matching, copying = pool_heads(stats, heads)
    odds = compute_feature_odds(stats, text_scores, heads, None if roles is None else roles.tables)
    ranking = SEMANTIC if "semantic" in text_scores else LEXICAL
    shares = combine_odds(odds, heads.powers[ranking])
    attention = combine_odds(odds, heads.powers[ATTENTION])
    if roles is not None:
        shares = move_shares(shares, roles)
        attention = move_shares(attention, roles)
    mass = stats.matching.sum(axis=0)
    best = int(shares.argmax())
    scores = {name: float(score[best]) for name, score in text_scores.items()}
    scores["mass"] = float(np.log(max(mass[best], MIN_MASS)))
    no_answer_share = estimate_no_answer_share(scores, heads.answer_odds.get(ranking))
    shares *= 1.0 - no_answer_share
    attention *= 1.0 - no_answer_share
    return SentenceScores(shares, attention, matching, copying, mass, text_scores, no_answer_share)


def look_again(scores: SentenceScores, text_scores: Mapping[str, Scores], heads: Heads) -> SentenceScores:
    """Return scores whose shares also follow the text of a question with its best sentence.

    A question over several texts often takes two steps: the sentence that it leads to names what the next one is about.

    Parameters
    ----------
    scores
        Scores of the question.
    text_scores
        Scores of the text for the question and the best sentence together.
    heads
        The power of each feature.
    """
    powers = heads.powers[SEMANTIC if "semantic" in text_scores else LEXICAL]
    odds = {name: compute_text_odds(name, score) for name, score in text_scores.items()}
    second = combine_odds(odds, {name: powers[name] for name in odds}) ** SECOND_LOOK_POWER
    share = scores.share * second
    return replace(scores, share=share * (scores.share.sum() / (share.sum() or 1.0)))


def list_evidence(sources: Sequence[Source], scores: SentenceScores, order: NDArray[np.intp]) -> list[Evidence]:
    """Return all sentences as evidence.

    Parameters
    ----------
    sources
        The texts; their sentences are numbered in order.
    scores
        Scores of all sentences.
    order
        int array [sentences], the numbers of the sentences, best first.
    """
    quotes = [item for source in sources for item in zip(repeat(source), source.quotes, source.boxes)]
    # Lists, because single numbers are picked from them.
    columns: dict[str, list[float | None]] = {name: [None] * len(quotes) for name in COSINE_FEATURES}
    columns |= {name: column.tolist() for name, column in scores.columns.items()}
    evidence: list[Evidence] = []
    for rank, number in enumerate(order.tolist(), start=1):
        source, quote, boxes = quotes[number]
        own_scores: dict[str, Any] = {name: column[number] for name, column in columns.items()}
        evidence.append(
            Evidence(
                text=quote.text,
                start=quote.begin,
                end=quote.end,
                source=source.name,
                rank=rank,
                page=boxes[0].page if boxes else quote.block.page,
                boxes=boxes,
                heading_path=quote.block.heading_path,
                kind=quote.block.kind,
                **own_scores,
            )
        )
    return evidence


def estimate_no_answer_share(best: Mapping[str, float], weights: Mapping[str, float] | None) -> float:
    """Return the probability that no sentence answers.

    It is small if the best sentence has many of the question's words, is about the same, and has much attention.

    Parameters
    ----------
    best
        Scores of the best sentence: the logarithm of its ``mass``, and its scores by text.
    weights
        Their weights in the logarithm of the odds that it answers, and ``bias``; None for a share of 0.

    Examples
    --------
    >>> weights = {"mass": 1.0, "lexical": 10.0, "bias": 0.0}
    >>> round(estimate_no_answer_share({"mass": -4.0, "lexical": 0.1}, weights), 3)
    0.953
    """
    if weights is None:
        return 0.0
    log_odds = sum(weight * (1.0 if name == BIAS else best[name]) for name, weight in weights.items())
    return float(1.0 / (1.0 + np.power(np.e, log_odds)))


def pool_heads(stats: EvidenceStats, heads: Heads) -> tuple[Scores, Scores]:
    """Return each sentence's share of the matching and of the copying heads' mass.

    Tuned heads count equally, whatever their mass: the square roots of their shares are averaged. The mass of guessed
    heads, which are all heads of some layers, is summed.

    Returns
    -------
    matching, copying : float64 array [sentences]
    """
    if heads.tuned_on:
        return _average_roots(stats.matching), _average_roots(stats.copying)
    return _sum_heads(stats.matching), _sum_heads(stats.copying)


def compute_feature_odds(
    stats: EvidenceStats,
    text_scores: Mapping[str, Scores],
    heads: Heads,
    tables: NDArray[np.intp] | None = None,
) -> dict[str, Scores]:
    """Return the odds of every sentence by each feature.

    The shares are products of powers of these odds.

    Features are the shares of the matching and of the copying heads, the matching share of the sentence before (a
    sentence often refers to it: "Its keeper ..."), and the scores of the text.

    Parameters
    ----------
    stats
        Attention mass per head and sentence, above the null question's.
    text_scores
        Scores from the text alone. Lexical ones are from 0 to 1; semantic ones are cosines, which are the logarithms
        of the odds.
    heads
        The heads of `stats`.
    tables
        The table of each row, -1 for other sentences; None for none.

    Returns
    -------
    dict of float64 arrays [sentences]
    """
    matching, copying = pool_heads(stats, heads)
    if tables is not None:
        matching, copying = level_tables(matching, tables), level_tables(copying, tables)
    shares = {"matching": matching, "copying": copying, "previous": shift_to_next(matching)}
    odds = {name: share + SMOOTHING for name, share in shares.items()}
    return odds | {name: compute_text_odds(name, score) for name, score in text_scores.items()}


def compute_text_odds(name: str, score: Scores) -> Scores:
    """Return the odds of sentences by a score of their text.

    Parameters
    ----------
    name
        Name of the score.
    score
        float64 [sentences].

    Examples
    --------
    >>> import numpy as np
    >>> compute_text_odds("lexical", np.array([0.0, 1.0])).tolist()
    [0.05, 1.05]
    """
    return np.power(np.e, score) if name in COSINE_FEATURES else score + LEXICAL_SMOOTHING


def combine_odds(odds: Mapping[str, Scores], powers: Mapping[str, float]) -> Scores:
    """Return the product of powers of odds for each sentence, scaled to sum to 1.

    Parameters
    ----------
    odds
        By feature, float64 [sentences].
    powers
        By feature, its power.

    Examples
    --------
    >>> import numpy as np
    >>> combine_odds({"matching": np.array([0.1, 0.9])}, {"matching": 2.0}).round(3).tolist()
    [0.012, 0.988]
    """
    product = np.prod([odds[feature] ** power for feature, power in powers.items()], axis=0)
    shares: Scores = product / product.sum()
    return shares


def level_tables(shares: Scores, tables: NDArray[np.intp]) -> Scores:
    """Return shares where rows of a table are nearly as large as their mean.

    Parameters
    ----------
    shares
        float64 [sentences].
    tables
        The table of each row, -1 for other sentences.

    Examples
    --------
    >>> import numpy as np
    >>> level_tables(np.array([0.4, 0.1, 0.2, 0.3]), np.array([-1, 0, 0, 0])).round(2).tolist()
    [0.4, 0.19, 0.2, 0.21]
    """
    levelled: Scores = shares.copy()
    for table in range(int(tables.max(initial=-1)) + 1):
        rows = np.flatnonzero(tables == table)
        if rows.size >= MIN_TABLE_ROWS:
            own = shares[rows] + _TINY
            levelled[rows] = own.mean() ** (1.0 - ROW_POWER) * own**ROW_POWER
    return levelled


def shift_to_next(shares: Scores) -> Scores:
    """Return for each sentence the share of the one before it, 0 for the first.

    Examples
    --------
    >>> import numpy as np
    >>> shift_to_next(np.array([0.1, 0.9])).tolist()
    [0.0, 0.1]
    """
    return np.concatenate([np.zeros(1), shares[:-1]])


def move_shares(shares: Scores, roles: SentenceRoles) -> Scores:
    """Return shares where sentences that do not answer by themselves have none; the sum stays.

    Examples
    --------
    >>> import numpy as np
    >>> leads_on, lists_parts = np.eye(4, dtype=bool)[[0, 3]]
    >>> roles = SentenceRoles(leads_on, lists_parts, tables=np.full(4, -1))
    >>> move_shares(np.array([0.4, 0.2, 0.2, 0.2]), roles).round(2).tolist()
    [0.0, 0.75, 0.25, 0.0]
    """
    result: Scores = shares.copy()
    answering = np.flatnonzero(~(roles.leads_on | roles.lists_parts))
    if not answering.size:
        return result
    for number in np.flatnonzero(roles.leads_on).tolist():
        following = answering[np.searchsorted(answering, number) :]
        if following.size:
            result[following[0]] += result[number]
        result[number] = 0.0
    result[roles.lists_parts] = 0.0
    result *= shares.sum() / (result.sum() or 1.0)
    return result


def _average_roots(mass: Scores) -> Scores:
    if not mass.size:
        return np.zeros(mass.shape[1])
    positive = np.maximum(mass, 0.0)
    shares = positive / np.maximum(positive.sum(axis=1, keepdims=True), _TINY)
    return _scale_to_sum_1(np.sqrt(shares).mean(axis=0) ** 2)


def _sum_heads(mass: Scores) -> Scores:
    return _scale_to_sum_1(np.maximum(mass.sum(axis=0), 0.0))


def _scale_to_sum_1(mass: Scores) -> Scores:
    shares: Scores = mass / np.maximum(mass.sum(), _TINY)
    return shares
