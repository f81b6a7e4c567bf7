"""Where a library is, and the dataset there."""

from __future__ import annotations

import os
from typing import Any

import lance

from keywise.errors import FormatError


def is_local(path: str) -> bool:
    """Tell a folder of this machine from an object store's address."""
    return "://" not in path


def opened(path: str, version: int | None = None) -> Any:
    """Give the dataset, None where there is none.

    Raises
    ------
    FormatError
        When something else is there, or not this version.
    """
    if is_local(path) and not _has_versions(path):
        return None
    try:
        return lance.dataset(path, version=version)
    except (ValueError, OSError) as error:
        said = str(error).partition(", /")[0]
        if not is_local(path) and "not found" in said:
            return None
        wanted = f"version={version} of " if version is not None else ""
        raise FormatError(f"{wanted}{path!r} cannot be opened: {said}; `versions()` lists what there is") from error


def _has_versions(path: str) -> bool:
    """Tell whether a folder holds a dataset, and refuse one that holds something else."""
    if not os.path.exists(path):
        return False
    if not os.path.isdir(path):
        raise FormatError(f"{path!r} is a file; a library is a folder")
    versions = os.path.join(path, "_versions")
    if os.path.isdir(versions) and any(name.endswith(".manifest") for name in os.listdir(versions)):
        return True
    # What Lance had begun to write when the process was killed is in the way of nobody.
    if any(not name.startswith("_") and name != "data" for name in os.listdir(path)):
        raise FormatError(f"{path!r} is a folder without a library in it; name a folder of its own")
    return False
