"""Atomic changes of a library, each of which is one version of the dataset."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import lance
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.fragment import write_fragments

from keywise.errors import KeywiseError
from keywise.library.dataset import is_local, open_dataset
from keywise.library.sql import quote_literal

MAX_ROWS_PER_FILE: Final = 1 << 20
MAX_COMMIT_ATTEMPTS: Final = 5
LOCK_FILE: Final = "_keywise.lock"


@contextmanager
def lock_writers(path: str) -> Iterator[None]:
    """Hold the lock that lets one process of this machine write at a time.

    The system releases the lock when the process ends, even if it is killed. Object stores have no such lock: there
    Lance refuses conflicting changes, but not two writers that add the same new document at the same time.
    """
    if not is_local(path):
        yield
        return
    os.makedirs(path, exist_ok=True)
    handle = os.open(os.path.join(path, LOCK_FILE), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def create_dataset(path: str, schema: pa.Schema) -> None:
    """Create a library without rows, unless another process was first."""
    with lock_writers(path):
        if open_dataset(path) is None:
            lance.write_dataset(schema.empty_table(), path, schema=schema, mode="create")


def write_rows(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> list[Any]:
    """Write rows to new files of a library and return their fragments.

    They become part of the library when `commit_fragments` is called with them.
    """
    reader = pa.RecordBatchReader.from_batches(schema, batches)
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
    KeywiseError
        Other writers changed the same rows at every attempt.
    """
    with lock_writers(path):
        for _ in range(MAX_COMMIT_ATTEMPTS):
            dataset = lance.dataset(path)
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
