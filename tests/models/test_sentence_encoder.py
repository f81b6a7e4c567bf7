"""Sentence encoders in the layout of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from keywise.errors import ModelError
from keywise.models import SentenceEncoder
from tests.support.models import make_tokenizer

TEXTS = ["the lamp is lit", "the old lamp", "bread"]
WORDS = ("the", "lamp", "is", "lit", "old", "bread", "[PAD]")
NAMES = "sentence_transformers.models"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random encoder that pools by the mean."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(*WORDS)
    tokenizer.pad_token = "[PAD]"
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_json(tmp_path / "1_Pooling" / "config.json", pooling_mode_mean_tokens=True, pooling_mode_cls_token=False)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    content = [{"idx": n, "name": str(n), "path": p, "type": f"{NAMES}.{t}"} for n, (p, t) in enumerate(modules)]
    (tmp_path / "modules.json").write_text(json.dumps(content))
    return tmp_path


def write_json(path: Path, **content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def run_model(folder: Path, text: str) -> np.ndarray:
    """Return the vectors of a text's tokens, computed alone."""
    model = BertModel.from_pretrained(folder).eval()
    tokens = make_tokenizer(*WORDS)(text, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens).last_hidden_state[0].numpy()


@pytest.mark.parametrize(
    ("settings", "pool"),
    [
        ({"pooling_mode_mean_tokens": True}, lambda vectors: vectors.mean(0)),
        ({"pooling_mode_cls_token": True}, lambda vectors: vectors[0]),
        ({"pooling_mode_lasttoken": True}, lambda vectors: vectors[-1]),
        ({"pooling_mode": "mean"}, lambda vectors: vectors.mean(0)),
        ({"pooling_mode": "cls"}, lambda vectors: vectors[0]),
    ],
)
def test_keys_are_pooled_as_configured(folder: Path, settings: dict[str, Any], pool: Any) -> None:
    write_json(folder / "1_Pooling" / "config.json", **settings)
    keys = SentenceEncoder(folder).encode(TEXTS)
    for text, key in zip(TEXTS, keys, strict=True):
        expected = pool(run_model(folder, text))
        np.testing.assert_allclose(key, expected / np.linalg.norm(expected), atol=1e-5)


def test_settings_of_texts_are_applied(folder: Path) -> None:
    plain = SentenceEncoder(folder).encode(["the lamp", "the old lamp", "the lamp is lit"])
    write_json(folder / "sentence_bert_config.json", max_seq_length=2, do_lower_case=True)
    write_json(folder / "config_sentence_transformers.json", prompts={"q": "the "}, default_prompt_name="q")
    keys = SentenceEncoder(folder).encode(["LAMP", "lamp is lit"])
    np.testing.assert_allclose(keys, plain[[0, 0]], atol=1e-5)


def test_fingerprints_follow_weights_and_settings(folder: Path) -> None:
    first = SentenceEncoder(folder).fingerprint
    assert first == SentenceEncoder(folder).fingerprint
    write_json(folder / "sentence_bert_config.json", max_seq_length=2)
    assert first != SentenceEncoder(folder).fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "must pool the mean, the first or the last token"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean"]}, "must pool"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "must pool"),
        ("sentence_bert_config.json", {"max_seq_length": -3}, "must have a context of 1 to 65,536 tokens"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "must have a context"),
        ("sentence_bert_config.json", [1], "must be an object"),
        ("config_sentence_transformers.json", {"prompts": {"q": 7}, "default_prompt_name": "q"}, "prompt"),
        ("modules.json", [{"path": "3_Dense", "type": f"{NAMES}.Dense"}], "got 'Dense'"),
    ],
)
def test_encoders_that_are_not_served_are_refused(folder: Path, name: str, content: Any, message: str) -> None:
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        SentenceEncoder(folder)


def test_a_model_that_is_no_encoder_is_refused_when_it_is_loaded(folder: Path) -> None:
    settings = (folder / "tokenizer_config.json").read_text()
    write_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(ModelError, match="no padding token"):
        SentenceEncoder(folder).encode(["the lamp"])
    (folder / "tokenizer_config.json").write_text(settings)
    write_json(folder / "config.json", model_type="no such model")
    with pytest.raises(ModelError, match="encoder must be a model that transformers can load"):
        SentenceEncoder(folder).encode(["the lamp"])
