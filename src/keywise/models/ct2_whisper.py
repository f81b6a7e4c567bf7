"""Whisper models in the folders of faster-whisper, as models of transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from keywise.models.ctranslate2 import MODEL_FILE, Ct2File
from keywise.models.folder import CONFIG, MAX_CONFIG_BYTES, read_json
from keywise.models.safetensors_files import ModelFileError

TOKENIZER: Final = "tokenizer.json"
_SPECIFICATION: Final = "WhisperSpec"
_GELU: Final = 3
_FRAMES_PER_POSITION: Final = 2
# Settings of all Whisper models, from their paper (Radford et al. 2022, section 2.2).
_SAMPLING_RATE_HERTZ: Final = 16_000
_HOP_SAMPLES: Final = 160
_WINDOW_SAMPLES: Final = 400
_TIMESTAMP_SECONDS: Final = 0.02
# English models have one token less.
_MULTILINGUAL_VOCABULARY: Final = 51_865


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a model, from the shapes of its arrays."""

    width: int
    vocabulary: int
    mel_bins: int
    source_positions: int
    target_positions: int
    encoder_layers: int
    decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    feed_forward: int


@contextmanager
def stage_ct2_whisper(folder: Path) -> Iterator[tuple[Path, Ct2File]]:
    """Yield a temporary folder with the configurations and the tokenizer of a faster-whisper folder.

    Parameters
    ----------
    folder : pathlib.Path
        Has ``model.bin``, ``config.json`` and ``tokenizer.json``.

    Yields
    ------
    folder : pathlib.Path
        Has the files that transformers reads, without weights.
    weights : Ct2File
        The arrays of ``model.bin``.

    Raises
    ------
    ModelFileError
        A file is missing or damaged, or holds another model than Whisper.
    OSError
        A file cannot be read.
    """
    for name in (CONFIG, TOKENIZER):
        if not (folder / name).is_file():
            raise ModelFileError(f"it has {MODEL_FILE} and no {name}")
    file = Ct2File(folder / MODEL_FILE)
    if file.specification != _SPECIFICATION:
        raise ModelFileError(f"{MODEL_FILE} must hold a Whisper model, got {file.specification!r:.80}")
    settings = read_json(folder / CONFIG)
    if not isinstance(settings, dict):
        raise ModelFileError(f"{CONFIG} must be a JSON object")
    if (folder / TOKENIZER).stat().st_size > MAX_CONFIG_BYTES:
        raise ModelFileError(f"{TOKENIZER} must have at most {MAX_CONFIG_BYTES:,} bytes")
    sizes = _read_sizes(file)
    tokenizer, ids = _complete_tokenizer((folder / TOKENIZER).read_bytes(), sizes)
    with TemporaryDirectory(prefix="keywise-") as scratch:
        staged = Path(scratch)
        contents = {
            CONFIG: _make_config(sizes, ids),
            "generation_config.json": _make_generation_config(settings, sizes, ids),
            "preprocessor_config.json": _make_preprocessor_config(sizes),
            "tokenizer_config.json": {"tokenizer_class": "WhisperTokenizer", "pad_token": "<|endoftext|>"},
            TOKENIZER: tokenizer,
        }
        for name, content in contents.items():
            (staged / name).write_text(json.dumps(content), encoding="utf-8")
        yield staged, file


def build_ct2_whisper(file: Ct2File, config: Any, dtype: Any) -> Any:
    """Return a model of transformers with the weights of a file.

    Parameters
    ----------
    file : Ct2File
        The weights.
    config : transformers.WhisperConfig
        From the folder of `stage_ct2_whisper`.
    dtype : torch.dtype
        Data type of the model.

    Raises
    ------
    ModelFileError
        An array is missing, or has another shape than the configuration says.
    """
    import torch
    from transformers import WhisperForConditionalGeneration

    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    tensors = {name: torch.from_numpy(values).to(dtype) for name, values in _read_weights(file, config)}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            rule = f"must hold {name} of the shape {expected.get(name)}, got {found.get(name)}"
            raise ModelFileError(f"{MODEL_FILE} {rule}")
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    return model.eval()


