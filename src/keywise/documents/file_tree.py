"""Files below folders and behind patterns, each once."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keywise.documents.files import BINARY_MARKS, FORMAT_BY_SUFFIX, SUPPORTED_FORMATS, TEXT_SUFFIXES, WIDE_MARKS
from keywise.errors import DtypeError, FormatError
from keywise.util.regular_files import open_regular

SNIFFED_BYTES: Final = 4096
"""A file whose suffix is unknown is a text if it begins with so many bytes that can be text."""


@dataclass(frozen=True)
class FoundFiles:
    """Files that were found at some paths.

    Attributes
    ----------
    files
        Their names, in the order of the paths; files of a folder are sorted.
    passed_over
        Files of folders that are not documents, and folders that cannot be read, with the reasons.
    named
        Those of `files` that a path named itself.

    Examples
    --------
    >>> FoundFiles(["note.md"]).passed_over
    {}
    """

    files: list[str] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)


def find_files(paths: Sequence[str | os.PathLike[str]]) -> FoundFiles:
    """Return the documents at some paths: files, folders with all their files, and patterns such as ``*.md``.

    Hidden files of folders are left out. Symbolic links are followed, and a file or folder that several paths or links
    lead to is found once. A path that names nothing counts as a file, so that its reader reports it.

    Parameters
    ----------
    paths
        Files, folders and patterns; ``**`` in a pattern stands for any folders.

    Raises
    ------
    DtypeError
        `paths` is a single path.
    FormatError
        A folder has no document, or a file is named twice.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("b.md", "a.txt", ".hidden.md"):
    ...         _ = Path(folder, name).write_text("It is dry.", encoding="utf-8")
    ...     [os.path.basename(name) for name in find_files([folder]).files]
    ['a.txt', 'b.md']
    """
    if isinstance(paths, str | os.PathLike):
        raise DtypeError("paths", "must be a list of paths", got=os.fspath(paths))
    found = FoundFiles()
    first_names: dict[str, str] = {}
    for given in paths:
        path = os.fspath(given)
        if os.path.isdir(path):
            _add_folder(path, found, first_names)
            continue
        matches = [] if os.path.lexists(path) else match_pattern(path)
        for name in matches:
            if os.path.isdir(name):
                _add_folder(name, found, first_names)
            else:
                _add_file(name, found, first_names)
        if matches:
            continue
        real_name = _resolve(path)
        if real_name in first_names and first_names[real_name] in found.named:
            remedy = f"it is the same file as {first_names[real_name]!r}"
            raise FormatError("files", "must not name a file twice", got=path, remedy=remedy)
        if real_name not in first_names:
            found.files.append(path)
            first_names[real_name] = path
        found.named.add(first_names[real_name])
    return found


def match_pattern(path: str) -> list[str]:
    """Return the names that a pattern matches, sorted; none for a path without ``*``, ``?`` and ``[``.

    Parameters
    ----------
    path
        The pattern.

    Examples
    --------
    >>> match_pattern("no such folder/*.md")
    []
    """
    if not glob.has_magic(path) or "\0" in path:
        return []
    return sorted(glob.glob(path, recursive=True))


def walk_folder(folder: str, passed_over: dict[str, str]) -> Iterator[str]:
    """Yield the files below a folder, sorted by folder and name.

    Hidden files and folders are left out. Links to folders are followed; a folder that several links lead to is
    searched once.

    Parameters
    ----------
    folder
        The folder.
    passed_over
        Is given the folders that cannot be read, with the reasons.
    """
    searched: set[tuple[int, int]] = set()
    folders = [folder]
    while folders:
        current = folders.pop()
        try:
            identity = os.stat(current)
            if (identity.st_dev, identity.st_ino) in searched:
                continue
            searched.add((identity.st_dev, identity.st_ino))
            names = sorted(name for name in os.listdir(current) if not name.startswith("."))
        except OSError as error:
            passed_over[current] = f"it cannot be opened: {error.strerror}"
            continue
        paths = [os.path.join(current, name) for name in names]
        yield from (path for path in paths if not os.path.isdir(path))
        folders += [path for path in reversed(paths) if os.path.isdir(path)]


def explain_unreadable(path: str) -> str | None:
    """Return why a file is in no format that keywise reads; None if it may be a document.

    Only the type of the file, its suffix and its first bytes decide.

    Parameters
    ----------
    path
        The file.

    Examples
    --------
    >>> explain_unreadable("/dev/null")
    'it is not a regular file'
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "it is not a regular file"
        if Path(path).suffix.lower() in {*FORMAT_BY_SUFFIX, *TEXT_SUFFIXES}:
            return None
        with open_regular(path) as file:
            start = file.read(SNIFFED_BYTES)
    except OSError as error:
        return f"it cannot be opened: {error.strerror}"
    is_binary = start.startswith(BINARY_MARKS) or (b"\0" in start and not start.startswith(WIDE_MARKS))
    return f"it is a binary file; {SUPPORTED_FORMATS}" if is_binary else None


def _add_folder(folder: str, found: FoundFiles, first_names: dict[str, str]) -> None:
    is_empty = True
    for name in walk_folder(folder, found.passed_over):
        is_empty = not _add_file(name, found, first_names) and is_empty
    if is_empty:
        remedy = found.passed_over.get(folder, "hidden files do not count")
        reasons = [f"{name}: {reason}" for name, reason in found.passed_over.items() if name.startswith(folder)]
        if reasons and folder not in found.passed_over:
            remedy = f"passed over {len(reasons)}, such as {reasons[0]}"
        raise FormatError("files", "must name folders with documents in them", got=folder, remedy=remedy)


def _add_file(name: str, found: FoundFiles, first_names: dict[str, str]) -> bool:
    """Add a file of a folder, unless it is no document or was found before; return whether it is one."""
    reason = explain_unreadable(name)
    if reason is not None:
        found.passed_over[name] = reason
        return False
    if first_names.setdefault(_resolve(name), name) is name:
        found.files.append(name)
    return True


def _resolve(path: str) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # a null character
        return path
