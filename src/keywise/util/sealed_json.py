"""JSON files with a format, a version and a digest of all entries, so that every changed byte is noticed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keywise.errors import FormatError, MissingFileError
from keywise.util.atomic_write import atomic_write
from keywise.util.regular_files import open_regular

DIGEST: Final = "sha256"
"""Last entry of a file: the digest of all others."""


@dataclass(frozen=True)
class SealedJson:
    """A kind of file.

    Attributes
    ----------
    format
        Its name in the files.
    version
        Number of the form of its entries.
    description
        What the file is, for errors.
    remedy
        What to do about a file that cannot be used.
    max_bytes
        Size of the largest file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from keywise.util.sealed_json import SealedJson
    >>> notes = SealedJson("keywise.notes", 1, "a file of notes", "delete it", 1 << 20)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = notes.write(Path(folder, "notes.json"), {"text": "dry"})
    ...     notes.read(path)["text"]
    'dry'
    """

    format: str
    version: int
    description: str
    remedy: str
    max_bytes: int

    def encode(self, entries: Mapping[str, Any]) -> bytes:
        """Return the only file with these entries.

        Parameters
        ----------
        entries
            Plain data under other names than ``format``, ``version`` and ``sha256``.
        """
        return _seal({"format": self.format, "version": self.version, **entries})

    def write(self, path: str | os.PathLike[str], entries: Mapping[str, Any]) -> Path:
        """Write or replace a file that only its owner can read, and return its path.

        Parameters
        ----------
        path
            The file.
        entries
            As for `encode`.

        Raises
        ------
        FormatError
            The file cannot be written.
        """
        try:
            with atomic_write(path, private=True) as file:
                file.write(self.encode(entries))
        except OSError as error:
            rule = "must name a file that can be written"
            raise FormatError("path", rule, got=os.fspath(path), remedy=str(error.strerror)) from error
        return Path(path)

    def read(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the entries of a file.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        FormatError
            The file is missing, damaged, of another format, or was made by another build.
        """
        name = os.fspath(path)
        try:
            with open_regular(path) as file:
                content = file.read(self.max_bytes)
        except FileNotFoundError as error:
            raise MissingFileError("path", "must name an existing file", got=name) from error
        except OSError as error:
            raise FormatError("path", f"must name {self.description}", got=name, remedy=str(error)) from error
        return self.decode(content, name)

    def decode(self, encoded: bytes, name: str) -> dict[str, Any]:
        """Return the entries of an encoded file.

        Parameters
        ----------
        encoded
            The bytes of the file.
        name
            Its name, for errors.

        Raises
        ------
        FormatError
            As for `read`.
        """
        try:
            entries = json.loads(encoded)
            version = entries.get("version", 1)
            file_format = entries.get("format", self.format)
            entries.pop(DIGEST, None)
            if not entries:
                raise ValueError("it has no entries")
            is_intact = _seal(entries) == encoded
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self.make_error(name, f"{type(error).__name__}: {error}") from error
        if file_format != self.format:
            raise self.make_error(name, f"its format is {file_format!r:.40}")
        if version != self.version:
            # The first builds wrote no version.
            builds = "an earlier" if version in range(1, self.version) else "another"
            raise FormatError("path", f"{name!r} was made by {builds} build", remedy=self.remedy)
        if not is_intact:
            raise self.make_error(name, "it is damaged")
        return dict(entries)

    def make_error(self, name: str, reason: str) -> FormatError:
        """Return the error for a file that cannot be used.

        Parameters
        ----------
        name
            The file's name.
        reason
            What is wrong with it.
        """
        return FormatError("path", f"must be {self.description}", got=name, remedy=f"{reason}; {self.remedy}")


def _seal(content: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return (json.dumps({**content, DIGEST: digest}, indent=1) + "\n").encode()
