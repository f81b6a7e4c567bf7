"""Files that are replaced atomically, and the removal of what killed writers left behind."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

UNFINISHED_PREFIX: Final = ".keywise-unfinished-"
"""Prefix of the names of files that are being written; a killed process leaves such a file behind."""

ABANDONED_SECONDS: Final = 3600
"""The writer of an unfinished file that did not change for so long was killed."""


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces `path` only when the block succeeds.

    The bytes go to a new file in the same folder, with a name that nobody can guess. At the end of the block the file
    is synchronised to the disk and renamed, and the folder is synchronised. If the block raises, the new file is
    removed. Processes that have the old file open keep it. A symbolic link at `path` is replaced, not followed.
    Unfinished files that killed writers left in the folder are removed.

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
        The file cannot be written, or `path` is a folder, a device or a pipe; an existing file is unchanged.

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
    _check_target(target)
    sweep_unfinished(target.parent)
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


def sweep_unfinished(
    folder: str | os.PathLike[str],
    *,
    prefix: str = UNFINISHED_PREFIX,
    abandoned_seconds: float = ABANDONED_SECONDS,
) -> int:
    """Remove the unfinished files and folders of killed writers from a folder.

    Those that changed lately may have a living writer and stay. What cannot be removed stays too.

    Parameters
    ----------
    folder : path
        The folder; it may be missing. Its subfolders are not searched.
    prefix : str
        How the names of unfinished files and folders begin.
    abandoned_seconds : float
        Age of the last change from which on a writer counts as killed; an hour by default.

    Returns
    -------
    int
        Bytes that this freed.

    Examples
    --------
    >>> import os, tempfile
    >>> from pathlib import Path
    >>> from keywise.util.atomic_write import UNFINISHED_PREFIX, sweep_unfinished
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     left = Path(folder) / f"{UNFINISHED_PREFIX}1f"
    ...     _ = left.write_bytes(b"half")
    ...     os.utime(left, (0, 0))
    ...     sweep_unfinished(folder), left.exists()
    (4, False)
    """
    oldest = time.time() - abandoned_seconds
    freed_bytes = 0
    try:
        with os.scandir(folder) as entries:
            unfinished = [entry.path for entry in entries if entry.name.startswith(prefix)]
    except OSError:
        return 0
    for path in unfinished:
        # Another process may sweep at the same time, and files of other users cannot be removed.
        with suppress(OSError):
            parts = [os.lstat(path)]
            if stat.S_ISDIR(parts[0].st_mode):
                parts += [os.lstat(os.path.join(at, name)) for at, _, names in os.walk(path) for name in names]
            if max(part.st_mtime for part in parts) > oldest:
                continue
            if stat.S_ISDIR(parts[0].st_mode):
                shutil.rmtree(path)
            else:
                os.unlink(path)
            freed_bytes += sum(part.st_size for part in parts if stat.S_ISREG(part.st_mode))
    return freed_bytes


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


def _check_target(target: Path) -> None:
    """Raise `OSError` if a path names something else than a file, or cannot be the name of one."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return
    except ValueError as error:  # a null byte, or a character that no file name can have
        raise OSError(errno.EINVAL, str(error), os.fspath(target)) from error
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, "it is not a regular file", os.fspath(target))


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
