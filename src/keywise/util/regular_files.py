"""Opening of files that are read whole: folders, pipes and devices are refused."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading.

    A pipe is refused without waiting for its writer.

    Parameters
    ----------
    path : path
        The file; symbolic links are followed.

    Returns
    -------
    binary file
        Open for reading.

    Raises
    ------
    OSError
        The file cannot be opened, is not a regular file, or `path` cannot be the name of a file.

    Examples
    --------
    >>> import os, tempfile
    >>> from pathlib import Path
    >>> from keywise.util.regular_files import open_regular
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "note").write_bytes(b"dry")
    ...     with open_regular(Path(folder, "note")) as file:
    ...         file.read()
    b'dry'
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a null byte, or a character that no file name can have
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
    raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
