"""A library on many machines: Ray runs the fragments' attention and the encoding; partials and row numbers travel.

Every machine opens the library by its path, and reads documents by theirs: both lie in storage that all of them share.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import lance
import pyarrow as pa
import ray
from lance.fragment import FragmentMetadata
from ray.exceptions import RayTaskError

from keywise.attention.targets import set_num_threads
from keywise.errors import FormatError, KeywiseError, OptionError
from keywise.library import ingest
from keywise.library.mapped import MappedKeys
from keywise.library.part import Part
from keywise.library.query import Query
from keywise.library.scan import attend_fragments
from keywise.library.schema import key_type

RETRIES: Final = 16
"""How often Ray attends to a fragment again whose worker was lost; Ray Data goes by rules of its own."""

FILES_PER_TASK: Final = 16


def connect() -> None:
    """Connect to the cluster that RAY_ADDRESS names or that runs here, else start one of this machine alone."""
    if ray.is_initialized():
        return
    try:
        ray.init(log_to_driver=False)
    except ConnectionError as error:
        raise OptionError(
            f"no Ray cluster answers: {error}; start one, or unset RAY_ADDRESS to use this machine"
        ) from error


@contextmanager
def _mistakes_told() -> Iterator[None]:
    """Raise what keywise raised in a worker as it was, without Ray's account of where."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, KeywiseError):
            raise error.cause from error
        raise


def attend_on_cluster(path: str, dataset: Any, query: Query) -> Iterator[Part]:
    """Yield the part of each fragment, in order; what travels is the query and a part per fragment."""
    connect()
    asked = ray.put(query)
    version = dataset.version
    work = [_attend.remote(path, version, fragment.fragment_id, asked) for fragment in dataset.get_fragments()]
    for part in work:
        with _mistakes_told():
            found = ray.get(part)
        yield found


@ray.remote(num_cpus=1, max_retries=RETRIES)
def _attend(path: str, version: int, fragment: int, query: Query) -> Part:
    set_num_threads(1)
    dataset, maps = _library(path, version)
    (part,) = attend_fragments(dataset, [dataset.get_fragment(fragment)], query, maps)
    return part


@lru_cache(maxsize=4)
def _library(path: str, version: int) -> tuple[Any, MappedKeys]:
    """Keep a library open in a worker between tasks."""
    try:
        dataset = lance.dataset(path, version=version)
    except (ValueError, OSError) as error:
        raise FormatError(
            f"{path!r} cannot be opened on {platform.node()!r}, a machine of the cluster; keep it where all of them "
            "reach it"
        ) from error
    return dataset, MappedKeys(*key_type(dataset.schema, path))


def read_and_encode(target: ingest.Target, files: ingest.Files, progress: ingest.Progress | None) -> ingest.Written:
    """Read, encode and write files with Ray Data; the one result is to be committed at once.

    A task that Ray runs again writes its rows again, beside those of the lost one, which no commit ever names.
    """
    if not files:
        return ingest.Written([], [], 0, {})
    connect()
    items = [{"number": number, "path": name, "digest": digest} for number, (name, digest) in enumerate(files)]
    blocks = max(1, -(-len(items) // FILES_PER_TASK))
    work = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        _encode_batch,
        fn_kwargs={"target": target},
        batch_size=None,
        batch_format="pyarrow",
    )
    found = []
    sentences = 0
    with _mistakes_told():
        for row in work.iter_rows():
            found.append(row)
            sentences += row["sentences"]
            if progress:
                progress(sentences, sentences)
    found.sort(key=lambda row: row["number"])  # blocks come as they are done
    return ingest.Written(
        fragments=[FragmentMetadata.from_json(fragment) for row in found for fragment in row["fragments"]],
        documents=[name for row in found for name in row["documents"]],
        sentences=sentences,
        skipped={name: reason for row in found for name, reason in json.loads(row["skipped"]).items()},
    )


def _encode_batch(batch: Any, target: ingest.Target) -> Any:
    files = list(zip(batch["path"].to_pylist(), batch["digest"].to_pylist(), strict=True))
    rows = []
    for number, written in enumerate(ingest.read_and_encode(target, files, None)):
        rows.append(
            {
                "number": batch["number"][0].as_py() + number / len(files),
                "fragments": [json.dumps(fragment.to_json()) for fragment in written.fragments],
                "documents": written.documents,
                "skipped": json.dumps(written.skipped),
                "sentences": written.sentences,
            }
        )
    return pa.Table.from_pylist(rows, _ROWS)


_ROWS: Final = pa.schema(
    [
        ("number", pa.float64()),
        ("fragments", pa.list_(pa.string())),
        ("documents", pa.list_(pa.string())),
        ("skipped", pa.string()),
        ("sentences", pa.int64()),
    ]
)
