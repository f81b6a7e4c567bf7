"""What a model is: digests of all that decides its keys and values, so that no other model ever uses them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from keywise.errors import DtypeError, ModelError
from keywise.util.atomic_write import atomic_write
from keywise.util.paths import cache_folder

# What a config holds besides what the model computes: where it came from, how results are returned.
_NO_MATTER = frozenset(
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
SAMPLED_NUMBERS = 16

Folder = str | os.PathLike[str]


def fingerprint(
    model: Any,
    tokenizer: Any = None,
    *,
    folder: Folder | None = None,
    cache_dir: Folder | None = None,
) -> dict[str, str]:
    """Describe a model by digests of its weights, config, rotary positions, dtype and tokenizer.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model.
    tokenizer : transformers tokenizer, optional
        The tokenizer whose tokens are kept; None where tokens come from elsewhere.
    folder : path, optional
        The folder that model and tokenizer were loaded from, unchanged since: its files' digests are remembered by
        path, size and time of change, so that they cost nothing the second time. None digests what is in memory.
    cache_dir : path, optional
        Where digests of files are remembered; see `keywise.hf.installed.cache_folder`.

    Returns
    -------
    dict
        ``weights, config, rope, dtype, tokenizer``, each a text: equal texts, equal keys and values.

    Raises
    ------
    DtypeError
        When `model` is no transformers model.
    ModelError
        When `folder` holds no safetensors.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from keywise.models import fingerprint
    >>> small = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    >>> sorted(fingerprint(LlamaForCausalLM(small)))
    ['config', 'dtype', 'rope', 'tokenizer', 'weights']
    """
    from transformers import PreTrainedModel  # noqa: PLC0415 - heavy

    if not isinstance(model, PreTrainedModel):
        raise DtypeError(f"model is a {type(model).__name__}; give a loaded transformers model (a PreTrainedModel)")
    config = model.config.to_dict()
    at = None if folder is None else Path(folder)
    return {
        "weights": _weights(model, at, cache_dir),
        "config": _digest(_json(_without(config, _NO_MATTER))),
        "rope": _digest(_json(_only(config, "rope_parameters"))),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokenizer": "none" if tokenizer is None else _tokenizer(tokenizer, at, cache_dir),
    }


def files_fingerprint(files: Mapping[str, Path], *, cache_dir: Folder | None = None) -> str:
    """Digest the names and contents of files; see `fingerprint` for what is remembered of them.

    Parameters
    ----------
    files
        The files, by the names that count.
    cache_dir
        Where digests of files are remembered; see `keywise.hf.installed.cache_folder`.

    Examples
    --------
    >>> from keywise.models.fingerprints import files_fingerprint
    >>> files_fingerprint({})[:8]
    'e3b0c442'
    """
    return _digest(
        part for name, path in sorted(files.items()) for part in (name.encode(), _file_sha256(path, cache_dir))
    )


def _weights(model: Any, folder: Path | None, cache_dir: Folder | None) -> str:
    if folder is None:
        return "in memory: " + _digest(_numbers(model, None))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"folder={str(folder)!r} holds no .safetensors; give the folder that the model was loaded from"
        )
    digests = [_file_sha256(file, cache_dir) for file in files]
    # The files say what was loaded; a sample of each tensor tells when something else computes by now.
    return "files: " + _digest([*digests, *_numbers(model, SAMPLED_NUMBERS)])


def _numbers(model: Any, most: int | None) -> Iterable[bytes]:
    """Give every parameter's name, form and numbers, of which at most so many, evenly spread."""
    import torch  # noqa: PLC0415 - heavy

    for name, parameter in model.named_parameters():
        numbers = parameter.detach().reshape(-1)
        yield f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode()
        # NumPy picks a few numbers in a fraction of torch's time, whatever their type.
        array = numbers.cpu().view(torch.uint8).numpy().view(f"V{numbers.itemsize}")
        yield array[:: 1 if most is None else max(1, array.size // most)].tobytes()


def _tokenizer(tokenizer: Any, folder: Path | None, cache_dir: Folder | None) -> str:
    file = None if folder is None else folder / "tokenizer.json"
    if file is not None and file.is_file() and Path(tokenizer.name_or_path) == folder:
        return "file: " + _digest([_file_sha256(file, cache_dir), *_json(tokenizer.get_added_vocab())])
    if not hasattr(tokenizer, "backend_tokenizer"):
        return "in memory: " + _digest([type(tokenizer).__name__.encode(), *_json(tokenizer.get_vocab())])
    # Before the vocabulary stands how a batch is padded or cut: every call sets it, and it changes no token's meaning.
    settings, begin, meaning = tokenizer.backend_tokenizer.to_str().partition('"added_tokens"')
    return "in memory: " + _digest([(begin + meaning or settings).encode()])


def _without(value: Any, names: Iterable[str]) -> Any:
    """Leave out names, and private ones, at every depth."""
    if isinstance(value, dict):
        return {
            str(name): _without(inner, names)
            for name, inner in value.items()
            if name not in names and not str(name).startswith("_")
        }
    return [_without(inner, names) for inner in value] if isinstance(value, list | tuple) else value


def _only(value: Any, name: str) -> list[Any]:
    """Collect what stands under a name, at every depth."""
    if not isinstance(value, dict):
        return []
    return [inner for key, inner in value.items() if key == name] + [
        found for key, inner in sorted(value.items()) if key != name for found in _only(inner, name)
    ]


def _json(value: Any) -> list[bytes]:
    return [json.dumps(value, sort_keys=True, default=str).encode()]


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _file_sha256(path: Path, cache_dir: Folder | None) -> bytes:
    """Give the SHA-256 of a file, from the last time if neither path, size nor time of change is another."""
    path = path.resolve()
    stat = path.stat()
    known = {"path": str(path), "size_bytes": stat.st_size, "changed_ns": stat.st_mtime_ns, "inode": stat.st_ino}
    note = cache_folder(cache_dir) / "digests" / f"{_digest([str(path).encode()])[:32]}.json"
    if (sha256 := _remembered(note, known)) is not None:
        return sha256
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").digest()
    with suppress(OSError):  # without a note the next time takes as long as this one, and that is all
        note.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(note, private=True) as file:
            file.write(json.dumps({**known, "sha256": sha256.hex()}).encode())
    return sha256


def _remembered(note: Path, known: dict[str, Any]) -> bytes | None:
    try:
        said = json.loads(note.read_bytes())
        sha256 = bytes.fromhex(said.pop("sha256"))
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None  # never written, or damaged: the file is digested again
    return sha256 if said == known else None
