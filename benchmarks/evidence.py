"""Evidence: ranks of the sentence that answers a question, for heads tuned on other articles."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.markdown import format_table
from benchmarks.results import Run
from keywise.documents import Document, Heads, Reader, Source
from keywise.documents.evidence import combine_odds, compute_feature_odds, score_sentences
from keywise.documents.heads import ATTENTION, LEXICAL, SEMANTIC, guess_heads
from keywise.documents.squad import GoldDocument, GoldQuestion
from keywise.documents.tune import (
    Observation,
    choose_heads,
    fit_powers,
    observe_questions,
    restrict_stats,
    select_all_heads,
)
from keywise.errors import OptionError
from keywise.models.loading import LoadedModel, load_model
from keywise.models.sentence_encoder import SentenceEncoder
from keywise.util.optional_imports import require_modules

FOLDS: Final = 6
FOREIGN_QUESTIONS: Final = 15
"""Questions of other articles that are asked about each document."""

WRITTEN_TOKENS: Final = 24
RESAMPLES: Final = 1000
TUNED, UNTUNED, LAST_LAYER = "attention, tuned heads", "attention, untuned", "attention, last layer"
EVIDENCE, WITH_SEMANTIC = "evidence: attention and words", "evidence with `--semantic`"
BM25, MINILM, BOTH, CHANCE = "BM25", "MiniLM", "BM25 + MiniLM", "random"
_RANKING_NAMES = {LEXICAL: EVIDENCE, SEMANTIC: WITH_SEMANTIC, ATTENTION: TUNED}
_WORD = re.compile(r"\w+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MIN_BM25_SHARE = 0.02

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fold:
    """Heads tuned outside of a fold, and the observed questions inside and outside of it."""

    heads: Heads
    inside: Sequence[Observation]
    outside: Sequence[Observation]


def judge_evidence(
    model: str | None,
    dtype: str | None,
    documents: Sequence[GoldDocument],
    *,
    answers: bool,
    naive: bool,
    report: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Rank the sentences for every question by every method, and judge the answers.

    The results hold no text of the data, which has a licence of its own.

    Parameters
    ----------
    model, dtype
        As for `keywise.models.loading.load_model`.
    documents
        The documents with their questions.
    answers
        Whether to answer each question, and to ablate the sentences of correct answers.
    naive
        Whether to let the model write an answer from the whole document too.
    report
        Called with a line after every document.

    Yields
    ------
    dict
        The result of each question.

    Raises
    ------
    OptionError
        The questions come from fewer than two articles.
    """
    loaded = load_model(model, dtype=dtype, pack_linear=True)
    config = loaded.model.config.get_text_config()
    all_heads = select_all_heads(config.num_hidden_layers, config.num_attention_heads)
    require_modules("bench", "rank_bm25")
    encoder = SentenceEncoder()
    reader = Reader(loaded, heads=all_heads, encode=encoder.encode, keep=False)

    def report_document(number: int, count: int) -> None:
        report(f"document {number} of {count} observed")

    observations = list(observe_questions(reader, documents, unanswerable=FOREIGN_QUESTIONS, progress=report_document))
    text_scores = _TextScores(documents, encoder)
    for fold in _split_folds(observations, all_heads):
        rankings = _Rankings(fold, all_heads, text_scores)
        answering = _Answering(loaded, documents, fold.heads) if answers else None
        for observation in fold.inside:
            stats = restrict_stats(observation.stats, all_heads.matching, fold.heads)
            result: dict[str, Any] = {
                "document": observation.document,
                "article": observation.question.article,
                "no_answer_share": round(
                    score_sentences(stats, observation.text_scores, fold.heads).no_answer_share, 4
                ),
            }
            if observation.gold:
                scores = rankings.compute_scores(observation)
                result["sentences"] = scores[EVIDENCE].size
                result["share"] = round(float(scores[EVIDENCE].max()), 4)
                result["ranks"] = {name: _compute_rank(score, observation.gold) for name, score in scores.items()}
                if answering:
                    result |= answering.judge_answer(observation, naive=naive)
            yield result
        report(f"{len(fold.inside)} questions judged with heads tuned on other articles")


