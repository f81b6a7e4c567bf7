"""Fingerprints of models: digests of everything that determines a model's keys and values."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from keywise.attention.quantised import QuantisedMatrix
from keywise.errors import ModelError
from keywise.hf.parts import check_model
from keywise.models.file_digests import digest_file
from keywise.models.folder import ModelFiles, list_model_files
from keywise.models.gguf_parts import list_gguf_parts
from keywise.models.safetensors_files import ModelFileError

# Entries of a config that do not change keys and values, such as the model's origin and the form of results.
_IGNORED_ENTRIES = frozenset(
    {
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "rope_parameters",
        "transformers_version",
        "use_cache",
    }
)
SAMPLES_PER_TENSOR = 16

Folder = str | os.PathLike[str]


def fingerprint(
    model: Any,
    tokenizer: Any = None,
    *,
    folder: Folder | None = None,
    weights_file: Folder | None = None,
    cache_dir: Folder | None = None,
) -> dict[str, str]:
    """Return digests of a model's weights, config, rotary positions, dtype, tokenizer and files.

    The form of the weights counts: a model in the blocks of a GGUF file has another digest than one whose weights were
    written out as numbers.

    Adapters (LoRA and others of peft) belong to the weights: which are loaded, which of them are active, and whether
    they are disabled or merged.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model.
    tokenizer : transformers tokenizer, optional
        The tokenizer that makes the cached tokens; None if they come from elsewhere.
    folder : path, optional
        The folder that model and tokenizer were loaded from, unchanged since. Its files' digests are stored by path,
        size and time of change, so that they are computed once. Default: digests of the weights in memory.
    weights_file : path, optional
        The GGUF file that the weights were loaded from; `folder` then has the tokenizer and the configuration only.
    cache_dir : path, optional
        Where digests of files are stored; see `keywise.util.paths.locate_cache_folder`.

    Returns
    -------
    dict of str
        ``weights, config, rope, dtype, tokenizer``, and with `folder` also ``files``, the digest of every file beside
        the weights that is read. Models with equal values have equal keys and values.

    Raises
    ------
    DtypeError
        `model` is not a transformers model.
    ModelError
        `folder` has no safetensors, names files that lie elsewhere, or torch or transformers is not installed.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from keywise.models import fingerprint
    >>> small = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    >>> sorted(fingerprint(LlamaForCausalLM(small)))
    ['config', 'dtype', 'rope', 'tokenizer', 'weights']
    """
    check_model(model)
    config = model.config.to_dict()
    path = None if folder is None else Path(folder)
    files = None if path is None or weights_file is not None else _list_files(path)
    weights_files = [] if files is None else [file for _, file in sorted(files.weights.items())]
    if weights_file is not None:
        weights_files = _list_parts(Path(weights_file))
    digests = {} if files is None else {"files": fingerprint_files(files.others, cache_dir=cache_dir)}
    return {
        "weights": _digest_weights(model, weights_files, cache_dir),
        "config": _digest(_encode_json(_remove_entries(config, _IGNORED_ENTRIES))),
        "rope": _digest(_encode_json(_collect_entries(config, "rope_parameters"))),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokenizer": "none" if tokenizer is None else _digest_tokenizer(tokenizer, path, cache_dir),
        **digests,
    }


def fingerprint_files(files: Mapping[str, Path], *, cache_dir: Folder | None = None) -> str:
    """Return one digest of the names and contents of files.

    Parameters
    ----------
    files : mapping of str to pathlib.Path
        The files, by the names to digest.
    cache_dir : path, optional
        Where digests of files are stored; see `keywise.util.paths.locate_cache_folder`.

    Examples
    --------
    >>> from keywise.models.fingerprints import fingerprint_files
    >>> fingerprint_files({})[:8]
    'e3b0c442'
    """
    parts = []
    for name, path in sorted(files.items()):
        parts += [name.encode(), digest_file(path, cache_dir)]
    return _digest(parts)


def _list_files(folder: Path) -> ModelFiles:
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.safetensors.index.json")):
        raise ModelError(
            "folder", "must have .safetensors files", got=str(folder), remedy="name the folder of the loaded model"
        )
    try:
        return list_model_files(folder)
    except (ModelFileError, OSError) as error:
        raise ModelError("folder", f"{str(folder)!r} cannot be used: {error}") from error


def _list_parts(path: Path) -> list[Path]:
    try:
        return [*list_gguf_parts(path)]
    except ModelFileError as error:
        raise ModelError("weights_file", f"{str(path)!r} cannot be used: {error}") from error


def _digest_weights(model: Any, files: Sequence[Path], cache_dir: Folder | None) -> str:
    adapters = dict(_find_adapters(model))
    state = _encode_adapters(adapters)
    if not files:
        parts = [*_encode_tensors(model, None), *_encode_matrices(model, None), *_encode_buffers(model)]
        return "in memory: " + _digest([*parts, *state])
    digests = [digest_file(file, cache_dir) for file in files]
    # The files are what was loaded; samples of each tensor detect later changes of the model.
    samples = [
        *_encode_tensors(model, SAMPLES_PER_TENSOR, adapters=adapters),
        *_encode_matrices(model, SAMPLES_PER_TENSOR),
    ]
    return "files: " + _digest([*digests, *samples, *state])


def _encode_tensors(model: Any, max_samples: int | None, adapters: Iterable[str] = ()) -> Iterable[bytes]:
    """Yield every parameter's name, dtype, shape and numbers, or evenly spread samples of these.

    Parameters
    ----------
    model
        The model.
    max_samples
        Most numbers of a parameter, None for all.
    adapters
        Names of adapters' modules; their own parameters are not in the model's files and are encoded completely.
    """
    modules = tuple(f"{name}." for name in adapters)
    for name, parameter in model.named_parameters():
        is_own = bool(modules) and name.startswith(modules) and ".base_layer." not in name
        yield from _encode_tensor(name, parameter, None if is_own else max_samples)


def _encode_matrices(model: Any, max_samples: int | None) -> Iterable[bytes]:
    """Yield the name, the format, the shape and the blocks of every matrix in blocks, or samples of its blocks."""
    for name, module in model.named_modules():
        matrix = getattr(module, "matrix", None)
        if isinstance(matrix, QuantisedMatrix):
            yield f"{name} {matrix.block_format} {matrix.shape}".encode()
            stride = 1 if max_samples is None else max(1, matrix.blocks.size // max_samples)
            yield matrix.blocks.reshape(-1)[::stride].tobytes()


def _encode_buffers(model: Any) -> Iterable[bytes]:
    for name, buffer in model.named_buffers():
        yield from _encode_tensor(name, buffer, None)


def _encode_tensor(name: str, tensor: Any, max_samples: int | None) -> Iterable[bytes]:
    import torch

    numbers = tensor.detach().reshape(-1)
    yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
    # NumPy selects a few numbers in a fraction of torch's time, whatever their dtype.
    array = numbers.cpu().view(torch.uint8).numpy().view(f"V{numbers.itemsize}")
    stride = 1 if max_samples is None else max(1, array.size // max_samples)
    yield array[::stride].tobytes()


def _find_adapters(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name of every module that holds adapters of peft, with the module."""
    for name, module in model.named_modules():
        # Of the layers and of the wrappers of whole modules; peft has no common class for both.
        if hasattr(module, "_disable_adapters"):
            yield name, module


