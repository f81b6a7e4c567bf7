"""JSON files of model folders: a folder of links that stay inside, without code and paths, or `ModelFileError`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from keywise.models.folder import MAX_NUMBER, ModelFiles, list_encoder_files, list_model_files, read_json, stage_files
from keywise.models.safetensors_files import ModelFileError
from tests.fuzz.targets.choices import ODD_VALUES, Bytes, edit_json
from tests.fuzz.targets.files import make_folder

LONGEST_MESSAGE = 2000
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "auto_map": {"AutoModel": "code.Model"},
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 288,
    "eos_token_id": [1, 2],
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "text_config": {"num_experts": 2, "_attn_implementation": "x/y", "hidden_act": "silu"},
}
_FILES: dict[str, Any] = {
    "config.json": _CONFIG,
    "model.safetensors.index.json": {"metadata": {"total_size": 24}, "weight_map": {"a": "1.safetensors"}},
    "tokenizer_config.json": {
        **{"tokenizer_class": "PreTrainedTokenizerFast", "vocab_file": "/etc/hostname", "init_inputs": ["../x"]},
        **{"eos_token": {"content": "[end]", "special": True}, "model_max_length": 10**30, "auto_map": {"a": ["b"]}},
    },
    "generation_config.json": {"eos_token_id": 2, "max_length": 20},
    "special_tokens_map.json": {"eos_token": "[end]"},
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
}
_NAMES = tuple(_FILES)
_EDITED = len(_NAMES)
"""First bytes from this one on edit a file; smaller ones precede the content of a file."""
_VALUES = (
    *ODD_VALUES,
    "1.safetensors",
    "1/../1.safetensors",
    "sub/out.safetensors",
    "sub/3.safetensors",
    ["sub"],
    "sub",
)
_CODE = {"auto_map", "_attn_implementation", "attn_implementation", "kernel_config", "custom_pipelines"}


def _make_folder() -> Path:
    """Return a folder of weights, one of them in a subfolder, with a link that leads out."""
    outside = make_folder()
    folder = outside / "model"
    (folder / "sub").mkdir(parents=True)
    weights = save({"a": np.ones((2, 3), np.float32)})
    for name in ("1.safetensors", "sub/3.safetensors", "../secret.safetensors"):
        (folder / name).write_bytes(weights)
    for name, content in _FILES.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "sub" / "out.safetensors").symlink_to(outside / "secret.safetensors")
    return folder


_FOLDER = _make_folder()
_INTACT = {name: (_FOLDER / name).read_bytes() for name in _NAMES}


def make_seeds() -> list[bytes]:
    """Return the content of each file, and edits."""
    random_numbers = np.random.default_rng(0)
    whole = [bytes([number]) + _INTACT[name] for number, name in enumerate(_NAMES)]
    links = [
        bytes([1]) + json.dumps({"weight_map": {"a": name}}).encode()
        for name in ("sub/out.safetensors", "sub/3.safetensors", "../secret.safetensors")
    ]
    edits = [bytes([_EDITED + number]) + random_numbers.bytes(12) for number in range(30)]
    return [*whole, *links, *edits]


def execute(data: bytes) -> None:
    """Replace a file, list and stage the folder, and put the file back."""
    numbers = Bytes(data)
    number = numbers.next_below(256)
    name = _NAMES[number % len(_NAMES)]
    content = numbers.take_rest()
    if number >= _EDITED:
        edited = edit_json(_FILES[name], numbers, values=_VALUES)
        content = json.dumps(edited).encode()
    path = _FOLDER / name
    path.write_bytes(content)
    try:
        _read_folder(name)
    except ModelFileError as error:
        if len(str(error)) > LONGEST_MESSAGE:
            raise AssertionError("the message is as long as the file") from error
    finally:
        path.write_bytes(_INTACT[name])


def _read_folder(name: str) -> None:
    if name == "modules.json":
        encoder_files = list_encoder_files(_FOLDER, ["modules.json", "1.safetensors"])
        _check_places(encoder_files)
        return
    files = list_model_files(_FOLDER)
    _check_places(files.weights)
    _check_places(files.others)
    with stage_files(files) as (staged, _):
        _check_staged(staged, files)


def _check_places(files: Any) -> None:
    root = _FOLDER.resolve()
    for path in files.values():
        assert path == path.resolve(), "a link is followed later"
        assert path.is_relative_to(root), "a file lies elsewhere"
        assert path.is_file()


def _check_staged(staged: Path, files: ModelFiles) -> None:
    names = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if not path.is_dir()}
    assert names == {*files.weights, *files.others}
    for name in ("config.json", "tokenizer_config.json"):
        for inner in _list_objects(read_json(staged / name)):
            assert not _CODE & inner.keys(), "an entry that names code is kept"
            assert name != "config.json" or all(
                abs(value) <= MAX_NUMBER for value in inner.values() if type(value) is int
            )
    tokenizer = read_json(staged / "tokenizer_config.json")
    assert not any(name.endswith(("_file", "_files")) for name in tokenizer), "an entry that names files is kept"


def _list_objects(value: Any) -> list[dict[str, Any]]:
    found, pending = [], [value]
    while pending:
        inner = pending.pop()
        if isinstance(inner, dict):
            found.append(inner)
            pending += inner.values()
        elif isinstance(inner, list):
            pending += inner
    return found
