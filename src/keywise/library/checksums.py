"""Checksums of a library's files: recorded after every commit, verified before a process uses a file.

Lance checks little of what it reads. Every file `NAME` of a local library therefore has a record
`_checksums/NAME.json` with its length and the CRC-32 of each block. A file without a record was written by another tool
than keywise and is used as it is.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from keywise.cache.payload import CHECK_BYTES, allocate_pages, compute_checksum, count_checksums, read_into
from keywise.errors import FormatError
from keywise.library.arrow_arrays import Array
from keywise.util.atomic_write import atomic_write, synchronise
from keywise.util.regular_files import open_regular

CHECKSUM_FOLDER: Final = "_checksums"
VERSION_FOLDER: Final = "_versions"
INDEX_FOLDER: Final = "_indices"
DATA_FOLDER: Final = "data"

SETTLED_SECONDS: Final = 2.0
"""A file that changed this lately may change again without another time stamp."""

MAX_RECORD_BYTES: Final = 2**28
_MANIFEST_SUFFIX: Final = ".manifest"
_LAST_NAME: Final = 2**64 - 1
"""Lance names the manifest of version v by this number minus v, so that the latest one is listed first."""

Identity = tuple[int, ...]

_verified: dict[str, Identity] = {}
"""What identified the contents of each file when it was verified, by its path."""

_listed: dict[str, tuple[Identity, list[str]]] = {}
"""The files that a manifest names and what identified it, by its path."""


@dataclass(frozen=True)
class FileRecord:
    """The length of a file and the CRC-32 of each block of `CHECK_BYTES` bytes."""

    file_bytes: int
    checksums: Array

    def encode(self) -> bytes:
        """Return the record as JSON, with a checksum of its own."""
        text = self.checksums.astype(">u4").tobytes().hex()
        own = compute_checksum(f"{self.file_bytes} {text}".encode())
        return json.dumps({"bytes": self.file_bytes, "crc32": text, "record_crc32": own}).encode()

    @classmethod
    def decode(cls, data: bytes) -> FileRecord:
        """Return the record in a JSON text.

        Raises
        ------
        ValueError
            The text is no record, or damaged.
        """
        try:
            fields = json.loads(data)
            file_bytes, text = fields["bytes"], fields["crc32"]
            record = cls(file_bytes, np.frombuffer(bytes.fromhex(text), ">u4").astype(np.uint32))
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        if record.encode() != data or len(record.checksums) != count_checksums(file_bytes):
            raise ValueError("its own checksum differs")
        return record


def find_latest_version(root: str) -> int | None:
    """Return the number of the latest version in a local folder; None if there is none.

    Raises
    ------
    FormatError
        A later version was recorded, but its manifest is missing.
    """
    present = _list_versions(os.path.join(root, VERSION_FOLDER), "")
    recorded = _list_versions(os.path.join(root, CHECKSUM_FOLDER, VERSION_FOLDER), ".json")
    if recorded and (not present or max(recorded) > max(present)):
        raise FormatError(
            "path",
            f"{root!r} is damaged: the manifest of version {max(recorded)} is missing",
            remedy="restore it from a copy; with `version` an earlier version can be opened",
        )
    return max(present, default=None)


def verify_manifest(root: str, version: int) -> None:
    """Verify the manifest of a version, which names all other files.

    Raises
    ------
    FormatError
        It has changed.
    """
    for name in name_manifests(version):
        if os.path.exists(os.path.join(root, name)):
            verify_file(root, name)


def verify_file(root: str, name: str) -> None:
    """Verify a file, unless this process did so since its last change.

    Parameters
    ----------
    root
        The library's local folder.
    name
        Path of the file in it.

    Raises
    ------
    FormatError
        It has changed, is missing or cannot be read.
    """
    path = os.path.join(root, name)
    try:
        if _verified.get(path) == _identify(os.stat(path)):
            return
        started = time.time()
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            record = read_record(root, name)
            if record is not None:
                _compare(file.fileno(), status.st_size, record, path)
    except OSError as error:
        raise FormatError("path", f"{path!r} cannot be read ({error.strerror})") from error
    # A later change in the same tick of the file system's clock would not be noticed.
    if started - status.st_ctime > SETTLED_SECONDS:
        _verified[path] = _identify(status)


def read_verified(root: str, name: str, begin: int, end: int) -> Array:
    """Read a range of bytes of a file into memory, and verify the blocks that contain it.

    Parameters
    ----------
    root
        The library's local folder.
    name
        Path of the file in it.
    begin, end
        Range of bytes.

    Returns
    -------
    uint8 array
        The bytes; as well aligned as they are in the file.

    Raises
    ------
    FormatError
        A block has changed, or the file cannot be read.
    """
    path = os.path.join(root, name)
    try:
        with open_regular(path) as file:
            record = read_record(root, name)
            file_bytes = os.fstat(file.fileno()).st_size
            first = begin - begin % CHECK_BYTES
            last = min(end + -end % CHECK_BYTES, file_bytes)
            if end > last or (record is not None and file_bytes != record.file_bytes):
                raise _make_damage_error(path, f"it has {file_bytes} bytes")
            memory = allocate_pages(last - first)
            with memoryview(memory) as view:
                _read_blocks(file.fileno(), view, first, record, path)
    except OSError as error:
        raise FormatError("path", f"{path!r} cannot be read ({error.strerror})") from error
    return np.frombuffer(memory, np.uint8)[begin - first : end - first]


def read_record(root: str, name: str) -> FileRecord | None:
    """Return the record of a file; None if it has none.

    Raises
    ------
    FormatError
        The record is damaged.
    OSError
        It cannot be read.
    """
    path = _locate_record(root, name)
    try:
        with open_regular(path) as file:
            return FileRecord.decode(file.read(MAX_RECORD_BYTES))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _make_damage_error(os.fspath(path), str(error)) from error


def record_dataset(root: str, dataset: Any, *, is_new: bool) -> None:
    """Record the checksums of a dataset's files that have none yet, its manifest last.

    Parameters
    ----------
    root
        The library's local folder.
    dataset
        Its Lance dataset.
    is_new
        Whether this process has just committed it: a record of the same number is of a version that somebody removed.

    Raises
    ------
    OSError
        A file cannot be read, or a record cannot be written.
    """
    for name in _list_files(root, dataset):
        if not _locate_record(root, name).exists():
            _record_file(root, name)
    for name in name_manifests(dataset.version):
        if os.path.exists(os.path.join(root, name)) and (is_new or not _locate_record(root, name).exists()):
            _record_file(root, name)


def _record_file(root: str, name: str) -> None:
    path = os.path.join(root, name)
    # A record promises that the file is on the disk.
    synchronise(path)
    synchronise(os.path.dirname(path))
    with open_regular(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        checksums = [compute_checksum(file.read(CHECK_BYTES)) for _ in range(count_checksums(file_bytes))]
    record = _locate_record(root, name)
    record.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(record) as target:
        target.write(FileRecord(file_bytes, np.array(checksums, np.uint32)).encode())


def list_unrecorded(root: str, folder: str) -> Iterator[str]:
    """Yield the names of the files in a folder of a library that have no record."""
    try:
        names = os.listdir(os.path.join(root, folder))
    except FileNotFoundError:
        return
    for name in names:
        is_file = os.path.isfile(os.path.join(root, folder, name))
        if is_file and not _locate_record(root, f"{folder}/{name}").exists():
            yield f"{folder}/{name}"


def list_index_folders(root: str) -> list[str]:
    """Return the folders of a library's indexes, one per index and update."""
    path = os.path.join(root, INDEX_FOLDER)
    names = sorted(os.listdir(path)) if os.path.isdir(path) else []
    return [f"{INDEX_FOLDER}/{name}" for name in names]


