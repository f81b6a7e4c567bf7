"""Configurations and tokenizers of GGUF files, converted once to folders, which appear atomically.

Weights stay in the file: see `keywise.models.gguf_weights`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

from keywise.errors import ModelError
from keywise.hf.compatibility import find_tokenizer_class
from keywise.models.file_digests import digest_file
from keywise.models.gguf_header import GgufSummary, GgufTensor, check_gguf, summarise_places, write_without_vocabulary
from keywise.models.gguf_parts import list_gguf_parts, name_gguf_model
from keywise.models.output_streams import discard_output
from keywise.models.quiet_transformers import quiet_transformers
from keywise.models.safetensors_files import ModelFileError
from keywise.util.atomic_write import synchronise
from keywise.util.foreign_errors import translate_errors
from keywise.util.optional_imports import require_modules
from keywise.util.paths import locate_cache_folder
from keywise.util.progress import Status

MANIFEST: Final = "keywise.json"
MODELS: Final = "models"
UNFINISHED_PREFIX: Final = ".converting-"


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file with its configuration and its tokenizer.

    Attributes
    ----------
    files
        The file, or its parts in order.
    folder
        Has ``config.json`` and the tokenizer.
    header
        What the file holds.
    """

    files: tuple[Path, ...]
    folder: Path
    header: GgufSummary


def convert_gguf(gguf_file: Path, cache_dir: str | os.PathLike[str] | None, status: Status) -> GgufModel:
    """Return a GGUF file with its configuration and tokenizer, which are converted the first time.

    Parameters
    ----------
    gguf_file : pathlib.Path
        The file, or any of its parts.
    cache_dir : path, optional
        keywise's cache folder; the folder goes to its folder ``models``. See `keywise.util.paths.locate_cache_folder`.
    status : callable
        Called with a line of text before the conversion.

    Raises
    ------
    ModelError
        The file cannot be read, or the folder cannot be written.
    """
    cache = locate_cache_folder(cache_dir)
    try:
        files = list_gguf_parts(gguf_file)
        digests = [digest_file(file, cache_dir) for file in files]
        sizes = [file.stat().st_size for file in files]
    except ModelFileError as error:
        raise ModelError("source", f"must be a whole GGUF file; {gguf_file}: {error}") from error
    except OSError as error:
        raise ModelError("source", "must be a file that can be read", got=str(gguf_file), remedy=str(error)) from error
    sha256 = (digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()).hex()
    origin = {"source_bytes": sum(sizes), "source_sha256": sha256}
    name = name_gguf_model(gguf_file)
    folder = cache / MODELS / f"{name}-{sha256[:16]}"
    header = _read_complete(folder, origin)
    if header is not None:
        return GgufModel(files, folder, header)
    require_modules("hf", "gguf", "accelerate")
    status(f"Reading the configuration and the tokenizer of {name}.gguf once, to {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned_conversions(cache)
        with _make_unfinished_folder(folder.parent) as unfinished:
            header = _write_model(files, unfinished)
            _write_manifest(unfinished, origin, header)
            _install_folder(unfinished, folder, origin)
    except OSError as error:
        raise ModelError(
            "cache_dir",
            f"must be a folder that can store the model's tokenizer; in {str(cache)!r} it cannot be written: {error}",
            remedy="choose another folder with KEYWISE_CACHE_DIR",
        ) from error
    return GgufModel(files, folder, header)


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


def _write_model(files: tuple[Path, ...], folder: Path) -> GgufSummary:
    try:
        with translate_errors(ModelFileError, ModelFileError):
            header = check_gguf(*files)
            config, tokenizer = _load_gguf(files, folder.parent / "source")
    except ModelFileError as error:
        raise ModelError(
            "source",
            f"must be a GGUF file of a language model; {files[0]} cannot be read: {error}",
            remedy="check that the file is complete",
        ) from error
    with quiet_transformers():
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return header


def _load_gguf(files: tuple[Path, ...], link_folder: Path) -> tuple[Any, Any]:
    """Load through a link in a new folder: transformers would read the configurations beside the file too."""
    from transformers import AutoConfig

    link_folder.mkdir()
    (link_folder / "model.gguf").symlink_to(files[0].resolve())
    tokens, promised = write_without_vocabulary(files[0], link_folder / "header.gguf", len(files))
    options = {"local_files_only": True, "trust_remote_code": False}
    with quiet_transformers():
        config = AutoConfig.from_pretrained(link_folder, gguf_file="header.gguf", **options)
        if config.vocab_size != promised:
            config.vocab_size = tokens
        with discard_output():
            tokenizer_class = find_tokenizer_class(config.model_type)
            tokenizer = tokenizer_class.from_pretrained(link_folder, gguf_file="model.gguf", **options)
    config.name_or_path = tokenizer.name_or_path = name_gguf_model(files[0])
    return config, tokenizer


def _write_manifest(folder: Path, origin: dict[str, Any], header: GgufSummary) -> None:
    files = {file.name: [file.stat().st_size, _hash_file(file)] for file in sorted(folder.iterdir())}
    manifest = {**origin, "architecture": header.architecture, "tensors": [astuple(place) for place in header.places]}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "files": files}), encoding="utf-8")


def _install_folder(unfinished: Path, folder: Path, origin: dict[str, Any]) -> None:
    """Rename a written folder to its place, unless another process was faster."""
    for path in (*unfinished.iterdir(), unfinished):
        synchronise(path)
    if folder.exists() and _read_complete(folder, origin) is None:
        shutil.rmtree(folder)
    if not folder.exists():
        unfinished.rename(folder)
        synchronise(folder.parent)


def _read_complete(folder: Path, origin: dict[str, Any]) -> GgufSummary | None:
    """Return the header from a folder with exactly the files that a conversion of this origin has written, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        recorded = manifest.pop("files")
        places = tuple(
            GgufTensor(name, kind, tuple(shape), *place) for name, kind, shape, *place in manifest.pop("tensors")
        )
        architecture = str(manifest.pop("architecture"))
        if manifest != origin or {*recorded, MANIFEST} != {path.name for path in folder.iterdir()}:
            return None
        if not all(_is_unchanged(folder / name, state) for name, state in recorded.items()):
            return None
        return summarise_places(architecture, places)
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None  # never written, or damaged: it is converted again


def _is_unchanged(path: Path, recorded: list[Any]) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    return [path.stat().st_size, _hash_file(path)] == recorded


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
