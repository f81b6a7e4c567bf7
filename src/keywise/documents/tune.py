"""The choice of a model's evidence heads, from questions whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.documents.evidence import MIN_MASS, SMOOTHING, Scores, combine_odds, compute_feature_odds
from keywise.documents.heads import ANSWER_WEIGHTS, BIAS, RANKINGS, Head, Heads
from keywise.documents.scoring import EvidenceStats, score_question
from keywise.errors import OptionError

if TYPE_CHECKING:
    from keywise.documents.document import Document
    from keywise.documents.reader import Reader
    from keywise.documents.squad import GoldDocument, GoldQuestion
    from keywise.documents.text_index import TextScores
    from keywise.util.progress import Progress

# Few heads locate evidence; more of them add noise.
MATCHING_HEADS: Final = 4
COPYING_HEADS: Final = 3
CANDIDATE_HEADS: Final = 20
# The power of heads while they are chosen; powers are fitted afterwards.
SELECTION_POWER: Final = 2.0
MIN_QUESTIONS: Final = 10
_TINY: Final = 1e-9


@dataclass(frozen=True, eq=False)
class Observation:
    """The scores of all heads for one question about one document.

    Attributes
    ----------
    document
        Number of the document.
    question
        The question.
    stats
        Attention mass of all heads on the document's sentences, above the null question's.
    text_scores
        Scores from the text alone.
    gold
        Numbers of the sentences that contain an answer; empty if the question is about another document.
    """

    document: int
    question: GoldQuestion
    stats: EvidenceStats
    text_scores: TextScores
    gold: tuple[int, ...]


def select_all_heads(layers: int, heads: int) -> Heads:
    """Return all heads of all layers, as matching and as copying heads.

    Parameters
    ----------
    layers
        Number of the model's layers.
    heads
        Query heads in each layer.
    """
    all_heads = tuple((layer, head) for layer in range(layers) for head in range(heads))
    powers = {ranking: dict.fromkeys(features, 1.0) for ranking, features in RANKINGS.items()}
    return Heads(all_heads, all_heads, powers, {}, answer_sentences=0, tuned_on=None)


def observe_questions(
    reader: Reader, documents: Sequence[GoldDocument], *, unanswerable: int, progress: Progress | None = None
) -> Iterator[Observation]:
    """Yield the scores of each document for answerable and unanswerable questions.

    Parameters
    ----------
    reader
        A reader with the heads of `select_all_heads`.
    documents
        The documents, each within the model's context.
    unanswerable
        Number of questions of other articles for each document.
    progress
        Called after every document with the number of documents done and of all.

    Raises
    ------
    OptionError
        A document is longer than the model's context.
    """
    for number, gold_document in enumerate(documents):
        document = reader.read(gold_document.text, split=False)
        questions = [(question, find_gold_sentences(document, question)) for question in gold_document.questions]
        questions += [(question, ()) for question in _sample_other_questions(documents, number, unanswerable)]
        for question, gold in questions:
            stats, text_scores = score_all_heads(document, question.text)
            yield Observation(number, question, stats, text_scores, gold)
        if progress is not None:
            progress(number + 1, len(documents))


def score_all_heads(document: Document, question: str) -> tuple[EvidenceStats, TextScores]:
    """Return the attention mass of all heads and the scores of the text.

    Parameters
    ----------
    document
        A document of one window.
    question
        The question.
    """
    (window,) = document.windows
    model = document.reader.evidence_model
    tokens = model.prompt.encode_question(question, start_answer=model.starts_answer)
    return score_question(model, window.context, tokens).stats, document.text_index.score(question)


def find_gold_sentences(document: Document, question: GoldQuestion) -> tuple[int, ...]:
    """Return the numbers of the sentences in which a question's answers begin."""
    spans = document.sources[0].sentences
    return tuple(
        number
        for number, (start, end) in enumerate(spans)
        if any(start <= position < end for position in question.positions)
    )


