"""Files that are replaced atomically."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

UNFINISHED_PREFIX: Final = ".keywise-unfinished-"
"""Prefix of the names of files that are being written; a killed process leaves such a file behind."""


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces `path` only when the block succeeds.

    The bytes go to a new file in the same folder, with a name that nobody can guess. At the end of the block the file
    is synchronised to the disk and renamed, and the folder is synchronised. If the block raises, the new file is
    removed. Processes that have the old file open keep it.

    Parameters
    ----------
    path : path
        The file to write or replace; its folder exists.
    private : bool
        Whether only the owner may read the file; otherwise the process's umask decides.

    Yields
    ------
    binary file
        Open for writing.

    Raises
    ------
    OSError
        The file cannot be written; an existing file is unchanged.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from keywise.util.atomic_write import atomic_write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder) / "note.txt") as file:
    ...         _ = file.write(b"It rains.")
    ...     (Path(folder) / "note.txt").read_text()
    'It rains.'
    """
    target = Path(path)
    unfinished = target.with_name(f"{UNFINISHED_PREFIX}{secrets.token_hex(16)}")
    try:
        # Opened inside the block, so that Ctrl-C right after the creation removes the file too.
        with open(unfinished, "xb", opener=_open_private if private else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    # The rename is on the disk only after its folder is synchronised.
    synchronise(target.parent)


def synchronise(path: str | os.PathLike[str]) -> None:
    """Wait until a file, or the entries of a folder, are on the disk.

    Parameters
    ----------
    path : path
        An existing file or folder.

    Raises
    ------
    OSError
        The disk reports an error.

    Examples
    --------
    >>> from keywise.util.atomic_write import synchronise
    >>> synchronise(".")
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
