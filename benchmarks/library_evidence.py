"""Ranks of the gold sentence in a library, by search and by evidence."""

# ruff: noqa: PLC0415  (Lance and models are slow to import: only the process that measures needs them)

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.markdown import format_table
from keywise.errors import FormatError, MissingFileError

if TYPE_CHECKING:
    from keywise.library.results import SentenceHit

Array = NDArray[Any]

BM25_WEIGHTS: Final = (0.1, 0.2, 0.3, 0.4, 0.5)
FUSION_CONSTANTS: Final = (10, 60)


@dataclass(frozen=True)
class _LocatedQuestion:
    """A question, and the place of its answer."""

    text: str
    document: str
    position: int


def read_paragraphs(data: Path, folder: Path) -> list[list[_LocatedQuestion]]:
    """Write every paragraph of a file in SQuAD's format to a file of its own.

    Parameters
    ----------
    data
        A file in SQuAD's format.
    folder
        The folder for the paragraphs.

    Returns
    -------
    list of list
        The questions of each article.

    Raises
    ------
    MissingFileError
        The file does not exist.
    FormatError
        The file cannot be read, or has another format.
    """
    questions = []
    try:
        for article_number, article in enumerate(json.loads(data.read_text(encoding="utf-8"))["data"]):
            questions.append(list[_LocatedQuestion]())
            for number, paragraph in enumerate(article["paragraphs"]):
                path = folder / f"{article_number:03}-{number:03}.txt"
                path.write_text(paragraph["context"], encoding="utf-8")
                for item in paragraph["qas"]:
                    position = item["answers"][0]["answer_start"]
                    questions[-1].append(_LocatedQuestion(item["question"], str(path), position))
    except FileNotFoundError as error:
        raise MissingFileError("data", "must be an existing file", got=str(data)) from error
    except OSError as error:
        raise FormatError("data", f"must be a readable file ({error.strerror})", got=str(data)) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FormatError("data", f"must be a JSON file in SQuAD's format ({error!r})", got=str(data)) from error
    return questions


