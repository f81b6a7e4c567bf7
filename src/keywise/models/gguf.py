"""Conversion of GGUF files to folders of safetensors, which appear atomically."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from keywise.errors import ModelError
from keywise.hf.compatibility import has_own_tokenizer, make_gguf_options
from keywise.models.construction import limit_construction
from keywise.models.gguf_header import check_gguf
from keywise.models.loading_report import check_loading
from keywise.models.output_streams import discard_output
from keywise.models.quiet_transformers import quiet_transformers
from keywise.models.safetensors_files import ModelFileError
from keywise.util.atomic_write import synchronise
from keywise.util.foreign_errors import translate_errors
from keywise.util.optional_imports import require_modules
from keywise.util.progress import Status

MANIFEST: Final = "keywise.json"
MODELS: Final = "models"
UNFINISHED_PREFIX: Final = ".converting-"


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
    try:
        sha256 = _digest_file(gguf_file)
    except OSError as error:
        raise ModelError("source", "must be a file that can be read", got=str(gguf_file), remedy=str(error)) from error
    origin = {"source_bytes": gguf_file.stat().st_size, "source_sha256": sha256}
    folder = cache / MODELS / f"{gguf_file.stem}-{sha256[:16]}"
    if _is_complete(folder, origin):
        return folder
    require_modules("hf", "gguf", "accelerate")
    status(f"Converting {gguf_file.name} once, to {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned_conversions(cache)
        with _make_unfinished_folder(folder.parent) as unfinished:
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


def remove_abandoned_conversions(cache: Path) -> int:
    """Remove what conversions that were killed have left, and return the number of bytes that this freed.

    Conversions that still run hold a lock and stay.

    Parameters
    ----------
    cache : pathlib.Path
        keywise's cache folder.

    Raises
    ------
    OSError
        A folder cannot be removed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     remove_abandoned_conversions(Path(folder))
    0
    """
    freed_bytes = 0
    for scratch in sorted((cache / MODELS).glob(f"{UNFINISHED_PREFIX}*")):
        lock = _lock(scratch)
        if lock is None:
            continue
        try:
            freed_bytes += sum(path.lstat().st_size for path in scratch.rglob("*") if not path.is_dir())
            shutil.rmtree(scratch)
        finally:
            os.close(lock)
    return freed_bytes


@contextmanager
def _make_unfinished_folder(parent: Path) -> Iterator[Path]:
    """Yield the path of a folder to write, inside one that is locked while the block runs and removed afterwards."""
    lock = None
    while lock is None:
        scratch = parent / f"{UNFINISHED_PREFIX}{secrets.token_hex(16)}"
        scratch.mkdir(mode=0o700)
        lock = _lock(scratch)  # None if another conversion took the new folder for an abandoned one
    try:
        # In a subfolder, because a finished model is renamed, and the locked folder removed with what lies beside it.
        yield scratch / "model"
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """Return an open file that locks a folder until it is closed; None if the folder is locked or gone."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    is_locked = False
    try:
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = folder.exists()
    finally:
        if not is_locked:
            os.close(handle)
    return handle if is_locked else None


def _write_safetensors(gguf_file: Path, folder: Path) -> None:
    try:
        with translate_errors(ModelFileError, ModelFileError):
            model, tokenizer = _load_gguf(gguf_file, folder.parent / "source")
    except ModelFileError as error:
        raise ModelError(
            "source",
            f"must be a GGUF file of a language model; {gguf_file} cannot be read: {error}",
            remedy="check that the file is complete",
        ) from error
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _load_gguf(gguf_file: Path, link_folder: Path) -> tuple[Any, Any]:
    """Load a model through a link in a new folder: transformers would read the configurations beside the file too."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    headers = check_gguf(gguf_file)
    link_folder.mkdir()
    (link_folder / "model.gguf").symlink_to(gguf_file.resolve())
    with quiet_transformers():
        options = {"gguf_file": "model.gguf", "local_files_only": True, "trust_remote_code": False}
        with discard_output():
            tokenizer = AutoTokenizer.from_pretrained(link_folder, **options)
        with limit_construction(headers):
            model, report = AutoModelForCausalLM.from_pretrained(
                link_folder,
                **options,
                dtype=torch.bfloat16,
                output_loading_info=True,
                **make_gguf_options(),
            )
        if type(tokenizer) is not PreTrainedTokenizerFast and not has_own_tokenizer(model.config.model_type):
            # Some versions choose the tokenizer class of another family, which would read the folder in its own way.
            with discard_output():
                tokenizer = PreTrainedTokenizerFast.from_pretrained(link_folder, **options)
    check_loading(model, report, {})
    model.config.name_or_path = tokenizer.name_or_path = gguf_file.stem
    return model, tokenizer


def _write_manifest(folder: Path, origin: dict[str, Any]) -> None:
    files = {file.name: [file.stat().st_size, _digest_file(file)] for file in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({**origin, "files": files}, indent=1), encoding="utf-8")


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
    """Return whether a folder has exactly the files that a conversion of this origin has written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        recorded = manifest.pop("files")
        if manifest != origin or {*recorded, MANIFEST} != {path.name for path in folder.iterdir()}:
            return False
        return all(_is_unchanged(folder / name, state) for name, state in recorded.items())
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return False  # never written, or damaged: it is converted again


def _is_unchanged(path: Path, recorded: list[Any]) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    return [path.stat().st_size, _digest_file(path)] == recorded


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
