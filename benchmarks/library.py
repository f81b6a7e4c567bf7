"""A library of keys: exact attention to a million of them against vector stores, and on a cluster."""

# ruff: noqa: PLC0415  (Lance, FAISS, Ray and models are slow to import: only the processes that measure need them)

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import library_evidence
from benchmarks.backends.backend import Backend
from benchmarks.machine import available_cpus, measure_limits
from benchmarks.markdown import number, table, thread_count
from benchmarks.processes import stream
from benchmarks.results import Run
from benchmarks.timing import Effort, take_turns
from keywise.errors import OptionError

Array = NDArray[Any]

DIMENSION = 384
FRAGMENT_ROWS = 65536
TOP = 10
TEMPERATURE = 0.05
QUERIES = (1, 32)
KEYWISE, WITH_VALUE, LANCE = "keywise", "keywise, weighted keys too", "Lance, flat, top 10 only"
ADDRESSED = (KEYWISE, WITH_VALUE, LANCE)
"""Who names rows by their address instead of their number."""

EFFORT = Effort(seconds=20.0, rounds=9, fewest=5)
TOLERANCE = 1e-3
"""Largest error of a weight, relative to the largest."""

SAMPLE_SECONDS = 0.002


def plan(tasks: Sequence[str] | None, data: Path | None) -> list[str]:
    """List the tasks wanted; None for those that need no data, and evidence if there are any.

    Raises
    ------
    OptionError
        If a name is unknown, or evidence is wanted without data.

    Examples
    --------
    >>> from benchmarks.library import plan
    >>> plan(None, None)
    ['speed', 'cluster']
    """
    if unknown := sorted(set(tasks or ()) - set(TASKS)):
        raise OptionError(f"--task {unknown[0]!r} is not known; there are {', '.join(TASKS)}")
    wanted = [task for task in TASKS if task in (tasks or TASKS) and (tasks or task != "evidence" or data)]
    if "evidence" in wanted and data is None:
        raise OptionError("--task evidence needs --data, a file of questions in SQuAD's format")
    return wanted


def count(tasks: Sequence[str]) -> int:
    """Give the number of findings that `run` yields."""
    return sum({"speed": len(QUERIES), "cluster": len(WORKERS)}.get(task, 1) for task in tasks)


def run(tasks: Sequence[str], rows: int, data: Path | None, questions: int) -> Iterator[dict[str, Any]]:
    """Measure tasks on all CPUs, each in processes of its own.

    Parameters
    ----------
    tasks
        What `plan` gave.
    rows
        Number of keys.
    data
        Questions in SQuAD's format, for evidence.
    questions
        How many to ask of each article.
    """
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            for finding in TASKS[task](Path(folder), rows, data, questions):
                yield {"task": task, **finding}


def make_library(path: Path, rows: int) -> Any:
    """Make a library of random keys of length 1 in float16, in fragments as `Library.add` makes them."""
    import keywise as kw

    library = kw.Library.open(path, "a")
    random = np.random.default_rng(0)
    for first in range(library.dataset.count_rows() if library.dataset else 0, rows, FRAGMENT_ROWS):
        keys = random.standard_normal((min(FRAGMENT_ROWS, rows - first), DIMENSION), np.float32)
        library.add_keys(keys / np.linalg.norm(keys, axis=1, keepdims=True))
    return library


def _speed(folder: Path, rows: int, _data: Path | None, _questions: int) -> Iterator[dict[str, Any]]:
    threads = len(available_cpus())
    (made,) = stream(prepare, folder, rows, threads=threads)
    # In processes of their own: what others freed before must not hide what is taken.
    extra = {queries: next(stream(measure_extra, made, queries, threads=threads)) for queries in QUERIES}
    for finding in stream(measure_speed, made, EFFORT, threads=threads):
        yield {**finding, "extra_bytes": extra[finding["queries"]]}


def prepare(folder: Path, rows: int) -> Iterator[Path]:
    """Make the library of one large fragment, as it is after `Library.compact`, and give its path."""
    library = make_library(folder / "whole", rows)
    library.compact()
    yield folder / "whole"


def measure_extra(path: Path, queries: int) -> Iterator[int]:
    """Give by how much the process' own memory grows at most while it attends; the mapped file is not its own."""
    import keywise as kw

    library = kw.Library.open(path)
    yield _extra_bytes(partial(_attend, library, _queries(queries), None))


