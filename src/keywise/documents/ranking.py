"""The ranking of a document's sentences for a question, over all windows of the document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.blocks import BlockKind
from keywise.documents.evidence import Evidence, SentenceScores, list_evidence, look_again, score_sentences
from keywise.documents.prefill import PrefilledContext
from keywise.documents.scoring import Continuation, score_question
from keywise.documents.windows import Window, cut_sources, prefill_windows

if TYPE_CHECKING:
    from keywise.documents.files import Source
    from keywise.documents.model import EvidenceModel
    from keywise.documents.prompt import QuestionTokens
    from keywise.documents.text_index import TextIndex
    from keywise.util.progress import Progress

# The best sentences of all windows are read together, with those around them, up to so many tokens.
FINAL_TOKENS: Final = 1024
# So many sentences before and after a candidate are read with it.
NEIGHBOURS: Final = 2
# So many sentences of each window are read again, before others.
WINDOW_CANDIDATES: Final = 2

# The largest score of words: that of a sentence and that of its paragraph.
MAX_WORD_SCORE: Final = 2.0

Scores = NDArray[np.float64]
Numbers = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The sentences of a document ranked for a question.

    Attributes
    ----------
    evidence
        All sentences, best first.
    no_answer_share
        Probability that no sentence answers.
    window
        The sentences that were read last, and their keys and values: the window of a document of one window, else the
        best sentences of all windows.
    read_windows
        Number of windows that were read.
    ranks
        int array [sentences], the rank of each sentence by its number.
    continuation
        Where the model can continue after the question; None unless requested.
    """

    evidence: list[Evidence]
    no_answer_share: float
    window: Window
    read_windows: int
    ranks: Numbers
    continuation: Continuation | None


def rank_document(
    model: EvidenceModel,
    sources: Sequence[Source],
    windows: Sequence[Window],
    text_index: TextIndex,
    question: QuestionTokens,
    *,
    max_windows: int,
    keep_cache: bool = False,
    progress: Progress | None = None,
) -> Ranking:
    """Score a question on the windows of a document and return the ranked sentences.

    The windows are read in the order in which the question's words rank them. Scores of different windows cannot be
    compared, so the best sentences of all windows are read together at the end and scored once more. An interrupt
    while the windows are read ends the reading: those that were read are ranked.

    Parameters
    ----------
    model
        The model that prefills the windows.
    sources
        The document's texts.
    windows
        Its windows.
    text_index
        Its words.
    question
        The question's tokens, with an answer begun if the model has copying heads.
    max_windows
        Most windows to read.
    keep_cache
        Whether the model must continue after the question; only for a document of one window.
    progress
        Called with the number of tokens read and of all to read.

    Raises
    ------
    KeyboardInterrupt
        It came before the first window was read.
    """
    if len(windows) == 1:
        (window,) = windows
        scores, continuation = _score_window(model, sources, window, text_index, question, keep_cache=keep_cache)
        order = np.argsort(-scores.share, kind="stable")
        evidence = list_evidence(sources, scores, order)
        return Ranking(evidence, scores.no_answer_share, window, 1, _invert(order), continuation)

    chosen = choose_windows(windows, text_index, question.text, max_windows)
    for number, window in enumerate(windows):
        if number not in chosen:
            window.context.release()
    by_window = _read_windows(model, [windows[number] for number in chosen], text_index, question, progress)
    # What was not read comes last, in the order of its words.
    odds = text_index.score_words(question.text) - MAX_WORD_SCORE
    columns = _merge_windows(by_window, odds)
    max_tokens = min(FINAL_TOKENS, max(len(window.context.document.token_ids) for window, _ in by_window))
    candidates = [window.sentences[np.argsort(-scores.share, kind="stable")] for window, scores in by_window]
    window = _make_final_window(
        model, sources, choose_sentences(sources, candidates, odds, model.prompt.encode_text, max_tokens)
    )
    scores, _ = _score_window(model, sources, window, text_index, question)
    columns |= {name: np.zeros(odds.size) for name in ("share", "attention")}
    for name, column in scores.columns.items():
        columns[name][window.sentences] = column
    order = np.lexsort((-odds, -columns["share"]))
    text_scores = {name: columns.pop(name) for name in scores.text}
    whole = SentenceScores(**columns, text=text_scores, no_answer_share=scores.no_answer_share)
    evidence = list_evidence(sources, whole, order)
    return Ranking(evidence, scores.no_answer_share, window, len(by_window), _invert(order), None)


def choose_windows(windows: Sequence[Window], text_index: TextIndex, question: str, max_windows: int) -> list[int]:
    """Return the numbers of the windows to read, in the order in which the question's words rank them.

    Parameters
    ----------
    windows
        The windows of a document.
    text_index
        Its words.
    question
        The question.
    max_windows
        Most windows.
    """
    scores = text_index.score_words(question)
    best = np.array([scores[window.sentences].max() for window in windows])
    return [int(number) for number in np.argsort(-best, kind="stable")[:max_windows]]