def choose_heads(
    observations: Sequence[Observation], all_heads: Sequence[Head], *, answer_sentences: int, tuned_on: str
) -> Heads:
    """Choose the heads that make gold sentences most likely, and fit all powers.

    Parameters
    ----------
    observations
        From `observe_questions`.
    all_heads
        The heads of the observations, in order.
    answer_sentences, tuned_on
        As in `Heads`.

    Raises
    ------
    OptionError
        Fewer than 10 questions have an answer.
    """
    answered = [each for each in observations if each.gold]
    unanswered = [each for each in observations if not each.gold]
    if len(answered) < MIN_QUESTIONS:
        rule = f"must have at least {MIN_QUESTIONS} questions with answers"
        raise OptionError("data", rule, got=len(answered))
    matching = _choose_greedily([(each.stats.matching, each.gold) for each in answered], MATCHING_HEADS)
    copying = _choose_greedily([(each.stats.copying, each.gold) for each in answered], COPYING_HEADS)
    heads = Heads(
        matching=tuple(all_heads[number] for number in matching),
        copying=tuple(all_heads[number] for number in copying),
        powers={},
        answer_odds={},
        answer_sentences=answer_sentences,
        tuned_on=tuned_on,
    )
    heads = replace(heads, powers=_fit_rankings(answered, matching, copying, heads))
    if unanswered:
        heads = replace(heads, answer_odds=_fit_answer_odds([*answered, *unanswered], matching, copying, heads))
    return heads


def restrict_stats(stats: EvidenceStats, all_heads: Sequence[Head], heads: Heads) -> EvidenceStats:
    """Return the statistics of some heads."""
    numbers = {head: number for number, head in enumerate(all_heads)}
    matching = [numbers[head] for head in heads.matching]
    copying = [numbers[head] for head in heads.copying]
    return EvidenceStats(stats.matching[matching], stats.copying[copying])


def fit_powers(log_odds: Sequence[NDArray[np.float64]], gold: Sequence[tuple[int, ...]]) -> list[float]:
    """Fit powers, 0 or more, that give gold sentences the largest shares (maximum likelihood).

    Parameters
    ----------
    log_odds
        For each question the logarithm of every feature's odds: float64 [features, sentences].
    gold
        For each question the numbers of the sentences that contain an answer; only the first is used.
    """
    import torch  # noqa: PLC0415 - heavy

    max_sentences = max(features.shape[1] for features in log_odds)
    padded = torch.zeros(len(log_odds), max_sentences, len(log_odds[0]), dtype=torch.float64)
    padding = torch.ones(len(log_odds), max_sentences, dtype=torch.bool)
    for row, features in enumerate(log_odds):
        padded[row, : features.shape[1]] = torch.from_numpy(features.T)
        padding[row, : features.shape[1]] = False
    targets = torch.tensor([sentences[0] for sentences in gold])
    powers = torch.ones(len(log_odds[0]), dtype=torch.float64, requires_grad=True)

    def loss() -> torch.Tensor:
        cross_entropy = torch.nn.functional.cross_entropy((padded @ powers).masked_fill(padding, -1e9), targets)
        # Powers that few questions determine would otherwise grow without bound.
        return cross_entropy + 1e-4 * (powers**2).sum()

    _minimise(loss, powers)
    return [round(max(float(power), 0.0), 3) for power in powers.detach()]


def _fit_rankings(
    answered: Sequence[Observation], matching: list[int], copying: list[int], heads: Heads
) -> dict[str, dict[str, float]]:
    """Fit the powers of every ranking whose features were observed."""
    odds = [
        compute_feature_odds(
            EvidenceStats(each.stats.matching[matching], each.stats.copying[copying]), each.text_scores, heads
        )
        for each in answered
    ]
    gold = [each.gold for each in answered]
    powers: dict[str, dict[str, float]] = {}
    for ranking, features in RANKINGS.items():
        if odds[0].keys() >= set(features):
            log_odds = [np.log(np.stack([each[feature] for feature in features])) for each in odds]
            powers[ranking] = dict(zip(features, fit_powers(log_odds, gold), strict=True))
    return powers


