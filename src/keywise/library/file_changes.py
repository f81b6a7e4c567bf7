"""The files at some paths, compared with the documents of a library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from keywise.documents.files import check_size
from keywise.errors import DtypeError, FormatError, MissingFileError
from keywise.library.dataset import is_utf8
from keywise.util.progress import Progress
from keywise.util.regular_files import open_regular


@dataclass(frozen=True)
class ContentFile:
    """A file, the SHA-256 of its content, and its size."""

    path: str
    digest: str
    file_bytes: int


@dataclass(frozen=True)
class FileList:
    """Files to add.

    Attributes
    ----------
    paths
        Their absolute paths.
    roots
        The paths that were named, absolute.
    skipped
        Folders that cannot be read, with the reasons.
    """

    paths: list[str]
    roots: list[str]
    skipped: dict[str, str]


@dataclass(frozen=True)
class CopiedDocument:
    """A file with the content of a stored document.

    Attributes
    ----------
    file
        The file.
    origin
        Name of the stored document.
    is_moved
        Whether the stored document's file is gone.
    """

    file: ContentFile
    origin: str
    is_moved: bool


@dataclass(frozen=True)
class FileChanges:
    """Files compared with the documents of a library.

    Attributes
    ----------
    changed
        Files that are new or have other content.
    copied
        New files whose content is stored under another name.
    unchanged
        Paths of the others.
    gone
        Documents at or below the named paths whose files do not exist any more, but for moved ones.
    skipped
        Files that cannot be read, with the reasons.
    """

    changed: list[ContentFile] = field(default_factory=list)
    copied: list[CopiedDocument] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def find_files(paths: Sequence[str | os.PathLike[str]]) -> FileList:
    """Return the files at some paths and in the folders below them, each once.

    Hidden files and folders of datasets are left out of folders. Links to folders are followed, each folder once.

    Parameters
    ----------
    paths
        Files and folders.

    Raises
    ------
    DtypeError
        `paths` is a single path.
    """
    if isinstance(paths, str | os.PathLike):
        raise DtypeError("paths", "must be a list of paths", got=os.fspath(paths))
    files: dict[str, None] = {}
    skipped: dict[str, str] = {}
    roots = [os.path.abspath(os.path.expanduser(os.fspath(path))) for path in paths]
    for root in roots:
        found = _walk_folder(root, skipped) if os.path.isdir(root) else [root]
        files.update(dict.fromkeys(found))
    return FileList(list(files), roots, skipped)


def _walk_folder(root: str, skipped: dict[str, str]) -> Iterator[str]:
    """Yield the files below a folder; linked folders come last, so that a file is named by its own folder."""

    def record_error(error: OSError) -> None:
        skipped[str(error.filename)] = f"{error.filename!r} cannot be opened: {error.strerror}"

    folders = [root]
    walked: set[tuple[int, int]] = set()
    while folders:
        start = folders.pop(0)
        for folder, subfolders, names in os.walk(start, onerror=record_error):
            try:
                status = os.stat(folder)
            except OSError as error:  # removed meanwhile
                record_error(error)
                continue
            if (status.st_dev, status.st_ino) in walked:
                subfolders.clear()
                continue
            walked.add((status.st_dev, status.st_ino))
            subfolders[:] = sorted(name for name in subfolders if _is_searched(folder, name))
            folders += [path for name in subfolders if os.path.islink(path := os.path.join(folder, name))]
            for name in sorted(names):
                file = os.path.join(folder, name)
                if not name.startswith(".") and (os.path.isfile(file) or os.path.islink(file)):
                    yield file


def _is_searched(folder: str, name: str) -> bool:
    return not name.startswith(".") and not os.path.isdir(os.path.join(folder, name, "_versions"))


def compare_files(files: FileList, stored_digests: Mapping[str, str], progress: Progress | None = None) -> FileChanges:
    """Return which files are new, changed, copied, stored already or unreadable, and which documents are gone.

    Parameters
    ----------
    files
        The files, from `find_files`.
    stored_digests
        Digests of the documents in the library, by name.
    progress
        Called with the number of files compared and of all.
    """
    changes = FileChanges(skipped=dict(files.skipped))
    is_gone = {name for name in stored_digests if _is_missing(name)}
    origins = {(digest, _get_suffix(name)): name for name, digest in stored_digests.items()}
    origins |= {(stored_digests[name], _get_suffix(name)): name for name in stored_digests if name in is_gone}
    moved: set[str] = set()
    for number, path in enumerate(files.paths):
        if progress:
            progress(number, len(files.paths))
        try:
            file = hash_file(path)
        except FormatError as error:
            changes.skipped[path] = str(error)
            continue
        origin = origins.get((file.digest, _get_suffix(path)))
        if stored_digests.get(path) == file.digest:
            changes.unchanged.append(path)
        elif origin is not None:
            is_moved = origin in is_gone and origin not in moved
            changes.copied.append(CopiedDocument(file, origin, is_moved))
            if is_moved:
                moved.add(origin)
        else:
            changes.changed.append(file)
    below = [name for name in stored_digests if any(_is_below(name, root) for root in files.roots)]
    changes.gone.extend(name for name in below if name in is_gone and name not in moved)
    return changes


def _get_suffix(path: str) -> str:
    """Return the suffix of a file, which decides how its content is read."""
    return os.path.splitext(path)[1].lower()


def _is_missing(path: str) -> bool:
    """Return whether a file does not exist; one whose folder cannot be read may exist."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def hash_file(path: str) -> ContentFile:
    """Return a file with the SHA-256 of its bytes, in hexadecimal digits.

    Raises
    ------
    FormatError
        The file cannot be read, is too large, or has a name that cannot be stored.
    MissingFileError
        The file does not exist.
    """
    if not is_utf8(path):
        raise FormatError("path", "must have a name in UTF-8, as all names in a library", got=path, remedy="rename it")
    try:
        with open_regular(path) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            check_size(path, file_bytes)
            return ContentFile(path, hashlib.file_digest(file, "sha256").hexdigest(), file_bytes)
    except FileNotFoundError:
        raise MissingFileError("path", "must be an existing file", got=path) from None
    except OSError as error:
        raise FormatError(
            "path", "must be a regular file that can be read", got=path, remedy=error.strerror or ""
        ) from error