def choose_sentences(
    sources: Sequence[Source],
    candidates: Sequence[Numbers],
    preliminary: Scores,
    encode_text: Callable[[str], tuple[list[int], Any]],
    max_tokens: int,
) -> Numbers:
    """Return the sentences that are read together at the end: the best of all windows, with those around them.

    Parameters
    ----------
    sources
        The document's texts.
    candidates
        For each window its sentences, best first.
    preliminary
        float64 [sentences], by which the candidates of different windows are compared.
    encode_text
        Returns the tokens of a text and their places.
    max_tokens
        Most tokens of the sentences; one sentence may be longer.

    Returns
    -------
    int array
        Numbers of sentences, ascending.
    """
    quotes = [quote for source in sources for quote in source.quotes]
    source_ids = [number for number, source in enumerate(sources) for _ in source.quotes]
    first = [number for ranked in candidates for number in ranked[:WINDOW_CANDIDATES].tolist()]
    others = sorted(
        {number for ranked in candidates for number in ranked.tolist()}, key=lambda number: -preliminary[number]
    )
    chosen: set[int] = set()
    free_tokens = max_tokens
    for number in [*sorted(first, key=lambda number: -preliminary[number]), *others]:
        passage = [number]
        for step in (-1, 1):
            for near in range(number + step, number + step * (NEIGHBOURS + 1), step):
                if not 0 <= near < len(quotes) or source_ids[near] != source_ids[number]:
                    break
                is_heading = quotes[near].block.kind == BlockKind.HEADING
                if is_heading and step > 0:
                    break
                passage.append(near)
                if is_heading:
                    break
        new = [near for near in passage if near not in chosen]
        size = sum(len(encode_text(quotes[near].text)[0]) + 1 for near in new)
        if size > free_tokens:
            break
        chosen.update(new)
        free_tokens -= size
    return np.array(sorted(chosen or {others[0]}), dtype=np.intp)


def _read_windows(
    model: EvidenceModel,
    windows: Sequence[Window],
    text_index: TextIndex,
    question: QuestionTokens,
    progress: Progress | None,
) -> list[tuple[Window, SentenceScores]]:
    """Read windows and score a question on each, until an interrupt."""
    results: list[tuple[Window, SentenceScores]] = []
    reading = prefill_windows(windows, progress)
    while True:
        try:
            window = next(reading, None)
        except KeyboardInterrupt:
            if not results:
                raise
            return results
        if window is None:
            return results
        stats = score_question(model, window.context, question).stats
        scores = text_index.score(question.text, window.sentences)
        roles = text_index.find_roles(window.sentences)
        results.append((window, score_sentences(stats, scores, model.heads, roles)))


def _score_window(
    model: EvidenceModel,
    sources: Sequence[Source],
    window: Window,
    text_index: TextIndex,
    question: QuestionTokens,
    *,
    keep_cache: bool = False,
) -> tuple[SentenceScores, Continuation | None]:
    """Score a question on the window that decides; over several texts, look twice."""
    result = score_question(model, window.context, question, keep_cache=keep_cache)
    text_scores = text_index.score(question.text, window.sentences)
    scores = score_sentences(result.stats, text_scores, model.heads, text_index.find_roles(window.sentences))
    if len(sources) > 1:
        best = text_index.get_text(int(window.sentences[scores.share.argmax()]))
        second = text_index.score(f"{question.text} {best}", window.sentences)
        scores = look_again(scores, second, model.heads)
    return scores, result.continuation


def _merge_windows(by_window: Sequence[tuple[Window, SentenceScores]], odds: Scores) -> dict[str, Scores]:
    """Return the scores of all sentences, each from the window with its largest odds, which are set.

    Parameters
    ----------
    by_window
        The windows that were read, with the scores of their sentences.
    odds
        float64 [sentences], below 0; set to those of the sentences that were read.
    """
    columns = {name: np.zeros(odds.size) for name in by_window[0][1].columns}
    for window, scores in by_window:
        own_odds = scores.share * _scale_window(scores)
        better = own_odds > odds[window.sentences]
        numbers = window.sentences[better]
        odds[numbers] = own_odds[better]
        for name, column in scores.columns.items():
            columns[name][numbers] = column[better]
    return columns


def _scale_window(scores: SentenceScores) -> float:
    """Return what turns the shares of a window into odds that other windows' can be compared with.

    "No sentence answers" is the same outcome in every window, so each window's sentences are compared with it. Without
    tuned heads there is no such share; then a window counts by the most mass on one of its sentences.
    """
    if scores.no_answer_share > 0.0:
        return 1.0 / scores.no_answer_share
    return max(0.0, float(scores.mass.max(initial=0.0)))


def _make_final_window(model: EvidenceModel, sources: Sequence[Source], sentences: Numbers) -> Window:
    parts = cut_sources(sources, sentences)
    document = model.prompt.encode_document(parts)
    return Window(sentences, PrefilledContext(model, document, names=[part.name for part in parts]))


def _invert(order: Numbers) -> Numbers:
    """Return the rank of each sentence, from 1, of the numbers of sentences, best first."""
    ranks = np.empty(order.size, dtype=np.intp)
    ranks[order] = np.arange(1, order.size + 1)
    return ranks
