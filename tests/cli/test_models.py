"""`keywise models`: lists and descriptions of models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="writes GGUF files; it comes with keywise[hf]")

from tests.support.command_line import run
from tests.support.gguf_models import write_gguf


def test_models_are_listed_with_those_to_get() -> None:
    done = run("models", "list")
    assert done.exit_code == 0, done.output
    assert "Qwen/Qwen2.5-1.5B-Instruct-GGUF" in done.stdout
    assert "hf download" in done.stdout
    listed = json.loads(run("models", "list", "--json").stdout)
    assert {"models", "recommended"} == set(listed)
    assert listed["recommended"][0]["licence"] == "Apache-2.0"


@pytest.mark.parametrize(("block_format", "weights"), [("Q8_0", "Q8_0 (8)"), ("F32", "float32 (8)")])
def test_a_model_is_described(tmp_path: Path, own_cache: Path, block_format: str, weights: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", block_format=block_format)
    facts = json.loads(run("models", "show", path, "--dtype", "float32", "--json").stdout)
    assert facts["architecture"] == "llama"
    assert (facts["layers"], facts["heads"], facts["context_tokens"]) == (1, 4, 64)
    assert facts["weights"] == weights
    assert facts["parameters"] > 10_000
    assert facts["cache_bytes_per_token"] == 2 * 1 * 2 * 8 * 4
    assert facts["tuned_on"] is None
    shown = run("models", "show", path).stdout
    assert "architecture           llama" in shown


def test_a_model_that_is_missing_is_refused(tmp_path: Path) -> None:
    done = run("models", "show", tmp_path / "gone.gguf")
    assert done.exit_code == 2
    assert "must be a folder, a .gguf file or a hub id" in done.stderr
