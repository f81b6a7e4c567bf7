"""Add documents to a library: find, compare, split, encode and commit files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from keywise.documents import read_file
from keywise.documents.files import check_size
from keywise.errors import DtypeError, FormatError, MissingFileError, OptionError, ShapeError
from keywise.library.arrow_arrays import vectors_to_arrow
from keywise.library.dataset import is_utf8
from keywise.models.sentence_encoder import Encoder
from keywise.library.results import AddResult
from keywise.library.schema import SENTENCE_COLUMNS, KeyFormat, check_vectors, read_key_format
from keywise.library.transactions import commit_fragments, write_rows
from keywise.util.progress import Progress
from keywise.util.regular_files import open_regular

GROUP_SENTENCES: Final = 65536
"""Documents are read, encoded and committed in groups of about this many sentences."""

ENCODED_SENTENCES: Final = 1024
"""Sentences between two reports of progress."""

_BLANK_LINE: Final = re.compile(r"\n[^\S\n]*\r?\n|\r[^\S\r\n]*\r")


@dataclass(frozen=True)
class ContentFile:
    """A file and the SHA-256 of its content."""

    path: str
    digest: str


@dataclass(frozen=True)
class FileList:
    """Files to add.

    Attributes
    ----------
    paths
        Their absolute paths.
    skipped
        Folders that cannot be read, with the reasons.
    """

    paths: list[str]
    skipped: dict[str, str]


@dataclass(frozen=True)
class FileChanges:
    """Files compared with the documents of a library.

    Attributes
    ----------
    changed
        Files that are new or have other content.
    unchanged
        Paths of the others.
    skipped
        Files that cannot be read, with the reasons.
    """

    changed: list[ContentFile] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SentenceRows:
    """Sentences of a document as `SENTENCE_COLUMNS` hold them."""

    document: str
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.columns["text"])


@dataclass(frozen=True)
class IngestTarget:
    """A library to write to, and the encoder of its keys."""

    path: str
    schema: pa.Schema
    encoder: Encoder


@dataclass(frozen=True)
class WrittenGroup:
    """Documents whose rows are written but not committed.

    Attributes
    ----------
    fragments
        Fragments for `commit_fragments`.
    documents
        Names of the documents.
    sentences
        Number of rows.
    skipped
        Files that could not be read, with the reasons.
    """

    fragments: list[Any]
    documents: list[str]
    sentences: int
    skipped: dict[str, str]


GroupWriter = Callable[[IngestTarget, Sequence[ContentFile], Progress | None], Iterator[WrittenGroup]]


def add_documents(
    target: IngestTarget,
    files: FileList,
    stored_digests: Mapping[str, str],
    write: GroupWriter,
    progress: Progress | None,
) -> AddResult:
    """Write and commit the documents that are new or changed.

    Parameters
    ----------
    target
        The library.
    files
        The files, from `find_files`.
    stored_digests
        Digests of the documents in the library, by name.
    write
        Writes the rows: `write_groups`, or the same on a cluster.
    progress
        Called with the number of sentences encoded and the number read so far.

    Returns
    -------
    AddResult
        Its version is still 0.
    """
    changes = compare_files(files.paths, stored_digests)
    result = AddResult(unchanged=changes.unchanged, skipped=files.skipped | changes.skipped)
    sentences = 0
    for group in write(target, changes.changed, progress):
        result.skipped.update(group.skipped)
        if group.documents:
            commit_fragments(target.path, group.fragments, group.documents)
        for name in group.documents:
            names = result.updated if name in stored_digests else result.added
            names.append(name)
        sentences += group.sentences
    return replace(result, sentences=sentences)


def find_files(paths: Sequence[str | os.PathLike[str]]) -> FileList:
    """Return the files at some paths and in the folders below them, each once.

    Hidden files and folders of datasets are left out of folders.

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

    def record_error(error: OSError) -> None:
        skipped[str(error.filename)] = f"{error.filename!r} cannot be opened: {error.strerror}"

    for path in paths:
        root = os.path.abspath(os.path.expanduser(os.fspath(path)))
        if not os.path.isdir(root):
            files[root] = None
            continue
        for folder, subfolders, names in os.walk(root, onerror=record_error):
            subfolders[:] = sorted(name for name in subfolders if _is_searched(folder, name))
            for name in sorted(names):
                file = os.path.join(folder, name)
                if not name.startswith(".") and (os.path.isfile(file) or os.path.islink(file)):
                    files[file] = None
    return FileList(list(files), skipped)


def _is_searched(folder: str, name: str) -> bool:
    return not name.startswith(".") and not os.path.isdir(os.path.join(folder, name, "_versions"))