def measure_cost(model: str | None, dtype: str | None, text: str, question: str, *, rounds: int) -> dict[str, Any]:
    """Time the evidence for a question, and a plain forward pass of the same tokens.

    Parameters
    ----------
    model, dtype
        As for `keywise.models.loading.load_model`.
    text
        The document.
    question
        The question.
    rounds
        Number of measurements of each, in turns.

    Returns
    -------
    dict
        ``document_tokens, question_tokens, evidence_seconds, forward_seconds``, the last two lists.
    """
    document = Reader(load_model(model, dtype=dtype, pack_linear=True), keep=False).read(text, split=False)
    samples: dict[str, list[float]] = {"evidence_seconds": [], "forward_seconds": []}
    tokens = 0
    for _ in range(rounds + 1):
        start = perf_counter()
        document.evidence(question)
        evidence_end = perf_counter()
        tokens = document.forward_question(question)
        samples["forward_seconds"].append(perf_counter() - evidence_end)
        samples["evidence_seconds"].append(evidence_end - start)
    # The first round warms the memory.
    return {
        "document_tokens": document.tokens,
        "question_tokens": tokens,
        **{name: seconds[1:] for name, seconds in samples.items()},
    }


class _TextScores:
    """Scores of sentences without attention: BM25, and MiniLM embeddings."""

    def __init__(self, documents: Sequence[GoldDocument], encoder: SentenceEncoder) -> None:
        from rank_bm25 import BM25Okapi  # noqa: PLC0415 - optional

        self._bm25 = []
        self._vectors = []
        for document in documents:
            sentences = [document.text[start:end] for start, end in Source("text", document.text).sentences]
            self._bm25.append(BM25Okapi([_split_words(sentence) or [""] for sentence in sentences]))
            self._vectors.append(encoder.encode(sentences))
        questions = list(dict.fromkeys(question.text for document in documents for question in document.questions))
        self._question_vectors = dict(zip(questions, encoder.encode(questions), strict=True))

    def compute_scores(self, observation: Observation) -> tuple[Scores, Scores]:
        """Return the lexical and the semantic scores of a question's sentences."""
        text = observation.question.text
        lexical = self._bm25[observation.document].get_scores(_split_words(text))
        return np.maximum(lexical, 0.0), self._vectors[observation.document] @ self._question_vectors[text]


class _Rankings:
    """All methods of ranking, with parameters fitted outside of a fold."""

    def __init__(self, fold: Fold, all_heads: Heads, text_scores: _TextScores) -> None:
        self._heads = fold.heads
        self._all_heads = all_heads
        self._text_scores = text_scores
        outside = [observation for observation in fold.outside if observation.gold]
        features = [self._compute_features(observation) for observation in outside]
        self._powers = fit_powers(features, [observation.gold for observation in outside])

    def compute_scores(self, observation: Observation) -> dict[str, Scores]:
        """Return the scores of a question's sentences by every method."""
        stats = restrict_stats(observation.stats, self._all_heads.matching, self._heads)
        features = self._compute_features(observation)
        last = max(layer for layer, _ in self._all_heads.matching)
        layers = np.array([layer for layer, _ in self._all_heads.matching])
        guess = guess_heads(last + 1, int((layers == 0).sum()))
        middle = np.isin(layers, guess.layers)
        # The order differs between questions, and is the same in every run.
        chance = np.random.default_rng(len(observation.question.text)).random(stats.matching.shape[1])
        odds = compute_feature_odds(stats, observation.text_scores, self._heads)
        return {
            **{name: combine_odds(odds, self._heads.powers[ranking]) for ranking, name in _RANKING_NAMES.items()},
            UNTUNED: observation.stats.matching[middle].sum(axis=0),
            LAST_LAYER: observation.stats.matching[layers == last].sum(axis=0),
            BM25: features[0],
            MINILM: features[1],
            BOTH: np.tensordot(self._powers, features, 1),
            CHANCE: chance,
        }

    def _compute_features(self, observation: Observation) -> Scores:
        lexical, semantic = self._text_scores.compute_scores(observation)
        return np.stack([np.log(lexical / max(lexical.sum(), 1e-9) + _MIN_BM25_SHARE), 5.0 * semantic])


