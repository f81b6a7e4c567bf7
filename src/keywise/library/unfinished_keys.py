"""Keys of the first sentences of a long document, kept in the library's folder until all of it is encoded.

A document is committed as a whole. Encoding a book takes minutes; after an interruption it continues with these keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from keywise.cache.payload import compute_checksum
from keywise.library.arrow_arrays import Array
from keywise.library.schema import KeyFormat
from keywise.util.atomic_write import UNFINISHED_PREFIX, atomic_write
from keywise.util.regular_files import open_regular

UNFINISHED_FOLDER: Final = "_unfinished"
ABANDONED_SECONDS: Final = 7 * 86400
"""Keys of this age are of a document that nobody adds any more."""


class UnfinishedKeys:
    """The file with the first keys of a document.

    Parameters
    ----------
    library_path : str
        The library's local folder.
    texts : sequence of str
        All texts of the document; the file is named by them and the encoder.
    fingerprint : str
        The encoder's.
    keys : KeyFormat
        Dimension and dtype.
    """

    def __init__(self, library_path: str, texts: Sequence[str], fingerprint: str, keys: KeyFormat) -> None:
        identity = json.dumps([fingerprint, keys.dtype, keys.dimension, *texts]).encode()
        self._path = Path(library_path, UNFINISHED_FOLDER, f"{hashlib.sha256(identity).hexdigest()}.keys")
        self._dimension = keys.dimension
        self._dtype = np.dtype(keys.dtype)

    def load(self) -> Array:
        """Return the keys [N, D] that were saved, none if the file is missing or damaged."""
        none = np.empty((0, self._dimension), self._dtype)
        try:
            with open_regular(self._path) as file:
                checksum, _, content = file.read().partition(b"\n")
        except OSError:
            return none
        if checksum != str(compute_checksum(content)).encode() or len(content) % (
            self._dimension * self._dtype.itemsize
        ):
            return none
        return np.frombuffer(content, self._dtype).reshape(-1, self._dimension)

    def save(self, keys: Array) -> None:
        """Save the keys [N, D] of the first N texts.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        self._path.parent.mkdir(exist_ok=True)
        content = np.ascontiguousarray(keys).tobytes()
        with atomic_write(self._path) as file:
            file.write(str(compute_checksum(content)).encode() + b"\n" + content)

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self._path.unlink(missing_ok=True)


def sweep_unfinished_keys(library_path: str) -> None:
    """Remove old keys of documents that were never finished from a local library."""
    oldest = time.time() - ABANDONED_SECONDS
    folder = Path(library_path, UNFINISHED_FOLDER)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.endswith(".keys") or path.name.startswith(UNFINISHED_PREFIX):
            try:
                if os.lstat(path).st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:  # another process finished it
                continue