def measure_speed(path: Path, effort: Effort) -> Iterator[dict[str, Any]]:
    """Time one query and many over all keys, in turns, after everyone has named the same rows."""
    import keywise as kw
    from keywise.library.schema import numbers_of

    threads = len(available_cpus())
    library = kw.Library.open(path)
    bytes_per_second = measure_limits(threads).read_bytes_per_second
    keys = np.concatenate([numbers_of(batch["key"]) for batch in library.dataset.to_batches(columns=["key"])])
    ways_of, numbers = _rivals(library, keys, threads), _numbers_of(library)
    for queries in QUERIES:
        asked = _queries(queries)
        truth = _truth(keys, asked)
        ways = {name: Backend(partial(call, asked)) for name, call in ways_of.items()}
        wrong = {}
        if queries > 1:
            wrong[LANCE] = "takes one query at a time"
            del ways[LANCE]
        for name, way in ways.items():
            rows_named, weights = way.call()
            counted = numbers(rows_named) if name in ADDRESSED else rows_named
            if said := _wrong(counted, weights, truth):
                wrong[name] = said
        calls, samples = take_turns({name: way for name, way in ways.items() if name not in wrong}, effort)
        yield {
            "queries": queries,
            "rows": len(keys),
            "dimension": DIMENSION,
            "threads": threads,
            "calls": calls,
            "samples": samples,
            "excluded": wrong | {name: "not installed" for name in ("FAISS",) if not find_spec("faiss")},
            "read_bytes_per_second": bytes_per_second,
        }


def _queries(count: int) -> Array:
    random = np.random.default_rng(1)
    queries = random.standard_normal((count, DIMENSION), np.float32)
    lengths: Array = np.linalg.norm(queries, axis=1, keepdims=True)
    return (queries / lengths).astype(np.float16)


def _attend(library: Any, queries: Array, values: str | None) -> tuple[Array, Array | None]:
    found = library.attend(queries, temperature=TEMPERATURE, top=TOP, values=values)
    return found.rows, found.weights


def _numbers_of(library: Any) -> Callable[[Array], Array]:
    """Give what turns addresses of rows into their numbers, as the others count them."""
    fragments = library.dataset.get_fragments()
    first = np.cumsum([0, *(fragment.physical_rows for fragment in fragments)])
    begins = {fragment.fragment_id: int(number) for fragment, number in zip(fragments, first, strict=False)}
    return np.vectorize(lambda address: begins[address >> 32] + (address & 0xFFFFFFFF), otypes=[np.int64])


