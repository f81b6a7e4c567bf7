"""Atomic changes of a library, each of which is one version of the dataset."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import lance
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.fragment import write_fragments

from keywise.errors import FormatError, KeywiseError
from keywise.library.checksums import (
    find_latest_version,
    list_dataset_files,
    list_fragment_files,
    list_index_folders,
    list_unrecorded,
    record_dataset,
)
from keywise.library.dataset import is_local, open_dataset, verify_files
from keywise.library.lance_errors import convert_lance_errors
from keywise.library.sql import quote_literal

MAX_ROWS_PER_FILE: Final = 1 << 20
MAX_COMMIT_ATTEMPTS: Final = 5
LOCK_FILE: Final = "_keywise.lock"
ABANDONED_SECONDS: Final = 86400
"""The writer of a data file of this age that no version names was killed."""

CANNOT_WRITE: Final = "cannot be written; its earlier versions are unchanged"


@contextmanager
def lock_writers(path: str) -> Iterator[None]:
    """Hold the lock that lets one process of this machine change a library at a time.

    At the end of the block the checksums of the files of its latest version are recorded. The system releases the lock
    when the process ends, even if it is killed. Object stores have no such lock: there Lance refuses conflicting
    changes, but not two writers that add the same new document at the same time.

    Raises
    ------
    FormatError
        The library cannot be written.
    """
    if not is_local(path):
        with convert_lance_errors(path, CANNOT_WRITE):
            yield
        return
    with convert_lance_errors(path, CANNOT_WRITE):
        os.makedirs(path, exist_ok=True)
        handle = os.open(os.path.join(path, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            earlier_version = find_latest_version(path) or 0
            yield
            dataset = lance.dataset(path)
            record_dataset(path, dataset, is_new=dataset.version > earlier_version)
        finally:
            os.close(handle)


def create_dataset(path: str, schema: pa.Schema) -> None:
    """Create a library without rows, unless another process was first."""
    with lock_writers(path):
        if open_dataset(path) is None:
            lance.write_dataset(schema.empty_table(), path, schema=schema, mode="create")


def sweep_abandoned(path: str) -> int:
    """Remove the data, deletion and index files that killed writers left in a local library.

    Parameters
    ----------
    path
        The library.

    Returns
    -------
    int
        Number of files removed.

    Raises
    ------
    FormatError
        The library is damaged or cannot be written.
    """
    if not is_local(path):
        return 0
    with lock_writers(path):
        oldest = time.time() - ABANDONED_SECONDS
        old_names = [
            name
            for folder in ("data", "_deletions", *list_index_folders(path))
            for name in list_unrecorded(path, folder)
            if os.lstat(os.path.join(path, name)).st_mtime < oldest
        ]
        if not old_names:
            return 0
        # A version whose writer was killed before it recorded checksums may name them.
        named: set[str] = set()
        for version in lance.dataset(path).versions():
            named.update(list_dataset_files(path, open_dataset(path, version["version"])))
        abandoned = [name for name in old_names if name not in named]
        for name in abandoned:
            os.unlink(os.path.join(path, name))
        return len(abandoned)


def write_rows(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> list[Any]:
    """Write rows to new files of a library and return their fragments.

    They become part of the library when `commit_fragments` is called with them.
    """
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    with convert_lance_errors(path, CANNOT_WRITE):
        fragments: list[Any] = write_fragments(
            reader, path, schema=schema, mode="append", max_rows_per_file=MAX_ROWS_PER_FILE
        )
    return fragments


def commit_fragments(path: str, fragments: Sequence[Any], documents: Sequence[str]) -> None:
    """Add fragments and remove all earlier rows of some documents, in one version.

    Parameters
    ----------
    path
        The library.
    fragments
        Fragments from `write_rows`.
    documents
        Names of the documents whose earlier rows are removed.

    Raises
    ------
    FormatError
        The library is damaged or cannot be written, or a new file is missing.
    KeywiseError
        Other writers changed the same rows at every attempt.
    """
    with lock_writers(path):
        for name in list_fragment_files(fragments) if is_local(path) else ():
            if not os.path.exists(os.path.join(path, name)):
                rule = f"{path!r} {CANNOT_WRITE}: the new file {name!r} is missing"
                raise FormatError("path", rule, remedy="add the documents again")
        for _ in range(MAX_COMMIT_ATTEMPTS):
            dataset = open_dataset(path)
            if documents:
                verify_files(path, dataset)  # before rows are copied or deleted
            removed_ids, updated = _delete_documents(dataset, documents)
            operation = lance.LanceOperation.Update(
                removed_fragment_ids=removed_ids, updated_fragments=updated, new_fragments=list(fragments)
            )
            try:
                lance.LanceDataset.commit(dataset, operation, read_version=dataset.version)
            except CommitConflictError:
                continue  # another writer removed rows of the same fragment: start from its version
            return
    raise KeywiseError(
        "path", "must not be changed by another writer meanwhile", got=path, remedy="nothing was changed; try again"
    )


def _delete_documents(dataset: Any, documents: Sequence[str]) -> tuple[list[int], list[Any]]:
    """Delete documents' rows; return the ids of emptied fragments, and changed fragments."""
    removed_ids: list[int] = []
    updated: list[Any] = []
    if not documents:
        return removed_ids, updated
    condition = f"document IN ({', '.join(map(quote_literal, documents))})"
    for fragment in dataset.get_fragments():
        if not fragment.count_rows(condition):
            continue
        remaining = fragment.delete(condition)
        if remaining is None:
            removed_ids.append(fragment.fragment_id)
        else:
            updated.append(remaining)
    return removed_ids, updated
