"""Does the evidence hold the answer? Judged on questions whose answers are known, by heads tuned on other articles."""

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

from benchmarks.markdown import table
from benchmarks.results import Run
from keywise.documents.document import Document
from keywise.documents.evidence import clue_odds, no_answer_share, sentence_shares
from keywise.documents.files import Source
from keywise.documents.heads import ATTENTION, MEANING, WORDS, Heads, untuned
from keywise.documents.labelled import Labelled, Question
from keywise.documents.reader import Reader
from keywise.documents.tune import Observed, choose, every_head, fit_powers, observe, restricted
from keywise.errors import OptionError
from keywise.library.encoder import SentenceEncoder
from keywise.models.loading import LoadedModel, load_model
from keywise.util.optional_imports import require_modules

FOLDS: Final = 6
STRANGERS: Final = 15
NAIVE_TOKENS: Final = 24
RESAMPLES: Final = 1000
TUNED, UNTUNED, LAST_LAYER = "attention, tuned heads", "attention, untuned", "attention, last layer"
EVIDENCE, WITH_MEANING = "evidence: attention and words", "evidence with `--meaning`"
BM25, MINILM, BOTH, CHANCE = "BM25", "MiniLM", "BM25 + MiniLM", "random"
_NAMES = {WORDS: EVIDENCE, MEANING: WITH_MEANING, ATTENTION: TUNED}
_WORD = re.compile(r"\w+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LEAST = 0.02

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fold:
    """Heads tuned on the articles outside of a fold, and what was observed of those inside."""

    heads: Heads
    inside: Sequence[Observed]
    outside: Sequence[Observed]


def judge(
    model: str | None,
    dtype: str | None,
    documents: Sequence[Labelled],
    *,
    answers: bool,
    naive: bool,
    done: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Yield, per question, where the gold sentence ranks for every method, and how the answers fared.

    No text of the data is among the findings: they are kept, and the data has a licence of its own.

    Parameters
    ----------
    model, dtype
        As `keywise.models.loading.load_model` takes them.
    documents
        The documents with their questions.
    answers
        Whether to answer each question, and to prove what was answered right.
    naive
        Whether to let the model write an answer from the whole document too.
    done
        Called with a line after every document.

    Raises
    ------
    OptionError
        If the questions come from fewer than two articles.
    """
    loaded = load_model(model, dtype=dtype, pack_linear=True)
    config = loaded.model.config.get_text_config()
    every = every_head(config.num_hidden_layers, config.num_attention_heads)
    require_modules("bench", "rank_bm25", "sentence_transformers")
    encoder = SentenceEncoder()
    reader = Reader(loaded, heads=every, encode=encoder.encode, keep=False)
    observed = list(
        observe(reader, documents, strangers=STRANGERS, progress=lambda n, of: done(f"document {n} of {of} looked at"))
    )
    words = _Words(documents, encoder)
    for fold in _folds(observed, every):
        fitted = _Fitted(fold, every, words)
        asked = _Asker(loaded, documents, fold.heads) if answers else None
        for one in fold.inside:
            look = restricted(one.look, every.matching, fold.heads)
            found: dict[str, Any] = {
                "document": one.document,
                "article": one.question.article,
                "no_answer_share": round(no_answer_share(look, fold.heads), 4),
            }
            if one.gold:
                scores = fitted.scores(one)
                found["sentences"] = scores[EVIDENCE].size
                found["share"] = round(float(scores[EVIDENCE].max()), 4)
                found["ranks"] = {name: _rank(score, one.gold) for name, score in scores.items()}
                if asked:
                    found |= asked.ask(one, naive=naive)
            yield found
        done(f"{len(fold.inside)} questions judged with heads tuned on the others")


def cost(model: str | None, dtype: str | None, text: str, question: str, *, rounds: int) -> dict[str, Any]:
    """Time the evidence for a question on a document that was read, and a plain forward of the same tokens.

    Parameters
    ----------
    model, dtype
        As `keywise.models.loading.load_model` takes them.
    text
        The document.
    question
        The question.
    rounds
        How often to time each, in turn.

    Returns
    -------
    dict
        ``document_tokens, question_tokens, evidence_seconds, forward_seconds``, the last two lists.
    """
    document = Reader(load_model(model, dtype=dtype, pack_linear=True), keep=False).read_whole(text)
    samples: dict[str, list[float]] = {"evidence_seconds": [], "forward_seconds": []}
    tokens = 0
    for _ in range(rounds + 1):
        start = perf_counter()
        document.evidence(question)
        between = perf_counter()
        tokens = document.pass_over(question)
        samples["forward_seconds"].append(perf_counter() - between)
        samples["evidence_seconds"].append(between - start)
    # The first round finds the memory cold.
    return {
        "document_tokens": document.tokens,
        "question_tokens": tokens,
        **{name: seconds[1:] for name, seconds in samples.items()},
    }


class _Words:
    """Scores of sentences by their words (BM25) and by their meaning (MiniLM), without any attention."""

    def __init__(self, documents: Sequence[Labelled], encoder: SentenceEncoder) -> None:
        from rank_bm25 import BM25Okapi  # noqa: PLC0415 - optional

        self._bm25, self._vectors = [], []
        for labelled in documents:
            sentences = [labelled.text[start:end] for start, end in Source("text", labelled.text).sentences]
            self._bm25.append(BM25Okapi([_words(sentence) or [""] for sentence in sentences]))
            self._vectors.append(encoder.encode(sentences))
        asked = list(dict.fromkeys(question.text for labelled in documents for question in labelled.questions))
        self._asked = dict(zip(asked, encoder.encode(asked), strict=True))

    def scores(self, one: Observed) -> tuple[Scores, Scores]:
        lexical = self._bm25[one.document].get_scores(_words(one.question.text))
        return np.maximum(lexical, 0.0), self._vectors[one.document] @ self._asked[one.question.text]


class _Fitted:
    """Every way to rank, whatever it combines fitted outside of a fold."""

    def __init__(self, fold: Fold, every: Heads, words: _Words) -> None:
        self._heads, self._every, self._words = fold.heads, every, words
        outside = [one for one in fold.outside if one.gold]
        self._both = fit_powers([self._features(one) for one in outside], [one.gold for one in outside])

    def scores(self, one: Observed) -> dict[str, Scores]:
        look = restricted(one.look, self._every.matching, self._heads)
        features = self._features(one)
        last = max(layer for layer, _ in self._every.matching)
        layers = np.array([layer for layer, _ in self._every.matching])
        guess = untuned(last + 1, int((layers == 0).sum()))
        middle = np.isin(layers, guess.layers)
        # A different order for every question, the same one every time.
        chance = np.random.default_rng(len(one.question.text)).random(look.matching.shape[1])
        odds = clue_odds(look, one.text, self._heads)
        return {
            **{name: sentence_shares(odds, self._heads.powers[ranking]) for ranking, name in _NAMES.items()},
            UNTUNED: one.look.matching[middle].sum(axis=0),
            LAST_LAYER: one.look.matching[layers == last].sum(axis=0),
            BM25: features[0],
            MINILM: features[1],
            BOTH: np.tensordot(self._both, features, 1),
            CHANCE: chance,
        }

    def _features(self, one: Observed) -> Scores:
        lexical, meaning = self._words.scores(one)
        return np.stack([np.log(lexical / max(lexical.sum(), 1e-9) + _LEAST), 5.0 * meaning])


class _Asker:
    """Answers questions with the heads of a fold."""

    def __init__(self, loaded: LoadedModel, documents: Sequence[Labelled], heads: Heads) -> None:
        self._reader, self._documents = Reader(loaded, heads=heads, keep=False), documents
        self._read: tuple[int, Document] | None = None

    def ask(self, one: Observed, *, naive: bool) -> dict[str, Any]:
        if self._read is None or self._read[0] != one.document:
            self._read = one.document, self._reader.read_whole(self._documents[one.document].text)
        document = self._read[1]
        start = perf_counter()
        answer = document.ask(one.question.text)
        found = {"seconds": round(perf_counter() - start, 3), **_judged(answer.text, one.question)}
        if naive:
            written = document.ask(one.question.text, sentences=0, max_tokens=NAIVE_TOKENS)
            found["naive_right"] = one.question.right(written.text)
        if found["right"]:
            found["drops"] = [round(ablation.drop, 3) for ablation in document.ablate(answer)]
        return found


def _folds(observed: Sequence[Observed], every: Heads) -> Iterator[Fold]:
    articles = sorted({one.question.article for one in observed if one.gold})
    if len(articles) < 2:
        raise OptionError(
            f"data holds {len(articles)} article; give two at least: heads are judged on articles of others"
        )
    for part in np.array_split(articles, min(FOLDS, len(articles))):
        within = set(part.tolist())
        # A question that its document does not answer belongs to the fold of the article it was taken from.
        inside = [one for one in observed if one.question.article in within]
        outside = [one for one in observed if one.question.article not in within]
        yield Fold(choose(outside, every.matching, answer_sentences=1, tuned_on="other articles"), inside, outside)


def _rank(scores: Scores, gold: Sequence[int]) -> int:
    return 1 + int((scores > scores[list(gold)].max()).sum())


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _normal(text: str) -> list[str]:
    """Bring an answer into SQuAD's normal form: no capitals, punctuation or articles."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return _ARTICLES.sub(" ", bare).split()


def _judged(answer: str, question: Question) -> dict[str, Any]:
    said = _normal(answer)
    best = 0.0
    for gold in map(_normal, question.answers):
        common = sum((Counter(said) & Counter(gold)).values())
        best = max(best, 2 * common / (len(said) + len(gold)) if common else 0.0)
    return {
        "right": question.right(answer),
        "exact": said in [_normal(gold) for gold in question.answers],
        "f1": round(best, 3),
    }


def tables(runs: Sequence[Run]) -> str:
    """Write how often the gold sentence is among the first, how the answers fared, and what evidence costs."""
    return "\n\n".join(_tables(run.results) for run in runs)


def _tables(results: Sequence[dict[str, Any]]) -> str:
    answered = [found for found in results if "ranks" in found]
    parts = []
    if answered:
        articles = np.array([found["article"] for found in answered])
        rows = [
            [name, *_hits(np.array([found["ranks"][name] for found in answered]), articles)]
            for name in answered[0]["ranks"]
        ]
        heading = ["ranked by", "hit@1", "95 % by article", "hit@3", "hit@5", "MRR"]
        sentences = np.mean([found["sentences"] for found in answered])
        about = f"{len(answered)} questions of {len(set(articles))} articles, {sentences:.0f} sentences per document."
        parts.append(f"{about}\n\n{table(heading, rows)}")
        parts.append(_calibration(answered))
    strange = [found["no_answer_share"] for found in results if "no_answer_share" in found and "ranks" not in found]
    if answered and strange:
        area = _area([found["no_answer_share"] for found in answered], strange)
        parts.append(
            f'{len(strange)} questions of other articles: the share of "none of these" tells them from the document\'s '
            f"own with an area under the curve (AUROC) of {area:.3f}."
        )
    if told := [found for found in answered if "right" in found]:
        parts.append(_answers(told))
    parts += [_cost(found) for found in results if "evidence_seconds" in found]
    return "\n\n".join(parts)


def _hits(rank: NDArray[np.int64], articles: NDArray[np.int64]) -> list[str]:
    first, *others = ((rank <= k).mean() for k in (1, 3, 5))
    low, high = _interval((rank <= 1).astype(float), articles)
    return [f"{first:.3f}", f"{low:.2f} to {high:.2f}", *(f"{hit:.3f}" for hit in others), f"{(1 / rank).mean():.3f}"]


def _interval(values: Scores, articles: NDArray[np.int64]) -> tuple[float, float]:
    """Give the middle 95 % of the mean under a bootstrap over articles."""
    names = np.unique(articles)
    sums = np.array([values[articles == name].sum() for name in names])
    counts = np.array([(articles == name).sum() for name in names])
    drawn = np.random.default_rng(0).integers(0, names.size, (RESAMPLES, names.size))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _calibration(answered: Sequence[dict[str, Any]]) -> str:
    share = np.array([found["share"] for found in answered])
    # The share is that of the first way to rank.
    right = np.array([next(iter(found["ranks"].values())) == 1 for found in answered])
    rows = []
    for low, high in ((0.0, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.0001)):
        inside = (share >= low) & (share < high)
        if inside.any():
            cells = [f"{share[inside].mean():.2f}", f"{right[inside].mean():.2f}", f"{inside.sum()}"]
            rows.append([f"{low:.2f} to {min(high, 1.0):.2f}", *cells])
    drawn = table(["share", "mean", "right", "questions"], rows)
    return f"The first sentence's share, and how often it is the gold one:\n\n{drawn}"


def _area(own: Sequence[float], strange: Sequence[float]) -> float:
    """Give the probability that a stranger's number is the larger, ties counting half."""
    ordered = np.sort(np.asarray(own))
    below = np.searchsorted(ordered, strange, side="left")
    up_to = np.searchsorted(ordered, strange, side="right")
    return float((below + up_to).mean() / (2 * ordered.size))


def _answers(found: Sequence[dict[str, Any]]) -> str:
    mean = {key: float(np.mean([one[key] for one in found])) for key in ("right", "exact", "f1", "seconds")}
    said = [
        f"{mean['right']:.1%} of {len(found)} answers hold a gold answer; exact match {mean['exact']:.1%}, F1 "
        f"{mean['f1']:.1%}, {mean['seconds']:.2f} s per question."
    ]
    if naive := [one["naive_right"] for one in found if "naive_right" in one]:
        said.append(f"Written from the whole document {np.mean(naive):.1%} of {len(naive)} do.")
    drops = [one["drops"] for one in found if len(one.get("drops", ())) > 1]
    if drops:
        first = np.mean([each[0] > max(each[1:]) for each in drops])
        typical = np.median([each[0] for each in drops])
        behind = np.median([each[-1] for each in drops])
        said.append(
            f"Of {len(drops)} right ones, {first:.1%} lose most log-probability without the first sentence "
            f"(median {typical:.2f} nats; without one from far behind {behind:.2f})."
        )
    return " ".join(said)


def _cost(found: dict[str, Any]) -> str:
    evidence, forward = (float(np.median(found[name])) for name in ("evidence_seconds", "forward_seconds"))
    return (
        f"Evidence for a question of {found['question_tokens']} tokens on {found['document_tokens']:,} tokens read "
        f"before: {evidence * 1e3:.0f} ms, {evidence / forward:.2f} of a plain forward of the same tokens "
        f"({forward * 1e3:.0f} ms)."
    )