def _sample_other_questions(documents: Sequence[GoldDocument], number: int, count: int) -> list[GoldQuestion]:
    """Return questions about other articles than a document's, evenly spread."""
    own_articles = {question.article for question in documents[number].questions}
    others = [
        question for document in documents for question in document.questions if question.article not in own_articles
    ]
    step = max(len(others) // count, 1) if count else 1
    return others[number % step :: step][:count]


def _choose_greedily(masses: Sequence[tuple[Scores, tuple[int, ...]]], count: int) -> list[int]:
    """Choose heads one by one, each to make gold sentences most likely.

    Candidates are the heads with the largest share of their mass on gold sentences.

    Parameters
    ----------
    masses
        For each question the mass of every head [heads, sentences], and the gold sentences.
    count
        Number of heads to choose.
    """
    shares: list[Scores] = []
    for mass, _ in masses:
        positive = np.maximum(mass, 0.0)
        shares.append(positive / np.maximum(positive.sum(axis=1, keepdims=True), _TINY))
    golds = [list(gold) for _, gold in masses]
    gold_share = np.sum([share[:, gold].sum(axis=1) for share, gold in zip(shares, golds, strict=True)], axis=0)
    candidates = np.argsort(-gold_share, kind="stable")[:CANDIDATE_HEADS]
    chosen: list[int] = []
    for _ in range(min(count, candidates.size)):
        log_likelihood = np.zeros(candidates.size)
        for share, gold in zip(shares, golds, strict=True):
            together = (np.sqrt(share[candidates]) + np.sqrt(share[chosen]).sum(axis=0)) ** 2
            together /= np.maximum(together.sum(axis=1, keepdims=True), _TINY)
            odds = (together + SMOOTHING) ** SELECTION_POWER
            log_likelihood += np.log(odds[:, gold].sum(axis=1) / odds.sum(axis=1))
        log_likelihood[np.isin(candidates, chosen)] = -np.inf
        chosen.append(int(candidates[log_likelihood.argmax()]))
    return chosen


def _fit_answer_odds(
    observations: Sequence[Observation], matching: list[int], copying: list[int], heads: Heads
) -> dict[str, dict[str, float]]:
    """Fit for each ranking by text the odds that the best sentence answers."""
    has_answer = np.array([bool(each.gold) for each in observations])
    odds: dict[str, dict[str, float]] = {}
    for ranking, names in ANSWER_WEIGHTS.items():
        if ranking not in heads.powers:
            continue
        rows: list[list[float]] = []
        for each in observations:
            stats = EvidenceStats(each.stats.matching[matching], each.stats.copying[copying])
            shares = combine_odds(compute_feature_odds(stats, each.text_scores, heads), heads.powers[ranking])
            best = int(shares.argmax())
            mass = float(np.log(max(stats.matching[:, best].sum(), MIN_MASS)))
            rows.append([mass, *(float(each.text_scores[name][best]) for name in names[1:])])
        weights, bias = _fit_logistic(np.array(rows), has_answer)
        odds[ranking] = {**dict(zip(names, weights, strict=True)), BIAS: bias}
    return odds


def _fit_logistic(features: NDArray[np.float64], outcome: NDArray[np.bool_]) -> tuple[list[float], float]:
    """Fit log-odds = bias + weights . features, weights 0 or more, with equal weight of both outcomes."""
    import torch  # noqa: PLC0415 - heavy

    x = torch.from_numpy(features)
    y = torch.from_numpy(outcome.astype(np.float64))
    share = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    coefficients = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)

    def loss() -> torch.Tensor:
        log_odds = x @ coefficients[:-1].clamp(min=0.0) + coefficients[-1]
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(log_odds, y, share)
        # Data that a threshold separates would otherwise have infinite weights.
        return cross_entropy + 1e-4 * (coefficients[:-1] ** 2).sum()

    _minimise(loss, coefficients)
    *weights, bias = (round(number, 3) for number in coefficients.detach().tolist())
    return [max(weight, 0.0) for weight in weights], bias


def _minimise(loss: Callable[[], Any], parameter: Any) -> None:
    import torch  # noqa: PLC0415 - heavy

    optimiser = torch.optim.LBFGS([parameter], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