def list_fragment_files(fragments: Iterable[Any]) -> Iterator[str]:
    """Yield the names of the data and deletion files of fragments' metadata."""
    for metadata in fragments:
        for file in metadata.files:
            if file.base_id is None:
                yield f"{DATA_FOLDER}/{file.path}"
        if metadata.deletion_file is not None:
            yield metadata.deletion_file.path(metadata.id)


def list_dataset_files(root: str, dataset: Any) -> list[str]:
    """Return the names of a dataset's data, deletion and index files; the list of a manifest is made once."""
    for name in name_manifests(dataset.version):
        path = os.path.join(root, name)
        if os.path.exists(path):
            identity = _identify(os.stat(path))
            if path not in _listed or _listed[path][0] != identity:
                _listed[path] = identity, list(_list_files(root, dataset))
            return _listed[path][1]
    return list(_list_files(root, dataset))


def _list_files(root: str, dataset: Any) -> Iterator[str]:
    """Yield the names of a dataset's data, deletion and index files."""
    yield from list_fragment_files(fragment.metadata for fragment in dataset.get_fragments())
    for index in dataset.describe_indices():
        for segment in index.segments:
            for path in sorted(Path(root, INDEX_FOLDER, segment.uuid).rglob("*")):
                if path.is_file():
                    yield path.relative_to(root).as_posix()


def _compare(handle: int, file_bytes: int, record: FileRecord, path: str) -> None:
    if file_bytes != record.file_bytes:
        raise _make_damage_error(path, f"it has {file_bytes} bytes instead of {record.file_bytes}")
    block = memoryview(allocate_pages(CHECK_BYTES))  # the system copies to whole pages three times as fast
    for first in range(0, file_bytes, CHECK_BYTES):
        _read_blocks(handle, block[: min(CHECK_BYTES, file_bytes - first)], first, record, path)


def _read_blocks(handle: int, target: memoryview, offset: int, record: FileRecord | None, path: str) -> None:
    """Fill memory with a file's bytes from a multiple of `CHECK_BYTES` on, and verify each block."""
    for first in range(0, len(target), CHECK_BYTES):
        block = target[first : first + CHECK_BYTES]
        begin = offset + first
        if not read_into(handle, block, begin):
            raise _make_damage_error(path, "it was cut")
        if record is not None and compute_checksum(block) != record.checksums[begin // CHECK_BYTES]:
            raise _make_damage_error(path, f"the checksum of bytes {begin} to {begin + len(block) - 1} differs")


def _make_damage_error(path: str, reason: str) -> FormatError:
    remedy = "restore it from a copy, open an earlier version, or create the library again"
    return FormatError("path", f"{path!r} is damaged: {reason}", remedy=remedy)


def _identify(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _locate_record(root: str, name: str) -> Path:
    return Path(root, CHECKSUM_FOLDER, f"{name}.json")


def name_manifests(version: int) -> tuple[str, str]:
    """Return the two names that the manifest of a version may have."""
    return (
        f"{VERSION_FOLDER}/{_LAST_NAME - version}{_MANIFEST_SUFFIX}",
        f"{VERSION_FOLDER}/{version}{_MANIFEST_SUFFIX}",
    )


def _list_versions(folder: str, suffix: str) -> list[int]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbers = [match[1] for name in names if (match := re.fullmatch(rf"(\d+)\.manifest{re.escape(suffix)}", name))]
    return [int(number) if len(number) < 20 else _LAST_NAME - int(number) for number in numbers]