def compare_files(paths: Sequence[str], stored_digests: Mapping[str, str]) -> FileChanges:
    """Return which files are new, changed, stored already or unreadable.

    Parameters
    ----------
    paths
        Absolute paths of files.
    stored_digests
        Digests of the documents in the library, by name.
    """
    changes = FileChanges()
    for path in paths:
        try:
            digest = hash_file(path)
        except FormatError as error:
            changes.skipped[path] = str(error)
            continue
        if stored_digests.get(path) == digest:
            changes.unchanged.append(path)
        else:
            changes.changed.append(ContentFile(path, digest))
    return changes


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits.

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
            check_size(path, os.fstat(file.fileno()).st_size)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise MissingFileError("path", "must be an existing file", got=path) from None
    except OSError as error:
        raise FormatError(
            "path", "must be a regular file that can be read", got=path, remedy=error.strerror or ""
        ) from error


def write_groups(
    target: IngestTarget, files: Sequence[ContentFile], progress: Progress | None
) -> Iterator[WrittenGroup]:
    """Read, encode and write files in groups of about `GROUP_SENTENCES` sentences.

    Parameters
    ----------
    target
        The library.
    files
        The files.
    progress
        Called with the number of sentences encoded and the number read so far.

    Yields
    ------
    WrittenGroup
        Documents that can be committed together.
    """
    key_format = read_key_format(target.schema)
    remaining = iter(files)
    encoded = 0
    while True:
        documents, skipped = _read_group(remaining)
        if not documents and not skipped:
            return
        texts = [text for document in documents for text in document.columns["text"]]
        encoded_before = encoded
        encoded += len(texts)

        def report(encoded_of_group: int, before: int = encoded_before, total: int = encoded) -> None:
            if progress:
                progress(before + encoded_of_group, total)

        fragments = []
        if texts:
            report(0)
            keys = encode_texts(texts, target.encoder, key_format, report)
            fragments = write_rows(target.path, target.schema, _make_batches(documents, keys, target.schema))
        yield WrittenGroup(fragments, [document.document for document in documents], len(texts), skipped)


def _read_group(files: Iterator[ContentFile]) -> tuple[list[SentenceRows], dict[str, str]]:
    documents: list[SentenceRows] = []
    skipped: dict[str, str] = {}
    sentences = 0
    for file in files:
        try:
            documents.append(read_sentences(file))
        except FormatError as error:
            skipped[file.path] = str(error)
            continue
        except MemoryError:
            skipped[file.path] = f"{file.path!r} is too large for this machine's memory"
            continue
        sentences += len(documents[-1])
        if sentences >= GROUP_SENTENCES:
            break
    return documents, skipped


def read_sentences(file: ContentFile) -> SentenceRows:
    """Read a file and split it into sentences; blank lines end paragraphs.

    Raises
    ------
    FormatError
        The file cannot be read.
    """
    source = read_file(file.path)
    columns: dict[str, list[Any]] = {column.name: [] for column in SENTENCE_COLUMNS}
    previous_end = 0
    paragraph = 0
    for index, (start, end) in enumerate(source.sentences):
        gap = source.text[previous_end:start]
        if index and _BLANK_LINE.search(gap):
            paragraph += 1
        row = (source.text[start:end], gap, file.path, index, paragraph, start, end, file.digest)
        for name, value in zip(columns, row, strict=True):
            columns[name].append(value)
        previous_end = end
    return SentenceRows(file.path, columns)


def encode_texts(
    texts: Sequence[str], encoder: Encoder, key_format: KeyFormat, report: Callable[[int], None]
) -> NDArray[Any]:
    """Return the keys of texts, one row each.

    Parameters
    ----------
    texts
        At least one.
    encoder
        The encoder.
    key_format
        Dimension and dtype that the keys must have.
    report
        Called with the number of texts encoded so far.

    Raises
    ------
    DtypeError, ShapeError, OptionError
        The encoder did not return one finite key of the library's dimension per text.
    """
    keys = []
    for first in range(0, len(texts), ENCODED_SENTENCES):
        batch = texts[first : first + ENCODED_SENTENCES]
        batch_keys = check_encoded(encoder, encoder.encode(batch), key_format.dimension, key_format.dtype)
        if len(batch_keys) != len(batch):
            raise ShapeError(
                "encoder", f"{encoder.name!r} must return one key per text, got {len(batch_keys)} for {len(batch)}"
            )
        keys.append(batch_keys)
        report(first + len(batch))
    return np.concatenate(keys)


def check_encoded(encoder: Encoder, keys: Any, dimension: int | None, dtype: str) -> NDArray[Any]:
    """Return keys from an encoder as an array [N, D], or raise.

    Raises
    ------
    DtypeError, ShapeError, OptionError
        The keys are not finite numbers, or have another dimension; the message names the encoder.
    """
    try:
        return check_vectors("keys", keys, dimension, dtype)
    except (DtypeError, ShapeError, OptionError) as error:
        raise type(error)(
            "encoder", f"{encoder.name!r} must return valid keys: {error.describe('its keys')}"
        ) from error


def _make_batches(documents: Sequence[SentenceRows], keys: NDArray[Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of each document; `keys` are those of all documents in order."""
    first = 0
    for document in documents:
        arrays = [vectors_to_arrow(keys[first : first + len(document)])]
        arrays += [pa.array(document.columns[column.name], column.type) for column in SENTENCE_COLUMNS]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        first += len(document)
