"""The files of a model's folder: they lie inside it, are safetensors, and hold numbers within bounds."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from keywise.errors import ModelError
from keywise.models import find_model, fingerprint, load_model
from keywise.models.folder import MAX_PARTS, check_config, list_encoder_files, list_model_files, read_json
from keywise.models.safetensors_files import ModelFileError
from tests.support.chat_models import edit_json, write_chat_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture
def opened() -> list[str]:
    """Names of the files that Python opens during the test; an audit hook cannot be removed."""
    names: list[str] = []
    sys.addaudithook(lambda event, arguments: names.append(str(arguments[0])) if event == "open" else None)
    return names


def shard(folder: Path, place: str, *, name: str | None = None) -> Path:
    """Replace the weights of a folder by an index that names one other file; return that file."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name or place)}))
    return path


def test_sharded_folders_and_shards_in_subfolders_are_loaded(folder: Path) -> None:
    expected = load_model(folder, dtype="float32").model.state_dict()
    shard(folder, "shards/part.safetensors")
    loaded = load_model(folder, dtype="float32")
    assert all(torch.equal(expected[name], value) for name, value in loaded.model.state_dict().items())
    before = fingerprint(loaded.model, loaded.tokenizer, folder=folder)
    weights = load_file(folder / "shards/part.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 1] += 1.0
    save_file(weights, folder / "shards/part.safetensors", metadata={"format": "pt"})
    assert fingerprint(loaded.model, loaded.tokenizer, folder=folder)["weights"] != before["weights"]


def test_loaded_models_name_their_own_folder(folder: Path) -> None:
    loaded = load_model(folder, dtype="float32")
    assert loaded.model.name_or_path == loaded.tokenizer.name_or_path == str(folder)
    assert not [value for value in vars(loaded.tokenizer).values() if str(value).startswith("/tmp/keywise-")]


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "ABSOLUTE", "sub/../../other.safetensors", "link.safetensors"]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path, opened: list[str], name: str) -> None:
    outside = shard(
        folder, "../other.safetensors", name=str(folder.parent / "other.safetensors") if name == "ABSOLUTE" else name
    )
    (folder / "sub").mkdir()
    (folder / "link.safetensors").symlink_to(outside)
    save_file({"decoy": torch.zeros(1)}, folder / "decoy.safetensors")
    opened.clear()
    with pytest.raises(ModelError, match="inside the folder"):
        load_model(folder)
    assert not [name for name in opened if "other" in name or "link" in name]


