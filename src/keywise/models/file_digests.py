"""SHA-256 digests of files, stored by path, size and time of change."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from keywise.util.atomic_write import atomic_write
from keywise.util.paths import locate_cache_folder

# A file that changes twice within this time may keep its time of change: coarse clocks of file systems.
CLOCK_STEP_SECONDS = 2.0


def digest_file(path: Path, cache_dir: str | os.PathLike[str] | None) -> bytes:
    """Return the SHA-256 of a file, computed again only after it changed.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    cache_dir : path, optional
        Where digests are stored; see `keywise.util.paths.locate_cache_folder`.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    path = path.resolve()
    state = _read_state(path)
    record_file = (
        locate_cache_folder(cache_dir) / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    )
    stored = _read_record(record_file, state)
    if stored is not None:
        return stored
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").digest()
    if state != _read_state(path) or time.time() - state["changed_ns"] / 1e9 < CLOCK_STEP_SECONDS:
        return sha256  # a later change may leave the state as it is
    with suppress(OSError):  # without a record the file is digested again next time
        record_file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(record_file, private=True) as file:
            file.write(json.dumps({**state, "sha256": sha256.hex()}).encode())
    return sha256


def _read_state(path: Path) -> dict[str, Any]:
    """Return what changes with a file's content; programs can set back its time, but not that of the file's record."""
    stat = path.stat()
    changed_ns = max(stat.st_mtime_ns, stat.st_ctime_ns)
    times = {"modified_ns": stat.st_mtime_ns, "changed_ns": changed_ns}
    return {"path": str(path), "size_bytes": stat.st_size, **times, "inode": stat.st_ino}


def _read_record(record_file: Path, state: dict[str, Any]) -> bytes | None:
    try:
        recorded = json.loads(record_file.read_bytes())
        sha256 = bytes.fromhex(recorded.pop("sha256"))
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None  # never written, or damaged: the file is digested again
    return sha256 if recorded == state else None