def _rivals(library: Any, keys: Array, threads: int) -> dict[str, Callable[[Array], tuple[Array, Array | None]]]:
    """Give everyone ready to name the heaviest rows, and their weights where one can."""
    wide = keys.astype(np.float32)
    ways: dict[str, Callable[[Array], tuple[Array, Array | None]]] = {
        KEYWISE: lambda queries: _attend(library, queries, None),
        WITH_VALUE: lambda queries: _attend(library, queries, "key"),
        "NumPy float32": lambda queries: _numpy(wide, queries),
        LANCE: lambda queries: (_lance(library, queries), None),
    }
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(threads)
        flat = faiss.IndexFlatIP(DIMENSION)
        half = faiss.IndexScalarQuantizer(DIMENSION, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        for index in (flat, half):
            index.train(wide[:1])
            index.add(wide)
        for name, index in (("float32", flat), ("float16", half)):
            ways[f"FAISS {name}, top 10 only"] = partial(_faiss, index)
    return ways


def _faiss(index: Any, queries: Array) -> tuple[Array, None]:
    return index.search(queries.astype(np.float32), TOP)[1], None


def _numpy(keys: Array, queries: Array) -> tuple[Array, Array]:
    weights = queries.astype(np.float32) @ keys.T
    weights /= np.float32(TEMPERATURE)
    weights -= weights.max(axis=1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=1, keepdims=True)
    best = np.argpartition(weights, -TOP, axis=1)[:, -TOP:]
    order = np.argsort(-np.take_along_axis(weights, best, axis=1), axis=1)
    best = np.take_along_axis(best, order, axis=1)
    return best, np.take_along_axis(weights, best, axis=1)


def _lance(library: Any, queries: Array) -> Array:
    found = []
    for query in queries:
        nearest = {"column": "key", "q": query, "k": TOP, "metric": "dot", "use_index": False}
        rows = library.dataset.scanner(columns=["_distance"], nearest=nearest, with_row_address=True).to_table()
        found.append(rows["_rowaddr"].to_numpy().astype(np.int64))
    return np.stack(found)


def _wrong(rows: Array, weights: Array | None, truth: tuple[Array, Array]) -> str | None:
    """Say what is wrong with the rows and weights that someone named; None if nothing is."""
    if any(set(one) != set(other) for one, other in zip(rows.tolist(), truth[0].tolist(), strict=True)):
        return "wrong: names other rows"
    if weights is not None and (off := np.abs(weights - truth[1]).max() / truth[1].max()) > TOLERANCE:
        return f"wrong: weights off by {off:.2g} of the largest"
    return None


def _truth(keys: Array, queries: Array) -> tuple[Array, Array]:
    """Give the heaviest rows and their weights in float64."""
    wide = queries.astype(np.float64).T
    parts = [
        keys[first : first + FRAGMENT_ROWS].astype(np.float64) @ wide for first in range(0, len(keys), FRAGMENT_ROWS)
    ]
    scores = np.concatenate(parts).T / TEMPERATURE
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    rows = np.argsort(-weights, axis=1, kind="stable")[:, :TOP]
    return rows, np.take_along_axis(weights, rows, axis=1) / weights.sum(axis=1, keepdims=True)


def _extra_bytes(work: Callable[[], Any]) -> int:
    """Watch the memory that is the process' own while it works, and give by how much it grows at most."""
    before, most, done = _anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            most[0] = max(most[0], _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
        most[0] = max(most[0], _anonymous_bytes())
    finally:
        done.set()
        watcher.join()
    return max(most[0] - before, 0)


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


WORKERS = (0, 1, 2)
"""Workers of the cluster; 0 stands for this process alone, on all CPUs."""


def _cluster(folder: Path, rows: int, _data: Path | None, _questions: int) -> Iterator[dict[str, Any]]:
    for workers in WORKERS:
        yield from stream(measure_cluster, folder, rows, workers, threads=len(available_cpus()))


def measure_cluster(path: Path, rows: int, workers: int, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Time 32 queries over all keys on a cluster of this machine, and count what travels back."""
    library = make_library(path / "parts", rows)
    queries = _queries(QUERIES[-1])
    if workers:
        import ray

        ray.init(num_cpus=workers, log_to_driver=False, include_dashboard=False)
    engine = "ray" if workers else "local"
    asked: dict[str, Any] = {"temperature": TEMPERATURE, "top": TOP, "values": None}
    alone = library.attend(queries, **asked)
    same = True
    samples = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        found = library.attend(queries, **asked, engine=engine)
        samples.append(time.perf_counter() - start)
        same = same and all(np.array_equal(getattr(found, name), getattr(alone, name)) for name in ("rows", "weights"))
    if workers:
        ray.shutdown()
    fragments = len(library.dataset.get_fragments())
    yield {
        "workers": workers,
        "rows": rows,
        "queries": len(queries),
        "fragments": fragments,
        "part_bytes": _part_bytes(len(queries)),
        "same": bool(same),
        "samples": samples[1:],
    }


def _part_bytes(queries: int) -> int:
    import pickle

    from keywise.library.part import Part

    return len(pickle.dumps(Part.empty(queries, 0, TOP)))


def _evidence(_folder: Path, _rows: int, data: Path | None, questions: int) -> Iterator[dict[str, Any]]:
    yield from stream(library_evidence.measure, data, questions, threads=len(available_cpus()))


TASKS = {"speed": _speed, "cluster": _cluster, "evidence": _evidence}


def tables(runs: Sequence[Run]) -> str:
    """Write one table per run and task."""
    writers = {"speed": _speed_table, "cluster": _cluster_table, "evidence": library_evidence.table_of}
    parts = [
        (write, [found for found in run.results if found["task"] == task])
        for run in runs
        for task, write in writers.items()
    ]
    return "\n\n".join(write(those) for write, those in parts if those)


def _speed_table(results: Sequence[dict[str, Any]]) -> str:
    parts = []
    for found in results:
        own = statistics.median(found["samples"][KEYWISE])
        key_bytes = found["rows"] * found["dimension"] * 2
        read = key_bytes / own / found["read_bytes_per_second"]
        queries = "one query" if found["queries"] == 1 else f"{found['queries']} queries"
        said = (
            f"{found['rows']:,} keys of {found['dimension']} in float16, {queries} at a time, "
            f"{thread_count(found['threads'])}: keywise reads keys at {key_bytes / own / 1e9:.1f} GB/s, {read:.0%} of "
            f"the {found['read_bytes_per_second'] / 1e9:.1f} GB/s measured, and takes "
            f"{found['extra_bytes'] / 1e6:.0f} MB of memory beside the mapped file."
        )
        rows = []
        for name, samples in found["samples"].items():
            median = statistics.median(samples)
            rows.append([name, number(median * 1e3), number(min(samples) * 1e3), f"{median / own:.2f}"])
        parts.append(f"{said}\n\n{table(['', 'ms, median', 'ms, least', 'keywise = 1'], rows)}")
        parts += [f"Not timed: {name} ({reason})." for name, reason in found["excluded"].items()]
    return "\n\n".join(parts)


def _cluster_table(results: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            _named(found["workers"]),
            number(statistics.median(found["samples"]) * 1e3),
            str(found["fragments"]),
            f"{found['part_bytes'] / 1e3:.1f} KB",
            "yes" if found["same"] else "no",
        ]
        for found in results
    ]
    what = f"{results[0]['queries']} queries, {results[0]['rows']:,} keys"
    return table([what, "ms", "fragments", "travels back per fragment", "same bits"], rows)


def _named(workers: int) -> str:
    return f"Ray, {workers} worker{'s' if workers > 1 else ''}" if workers else "this process, all CPUs"
