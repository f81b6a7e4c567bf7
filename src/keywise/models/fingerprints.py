"""Fingerprints of models: digests of everything that determines a model's keys and values."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from keywise.errors import ModelError
from keywise.hf.parts import check_model
from keywise.util.atomic_write import atomic_write
from keywise.util.paths import locate_cache_folder

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
    cache_dir: Folder | None = None,
) -> dict[str, str]:
    """Return digests of a model's weights, config, rotary positions, dtype and tokenizer.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model.
    tokenizer : transformers tokenizer, optional
        The tokenizer that makes the cached tokens; None if they come from elsewhere.
    folder : path, optional
        The folder that model and tokenizer were loaded from, unchanged since. Its files' digests are stored by path,
        size and time of change, so that they are computed once. Default: digests of the weights in memory.
    cache_dir : path, optional
        Where digests of files are stored; see `keywise.util.paths.locate_cache_folder`.

    Returns
    -------
    dict of str
        ``weights, config, rope, dtype, tokenizer``. Models with equal values have equal keys and values.

    Raises
    ------
    DtypeError
        `model` is not a transformers model.
    ModelError
        `folder` has no safetensors, or torch or transformers is not installed.

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
    return {
        "weights": _digest_weights(model, path, cache_dir),
        "config": _digest(_encode_json(_remove_entries(config, _IGNORED_ENTRIES))),
        "rope": _digest(_encode_json(_collect_entries(config, "rope_parameters"))),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokenizer": "none" if tokenizer is None else _digest_tokenizer(tokenizer, path, cache_dir),
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
        parts += [name.encode(), _digest_file(path, cache_dir)]
    return _digest(parts)


def _digest_weights(model: Any, folder: Path | None, cache_dir: Folder | None) -> str:
    if folder is None:
        return "in memory: " + _digest(_encode_parameters(model, None))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            "folder", "must have .safetensors files", got=str(folder), remedy="name the folder of the loaded model"
        )
    digests = [_digest_file(file, cache_dir) for file in files]
    # The files are what was loaded; samples of each tensor detect later changes of the model.
    return "files: " + _digest([*digests, *_encode_parameters(model, SAMPLES_PER_TENSOR)])


def _encode_parameters(model: Any, max_samples: int | None) -> Iterable[bytes]:
    """Yield every parameter's name, dtype, shape and numbers, or evenly spread samples of these."""
    import torch

    for name, parameter in model.named_parameters():
        numbers = parameter.detach().reshape(-1)
        yield f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode()
        # NumPy selects a few numbers in a fraction of torch's time, whatever their dtype.
        array = numbers.cpu().view(torch.uint8).numpy().view(f"V{numbers.itemsize}")
        stride = 1 if max_samples is None else max(1, array.size // max_samples)
        yield array[::stride].tobytes()


def _digest_tokenizer(tokenizer: Any, folder: Path | None, cache_dir: Folder | None) -> str:
    file = None if folder is None else folder / "tokenizer.json"
    if file is not None and file.is_file() and Path(tokenizer.name_or_path) == folder:
        return "file: " + _digest([_digest_file(file, cache_dir), *_encode_json(tokenizer.get_added_vocab())])
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


def _digest_file(path: Path, cache_dir: Folder | None) -> bytes:
    """Return the SHA-256 of a file, computed again only after it changed."""
    path = path.resolve()
    stat = path.stat()
    state = {"path": str(path), "size_bytes": stat.st_size, "changed_ns": stat.st_mtime_ns, "inode": stat.st_ino}
    record_file = locate_cache_folder(cache_dir) / "digests" / f"{_digest([str(path).encode()])[:32]}.json"
    stored = _read_record(record_file, state)
    if stored is not None:
        return stored
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").digest()
    with suppress(OSError):  # without a record the file is digested again next time
        record_file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(record_file, private=True) as file:
            file.write(json.dumps({**state, "sha256": sha256.hex()}).encode())
    return sha256


def _read_record(record_file: Path, state: dict[str, Any]) -> bytes | None:
    try:
        recorded = json.loads(record_file.read_bytes())
        sha256 = bytes.fromhex(recorded.pop("sha256"))
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None  # never written, or damaged: the file is digested again
    return sha256 if recorded == state else None
