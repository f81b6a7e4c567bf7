"""Add documents to a library: split, encode and commit files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from keywise.documents import read_file
from keywise.errors import DtypeError, FormatError, OptionError, ShapeError
from keywise.library.arrow_arrays import vectors_to_arrow
from keywise.library.dataset import is_local, open_dataset, verify_files
from keywise.library.file_changes import ContentFile, CopiedDocument, FileList, compare_files
from keywise.library.lance_errors import convert_lance_errors
from keywise.library.results import AddResult
from keywise.library.schema import SENTENCE_COLUMNS, KeyFormat, check_vectors, read_key_format
from keywise.library.sentence_rows import SentenceRows, make_rows
from keywise.library.sql import quote_literal
from keywise.library.transactions import CANNOT_WRITE, commit_fragments, write_rows
from keywise.library.unfinished_keys import UnfinishedKeys
from keywise.models.sentence_encoder import Encoder
from keywise.util.progress import Progress, Status, ignore_status

GROUP_SENTENCES: Final = 65536
"""Documents of more than about this many sentences are never committed together."""

COMMIT_SECONDS: Final = 5.0
COMMIT_SHARE: Final = 0.02
"""Encoded documents are committed after so many seconds, or after this share of the time so far, if that is longer."""

ENCODED_SENTENCES: Final = 256
"""Sentences that are encoded between two reports of progress."""

LONG_SENTENCES: Final = 1024
"""The keys of a document of so many sentences are kept beside the library until all are encoded."""

COPIED_DOCUMENTS: Final = 64
"""Documents whose rows are copied together."""


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
    *,
    prune: bool = False,
    progress: Progress | None = None,
    status: Status | None = None,
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
    prune
        Whether to remove documents whose files are gone.
    progress
        Called in each step with the number of files compared or bytes encoded, and of all.
    status
        Called with a line of text before each step.

    Returns
    -------
    AddResult
        Its version is still 0.
    """
    announce = status or ignore_status
    announce(f"Comparing {len(files.paths):,} files")
    changes = compare_files(files, stored_digests, progress)
    result = AddResult(unchanged=changes.unchanged, skipped=changes.skipped)
    if changes.copied:
        announce(f"Copying the keys of {len(changes.copied):,} documents")
        _commit_copies(target, changes.copied, result, stored_digests)
    if prune and changes.gone:
        commit_fragments(target.path, [], changes.gone)
        result.removed.extend(changes.gone)
    else:
        result.gone.extend(changes.gone)
    sentences = 0
    if changes.changed:
        announce(f"Encoding {len(changes.changed):,} documents")
    for group in write(target, changes.changed, progress):
        result.skipped.update(group.skipped)
        if group.documents:
            commit_fragments(target.path, group.fragments, group.documents)
        for name in group.documents:
            names = result.updated if name in stored_digests else result.added
            names.append(name)
        sentences += group.sentences
    return replace(result, sentences=sentences)


def _commit_copies(
    target: IngestTarget, copies: Sequence[CopiedDocument], result: AddResult, stored_digests: Mapping[str, str]
) -> None:
    """Commit the rows of stored documents under the names of other files, without encoding them again."""
    dataset = open_dataset(target.path)
    verify_files(target.path, dataset)
    for first in range(0, len(copies), COPIED_DOCUMENTS):
        group = copies[first : first + COPIED_DOCUMENTS]
        names = ", ".join(quote_literal(origin) for origin in dict.fromkeys(copy.origin for copy in group))
        with convert_lance_errors(target.path, "cannot be read"):
            table = dataset.scanner(columns=target.schema.names, filter=f"document IN ({names})").to_table()
        fragments = write_rows(target.path, target.schema, _rename_rows(table, group, target.schema))
        moved = [copy.origin for copy in group if copy.is_moved]
        commit_fragments(target.path, fragments, [*(copy.file.path for copy in group), *moved])
        for copy in group:
            if copy.is_moved:
                result.moved[copy.origin] = copy.file.path
            elif copy.file.path in stored_digests:
                result.updated.append(copy.file.path)
            else:
                result.added.append(copy.file.path)


