"""How often the sentence that answers is among the first: `python bench/evidence.py --data XQUAD.json [--json]`.

Takes a file in SQuAD's format. Each document is the first paragraphs of an article; questions, spread evenly over them,
are asked of the whole, and the sentence in which the gold answer begins should rank first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keywise.documents import Evidence, Reader

SEPARATOR = "\n\n"
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Question:
    """A question with its gold answer and the character of the document at which that begins."""

    text: str
    answer: str
    position: int


def documents(data: Path, paragraphs: int, questions: int) -> list[tuple[str, list[Question]]]:
    """Give the text and the questions of each article."""
    found = []
    for article in json.loads(data.read_text(encoding="utf-8"))["data"]:
        text, asked = "", list[Question]()
        for paragraph in article["paragraphs"][:paragraphs]:
            start = len(text) + (len(SEPARATOR) if text else 0)
            text = SEPARATOR.join([text, paragraph["context"]]) if text else paragraph["context"]
            for item in paragraph["qas"]:
                gold = item["answers"][0]
                asked.append(Question(item["question"], gold["text"], start + gold["answer_start"]))
        step = max(len(asked) // questions, 1)
        found.append((text, asked[::step][:questions]))
    return found


def ranks(reader: Reader, text: str, asked: list[Question], *, answers: bool) -> list[dict[str, Any]]:
    """Read one document and give, per question, the rank of the gold sentence and how the model's answer did."""
    document = reader.read(text)
    results = []
    for question in asked:
        answer = document.ask(question.text, max_tokens=ANSWER_TOKENS) if answers else None
        evidence = document.evidence(question.text) if answer is None else answer.evidence
        gold = next((e for e in evidence if e.start <= question.position < e.end), None)
        if gold is None:
            raise SystemExit(f"no sentence holds character {question.position} of the document for {question.text!r}")
        found = {"question": question.text, "rank": gold.rank, "share": gold.share, "sentences": len(evidence)}
        if answer is not None:
            found["answer"] = answer.text
            found["right"] = question.answer.casefold() in answer.text.casefold()
            found["answer_rank"] = 1 + sum(mass_of(other) > mass_of(gold) for other in evidence)
        results.append(found)
    return results


def mass_of(evidence: Evidence) -> float:
    """Give the mass from the answer's tokens, -inf where the answer is empty."""
    return -np.inf if evidence.answer_mass is None else evidence.answer_mass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="questions with answer spans, SQuAD's format")
    parser.add_argument("--model", help="model to ask (default: the default model)")
    parser.add_argument("--paragraphs", type=int, default=5, help="paragraphs per document")
    parser.add_argument("--questions", type=int, default=3, help="questions per document")
    parser.add_argument("--answers", action="store_true", help="let the model answer too (much slower)")
    parser.add_argument("--json", action="store_true", help="print JSON with every question")
    options = parser.parse_args()
    reader = Reader(options.model)
    start = time.perf_counter()
    results: list[dict[str, Any]] = []
    for number, (text, asked) in enumerate(documents(options.data, options.paragraphs, options.questions), start=1):
        results += ranks(reader, text, asked, answers=options.answers)
        print(f"document {number}: {len(results)} questions", end="\r", file=sys.stderr)
    print(file=sys.stderr)
    rank = np.array([result["rank"] for result in results])
    sentences = np.array([result["sentences"] for result in results])
    summary = {
        "questions": len(results),
        **{f"hit@{k}": float((rank <= k).mean()) for k in (1, 3, 5)},
        **{f"random hit@{k}": float(np.minimum(k / sentences, 1).mean()) for k in (1, 3, 5)},
        "mrr": float((1 / rank).mean()),
        "standard_error_of_hit@1": float(np.sqrt((rank <= 1).var() / len(rank))),
        "seconds": time.perf_counter() - start,
    }
    if options.answers:
        summary["answers that contain the gold answer"] = float(np.mean([result["right"] for result in results]))
        answer_rank = np.array([result["answer_rank"] for result in results])
        summary["hit@1 by the answer's tokens"] = float((answer_rank <= 1).mean())
    if options.json:
        print(json.dumps({"summary": summary, "results": results}, indent=2))
        return
    for name, value in summary.items():
        print(f"{name:<38} {value:.3f}")


if __name__ == "__main__":
    main()
