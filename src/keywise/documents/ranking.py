"""The sentences of a document ranked for a question, over all of its windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keywise.documents.evidence import Evidence, estimate_no_answer_share, rank_sentences
from keywise.documents.scoring import Continuation, score_question

if TYPE_CHECKING:
    from keywise.documents.files import Source
    from keywise.documents.model import EvidenceModel
    from keywise.documents.prompt import QuestionTokens
    from keywise.documents.windows import Window

# Largest rounding error of a sum of shares that is 1.
_ROUNDING: Final = 1e-12


@dataclass(frozen=True)
class Ranking:
    """The sentences of a document ranked for a question.

    Attributes
    ----------
    evidence
        All sentences, best first.
    no_answer_share
        Probability that no sentence answers.
    window
        The window with the best sentence.
    window_evidence
        The sentences of that window alone, best first, with their places and ranks in it.
    ranks
        For each rank in that window the rank in `evidence`.
    continuation
        Where the model can continue after the question; None unless requested.
    """

    evidence: list[Evidence]
    no_answer_share: float
    window: Window
    window_evidence: list[Evidence]
    ranks: Mapping[int, int]
    continuation: Continuation | None


def rank_document(
    model: EvidenceModel,
    sources: Sequence[Source],
    windows: Sequence[Window],
    question: QuestionTokens,
    *,
    keep_cache: bool = False,
) -> Ranking:
    """Score a question on every window and return the ranked sentences.

    Parameters
    ----------
    model
        The model that prefilled the windows.
    sources
        The document's texts.
    windows
        Its windows.
    question
        The question's tokens, with an answer begun if the model has copying heads.
    keep_cache
        Whether the model must continue after the question; only for a document of one window.
    """
    scores = [score_question(model, window.context, question, keep_cache=keep_cache) for window in windows]
    rankings = [
        rank_sentences(
            window.sources,
            score.stats,
            window.text_index.score(question.text),
            model.heads,
            window.text_index.find_roles(question.text),
        )
        for window, score in zip(windows, scores, strict=True)
    ]
    if len(windows) == 1:
        evidence = rankings[0]
        ranks = {item.rank: item.rank for item in evidence}
        share = estimate_no_answer_share(scores[0].stats, model.heads)
        return Ranking(evidence, share, windows[0], evidence, ranks, scores[0].continuation)
    evidence, best = merge_rankings(sources, windows, rankings)
    window = windows[best]
    rank_by_place = {(item.source, item.start): item.rank for item in evidence}
    ranks = {item.rank: rank_by_place[item.source, item.start + window.starts[item.source]] for item in rankings[best]}
    share = max(1.0 - sum(item.share for item in evidence), 0.0)
    return Ranking(evidence, share, window, rankings[best], ranks, None)


def merge_rankings(
    sources: Sequence[Source], windows: Sequence[Window], rankings: Sequence[Sequence[Evidence]]
) -> tuple[list[Evidence], int]:
    """Merge the ranked sentences of windows into one ranking.

    "No sentence answers" is the same outcome in every window, so each window's sentences are compared with it. Without
    tuned heads there is no such share; then a window counts by the most mass on one of its sentences. A sentence of
    two windows counts once, with the larger odds.

    Parameters
    ----------
    sources
        The document's texts.
    windows
        Its windows.
    rankings
        The ranked sentences of each window.

    Returns
    -------
    evidence : list of Evidence
        All sentences, best first, with their places in the sources.
    window : int
        Number of the window with the best sentence.
    """
    candidates: dict[tuple[str, int], _Candidate] = {}
    no_answer_odds = 0.0
    for number, (window, ranking) in enumerate(zip(windows, rankings, strict=True)):
        window_no_answer_share = 1.0 - sum(item.share for item in ranking)
        if window_no_answer_share > _ROUNDING:
            no_answer_odds = 1.0
            scale = 1.0 / window_no_answer_share
        else:
            scale = max(0.0, *(item.mass for item in ranking))
        for item in ranking:
            start = item.start + window.starts[item.source]
            placed = replace(item, start=start, end=start + item.end - item.start, attention=item.attention * scale)
            candidate = _Candidate(item.share * scale, number, placed)
            best = candidates.get((item.source, start))
            if best is None or candidate.odds > best.odds:
                candidates[item.source, start] = candidate
    any_answer_odds = sum(candidate.odds for candidate in candidates.values())
    total = no_answer_odds + any_answer_odds or 1.0
    # "No sentence answers" has the same probability in the ranking by attention alone.
    attention_odds = sum(candidate.evidence.attention for candidate in candidates.values())
    attention_total = total * attention_odds / (any_answer_odds or 1.0) or 1.0
    order = {source.name: number for number, source in enumerate(sources)}
    ranked = sorted(
        candidates.values(), key=lambda each: (-each.odds, order[each.evidence.source], each.evidence.start)
    )
    evidence: list[Evidence] = []
    for rank, candidate in enumerate(ranked, start=1):
        item = candidate.evidence
        share = candidate.odds / total
        evidence.append(replace(item, share=share, attention=item.attention / attention_total, rank=rank))
    return evidence, ranked[0].window


@dataclass(frozen=True)
class _Candidate:
    """A sentence as one window ranks it."""

    odds: float
    window: int
    evidence: Evidence