def _rename_rows(table: Any, copies: Sequence[CopiedDocument], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of each copied document with its new name."""
    for copy in copies:
        rows = table.filter(pc.equal(table["document"], copy.origin)).combine_chunks()
        names = pa.array([copy.file.path] * len(rows), pa.string())
        columns = [names if name == "document" else rows[name] for name in schema.names]
        yield from pa.Table.from_arrays(columns, schema=schema).to_batches()


def write_groups(
    target: IngestTarget, files: Sequence[ContentFile], progress: Progress | None
) -> Iterator[WrittenGroup]:
    """Read, encode and write files in groups, one every few seconds.

    When the encoder fails or the user interrupts it, the documents that were encoded before are written first.

    Parameters
    ----------
    target
        The library.
    files
        The files.
    progress
        Called with the number of bytes encoded and of all files.

    Yields
    ------
    WrittenGroup
        Documents that can be committed together.
    """
    started = time.monotonic()
    pending = _PendingGroup(target, started)
    try:
        for group in _encode_files(target, files, progress):
            pending.extend(group)
            if is_commit_due(pending.started, started) or pending.sentences >= GROUP_SENTENCES:
                committed, pending = pending, _PendingGroup(target, time.monotonic())
                yield committed.write()
                committed.remove_unfinished()
    except GeneratorExit:
        raise
    except BaseException:
        if pending.documents:
            yield pending.write()
            pending.remove_unfinished()
        raise
    if pending.documents or pending.skipped:
        yield pending.write()
        pending.remove_unfinished()


def is_commit_due(group_started: float, started: float) -> bool:
    """Return whether documents have waited long enough for their commit.

    Parameters
    ----------
    group_started, started
        When the first of them, and when all work began, by `time.monotonic`.
    """
    now = time.monotonic()
    return now - group_started > max(COMMIT_SECONDS, COMMIT_SHARE * (now - started))


@dataclass
class _EncodedFiles:
    """Some files with the keys of all their sentences, and those that could not be read."""

    documents: list[SentenceRows] = field(default_factory=list)
    keys: list[NDArray[Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    unfinished: list[UnfinishedKeys] = field(default_factory=list)

    @property
    def sentences(self) -> int:
        return sum(map(len, self.documents))

    def remove_unfinished(self) -> None:
        for keys in self.unfinished:
            keys.remove()

    def extend(self, other: _EncodedFiles) -> None:
        self.documents += other.documents
        self.keys += other.keys
        self.skipped |= other.skipped
        self.unfinished += other.unfinished


class _PendingGroup(_EncodedFiles):
    """Encoded files that are to be written."""

    def __init__(self, target: IngestTarget, started: float) -> None:
        super().__init__()
        self._target = target
        self.started = started

    def write(self) -> WrittenGroup:
        fragments = []
        if self.documents:
            batches = _make_batches(self.documents, np.concatenate(self.keys), self._target.schema)
            fragments = write_rows(self._target.path, self._target.schema, batches)
        names = [document.document for document in self.documents]
        return WrittenGroup(fragments, names, self.sentences, self.skipped)


def _encode_files(
    target: IngestTarget, files: Sequence[ContentFile], progress: Progress | None
) -> Iterator[_EncodedFiles]:
    """Yield files with their keys, about `ENCODED_SENTENCES` sentences at a time, or a longer document."""
    key_format = read_key_format(target.schema)
    total_bytes = sum(file.file_bytes for file in files)
    done_bytes = 0
    remaining = iter(files)
    while True:
        group, group_bytes = _read_files(remaining)
        if not group.documents and not group.skipped:
            return
        *short, last = [document.encoded_texts for document in group.documents] or [[]]
        texts = [text for texts_of_one in short for text in texts_of_one]
        if is_local(target.path) and len(last) >= LONG_SENTENCES:
            group.unfinished.append(UnfinishedKeys(target.path, last, target.encoder.fingerprint, key_format))
        else:
            texts += last
            last = []

        def report(
            encoded: int, before: int = done_bytes, size: int = group_bytes, count: int = group.sentences
        ) -> None:
            if progress:
                progress(before + size * encoded // max(count, 1), total_bytes)

        report(0)
        if texts:
            group.keys.append(encode_texts(texts, target.encoder, key_format, report))
        if last:
            report_last = _count_from(len(texts), report)
            group.keys.append(_encode_long(last, target, key_format, group.unfinished[-1], report_last))
        done_bytes += group_bytes
        yield group


def _read_files(files: Iterator[ContentFile]) -> tuple[_EncodedFiles, int]:
    """Return the next files without keys, and their bytes."""
    group = _EncodedFiles()
    group_bytes = 0
    for file in files:
        group_bytes += file.file_bytes
        try:
            group.documents.append(make_rows(read_file(file.path), file.path, file.digest))
        except FormatError as error:
            group.skipped[file.path] = str(error)
            continue
        except MemoryError:
            group.skipped[file.path] = f"{file.path!r} is too large for this machine's memory"
            continue
        if group.sentences >= min(ENCODED_SENTENCES, GROUP_SENTENCES):
            break
    return group, group_bytes


def _encode_long(
    texts: Sequence[str],
    target: IngestTarget,
    key_format: KeyFormat,
    unfinished: UnfinishedKeys,
    report: Callable[[int], None],
) -> NDArray[Any]:
    """Return the keys of a long document, from those that an interrupted call left on."""
    started = saved = time.monotonic()
    keys = [unfinished.load()[: len(texts)]]
    count = len(keys[0])
    try:
        while count < len(texts):
            report(count)
            batch = texts[count : count + ENCODED_SENTENCES]
            keys.append(encode_texts(batch, target.encoder, key_format, _ignore_count))
            count += len(batch)
            if is_commit_due(saved, started):
                _save(target, unfinished, keys)
                saved = time.monotonic()
    except BaseException:
        if count > len(keys[0]):
            _save(target, unfinished, keys)
        raise
    report(count)
    return np.concatenate(keys)


def _save(target: IngestTarget, unfinished: UnfinishedKeys, keys: Sequence[NDArray[Any]]) -> None:
    with convert_lance_errors(target.path, CANNOT_WRITE):
        unfinished.save(np.concatenate(keys))


def _count_from(first: int, report: Callable[[int], None]) -> Callable[[int], None]:
    return lambda count: report(first + count)


def _ignore_count(_count: int) -> None:
    pass


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