def _encode_adapters(modules: Mapping[str, Any]) -> list[bytes]:
    """Return the settings of adapters: which are active, disabled or merged, and how they are scaled."""
    settings = {}
    for name, module in modules.items():
        values = {key: value for key, value in vars(module).items() if key != "training" and _is_setting(value)}
        # Defaults of these stand in the class.
        chosen = {key: getattr(module, key, None) for key in ("_disable_adapters", "_active_adapter")}
        settings[name] = {**values, **chosen}
    return _encode_json(settings) if settings else []


def _is_setting(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_setting(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(_is_setting(inner) for inner in value)
    return value is None or isinstance(value, bool | int | float | str)


def _digest_tokenizer(tokenizer: Any, folder: Path | None, cache_dir: Folder | None) -> str:
    file = None if folder is None else folder / "tokenizer.json"
    if file is not None and file.is_file() and Path(tokenizer.name_or_path) == folder:
        return "file: " + _digest([digest_file(file, cache_dir), *_encode_json(tokenizer.get_added_vocab())])
    if not hasattr(tokenizer, "backend_tokenizer"):
        return "in memory: " + _digest([type(tokenizer).__name__.encode(), *_encode_json(tokenizer.get_vocab())])
    # Padding and truncation precede the vocabulary: every call sets them, and they change no token's meaning.
    settings, marker, vocabulary = tokenizer.backend_tokenizer.to_str().partition('"added_tokens"')
    return "in memory: " + _digest([(marker + vocabulary or settings).encode()])


def _remove_entries(value: Any, names: Iterable[str]) -> Any:
    """Return a config without some entries and private ones, at every depth."""
    if isinstance(value, dict):
        return {
            str(name): _remove_entries(inner, names)
            for name, inner in value.items()
            if name not in names and not str(name).startswith("_")
        }
    if isinstance(value, list | tuple):
        return [_remove_entries(inner, names) for inner in value]
    return value


def _collect_entries(value: Any, name: str) -> list[Any]:
    """Return the values of one entry, at every depth."""
    if not isinstance(value, dict):
        return []
    entries = [value[name]] if name in value else []
    for key, inner in sorted(value.items()):
        if key != name:
            entries += _collect_entries(inner, name)
    return entries


def _encode_json(value: Any) -> list[bytes]:
    return [json.dumps(value, sort_keys=True, default=str).encode()]


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