@pytest.mark.parametrize(
    "name", ["weights.bin", "weights.pt", "weights.safetensors.pkl", "", 7, None, ["a.safetensors"]]
)
def test_an_index_of_other_files_than_safetensors_is_refused(folder: Path, name: Any) -> None:
    (folder / "weights.bin").write_bytes(pickle.dumps({}))
    shard(folder, "part.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "[" * 100_000, '{"weight_map": {"a": "b'])
def test_damaged_indices_are_refused(folder: Path, text: str) -> None:
    shard(folder, "part.safetensors")
    (folder / INDEX).write_text(text)
    with pytest.raises(ModelError, match="must be JSON with a weight_map"):
        load_model(folder)


@pytest.mark.parametrize("name", ["\ud800.safetensors", "\0.safetensors", "a" * 5000 + ".safetensors"])
def test_an_index_of_names_that_no_file_can_have_is_refused(folder: Path, name: str) -> None:
    shard(folder, "part.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ModelError, match=r"is no name of a file|must stay inside|cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", WEIGHTS])
def test_links_that_lead_out_of_the_folder_are_refused(folder: Path, name: str) -> None:
    shutil.move(folder / name, folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    with pytest.raises(ModelError, match=f"'{name}' is a link to"):
        load_model(folder)


def test_links_inside_the_folder_are_followed(folder: Path) -> None:
    shutil.move(folder / WEIGHTS, folder / "weights-1")
    (folder / WEIGHTS).symlink_to("weights-1")
    assert find_model(folder).size_bytes == (folder / "weights-1").stat().st_size
    assert load_model(folder).folder == folder


def test_a_linked_folder_is_loaded(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    assert load_model(folder.parent / "link").model.config.num_hidden_layers == 2


def test_snapshots_of_the_hub_link_to_blobs(folder: Path) -> None:
    repository = folder.parent / "hub" / "models--who--tiny"
    snapshot, blobs = repository / "snapshots" / "1f", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / f"{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert load_model(snapshot).model.config.num_hidden_layers == 2
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(f"../../../{folder.name}/{WEIGHTS}")
    with pytest.raises(ModelError, match="cannot be"):
        load_model(snapshot)


def test_pipes_and_circular_links_are_refused(folder: Path) -> None:
    (folder / "vocab.json").symlink_to("vocab.json")
    with pytest.raises(ModelError, match=r"'vocab\.json' "):
        load_model(folder)
    (folder / "vocab.json").unlink()
    os.mkfifo(folder / "vocab.json")
    with pytest.raises(ModelError, match=r"'vocab\.json' must be a file"):
        load_model(folder)


def test_folders_with_adapters_are_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelError, match="merge_and_unload"):
        load_model(folder)
    with pytest.raises(ModelError, match="merge_and_unload"):
        fingerprint(load_model(folder.parent / "model").model, folder=folder)


def change_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_config(num_hidden_layers=10**6), "num_hidden_layers of config.json must be at most"),
        (change_config(num_hidden_layers=10**40), r"must be at most 2\*\*53"),
        (change_config(num_hidden_layers=-1), "num_hidden_layers of config.json must be 1 or more"),
        (change_config(num_key_value_heads=0), "num_key_value_heads of config.json must be 1 or more"),
        (change_config(num_hidden_layers="2"), "num_hidden_layers"),
        (change_config(num_hidden_layers=3), "lack model.layers.2"),
        (change_config(num_hidden_layers=1), "model.layers.1.*no place"),
        (change_config(hidden_size=2**20), "far larger than its weights"),
        (change_config(vocab_size=2**40), "far larger than its weights|overflow"),
        (change_config(head_dim=2**33), "far larger than its weights|overflow"),
        (change_config(intermediate_size=32), "have other shapes|mismatch"),
        (change_config(tie_word_embeddings="maybe"), "tie_word_embeddings"),
        (change_config(rms_norm_eps=float("nan")), "NaN"),
        (
            change_config(transformers_weights="../other.safetensors"),
            "transformers_weights of config.json must be absent",
        ),
        (change_config(model_type="no such type"), "cannot be loaded"),
        (change_config(note="a" * 2_000_000), "a string of 2,000,000 characters"),
        (lambda folder: (folder / "config.json").write_text("[" * 1000), "nested too deeply|must be JSON"),
        (lambda folder: (folder / "config.json").write_text("[" * 100 + "]" * 100), "nested too deeply"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must be a JSON object"),
        (lambda folder: (folder / "config.json").write_text('{"a": 1, "a": 2}'), "repeats a name"),
        (lambda folder: (folder / "config.json").write_bytes(b'{"a": "\xff"}'), "must be JSON"),
        (lambda folder: (folder / "config.json").write_text('{"a": ' + "9" * 5000 + "}"), "must be JSON"),
        (lambda folder: (folder / "config.json").write_bytes(bytes(2**24 + 1)), "must have at most 16,777,216 bytes"),
        (lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("7"), "must be a JSON object"),
    ],
)
def test_damaged_settings_are_refused(folder: Path, change: Callable[[Path], Any], message: str) -> None:
    change(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert caught.value.argument == "source"
    assert "/tmp/keywise-" not in str(caught.value)


def test_entries_that_name_code_or_files_are_dropped(folder: Path) -> None:
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": ["code.Slow", None]}
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    edit_json(folder / "config.json", auto_map=code, attn_implementation="someone/kernel", _attn_implementation="x/y")
    edit_json(
        folder / "tokenizer_config.json", auto_map=code, vocab_file="/etc/hostname", gguf_file="x.gguf", init_inputs=[1]
    )
    loaded = load_model(folder)
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.tokenizer("a", add_special_tokens=False)["input_ids"]
    assert not (folder / "ran").exists()


def test_integers_in_place_of_weights_are_refused(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"] = weights["model.norm.weight"].view(torch.int32)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"integers for model\.norm\.weight"):
        load_model(folder)


def test_limits_follow_the_weights() -> None:
    check_config(
        {"num_hidden_layers": MAX_PARTS, "rope_theta": 10**9, "max_position_embeddings": 10**7}, max_parts=MAX_PARTS
    )
    with pytest.raises(ModelFileError, match="n_layer of config"):
        check_config({"text_config": {"n_layer": MAX_PARTS + 1}}, max_parts=MAX_PARTS)


@pytest.mark.parametrize("number", [10**400, -(10**4000)], ids=["high", "low"])
def test_long_names_and_numbers_are_refused_in_short_messages(number: int) -> None:
    for config in ({"hidden_size": number}, {"x" * 10_000 + "_layers": 10**9}, {"y" * 10_000: number}):
        with pytest.raises(ModelFileError, match=r"of config\.json must be at most") as caught:
            check_config(config, max_parts=MAX_PARTS)
        assert len(str(caught.value)) < 300


def test_files_of_a_model_are_listed(folder: Path) -> None:
    files = list_model_files(folder)
    assert set(files.weights) == {WEIGHTS}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(files.others)
    assert read_json(folder / "config.json")["model_type"] == "llama"


PATTERNS = ("*.safetensors", "*.json")


@pytest.fixture
def encoder(folder: Path) -> Path:
    """A folder as sentence-transformers lays it out."""
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_files_of_encoders_are_listed(encoder: Path) -> None:
    assert {WEIGHTS, "modules.json", "1_Pooling/config.json"} <= set(list_encoder_files(encoder, PATTERNS))


def write_modules(encoder: Path, **changes: Any) -> None:
    modules = json.loads((encoder / "modules.json").read_text())
    modules[1].update(changes)
    (encoder / "modules.json").write_text(json.dumps(modules))


def link_pooling(encoder: Path) -> None:
    shutil.move(encoder / "1_Pooling", encoder.parent / "outside")
    (encoder / "1_Pooling").symlink_to(encoder.parent / "outside")


@pytest.mark.parametrize(
    "change",
    [
        lambda encoder: write_modules(encoder, path="../outside"),
        lambda encoder: write_modules(encoder, path="/etc"),
        lambda encoder: write_modules(encoder, path=7),
        lambda encoder: write_modules(encoder, type="os.path"),
        lambda encoder: write_modules(encoder, type="code.Module"),
        lambda encoder: (encoder / "modules.json").write_text("{}"),
        lambda encoder: (encoder / "modules.json").write_text("[" * 10_000),
        link_pooling,
        lambda encoder: shard(encoder, "../outside.safetensors"),
        lambda encoder: edit_json(encoder / "1_Pooling" / "config.json", transformers_weights="adapter_model.bin"),
        lambda encoder: (encoder / "1_Pooling" / "adapter_config.json").write_text("{}"),
        lambda encoder: (encoder / "1_Pooling" / "model.safetensors").write_bytes(b"damaged"),
    ],
)
def test_encoders_that_name_other_files_or_code_are_refused(encoder: Path, change: Callable[[Path], Any]) -> None:
    if change is not link_pooling:
        (encoder.parent / "outside").mkdir()
    change(encoder)
    with pytest.raises(ModelFileError):
        list_encoder_files(encoder, PATTERNS)