def _read_sizes(file: Ct2File) -> _Sizes:
    vocabulary, width = _get_shape(file, "decoder/embeddings/weight", 2)
    _, mel_bins, _ = _get_shape(file, "encoder/conv1/weight", 3)
    if file.read_setting("decoder/activation") != _GELU:
        raise ModelFileError(f"{MODEL_FILE} must have the activation GELU")
    heads = {part: file.read_setting(f"{part}/num_heads") for part in ("encoder", "decoder")}
    if any(count < 1 or width % count for count in heads.values()):
        raise ModelFileError(f"{MODEL_FILE} must have numbers of heads that divide {width}, got {heads}")
    return _Sizes(
        width=width,
        vocabulary=vocabulary,
        mel_bins=mel_bins,
        source_positions=_get_shape(file, "encoder/position_encodings/encodings", 2)[0],
        target_positions=_get_shape(file, "decoder/position_encodings/encodings", 2)[0],
        encoder_layers=_count_layers(file, "encoder"),
        decoder_layers=_count_layers(file, "decoder"),
        encoder_heads=heads["encoder"],
        decoder_heads=heads["decoder"],
        feed_forward=_get_shape(file, "encoder/layer_0/ffn/linear_0/weight", 2)[0],
    )


def _get_shape(file: Ct2File, name: str, axes: int) -> tuple[int, ...]:
    place = file.arrays.get(name)
    if place is None or len(place.shape) != axes or 0 in place.shape:
        raise ModelFileError(f"{MODEL_FILE} must hold {name!r} with {axes} axes")
    return place.shape


def _count_layers(file: Ct2File, part: str) -> int:
    numbers = {int(match[1]) for name in file.arrays if (match := re.match(rf"{part}/layer_(\d{{1,4}})/", name))}
    if not numbers or numbers != set(range(len(numbers))):
        raise ModelFileError(f"{MODEL_FILE} must hold the layers of the {part} without gaps")
    return len(numbers)


def _complete_tokenizer(content: bytes, sizes: _Sizes) -> tuple[dict[str, Any], dict[str, int]]:
    """Return a tokenizer with the tokens of all times, and the numbers of its added tokens."""
    try:
        tokenizer = json.loads(content)
        ids = {str(token["content"]): int(token["id"]) for token in tokenizer["added_tokens"]}
        first = ids["<|notimestamps|>"] + 1
        for name in ("<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>"):
            _ = ids[name]
        if not all(0 <= number < sizes.vocabulary for number in ids.values()):
            raise ValueError(f"its tokens have numbers outside of the {sizes.vocabulary:,} of the weights")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelFileError(f"{TOKENIZER} must be a tokenizer of Whisper: {error!r}") from error
    # Tokenizers of the English models lack the tokens of times.
    for number in range(sizes.vocabulary - first):
        name = f"<|{number * _TIMESTAMP_SECONDS:.2f}|>"
        if ids.setdefault(name, first + number) != first + number:
            raise ModelFileError(f"{TOKENIZER} must number {name} {first + number}, got {ids[name]}")
    known = {int(token["id"]) for token in tokenizer["added_tokens"]}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    missing = sorted((number, name) for name, number in ids.items() if number not in known)
    tokenizer["added_tokens"] += [{"id": number, "content": name, **plain} for number, name in missing]
    return tokenizer, ids


def _make_config(sizes: _Sizes, ids: dict[str, int]) -> dict[str, Any]:
    end = ids["<|endoftext|>"]
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "d_model": sizes.width,
        "vocab_size": sizes.vocabulary,
        "num_mel_bins": sizes.mel_bins,
        "max_source_positions": sizes.source_positions,
        "max_target_positions": sizes.target_positions,
        "encoder_layers": sizes.encoder_layers,
        "decoder_layers": sizes.decoder_layers,
        "num_hidden_layers": sizes.encoder_layers,
        "encoder_attention_heads": sizes.encoder_heads,
        "decoder_attention_heads": sizes.decoder_heads,
        "encoder_ffn_dim": sizes.feed_forward,
        "decoder_ffn_dim": sizes.feed_forward,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "begin_suppress_tokens": None,
        "dropout": 0.0,
    }


