"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

UNFINISHED_PREFIX: Final = ".keywise-unfinished-"
"""The names of files that are still being written begin so."""


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces `path` only when the block succeeds.

    The bytes go to a file of an unguessable name in the same folder, are synchronised to the disk, and the file is renamed.
    Readers that hold the old file keep it.

    Parameters
    ----------
    path
        The file to write or replace.
    private
        Whether only the owner may read the file; otherwise the process's umask decides.

    Yields
    ------
    IO of bytes
        The open file.

    Raises
    ------
    OSError
        The file cannot be written; a file that was there before is untouched.

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
    unfinished = target.with_name(f"{UNFINISHED_PREFIX}{secrets.token_hex(8)}")
    # O_EXCL: an existing file or link of that name is never opened.
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if private else 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    synchronise(target.parent)


def synchronise(path: str | os.PathLike[str]) -> None:
    """Wait until a file or folder is on the disk.

    Parameters
    ----------
    path
        An existing file or folder.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
