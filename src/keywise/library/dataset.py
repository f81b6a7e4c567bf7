"""Find, open and verify the Lance dataset of a library."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import lance

from keywise.errors import FormatError
from keywise.library.checksums import (
    find_latest_version,
    list_dataset_files,
    list_fragment_files,
    verify_file,
    verify_manifest,
)
from keywise.library.lance_errors import convert_lance_errors
from keywise.library.schema import check_schema
from keywise.util.progress import Progress

_FILE_SCHEME = "file://"


def is_local(path: str) -> bool:
    """Return whether a path is a folder, not an address of an object store."""
    return "://" not in path


def resolve_path(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a folder, or an address unchanged.

    Raises
    ------
    FormatError
        The path is not UTF-8 or has control characters, which Lance refuses.
    """
    text = os.fspath(path)
    if not isinstance(text, str) or not is_utf8(text) or re.search(r"[\x00-\x1f\x7f]", text):
        raise FormatError("path", "must be UTF-8 without control characters", got=text, remedy="rename it")
    if text.startswith(_FILE_SCHEME):
        text = unquote(text.removeprefix(_FILE_SCHEME))
    return os.path.abspath(os.path.expanduser(text)) if is_local(text) else text


def is_utf8(text: str) -> bool:
    """Return whether a text, such as the name of a file, can be stored in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def open_dataset(path: str, version: int | None = None) -> Any:
    """Open the dataset of a library, after its manifest was verified.

    Parameters
    ----------
    path
        A resolved path.
    version
        The version to open; None for the latest.

    Returns
    -------
    lance.LanceDataset or None
        None if the path does not exist.

    Raises
    ------
    FormatError
        The path is something else, another build made it, it is damaged, or it has no such version.
    """
    latest = find_latest_version(path) if is_local(path) and version is None else version
    if is_local(path) and not _has_versions(path):
        return None
    if is_local(path) and latest is not None:
        verify_manifest(path, latest)
    try:
        with convert_lance_errors(path, "must be a readable Lance dataset"):
            dataset = lance.dataset(path, version=version)
    except FormatError as error:
        if not is_local(path) and "not found" in str(error):
            return None
        if version is not None:
            remedy = f"{error}; `Library.versions()` lists the versions"
            raise FormatError("version", f"must be a version of {path!r}", got=version, remedy=remedy) from error
        raise
    if is_local(path):
        if latest is not None and dataset.version < latest:
            rule = f"{path!r} is damaged: Lance opens version {dataset.version} instead of {latest}"
            raise FormatError("path", rule, remedy="remove the file latest_version_hint.json in its folder _versions")
        verify_manifest(path, dataset.version)  # another process may have committed one meanwhile
    check_schema(dataset.schema, path)
    return dataset


def verify_files(
    path: str, dataset: Any, fragments: Sequence[Any] | None = None, *, progress: Progress | None = None
) -> None:
    """Verify the files of a local dataset that this process has not verified since their last change.

    Object stores verify what they return.

    Parameters
    ----------
    path
        The library.
    dataset
        Its Lance dataset.
    fragments
        The fragments whose files are verified; None for all files.
    progress
        Called with the number of bytes verified and of all files.

    Raises
    ------
    FormatError
        A file has changed, is missing or cannot be read.
    """
    if not is_local(path):
        return
    if fragments is None:
        names = list_dataset_files(path, dataset)
    else:
        names = list(list_fragment_files(fragment.metadata for fragment in fragments))
    verify_manifest(path, dataset.version)
    if progress is None:
        for name in names:
            verify_file(path, name)
        return
    sizes = [os.path.getsize(file) if os.path.exists(file := os.path.join(path, name)) else 0 for name in names]
    done_bytes = 0
    for name, file_bytes in zip(names, sizes, strict=True):
        progress(done_bytes, sum(sizes))
        verify_file(path, name)
        done_bytes += file_bytes


def _has_versions(path: str) -> bool:
    """Return whether a folder holds a dataset; raise if it holds something else."""
    if not os.path.exists(path):
        return False
    if not os.path.isdir(path):
        raise FormatError("path", "must be a folder", got=path, remedy="it is a file; name another path")
    versions = os.path.join(path, "_versions")
    try:
        if os.path.isdir(versions) and any(name.endswith(".manifest") for name in os.listdir(versions)):
            return True
        names = os.listdir(path)
    except OSError as error:
        raise FormatError("path", "must be a folder that can be read", got=path, remedy=str(error.strerror)) from error
    # A process that was killed while it created the dataset leaves these; they may be overwritten.
    if any(not name.startswith("_") and name != "data" for name in names):
        raise FormatError(
            "path", "must be a library or a new folder", got=path, remedy="it holds other files; name another path"
        )
    return False