def _make_generation_config(settings: dict[str, Any], sizes: _Sizes, ids: dict[str, int]) -> dict[str, Any]:
    end = ids["<|endoftext|>"]
    config: dict[str, Any] = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "max_initial_timestamp_index": 50,
        "max_length": sizes.target_positions,
        "return_timestamps": False,
        "suppress_tokens": _get_numbers(settings, "suppress_ids"),
        "begin_suppress_tokens": _get_numbers(settings, "suppress_ids_begin"),
    }
    heads = settings.get("alignment_heads")
    if heads is not None:
        config["alignment_heads"] = _check_heads(heads, sizes)
    config["is_multilingual"] = sizes.vocabulary >= _MULTILINGUAL_VOCABULARY
    if config["is_multilingual"]:
        first, last = ids["<|startoftranscript|>"], ids["<|translate|>"]
        config["lang_to_id"] = {name: number for name, number in ids.items() if first < number < last}
        config["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    return config


def _get_numbers(settings: dict[str, Any], name: str) -> list[int] | None:
    numbers = settings.get(name)
    if numbers is not None and not (isinstance(numbers, list) and all(type(number) is int for number in numbers)):
        raise ModelFileError(f"{name} of {CONFIG} must be a list of integers")
    return numbers or None


def _check_heads(heads: Any, sizes: _Sizes) -> list[list[int]]:
    """Return the alignment heads of a configuration, or raise."""
    limits = (sizes.decoder_layers, sizes.decoder_heads)
    for head in heads if isinstance(heads, list) else [None]:
        numbers = head if isinstance(head, list) and all(type(number) is int for number in head) else []
        if len(numbers) != len(limits) or not all(
            0 <= number < limit for number, limit in zip(numbers, limits, strict=True)
        ):
            rule = f"must be pairs of a layer below {limits[0]} and a head below {limits[1]}"
            raise ModelFileError(f"alignment_heads of {CONFIG} {rule}, got {head!r:.80}")
    return list(heads)


def _make_preprocessor_config(sizes: _Sizes) -> dict[str, Any]:
    frames = sizes.source_positions * _FRAMES_PER_POSITION
    samples = frames * _HOP_SAMPLES
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": sizes.mel_bins,
        "sampling_rate": _SAMPLING_RATE_HERTZ,
        "hop_length": _HOP_SAMPLES,
        "n_fft": _WINDOW_SAMPLES,
        "chunk_length": samples // _SAMPLING_RATE_HERTZ,
        "nb_max_frames": frames,
        "n_samples": samples,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _read_weights(file: Ct2File, config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name in transformers and the array of each weight."""
    for name in ("conv1", "conv2"):
        yield f"model.encoder.{name}.weight", file.read(f"encoder/{name}/weight")
        yield f"model.encoder.{name}.bias", file.read(f"encoder/{name}/bias")
    yield "model.decoder.embed_tokens.weight", file.read("decoder/embeddings/weight")
    for part, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        yield f"model.{part}.embed_positions.weight", file.read(f"{part}/position_encodings/encodings")
        yield from _read_norm(file, f"{part}/layer_norm", f"model.{part}.layer_norm")
        for layer in range(layers):
            place, name = f"{part}/layer_{layer}", f"model.{part}.layers.{layer}"
            yield from _read_norm(file, f"{place}/self_attention/layer_norm", f"{name}.self_attn_layer_norm")
            self_attention = {"linear_0": ("q_proj", "k_proj", "v_proj"), "linear_1": ("out_proj",)}
            for linear, projections in self_attention.items():
                yield from _read_linear(file, f"{place}/self_attention/{linear}", f"{name}.self_attn", projections)
            if part == "decoder":
                yield from _read_norm(file, f"{place}/attention/layer_norm", f"{name}.encoder_attn_layer_norm")
                cross = {"linear_0": ("q_proj",), "linear_1": ("k_proj", "v_proj"), "linear_2": ("out_proj",)}
                for linear, projections in cross.items():
                    yield from _read_linear(file, f"{place}/attention/{linear}", f"{name}.encoder_attn", projections)
            yield from _read_norm(file, f"{place}/ffn/layer_norm", f"{name}.final_layer_norm")
            yield from _read_linear(file, f"{place}/ffn/linear_0", name, ("fc1",))
            yield from _read_linear(file, f"{place}/ffn/linear_1", name, ("fc2",))


def _read_norm(file: Ct2File, place: str, name: str) -> Iterator[tuple[str, Any]]:
    yield f"{name}.weight", file.read(f"{place}/gamma")
    yield f"{name}.bias", file.read(f"{place}/beta")


def _read_linear(file: Ct2File, place: str, name: str, projections: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the layers that one array holds in a row."""
    weight, bias = file.read(f"{place}/weight"), file.read(f"{place}/bias")
    if weight.ndim != 2 or weight.shape[0] % len(projections) or bias.shape != weight.shape[:1]:
        raise ModelFileError(f"{place} of {MODEL_FILE} must hold {len(projections)} layers, got {weight.shape}")
    parts = zip(projections, np.split(weight, len(projections)), np.split(bias, len(projections)), strict=True)
    for projection, rows, offsets in parts:
        yield f"{name}.{projection}.weight", np.ascontiguousarray(rows)
        if projection != "k_proj":
            yield f"{name}.{projection}.bias", np.ascontiguousarray(offsets)
        elif offsets.any():
            raise ModelFileError(f"{place} of {MODEL_FILE} must have no bias of keys")
