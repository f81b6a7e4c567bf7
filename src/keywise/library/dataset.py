"""Find and open the Lance dataset of a library."""

from __future__ import annotations

import os
from typing import Any

import lance

from keywise.errors import FormatError
from keywise.library.schema import check_schema


def is_local(path: str) -> bool:
    """Return whether a path is a folder, not an address of an object store."""
    return "://" not in path


def resolve_path(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a folder, or an address unchanged."""
    text = os.fspath(path)
    return os.path.abspath(os.path.expanduser(text)) if is_local(text) else text


def open_dataset(path: str, version: int | None = None) -> Any:
    """Open the dataset of a library.

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
        The path is something else, another build made it, or it has no such version.
    """
    if is_local(path) and not _has_versions(path):
        return None
    try:
        dataset = lance.dataset(path, version=version)
    except (ValueError, OSError) as error:
        reason = str(error).partition(", /")[0]  # Lance appends a place in its own source
        if not is_local(path) and "not found" in reason:
            return None
        if version is not None:
            remedy = f"{reason}; `Library.versions()` lists the versions"
            raise FormatError("version", f"must be a version of {path!r}", got=version, remedy=remedy) from error
        raise FormatError("path", "must be a readable Lance dataset", got=path, remedy=reason) from error
    check_schema(dataset.schema, path)
    return dataset


def _has_versions(path: str) -> bool:
    """Return whether a folder holds a dataset; raise if it holds something else."""
    if not os.path.exists(path):
        return False
    if not os.path.isdir(path):
        raise FormatError("path", "must be a folder", got=path, remedy="it is a file; name another path")
    versions = os.path.join(path, "_versions")
    if os.path.isdir(versions) and any(name.endswith(".manifest") for name in os.listdir(versions)):
        return True
    # A process that was killed while it created the dataset leaves these; they may be overwritten.
    if any(not name.startswith("_") and name != "data" for name in os.listdir(path)):
        raise FormatError(
            "path", "must be a library or a new folder", got=path, remedy="it holds other files; name another path"
        )
    return False
