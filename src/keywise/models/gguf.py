"""Conversion of GGUF files to folders of safetensors, which appear atomically."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from keywise.errors import ModelError
from keywise.hf.compatibility import make_gguf_options
from keywise.models.quiet_transformers import quiet_transformers
from keywise.util.atomic_write import synchronise
from keywise.util.optional_imports import require_modules
from keywise.util.progress import Status

_MANIFEST = "keywise.json"


def convert_gguf(gguf_file: Path, cache: Path, status: Status) -> Path:
    """Return the safetensors folder of a GGUF file, after a conversion the first time.

    Parameters
    ----------
    gguf_file : pathlib.Path
        The file.
    cache : pathlib.Path
        keywise's cache folder; the model goes to its folder ``models``.
    status : callable
        Called with a line of text before the conversion.

    Raises
    ------
    ModelError
        The file cannot be read, or the folder cannot be written.
    """
    sha256 = _digest_file(gguf_file)
    origin = {"source_bytes": gguf_file.stat().st_size, "source_sha256": sha256}
    folder = cache / "models" / f"{gguf_file.stem}-{sha256[:16]}"
    if _is_complete(folder, origin):
        return folder
    require_modules("hf", "gguf", "accelerate")
    status(f"Converting {gguf_file.name} once, to {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as scratch:
            # In a subfolder, because the context manager removes the scratch folder itself after the rename.
            unfinished = Path(scratch) / "model"
            _write_safetensors(gguf_file, unfinished)
            _write_manifest(unfinished, origin)
            _install_folder(unfinished, folder, origin)
    except OSError as error:
        raise ModelError(
            "cache_dir",
            f"must be a folder that can store the converted model; in {str(cache)!r} it cannot be written: {error}",
            remedy="choose another folder with KEYWISE_CACHE_DIR",
        ) from error
    return folder


def _write_safetensors(gguf_file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
            model = AutoModelForCausalLM.from_pretrained(
                gguf_file.parent,
                gguf_file=gguf_file.name,
                dtype=torch.bfloat16,
                **make_gguf_options(),
            )
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, ImportError, NotImplementedError) as error:
        raise ModelError(
            "source",
            f"must be a GGUF file of a language model; {gguf_file} cannot be read: {error}",
            remedy="check that the file is complete",
        ) from error
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _write_manifest(folder: Path, origin: dict[str, Any]) -> None:
    files = {file.name: [file.stat().st_size, _digest_file(file)] for file in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps({**origin, "files": files}, indent=1), encoding="utf-8")


def _install_folder(unfinished: Path, folder: Path, origin: dict[str, Any]) -> None:
    """Rename a written folder to its place, unless another process was faster."""
    for path in (*unfinished.iterdir(), unfinished):
        synchronise(path)
    if folder.exists() and not _is_complete(folder, origin):
        shutil.rmtree(folder)
    if not folder.exists():
        unfinished.rename(folder)
        synchronise(folder.parent)


def _is_complete(folder: Path, origin: dict[str, Any]) -> bool:
    manifest_file = folder / _MANIFEST
    if not manifest_file.is_file():
        return False
    manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
    if {key: manifest[key] for key in origin} != origin:
        return False
    return all(_is_unchanged(folder / name, recorded) for name, recorded in manifest["files"].items())


def _is_unchanged(path: Path, recorded: list[Any]) -> bool:
    if not path.is_file():
        return False
    return [path.stat().st_size, _digest_file(path)] == recorded


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
