"""How often the sentence that answers a question is among the first, on questions whose answers are known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keywise.bench.markdown import table
from keywise.bench.results import Run
from keywise.documents import Evidence, Reader
from keywise.errors import FormatError

SEPARATOR = "\n\n"
ANSWER_TOKENS = 24
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Question:
    """A question with its gold answer and the character of the document at which that begins."""

    text: str
    answer: str
    position: int


def documents(data: Path, paragraphs: int, questions: int) -> list[tuple[str, list[Question]]]:
    """Give the text and the questions of each article of a file in SQuAD's format.

    Parameters
    ----------
    data
        The file.
    paragraphs
        How many first paragraphs of an article make its document.
    questions
        How many questions to ask of each, spread evenly over the paragraphs.

    Raises
    ------
    FormatError
        If the file cannot be read, or has another format.
    """
    try:
        articles = json.loads(data.read_text(encoding="utf-8"))["data"]
        return [_document(article["paragraphs"][:paragraphs], questions) for article in articles]
    except OSError as error:
        raise FormatError(f"data={str(data)!r} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FormatError(f"data={str(data)!r} is not in SQuAD's format ({error!r}); give such a JSON file") from error


def _document(paragraphs: Sequence[dict[str, Any]], questions: int) -> tuple[str, list[Question]]:
    text, asked = "", list[Question]()
    for paragraph in paragraphs:
        start = len(text) + (len(SEPARATOR) if text else 0)
        text = SEPARATOR.join([text, paragraph["context"]]) if text else paragraph["context"]
        for item in paragraph["qas"]:
            gold = item["answers"][0]
            asked.append(Question(item["question"], gold["text"], start + gold["answer_start"]))
    return text, asked[:: max(len(asked) // questions, 1)][:questions]


def run(reader: Reader, articles: Sequence[tuple[str, list[Question]]], *, answers: bool) -> Iterator[dict[str, Any]]:
    """Yield, per question, the rank of the gold sentence, by keywise and, where that is installed, by BM25."""
    for text, asked in articles:
        document = reader.read(text)
        for question in asked:
            answer = document.ask(question.text, max_tokens=ANSWER_TOKENS) if answers else None
            evidence = document.evidence(question.text) if answer is None else answer.evidence
            gold = next((e for e in evidence if e.start <= question.position < e.end), None)
            if gold is None:
                raise FormatError(f"no sentence holds character {question.position}, the answer of {question.text!r}")
            found = {"question": question.text, "rank": gold.rank, "share": gold.share, "sentences": len(evidence)}
            if find_spec("rank_bm25"):
                found["bm25_rank"] = bm25_rank(question.text, evidence, gold)
            if answer is not None:
                masses = [-np.inf if e.answer_mass is None else e.answer_mass for e in (gold, *evidence)]
                found["answer"] = answer.text
                found["right"] = question.answer.casefold() in answer.text.casefold()
                found["answer_rank"] = 1 + sum(other > masses[0] for other in masses[1:])
            yield found


def bm25_rank(question: str, evidence: Sequence[Evidence], gold: Evidence) -> int:
    """Rank the gold sentence by the words it shares with the question; of equals, the first in the text is first."""
    from rank_bm25 import BM25Okapi  # noqa: PLC0415 - optional

    sentences = sorted(evidence, key=lambda item: item.start)
    scores = BM25Okapi([_words(sentence.text) for sentence in sentences]).get_scores(_words(question))
    order = np.argsort(-scores, kind="stable")
    return 1 + [sentences[index] for index in order].index(gold)


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def tables(runs: Sequence[Run]) -> str:
    """Write how often the gold sentence is among the first."""
    return "\n\n".join(_table(run.results) for run in runs)


def _table(results: Sequence[dict[str, Any]]) -> str:
    sentences = np.array([found["sentences"] for found in results])
    rows = [["chance", *(f"{np.minimum(k / sentences, 1).mean():.2f}" for k in (1, 3, 5)), ""]]
    for name, key in (("BM25", "bm25_rank"), ("the answer's rows", "answer_rank"), ("the question's rows", "rank")):
        if all(key in found for found in results):
            rows.insert(0, [name, *_hits(np.array([found[key] for found in results]))])
    first = np.array([found["rank"] for found in results]) <= 1
    said = [f"{len(results)} questions; the standard error of hit@1 is {np.sqrt(first.var() / first.size):.2f}."]
    if all("right" in found for found in results):
        said.append(
            f"{np.mean([found['right'] for found in results]):.0%} of the model's answers hold the gold answer."
        )
    return f"{' '.join(said)}\n\n{table(['ranked by', 'hit@1', 'hit@3', 'hit@5', 'MRR'], rows)}"


def _hits(rank: NDArray[np.int64]) -> list[str]:
    return [*(f"{(rank <= k).mean():.2f}" for k in (1, 3, 5)), f"{(1 / rank).mean():.2f}"]
