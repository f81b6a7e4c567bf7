"""Files become rows: found, told apart from those that are there already, cut into sentences and encoded."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from keywise.documents import read_file
from keywise.errors import DtypeError, FormatError
from keywise.library import commits
from keywise.library.encoder import Encoder
from keywise.library.schema import SENTENCE_COLUMNS, checked_numbers, key_array, key_type

GROUP_SENTENCES: Final = 65536
"""What is read, encoded and written at a time, in whole documents."""

SLICE_SENTENCES: Final = 1024
Progress = Callable[[int, int], None]

Files = Sequence[tuple[str, str]]
"""Paths, each with the digest of its content."""

_BLANK_LINE = re.compile(r"\n[^\S\n]*\r?\n|\r[^\S\r\n]*\r")


@dataclass(frozen=True)
class ReadDocument:
    """A document's sentences as the columns of a library hold them; see `SENTENCE_COLUMNS`."""

    name: str
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.columns["text"])


@dataclass(frozen=True)
class Target:
    """Where rows go and what makes their keys."""

    path: str
    schema: pa.Schema
    encoder: Encoder


@dataclass(frozen=True)
class Written:
    """Documents whose rows are written, to be committed: fragments, names, how many rows; and what was skipped, why."""

    fragments: list[Any]
    documents: list[str]
    sentences: int
    skipped: dict[str, str]


def find_files(paths: Sequence[str | os.PathLike[str]]) -> tuple[list[str], dict[str, str]]:
    """Give the absolute paths of files, those in folders included, each once; and folders that cannot be read, and why.

    Hidden files, what is no file and folders of datasets are left out of folders.

    Raises
    ------
    DtypeError
        When `paths` is no list of paths.
    """
    if isinstance(paths, str | os.PathLike):
        raise DtypeError(f"paths={os.fspath(paths)!r} is one path; give a list of paths")
    found: dict[str, None] = {}
    unread: dict[str, str] = {}

    def note(error: OSError) -> None:
        unread[str(error.filename)] = f"{error.filename!r} cannot be opened: {error.strerror}"

    for path in paths:
        top = os.path.abspath(os.path.expanduser(os.fspath(path)))
        if not os.path.isdir(top):
            found[top] = None
            continue
        for folder, folders, names in os.walk(top, onerror=note):
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and not os.path.isdir(os.path.join(folder, name, "_versions"))
            )
            files = [os.path.join(folder, name) for name in sorted(names) if not name.startswith(".")]
            found.update((file, None) for file in files if os.path.isfile(file) or os.path.islink(file))
    return list(found), unread


def content_hash(path: str) -> str:
    """Digest a file's bytes.

    Raises
    ------
    FormatError
        When it cannot be read.
    """
    # A pipe would keep its reader waiting for ever.
    if os.path.exists(path) and not os.path.isfile(path):
        raise FormatError(f"{path!r} is no file that can be read; name files and folders")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise FormatError(f"{path!r}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{path!r} cannot be opened: {error}") from error


def told_apart(paths: Sequence[str], known: Mapping[str, str]) -> tuple[Files, list[str], dict[str, str]]:
    """Give the files whose content is new, those whose content is the known one, and those that cannot be read."""
    changed: list[tuple[str, str]] = []
    unchanged: list[str] = []
    unread: dict[str, str] = {}
    for path in paths:
        try:
            digest = content_hash(path)
        except FormatError as error:
            unread[path] = str(error)
            continue
        if known.get(path) == digest:
            unchanged.append(path)
        else:
            changed.append((path, digest))
    return changed, unchanged, unread


def read_document(path: str, digest: str) -> ReadDocument:
    """Read a file's sentences; paragraphs end at blank lines.

    Raises
    ------
    FormatError
        When it cannot be read.
    """
    source = read_file(path)
    columns: dict[str, list[Any]] = {field.name: [] for field in SENTENCE_COLUMNS}
    before = paragraph = 0
    for number, (start, end) in enumerate(source.sentences):
        gap = source.text[before:start]
        paragraph += bool(number and _BLANK_LINE.search(gap))
        row = (source.text[start:end], gap, path, number, paragraph, start, end, digest)
        for name, value in zip(columns, row, strict=True):
            columns[name].append(value)
        before = end
    return ReadDocument(path, columns)


def encode(
    texts: Sequence[str], encoder: Encoder, dimension: int | None, dtype: str, progress: Callable[[int], None]
) -> NDArray[Any]:
    """Give the keys of sentences; `progress` is called with the number of those done.

    Raises
    ------
    DtypeError, ShapeError, OptionError
        When the encoder gives no finite numbers, or not a row of the library's dimension per text.
    """
    keys = []
    for first in range(0, len(texts), SLICE_SENTENCES):
        some = texts[first : first + SLICE_SENTENCES]
        made = checked_numbers(f"keys of encoder {encoder.name!r}", encoder.encode(some), dimension, dtype)
        if len(made) != len(some):
            raise FormatError(f"encoder {encoder.name!r} gave {len(made)} keys for {len(some)} texts; mend it")
        keys.append(made)
        dimension = made.shape[1]
        progress(first + len(some))
    return np.concatenate(keys)


def batches(documents: Sequence[ReadDocument], keys: NDArray[Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Give the rows of documents, a batch each, with their keys in the same order."""
    first = 0
    for document in documents:
        arrays = [key_array(keys[first : first + len(document)])]
        arrays += [pa.array(document.columns[field.name], field.type) for field in SENTENCE_COLUMNS]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        first += len(document)


def read_and_encode(target: Target, files: Files, progress: Progress | None) -> Iterator[Written]:
    """Read, encode and write files in groups; yield each group to be committed."""
    dimension, dtype = key_type(target.schema, target.path)
    rest, encoded = iter(files), 0
    while True:
        documents, skipped = _next_group(rest)
        if not documents and not skipped:
            return
        texts = [text for document in documents for text in document.columns["text"]]
        before, known = encoded, encoded + len(texts)

        def report(done: int, before: int = before, known: int = known) -> None:
            if progress:
                progress(before + done, known)

        written = []
        if texts:
            report(0)
            keys = encode(texts, target.encoder, dimension, dtype, report)
            written = commits.write(target.path, target.schema, batches(documents, keys, target.schema))
        encoded = known
        yield Written(written, [document.name for document in documents], len(texts), skipped)


def _next_group(files: Iterator[tuple[str, str]]) -> tuple[list[ReadDocument], dict[str, str]]:
    documents, skipped, sentences = list[ReadDocument](), dict[str, str](), 0
    for path, digest in files:
        try:
            documents.append(read_document(path, digest))
        except FormatError as error:
            skipped[path] = str(error)
            continue
        sentences += len(documents[-1])
        if sentences >= GROUP_SENTENCES:
            break
    return documents, skipped
