"""Where the gold sentence stands when a library is searched for a question, and when the passages found are read."""

# ruff: noqa: PLC0415  (Lance and models are slow to import: only the process that measures needs them)

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.markdown import table
from keywise.errors import FormatError

Array = NDArray[Any]


@dataclass(frozen=True)
class _Asked:
    text: str
    document: str
    position: int


def read_paragraphs(data: Path, folder: Path) -> list[list[_Asked]]:
    """Write every paragraph of a file in SQuAD's format to a file of its own; give the questions of each article.

    Raises
    ------
    FormatError
        If the file cannot be read, or has another format.
    """
    asked = []
    try:
        for article_number, article in enumerate(json.loads(data.read_text(encoding="utf-8"))["data"]):
            asked.append(list[_Asked]())
            for number, paragraph in enumerate(article["paragraphs"]):
                path = folder / f"{article_number:03}-{number:03}.txt"
                path.write_text(paragraph["context"], encoding="utf-8")
                for item in paragraph["qas"]:
                    asked[-1].append(_Asked(item["question"], str(path), item["answers"][0]["answer_start"]))
    except OSError as error:
        raise FormatError(f"data={str(data)!r} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FormatError(f"data={str(data)!r} is not in SQuAD's format ({error!r}); give such a JSON file") from error
    return asked


def measure(data: Path, questions: int, passage_tokens: int | None = None) -> Iterator[dict[str, Any]]:
    """Ask all paragraphs of a collection as a library of files: where the gold sentence stands, searched and read.

    All questions are searched; of each article so many, evenly spread, are read as well.
    """
    import keywise as kw
    from keywise.documents import Reader
    from keywise.library import SentenceEncoder
    from keywise.library.asking import PASSAGE_TOKENS, passages_for
    from keywise.library.passages import placed
    from keywise.models.loading import load_model

    budget = passage_tokens or PASSAGE_TOKENS
    with tempfile.TemporaryDirectory() as folder:
        articles = read_paragraphs(data, Path(folder))
        asked = [question for article in articles for question in article]
        library = kw.Library.open(Path(folder) / "library", "a")
        added = library.add([folder])
        rows = library.dataset.to_table(columns=["text", "document", "start", "end"]).to_pylist()
        encoder = SentenceEncoder()
        scores = encoder.encode([row["text"] for row in rows]) @ encoder.encode([each.text for each in asked]).T
        alone, searched, weights = [], [], []
        for question, score in zip(asked, scores.T, strict=True):
            gold = next(number for number, row in enumerate(rows) if _holds(row, question))
            alone.append(1 + int((score > score[gold]).sum()))
            found = library.search(question.text, top=len(rows))
            (sentence,) = (each for each in found if _is_at(each.document, each.start, each.end, question))
            searched.append(sentence.rank)
            weights.append(sentence.weight)
        model = load_model(pack_linear=True)
        reader = Reader(model, keep=False)
        read, before_reading, tokens = [], [], []
        of_articles = [article[:: max(len(article) // questions, 1)][:questions] for article in articles]
        for question in (each for some in of_articles for each in some):
            passages = passages_for(library, question.text, model, passage_tokens=budget)
            document = reader.read([passage.source for passage in passages])
            evidence = placed(document.evidence(question.text), passages)
            right = (item.rank for item in evidence if _is_at(item.source, item.start, item.end, question))
            read.append(next(right, 0))
            before_reading.append(searched[asked.index(question)])
            tokens.append(document.tokens)
        yield {
            "documents": len(added.added),
            "sentences": len(rows),
            "temperature": library.temperature,
            "searched": searched,
            "alone": alone,
            "gold_weights": weights,
            "passage_tokens": budget,
            "read": read,
            "searched_of_those_read": before_reading,
            "tokens": tokens,
        }


def _holds(row: dict[str, Any], question: _Asked) -> bool:
    return _is_at(row["document"], row["start"], row["end"], question)


def _is_at(document: str, start: int, end: int, question: _Asked) -> bool:
    return document == question.document and start <= question.position < end


def table_of(results: Sequence[dict[str, Any]]) -> str:
    """Write how often the gold sentence is among the first."""
    parts = []
    for found in results:
        rows = [
            [f"{name}, {len(found[key])} questions", *_hits(np.array(found[key]))]
            for name, key in (
                ("`library search`", "searched"),
                ("the encoder alone, float32", "alone"),
                ("`ask --library`, evidence in the passages read", "read"),
                ("`library search`, the same questions", "searched_of_those_read"),
            )
            if found[key]
        ]
        likely = statistics.geometric_mean(max(weight, 1e-30) for weight in found["gold_weights"])
        said = (
            f"{found['documents']} files, {found['sentences']} sentences; temperature {found['temperature']:.3f}; the "
            f"gold sentence's weight is {likely:.1%} (geometric mean)."
        )
        if found["tokens"]:
            said += (
                f" Of at most {found['passage_tokens']} tokens, {np.mean(found['tokens']):.0f} were read per question."
            )
        parts.append(f"{said}\n\n{table(['gold sentence', 'hit@1', 'hit@5', 'MRR'], rows)}")
    return "\n\n".join(parts)


def _hits(rank: Array) -> list[str]:
    found = rank > 0
    hits = [f"{(found & (rank <= k)).mean():.2f}" for k in (1, 5)]
    return [*hits, f"{np.where(found, 1 / np.maximum(rank, 1), 0).mean():.2f}"]
