"""How often the sentence that answers is among the first: `python bench/evidence.py --data XQUAD.json [--json]`.

Takes a file in SQuAD's format. Each document is the first paragraphs of an article; questions, spread evenly over them,
are asked of the whole, and the sentence in which the gold answer begins should rank first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from keywise.documents import Reader

SEPARATOR = "\n\n"


def documents(data: Path, paragraphs: int, questions: int) -> list[tuple[str, list[tuple[str, int]]]]:
    """Give (text, [(question, character at which its answer begins)]) per article."""
    found = []
    for article in json.loads(data.read_text(encoding="utf-8"))["data"]:
        text, asked = "", []
        for paragraph in article["paragraphs"][:paragraphs]:
            start = len(text) + (len(SEPARATOR) if text else 0)
            text = SEPARATOR.join([text, paragraph["context"]]) if text else paragraph["context"]
            asked += [(qa["question"], start + qa["answers"][0]["answer_start"]) for qa in paragraph["qas"]]
        step = max(len(asked) // questions, 1)
        found.append((text, asked[::step][:questions]))
    return found


def ranks(reader: Reader, text: str, asked: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """Read one document and give, per question, the rank of the gold sentence."""
    document = reader.read(text)
    results = []
    for question, position in asked:
        evidence = document.evidence(question)
        gold = next((e for e in evidence if e.start <= position < e.end), None)
        if gold is None:
            raise SystemExit(f"no sentence holds character {position} of the document for {question!r}")
        results.append({"question": question, "rank": gold.rank, "share": gold.share, "sentences": len(evidence)})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="questions with answer spans, SQuAD's format")
    parser.add_argument("--model", help="model to ask (default: the default model)")
    parser.add_argument("--paragraphs", type=int, default=5, help="paragraphs per document")
    parser.add_argument("--questions", type=int, default=3, help="questions per document")
    parser.add_argument("--json", action="store_true", help="print JSON with every question")
    options = parser.parse_args()
    reader = Reader(options.model)
    start = time.perf_counter()
    results: list[dict[str, Any]] = []
    for number, (text, asked) in enumerate(documents(options.data, options.paragraphs, options.questions), start=1):
        results += ranks(reader, text, asked)
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
    if options.json:
        print(json.dumps({"summary": summary, "results": results}, indent=2))
        return
    for name, value in summary.items():
        print(f"{name:<24} {value:.3f}")


if __name__ == "__main__":
    main()
