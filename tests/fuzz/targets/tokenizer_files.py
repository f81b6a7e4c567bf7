"""Tokenizers of model folders: tokens of a text, none of them special and few for each character, or an error."""

import json
from typing import Any

import numpy as np

from keywise.documents.text_tokenizer import TextTokenizer
from keywise.errors import ModelError
from keywise.models.folder import list_model_files, stage_files
from keywise.models.loading import LoadedModel, _load_tokenizer
from keywise.models.safetensors_files import ModelFileError
from keywise.models.tokenizer_check import MAX_GROWTH
from keywise.util.foreign_errors import translate_errors
from tests.fuzz.targets.choices import ODD_VALUES, Bytes, edit_json
from tests.fuzz.targets.files import make_folder
from tests.support.chat_models import make_chat_model, write_chat_model

TEXT = "The lamp [end] isn't lit,\tnaïve 日本 [user] <|x|>"
_FOLDER = write_chat_model(make_folder() / "model", added=["<|x|>"], num_hidden_layers=1)
_MODEL = make_chat_model(num_hidden_layers=1)
_NAMES = ("tokenizer.json", "tokenizer_config.json")
_INTACT = {name: (_FOLDER / name).read_bytes() for name in _NAMES}
_FILES: dict[str, Any] = {name: json.loads(content) for name, content in _INTACT.items()}
_EDITED = len(_NAMES)
"""First bytes from this one on edit a file; smaller ones precede the content of a file."""
_PARTS = (
    {"type": "NFC"},
    {"type": "Lowercase"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Precompiled", "precompiled_charsmap": "BAAAAGFiY2QEAAAAYWJjZA=="},
    {
        "type": "Sequence",
        "normalizers": [{"type": "NFD"}, {"type": "Replace", "pattern": {"Regex": "."}, "content": "aa"}],
    },
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    {"type": "Split", "pattern": {"Regex": "(x+x+)+y|\\s+"}, "behavior": "Isolated", "invert": False},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Digits", "individual_digits": True},
    {"type": "FixedLength", "length": 0},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Strip", "content": "a", "start": 1 << 40, "stop": 1},
    {"type": "ByteFallback"},
    {"type": "WordPiece", "vocab": {"[unk]": 0, "the": 1}, "unk_token": "[unk]", "max_input_chars_per_word": 100},
    {"type": "WordLevel", "vocab": {"[unk]": 0, "the": 1}, "unk_token": "[unk]"},
    {"type": "Unigram", "unk_id": 0, "vocab": [["[unk]", 0.0], ["▁", -1.0], ["a", -1e300]], "byte_fallback": False},
    {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "unk_token": "a", "dropout": 0.0},
    {"id": 1 << 40, "content": "The", "special": True},
    {"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
    {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5},
    "PreTrainedTokenizerFast",
    "LlamaTokenizerFast",
    "BertTokenizer",
    "T5Tokenizer",
)
_VALUES = (*ODD_VALUES, *_PARTS, *_PARTS)


def make_seeds() -> list[bytes]:
    """Return the content of each file, and edits."""
    random_numbers = np.random.default_rng(0)
    whole = [bytes([number]) + _INTACT[name] for number, name in enumerate(_NAMES)]
    return [*whole, *(bytes([_EDITED + number]) + random_numbers.bytes(12) for number in range(30))]


def execute(data: bytes) -> None:
    """Replace a file, load the tokenizer, encode a text, and put the file back."""
    numbers = Bytes(data)
    number = numbers.next_below(256)
    name = _NAMES[number % len(_NAMES)]
    content = numbers.take_rest()
    if number >= _EDITED:
        content = json.dumps(_edit_parts(_FILES[name], numbers)).encode()
    path = _FOLDER / name
    path.write_bytes(content)
    try:
        _encode()
    except (ModelFileError, ModelError):
        pass
    finally:
        path.write_bytes(_INTACT[name])


def _edit_parts(content: dict[str, Any], numbers: Bytes) -> Any:
    """Return edited content; mostly only what is not the long vocabulary is edited."""
    if "model" not in content or numbers.next_below(8) == 0:
        return edit_json(content, numbers, values=_VALUES)
    model = content["model"]
    short = {**content, "model": {key: value for key, value in model.items() if key != "vocab"}}
    edited = edit_json(short, numbers, values=_VALUES)
    if isinstance(edited, dict) and isinstance(edited.get("model"), dict):
        edited["model"].setdefault("vocab", model["vocab"])
    return edited


def _encode() -> None:
    files = list_model_files(_FOLDER)
    with stage_files(files) as (staged, _), translate_errors(ModelFileError, ModelFileError):
        tokenizer = _load_tokenizer(staged)
    if not tokenizer.is_fast:
        return
    text_tokenizer = TextTokenizer(LoadedModel(_MODEL, tokenizer, "fuzzed", None))
    token_ids, offsets = text_tokenizer.encode(TEXT)
    assert len(token_ids) == len(offsets) <= MAX_GROWTH * 4 * len(TEXT)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert special.isdisjoint(token_ids), "a word of the text became a special token"