def measure_ranks(data: Path, questions: int, passage_tokens: int | None = None) -> Iterator[dict[str, Any]]:
    """Measure the gold sentence's rank for every question to a library of all paragraphs.

    Parameters
    ----------
    data
        A file in SQuAD's format.
    questions
        Questions of each article, evenly spread, that the model reads passages for; all are searched.
    passage_tokens
        Length of the passages; None for the default of `ask --library`.

    Yields
    ------
    dict
        One result.
    """
    import keywise as kw
    from keywise.documents import Reader
    from keywise.library import SentenceEncoder
    from keywise.library.answer import PASSAGE_TOKENS, choose_passages_for
    from keywise.library.passages import locate_evidence
    from keywise.models.loading import load_model

    budget = passage_tokens or PASSAGE_TOKENS
    with tempfile.TemporaryDirectory() as folder:
        articles = read_paragraphs(data, Path(folder))
        all_questions = [question for article in articles for question in article]
        library = kw.Library.open(Path(folder) / "library", "a")
        added = library.add([folder])
        rows = library.dataset.to_table(columns=["text", "document", "start", "end"]).to_pylist()
        encoder = SentenceEncoder()
        scores = (
            encoder.encode([row["text"] for row in rows])
            @ encoder.encode([question.text for question in all_questions]).T
        )
        encoder_ranks, search_ranks, gold_weights = [], [], []
        alternative_ranks: dict[str, list[int]] = {}
        for question, score in zip(all_questions, scores.T, strict=True):
            gold = next(number for number, row in enumerate(rows) if _holds_answer(row, question))
            encoder_ranks.append(int(_rank_all(score)[gold]))
            sentences = library.search(question.text, top=len(rows))
            (sentence,) = (each for each in sentences if _spans_answer(each.document, each.start, each.end, question))
            search_ranks.append(sentence.rank)
            by_place = sorted(sentences, key=lambda each: (each.document, each.start))  # decides between equal scores
            for name, alternative in score_alternatives(by_place).items():
                rank = int(_rank_all(alternative)[by_place.index(sentence)])
                alternative_ranks.setdefault(name, []).append(rank)
            gold_weights.append(sentence.weight)
        model = load_model(pack_linear=True)
        reader = Reader(model, keep=False)
        evidence_ranks, ranks_before, tokens_read = [], [], []
        selected = [article[:: max(len(article) // questions, 1)][:questions] for article in articles]
        for question in (question for article in selected for question in article):
            passages = choose_passages_for(library, question.text, model, passage_tokens=budget)
            document = reader.read([passage.source for passage in passages])
            evidence = locate_evidence(document.evidence(question.text), passages)
            ranks = (item.rank for item in evidence if _spans_answer(item.source, item.start, item.end, question))
            evidence_ranks.append(next(ranks, 0))
            ranks_before.append(search_ranks[all_questions.index(question)])
            tokens_read.append(document.tokens)
        yield {
            "documents": len(added.added),
            "sentences": len(rows),
            "temperature": library.temperature,
            "search_ranks": search_ranks,
            "alternative_ranks": alternative_ranks,
            "encoder_ranks": encoder_ranks,
            "gold_weights": gold_weights,
            "passage_tokens": budget,
            "evidence_ranks": evidence_ranks,
            "search_ranks_before_evidence": ranks_before,
            "tokens_read": tokens_read,
        }


def score_alternatives(sentences: Sequence[SentenceHit]) -> dict[str, Array]:
    """Return the scores of sentences under other ways to rank them by keys and words.

    Parameters
    ----------
    sentences
        All sentences of a library, with their weights and shares.
    """
    from keywise.library.word_scores import BM25_WEIGHT

    weights, by_keys, by_words = (
        np.array([getattr(each, name) for each in sentences], np.float64) for name in ("weight", "semantic", "lexical")
    )
    key_scores = np.log(np.maximum(by_keys, 1e-30))
    biases = np.log(np.maximum(weights, 1e-30)) - key_scores  # BM25_WEIGHT * BM25, and the same number for all
    alternatives = {"keys alone": by_keys, "words alone": by_words}
    for constant in FUSION_CONSTANTS:
        alternatives[f"reciprocal rank fusion, k = {constant}"] = sum(
            (1 / (constant + _rank_all(share)) * (share > 0) for share in (by_keys, by_words)), np.zeros(len(sentences))
        )
    for weight in BM25_WEIGHTS:
        alternatives[f"sum with {weight} BM25"] = key_scores + weight / BM25_WEIGHT * biases
    return alternatives


def _rank_all(scores: Array) -> Array:
    """Return the rank of each score, 1 for the largest; the first of equal ones is before the others."""
    ranks = np.empty(len(scores), np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ranks


def _holds_answer(row: dict[str, Any], question: _LocatedQuestion) -> bool:
    return _spans_answer(row["document"], row["start"], row["end"], question)


def _spans_answer(document: str, start: int, end: int, question: _LocatedQuestion) -> bool:
    return document == question.document and start <= question.position < end


def format_ranks(results: Sequence[dict[str, Any]]) -> str:
    """Format how often the gold sentence is among the first."""
    labels = {
        "search_ranks": "`library search`",
        "encoder_ranks": "the encoder alone, float32",
        "evidence_ranks": "`ask --library`, evidence in the passages read",
        "search_ranks_before_evidence": "`library search`, the same questions",
    }
    parts = []
    for result in results:
        rows = [
            [f"{label}, {len(result[field])} questions", *_format_hits(np.array(result[field]))]
            for field, label in labels.items()
            if result[field]
        ]
        for name, ranks in result.get("alternative_ranks", {}).items():
            rows.insert(-3, [f"{name}, {len(ranks)} questions", *_format_hits(np.array(ranks))])
        mean_weight = statistics.geometric_mean(max(weight, 1e-30) for weight in result["gold_weights"])
        summary = (
            f"{result['documents']} files, {result['sentences']} sentences; temperature {result['temperature']:.3f}; "
            f"the gold sentence's weight is {mean_weight:.1%} (geometric mean)."
        )
        if result["tokens_read"]:
            mean_tokens = np.mean(result["tokens_read"])
            summary += f" Passages have {mean_tokens:.0f} tokens on average, {result['passage_tokens']} at most."
        parts.append(f"{summary}\n\n{format_table(['gold sentence', 'hit@1', 'hit@5', 'MRR'], rows)}")
    return "\n\n".join(parts)


def _format_hits(ranks: Array) -> list[str]:
    """Format hit rates and mean reciprocal rank; rank 0 means that the sentence is missing."""
    present = ranks > 0
    hit_rates = [f"{(present & (ranks <= count)).mean():.2f}" for count in (1, 5)]
    reciprocal_ranks = np.where(present, 1 / np.maximum(ranks, 1), 0)
    return [*hit_rates, f"{reciprocal_ranks.mean():.2f}"]
