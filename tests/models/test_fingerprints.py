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
from keywise.models import file_digests, fingerprint
from tests.support import models

WEIGHTS = "model.safetensors"


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
    monkeypatch.setattr(file_digests, "CLOCK_STEP_SECONDS", 0.0)
    first = fingerprint(model, folder=folder, cache_dir=cache)
    notes = [path for path in (cache / "digests").iterdir() if WEIGHTS in json.loads(path.read_text())["path"]]
    assert len(notes) == 1
    recorded = json.loads(notes[0].read_text())
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("the file was digested again"))
    assert fingerprint(model, folder=folder, cache_dir=cache) == first
    monkeypatch.undo()
    monkeypatch.setattr(file_digests, "CLOCK_STEP_SECONDS", 0.0)
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


def test_a_file_that_changes_within_a_tick_of_the_clock_is_digested_again(saved: tuple[Any, Path, Path]) -> None:
    model, folder, cache = saved
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    time_of_change = path.stat().st_mtime_ns
    seen = set()
    for number in range(20):
        content[-1] = number
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=(time_of_change, time_of_change))
        seen.add(fingerprint(model, folder=folder, cache_dir=cache)["weights"])
    assert len(seen) == 20


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"]
)
def test_every_file_that_is_read_belongs_to_the_fingerprint(saved: tuple[Any, Path, Path], name: str) -> None:
    model, folder, cache = saved
    tokenizer = models.make_tokenizer("a", "b")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)
    first = fingerprint(model, tokenizer, folder=folder, cache_dir=cache)
    with (folder / name).open("a") as file:
        file.write(" ")
    changed = fingerprint(model, tokenizer, folder=folder, cache_dir=cache)
    assert {name for name in first if first[name] != changed[name]} == {"files"}


def test_buffers_belong_to_the_weights_in_memory() -> None:
    model = models.make_model("llama")
    before = fingerprint(model)
    model.model.rotary_emb.inv_freq[1] *= 2
    assert fingerprint(model)["weights"] != before["weights"]


@pytest.mark.parametrize("has_folder", [False, True])
def test_the_state_of_adapters_belongs_to_the_weights(tmp_path: Path, has_folder: bool) -> None:
    peft = pytest.importorskip("peft", reason="pip install --no-deps peft")
    model = models.make_model("llama")
    model.save_pretrained(tmp_path / "model")
    adapter = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    # With peft's own calls: those of transformers may ask for a newer peft than there is.
    wrapped = peft.get_peft_model(model, adapter, adapter_name="first")
    wrapped.add_adapter("second", adapter)
    adapters = wrapped.base_model
    layer = model.model.layers[1].self_attn.v_proj

    def scale() -> None:
        layer.scaling["first"] *= 2

    def train() -> None:
        with torch.no_grad():
            layer.lora_B["first"].weight[1, 1] += 0.5

    def return_to_first() -> None:
        adapters.enable_adapter_layers()
        adapters.set_adapter("first")

    def compute() -> str:
        folder = tmp_path / "model" if has_folder else None
        return fingerprint(model, folder=folder, cache_dir=tmp_path)["weights"]

    adapters.set_adapter("first")
    first = compute()
    seen = {first}
    changes: list[Callable[[], Any]] = [
        lambda: adapters.set_adapter("second"),
        lambda: adapters.set_adapter(["first", "second"]),
        adapters.disable_adapter_layers,
    ]
    for change in changes:
        change()
        assert compute() not in seen
        seen.add(compute())
    return_to_first()
    assert compute() == first
    for change in (scale, train, layer.merge, lambda: adapters.delete_adapter("second")):
        change()
        assert compute() not in seen
        seen.add(compute())
