"""Commits: everything a library gains or loses is there in one version or in none, and of two writers none is lost."""

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
from keywise.library.opening import is_local, opened
from keywise.library.sql import quoted

ROWS_PER_FILE: Final = 1 << 20
TRIES: Final = 5
LOCK: Final = "_keywise.lock"


@contextmanager
def alone(path: str) -> Iterator[None]:
    """Keep other writers of this machine waiting; the lock goes when the process does, however it ends.

    Object stores have no such lock: there Lance refuses what conflicts, which two writers that add one same new
    document at the same moment do not.
    """
    if not is_local(path):
        yield
        return
    os.makedirs(path, exist_ok=True)
    handle = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def make(path: str, schema: pa.Schema) -> None:
    """Make a library without rows, unless another process was first."""
    with alone(path):
        if opened(path) is None:
            lance.write_dataset(schema.empty_table(), path, schema=schema, mode="create")


def write(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> list[Any]:
    """Write rows beside a library's others; they are no part of it before they are committed."""
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    written: list[Any] = write_fragments(reader, path, schema=schema, mode="append", max_rows_per_file=ROWS_PER_FILE)
    return written


def commit(path: str, written: Sequence[Any], documents: Sequence[str]) -> int:
    """Put written rows in the place of all rows of some documents, in one version; give the version.

    Raises
    ------
    KeywiseError
        When other writers were first, time and again.
    """
    with alone(path):
        for _ in range(TRIES):
            dataset = lance.dataset(path)
            removed, updated = _without(dataset, documents)
            operation = lance.LanceOperation.Update(
                removed_fragment_ids=removed, updated_fragments=updated, new_fragments=list(written)
            )
            try:
                done: int = lance.LanceDataset.commit(dataset, operation, read_version=dataset.version).version
            except CommitConflictError:
                continue  # another writer took rows out of the same fragment: look again at what is there
            return done
    raise KeywiseError(f"{path!r} is being changed by another writer; nothing was changed here: do it again")


def _without(dataset: Any, documents: Sequence[str]) -> tuple[list[int], list[Any]]:
    """Give the fragments that lose all rows, and those that lose some, when documents go."""
    removed: list[int] = []
    updated: list[Any] = []
    if not documents:
        return removed, updated
    condition = f"document IN ({', '.join(map(quoted, documents))})"
    for fragment in dataset.get_fragments():
        if fragment.count_rows(condition):
            left = fragment.delete(condition)
            if left is None:
                removed.append(fragment.fragment_id)
            else:
                updated.append(left)
    return removed, updated
