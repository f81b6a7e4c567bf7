"""Tokenizers from files: those that fail, multiply a text or do not end are refused when they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keywise.errors import ModelError
from keywise.models import load_model
from tests.support.chat_models import write_chat_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model") / "model")


def replace_spaces(content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": " "}, "content": content}


def split_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////"}}, "cannot be loaded"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAGFiY2QEAAAAYWJjZA=="}}, "fails: "),
        ({"normalizer": replace_spaces("a" * 5000)}, "must not make a text 4,096 times longer"),
        ({"normalizer": {"type": "Sequence", "normalizers": [replace_spaces("  ")] * 13}}, "4,096 times longer"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 300}}, "4,096 times longer"),
        ({"pre_tokenizer": split_by("(x+x+)+y")}, "retry-limit|takes longer"),
        ({"pre_tokenizer": split_by(r"\s+(?!\S)|\s+|\p{L}+")}, None),
        ({"pre_tokenizer": split_by("(")}, "cannot be loaded"),
        ({"decoder": {"type": "Strip", "content": "a", "start": 2**40, "stop": 2**40}}, "fails: "),
    ],
)
def test_tokenizers_that_cannot_be_used_are_refused(
    folder: Path, changes: dict[str, Any], message: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder / "tokenizer.json"
    original = path.read_text()
    path.write_text(json.dumps({**json.loads(original), **changes}))
    try:
        if message is None:
            load_model(folder)
        else:
            with pytest.raises(ModelError, match=message):
                load_model(folder)
    finally:
        path.write_text(original)
    output = capfd.readouterr()
    assert "panicked" not in output.err + output.out


def test_padding_in_a_file_is_not_allocated(folder: Path) -> None:
    path = folder / "tokenizer.json"
    original = path.read_text()
    padding = {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None}
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    content = {**json.loads(original), "truncation": truncation}
    content["padding"] = {**padding, "pad_id": 0, "pad_type_id": 0, "pad_token": "[pad]"}
    path.write_text(json.dumps(content))
    try:
        tokenizer = load_model(folder).tokenizer
    finally:
        path.write_text(original)
    assert len(tokenizer("The lamp", add_special_tokens=False)["input_ids"]) == 8


def test_random_tokenizers_are_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    original = path.read_text()
    content = json.loads(original)
    content["model"]["dropout"] = 0.5
    path.write_text(json.dumps(content))
    try:
        with pytest.raises(ModelError, match="must not drop merges at random"):
            load_model(folder)
    finally:
        path.write_text(original)
