"""Fingerprints: equal for equal models, different after every change of keys and values."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from keywise.errors import DtypeError, ModelError
from keywise.models import fingerprint
from tests.support import models


def test_equal_models_have_equal_fingerprints() -> None:
    assert fingerprint(models.make_model("llama")) == fingerprint(models.make_model("llama"))
    assert (
        fingerprint(models.make_model("llama"), models.make_tokenizer("a", "b"))["tokenizer"]
        == (fingerprint(models.make_model("llama"), models.make_tokenizer("a", "b"))["tokenizer"])
    )


def change_weight(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3, 4] += 1e-3


def change_rope(model: Any) -> None:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 5e5}


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (change_weight, {"weights"}),
        (change_rope, {"rope"}),
        (lambda model: setattr(model.config, "rms_norm_eps", 1e-3), {"config"}),
        (lambda model: model.to(torch.bfloat16), {"weights", "dtype"}),
        (lambda model: setattr(model.config, "use_cache", False), set()),
        (lambda model: setattr(model.config, "_attn_implementation", "eager"), set()),
        (lambda model: setattr(model, "name_or_path", "elsewhere"), set()),
    ],
)
def test_a_change_of_the_model_changes_its_field(change: Callable[[Any], Any], fields: set[str]) -> None:
    model = models.make_model("llama")
    before = fingerprint(model)
    change(model)
    after = fingerprint(model)
    assert {name for name in before if before[name] != after[name]} == fields


def test_padding_does_not_change_the_tokenizers_fingerprint() -> None:
    model, words = models.make_model("llama"), models.make_tokenizer("a", "b")
    before = fingerprint(model, words)
    words.backend_tokenizer.enable_padding(length=8)
    words.backend_tokenizer.enable_truncation(4)
    assert fingerprint(model, words) == before
    assert fingerprint(model, models.make_tokenizer("b", "a"))["tokenizer"] != before["tokenizer"]
    assert fingerprint(model)["tokenizer"] == "none"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path, Path]:
    model = models.make_model("llama")
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model", tmp_path / "cache"


def test_files_are_digested_once(saved: tuple[Any, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder, cache = saved
    first = fingerprint(model, folder=folder, cache_dir=cache)
    notes = list((cache / "digests").iterdir())
    assert len(notes) == 1
    recorded = json.loads(notes[0].read_text())
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("the file was digested again"))
    assert fingerprint(model, folder=folder, cache_dir=cache) == first
    monkeypatch.undo()
    # A note that is damaged, or of another state of the file, is ignored.
    for wrong in (
        b"",
        b"[]",
        b"{}",
        b'{"sha256": 7}',
        json.dumps({**recorded, "size_bytes": 1, "sha256": "0"}).encode(),
    ):
        notes[0].write_bytes(wrong)
        assert fingerprint(model, folder=folder, cache_dir=cache) == first
        assert json.loads(notes[0].read_text()) == recorded


def test_a_changed_tokenizer_differs_from_that_of_its_folder(saved: tuple[Any, Path, Path]) -> None:
    model, folder, cache = saved
    models.make_tokenizer("a", "b").save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    first = fingerprint(model, loaded, folder=folder, cache_dir=cache)
    assert first["tokenizer"].startswith("file: ")
    other = fingerprint(model, models.make_tokenizer("b", "a"), folder=folder, cache_dir=cache)
    assert other["tokenizer"].startswith("in memory: ")
    loaded.add_tokens(["c"])
    assert fingerprint(model, loaded, folder=folder, cache_dir=cache)["tokenizer"] != first["tokenizer"]


def test_a_changed_file_changes_the_weights_fingerprint(saved: tuple[Any, Path, Path]) -> None:
    model, folder, cache = saved
    first = fingerprint(model, folder=folder, cache_dir=cache)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, (time.time() + 5, time.time() + 5))
    changed = fingerprint(model, folder=folder, cache_dir=cache)
    assert {name for name in first if first[name] != changed[name]} == {"weights"}


def test_weights_changed_in_memory_change_the_fingerprint_of_files(saved: tuple[Any, Path, Path]) -> None:
    model, folder, cache = saved
    first = fingerprint(model, folder=folder, cache_dir=cache)
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    assert fingerprint(tuned, folder=folder, cache_dir=cache)["weights"] != first["weights"]


def test_other_modules_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DtypeError, match=r"model must be a loaded transformers model .*got 'Linear'"):
        fingerprint(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"folder must have \.safetensors files"):
        fingerprint(models.make_model("llama"), folder=tmp_path)
