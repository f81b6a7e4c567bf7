"""GGUF files, converted once to folders of safetensors that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from keywise.errors import ModelError
from keywise.models.quiet_transformers import quiet_transformers
from keywise.util.atomic_write import synchronise
from keywise.util.optional_imports import require_modules
from keywise.util.progress import Status

_MANIFEST = "keywise.json"


def converted(gguf_file: Path, cache: Path, say: Status) -> Path:
    """Give the safetensors folder of a GGUF file, converting it the first time."""
    sha256 = _sha256(gguf_file)
    fingerprint = {"source_bytes": gguf_file.stat().st_size, "source_sha256": sha256}
    folder = cache / "models" / f"{gguf_file.stem}-{sha256[:16]}"
    if _is_whole(folder, fingerprint):
        return folder
    require_modules("hf", "gguf", "accelerate")
    say(f"Converting {gguf_file.name} once, to {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as scratch:
            # One level down: the rename below then leaves the scratch folder for its context manager to remove.
            aside = Path(scratch) / "model"
            _convert(gguf_file, aside)
            files = {file.name: [file.stat().st_size, _sha256(file)] for file in sorted(aside.iterdir())}
            (aside / _MANIFEST).write_text(json.dumps({**fingerprint, "files": files}, indent=1), encoding="utf-8")
            for path in (*aside.iterdir(), aside):
                synchronise(path)
            if folder.exists() and not _is_whole(folder, fingerprint):
                shutil.rmtree(folder)
            if not folder.exists():
                aside.rename(folder)
                synchronise(folder.parent)
    except OSError as error:
        raise ModelError(
            f"the converted model cannot be written to cache_dir={str(cache)!r}: {error}; "
            "choose another folder with KEYWISE_CACHE_DIR"
        ) from error
    return folder


def _convert(gguf_file: Path, folder: Path) -> None:
    import torch  # noqa: PLC0415 - heavy
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
            model = AutoModelForCausalLM.from_pretrained(
                gguf_file.parent,
                gguf_file=gguf_file.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
            )
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, ImportError, NotImplementedError) as error:
        raise ModelError(
            f"the GGUF file {gguf_file} cannot be read: {error}; is it whole, and a language model?"
        ) from error
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _is_whole(folder: Path, fingerprint: dict[str, Any]) -> bool:
    manifest_file = folder / _MANIFEST
    if not manifest_file.is_file():
        return False
    manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
    return {key: manifest[key] for key in fingerprint} == fingerprint and all(
        (folder / name).is_file() and [(folder / name).stat().st_size, _sha256(folder / name)] == recorded
        for name, recorded in manifest["files"].items()
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