class _Answering:
    """Answers to questions with the heads of a fold."""

    def __init__(self, loaded: LoadedModel, documents: Sequence[GoldDocument], heads: Heads) -> None:
        self._reader = Reader(loaded, heads=heads, keep=False)
        self._documents = documents
        self._prefilled: tuple[int, Document] | None = None

    def judge_answer(self, observation: Observation, *, naive: bool) -> dict[str, Any]:
        """Answer a question, and compare the answer with the gold answers."""
        question, number = observation.question, observation.document
        if self._prefilled is None or self._prefilled[0] != number:
            self._prefilled = number, self._reader.read(self._documents[number].text, split=False)
        document = self._prefilled[1]
        start = perf_counter()
        answer = document.ask(question.text)
        result = {"seconds": round(perf_counter() - start, 3), **_judge_text(answer.text, question)}
        if naive:
            written = document.ask(question.text, sentences=0, max_tokens=WRITTEN_TOKENS)
            result["naive_correct"] = question.accepts(written.text)
        if result["correct"]:
            result["log_probability_drops"] = [round(ablation.drop_nats, 3) for ablation in document.ablate(answer)]
        return result


def _split_folds(observations: Sequence[Observation], all_heads: Heads) -> Iterator[Fold]:
    articles = sorted({observation.question.article for observation in observations if observation.gold})
    if len(articles) < 2:
        raise OptionError(
            "data",
            f"must hold two articles or more, got {len(articles)}",
            remedy="heads are judged on other articles than they are tuned on",
        )
    for part in np.array_split(articles, min(FOLDS, len(articles))):
        fold_articles = set(part.tolist())
        # A question that its document does not answer belongs to the fold of its own article.
        inside = [observation for observation in observations if observation.question.article in fold_articles]
        outside = [observation for observation in observations if observation.question.article not in fold_articles]
        heads = choose_heads(outside, all_heads.matching, answer_sentences=1, tuned_on="other articles")
        yield Fold(heads, inside, outside)


def _compute_rank(scores: Scores, gold: Sequence[int]) -> int:
    return 1 + int((scores > scores[list(gold)].max()).sum())


