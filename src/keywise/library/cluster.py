"""Attention to a library, and encoding for it, on a Ray cluster.

Each machine opens the library and the documents by their paths, so both lie in storage that all machines share. Only
queries, partials and file names are sent.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa
import ray
from lance.fragment import FragmentMetadata
from ray.exceptions import RayTaskError

from keywise.attention.targets import set_num_threads
from keywise.errors import FormatError, KeywiseError, OptionError
from keywise.library.dataset import open_dataset, verify_files
from keywise.library.file_changes import ContentFile
from keywise.library.ingest import IngestTarget, WrittenGroup, is_commit_due, write_groups
from keywise.library.key_pages import KeyPages
from keywise.library.partials import LibraryPartial
from keywise.library.query import Query
from keywise.library.scan import attend_fragments
from keywise.library.schema import read_key_format
from keywise.util.progress import Progress

MAX_RETRIES: Final = 16
"""Most retries of a fragment whose worker was lost."""

FILES_PER_TASK: Final = 16

_WRITTEN_SCHEMA: Final = pa.schema(
    [
        ("order", pa.float64()),
        ("fragments", pa.list_(pa.string())),
        ("documents", pa.list_(pa.string())),
        ("skipped", pa.string()),
        ("sentences", pa.int64()),
        ("bytes", pa.int64()),
    ]
)


def connect() -> None:
    """Connect to a Ray cluster.

    It is the one that RAY_ADDRESS names, or that runs here; else one is started on this machine.

    Raises
    ------
    OptionError
        The cluster does not answer.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(log_to_driver=False)
    except ConnectionError as error:
        raise OptionError(
            "engine",
            "must be 'local' while no Ray cluster answers",
            got="ray",
            remedy=f"{error}; start a cluster, or unset RAY_ADDRESS to use this machine",
        ) from error


def attend_on_cluster(path: str, dataset: Any, query: Query) -> Iterator[LibraryPartial]:
    """Compute attention over the rows of each fragment on the cluster.

    Parameters
    ----------
    path
        The library, as all machines reach it.
    dataset
        Its Lance dataset.
    query
        The query.

    Yields
    ------
    LibraryPartial
        One per fragment, in order.
    """
    connect()
    shared_query = ray.put(query)
    tasks = [
        _attend_fragment.remote(path, dataset.version, fragment.fragment_id, shared_query)
        for fragment in dataset.get_fragments()
    ]
    for task in tasks:
        with _unwrap_errors():
            partial = ray.get(task)
        yield partial


@ray.remote(num_cpus=1, max_retries=MAX_RETRIES)
def _attend_fragment(path: str, version: int, fragment_id: int, query: Query) -> LibraryPartial:
    set_num_threads(1)
    dataset, key_pages = _open_in_worker(path, version)
    fragment = dataset.get_fragment(fragment_id)
    verify_files(path, dataset, [fragment])
    (partial,) = attend_fragments(dataset, [fragment], query, key_pages)
    return partial


@lru_cache(maxsize=4)
def _open_in_worker(path: str, version: int) -> tuple[Any, KeyPages]:
    dataset = open_dataset(path, version)
    if dataset is None:
        raise FormatError(
            "path",
            f"must be reachable from every machine of the cluster, got {path!r} on {platform.node()!r}",
            remedy="keep the library in shared storage",
        )
    return dataset, KeyPages(path, read_key_format(dataset.schema))


def write_groups_on_cluster(
    target: IngestTarget, files: Sequence[ContentFile], progress: Progress | None
) -> Iterator[WrittenGroup]:
    """Read, encode and write files with Ray Data.

    A task that Ray repeats writes its rows again; no commit names the rows of the lost one.

    Parameters
    ----------
    target
        The library, as all machines reach it.
    files
        The files.
    progress
        Called with the number of bytes encoded and of all files.

    Yields
    ------
    WrittenGroup
        Documents that can be committed together, those that were encoded within a few seconds.
    """
    if not files:
        return
    connect()
    started = time.monotonic()
    items = [
        {"order": order, "path": file.path, "digest": file.digest, "bytes": file.file_bytes}
        for order, file in enumerate(files)
    ]
    task_count = max(1, -(-len(items) // FILES_PER_TASK))
    written = ray.data.from_items(items, override_num_blocks=task_count).map_batches(
        _write_batch,
        fn_kwargs={"target": target},
        batch_size=None,
        batch_format="pyarrow",
    )
    total_bytes = sum(file.file_bytes for file in files)
    rows: list[dict[str, Any]] = []
    done_bytes = 0
    group_started = started
    try:
        with _unwrap_errors():
            for row in written.iter_rows():
                rows.append(row)
                done_bytes += row["bytes"]
                if progress:
                    progress(done_bytes, total_bytes)
                if is_commit_due(group_started, started):
                    joined, rows = _join_rows(rows), []
                    yield joined
                    group_started = time.monotonic()
    except GeneratorExit:
        raise
    except BaseException:  # what was encoded before is kept
        if rows:
            yield _join_rows(rows)
        raise
    if rows:
        yield _join_rows(rows)


def _join_rows(rows: list[dict[str, Any]]) -> WrittenGroup:
    rows.sort(key=lambda row: row["order"])  # tasks end in any order
    return WrittenGroup(
        fragments=[FragmentMetadata.from_json(fragment) for row in rows for fragment in row["fragments"]],
        documents=[name for row in rows for name in row["documents"]],
        sentences=sum(row["sentences"] for row in rows),
        skipped={name: reason for row in rows for name, reason in json.loads(row["skipped"]).items()},
    )


def _write_batch(batch: Any, target: IngestTarget) -> Any:
    paths = batch["path"].to_pylist()
    digests = batch["digest"].to_pylist()
    sizes = batch["bytes"].to_pylist()
    files = [ContentFile(*fields) for fields in zip(paths, digests, sizes, strict=True)]
    file_bytes = dict(zip(paths, sizes, strict=True))
    first_order = batch["order"][0].as_py()
    rows = [
        {
            "order": first_order + index / len(files),
            "fragments": [json.dumps(fragment.to_json()) for fragment in group.fragments],
            "documents": group.documents,
            "skipped": json.dumps(group.skipped),
            "sentences": group.sentences,
            "bytes": sum(file_bytes[name] for name in [*group.documents, *group.skipped]),
        }
        for index, group in enumerate(write_groups(target, files, None))
    ]
    return pa.Table.from_pylist(rows, _WRITTEN_SCHEMA)


@contextmanager
def _unwrap_errors() -> Iterator[None]:
    """Raise an error of keywise in a worker without Ray's wrapper."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, KeywiseError):
            raise error.cause from error
        raise