def _split_words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _normalize_answer(text: str) -> list[str]:
    """Split an answer into words in SQuAD's normal form: no capitals, punctuation or articles."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return _ARTICLES.sub(" ", bare).split()


def _judge_text(answer: str, question: GoldQuestion) -> dict[str, Any]:
    words = _normalize_answer(answer)
    gold_answers = [_normalize_answer(gold) for gold in question.answers]
    f1 = 0.0
    for gold in gold_answers:
        common = sum((Counter(words) & Counter(gold)).values())
        if common:
            f1 = max(f1, 2 * common / (len(words) + len(gold)))
    return {"correct": question.accepts(answer), "exact_match": words in gold_answers, "f1": round(f1, 3)}


def format_tables(runs: Sequence[Run]) -> str:
    """Format hit rates, calibration, the judged answers and the cost of evidence."""
    return "\n\n".join(_format_run(run.results) for run in runs)


def _format_run(results: Sequence[dict[str, Any]]) -> str:
    answerable = [result for result in results if "ranks" in result]
    foreign = [result["no_answer_share"] for result in results if "no_answer_share" in result and "ranks" not in result]
    parts = []
    if answerable:
        parts += [_format_ranks(answerable), _format_calibration(answerable)]
    if answerable and foreign:
        area = _compute_auroc([result["no_answer_share"] for result in answerable], foreign)
        parts.append(
            f'{len(foreign)} questions of other articles: the share of "none of these" separates them from the '
            f"document's own with an area under the curve (AUROC) of {area:.3f}."
        )
    if judged := [result for result in answerable if "correct" in result]:
        parts.append(_format_answers(judged))
    parts += [_format_cost(result) for result in results if "evidence_seconds" in result]
    return "\n\n".join(parts)


def _format_ranks(answerable: Sequence[dict[str, Any]]) -> str:
    articles = np.array([result["article"] for result in answerable])
    rows = []
    for name in answerable[0]["ranks"]:
        ranks = np.array([result["ranks"][name] for result in answerable])
        low, high = _compute_interval((ranks <= 1).astype(float), articles)
        hits = [f"{(ranks <= count).mean():.3f}" for count in (1, 3, 5)]
        rows.append([name, hits[0], f"{low:.2f} to {high:.2f}", *hits[1:], f"{(1 / ranks).mean():.3f}"])
    columns = ["ranked by", "hit@1", "95 % by article", "hit@3", "hit@5", "MRR"]
    sentences = np.mean([result["sentences"] for result in answerable])
    summary = f"{len(answerable)} questions of {len(set(articles))} articles, {sentences:.0f} sentences per document."
    return f"{summary}\n\n{format_table(columns, rows)}"


def _compute_interval(values: Scores, articles: NDArray[np.int64]) -> tuple[float, float]:
    """Return the middle 95 % of the mean under a bootstrap over articles."""
    names = np.unique(articles)
    sums = np.array([values[articles == name].sum() for name in names])
    counts = np.array([(articles == name).sum() for name in names])
    samples = np.random.default_rng(0).integers(0, names.size, (RESAMPLES, names.size))
    low, high = np.quantile(sums[samples].sum(axis=1) / counts[samples].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _format_calibration(answerable: Sequence[dict[str, Any]]) -> str:
    shares = np.array([result["share"] for result in answerable])
    correct = np.array([result["ranks"][EVIDENCE] == 1 for result in answerable])
    rows = []
    for low, high in ((0.0, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.0001)):
        inside = (shares >= low) & (shares < high)
        if inside.any():
            cells = [f"{shares[inside].mean():.2f}", f"{correct[inside].mean():.2f}", f"{inside.sum()}"]
            rows.append([f"{low:.2f} to {min(high, 1.0):.2f}", *cells])
    table = format_table(["share", "mean", "correct", "questions"], rows)
    return f"The first sentence's share, and how often it is the gold sentence:\n\n{table}"


def _compute_auroc(own: Sequence[float], foreign: Sequence[float]) -> float:
    """Return the probability that a foreign question's share is the larger, ties counting half."""
    ordered = np.sort(np.asarray(own))
    below = np.searchsorted(ordered, foreign, side="left")
    up_to = np.searchsorted(ordered, foreign, side="right")
    return float((below + up_to).mean() / (2 * ordered.size))


def _format_answers(judged: Sequence[dict[str, Any]]) -> str:
    fields = ("correct", "exact_match", "f1", "seconds")
    means = {field: float(np.mean([result[field] for result in judged])) for field in fields}
    parts = [
        f"{means['correct']:.1%} of {len(judged)} answers contain a gold answer; exact match "
        f"{means['exact_match']:.1%}, F1 {means['f1']:.1%}, {means['seconds']:.2f} s per question."
    ]
    if naive := [result["naive_correct"] for result in judged if "naive_correct" in result]:
        parts.append(f"Written from the whole document, {np.mean(naive):.1%} of {len(naive)} do.")
    drops = [result["log_probability_drops"] for result in judged if len(result.get("log_probability_drops", ())) > 1]
    if drops:
        share = np.mean([several[0] > max(several[1:]) for several in drops])
        first = np.median([several[0] for several in drops])
        last = np.median([several[-1] for several in drops])
        parts.append(
            f"Of {len(drops)} correct ones, {share:.1%} lose most log-probability without the first sentence "
            f"(median {first:.2f} nats; without a low-ranked sentence {last:.2f})."
        )
    return " ".join(parts)


def _format_cost(result: dict[str, Any]) -> str:
    evidence_seconds = float(np.median(result["evidence_seconds"]))
    forward_seconds = float(np.median(result["forward_seconds"]))
    return (
        f"Evidence for a question of {result['question_tokens']} tokens on {result['document_tokens']:,} prefilled "
        f"tokens: {evidence_seconds * 1e3:.0f} ms, {evidence_seconds / forward_seconds:.2f} of a plain forward pass "
        f"of the same tokens ({forward_seconds * 1e3:.0f} ms)."
    )
