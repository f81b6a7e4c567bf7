"""Exact attention to a library of a million keys, compared with vector stores."""

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
from benchmarks.choices import check_choices
from benchmarks.machine import measure_limits
from benchmarks.markdown import format_number, format_table, format_threads
from benchmarks.processes import run_in_process
from benchmarks.results import Run
from benchmarks.timing import TimeBudget, time_interleaved
from keywise.errors import OptionError
from keywise.util.machine import list_available_cpus

Array = NDArray[Any]
Search = Callable[[Array], tuple[Array, Array | None]]
"""Takes queries; returns the heaviest rows, and their weights if it computes them."""

DIMENSION = 384
FRAGMENT_KEYS = 65536
TOP = 10
TEMPERATURE = 0.05
QUERIES = (1, 32)
KEYWISE, WITH_VALUE, LANCE = "keywise", "keywise, weighted keys too", "Lance, flat, top 10 only"
ADDRESSED = (KEYWISE, WITH_VALUE, LANCE)
"""Backends that return the addresses of rows instead of their numbers."""

BUDGET = TimeBudget(seconds=20.0, max_rounds=9, min_rounds=5)
TOLERANCE = 1e-3
"""Largest error of a weight, relative to the largest."""

SAMPLE_SECONDS = 0.002


def select_tasks(tasks: Sequence[str] | None, data: Path | None) -> list[str]:
    """Select tasks by name; None selects all, evidence only if there is data.

    Raises
    ------
    OptionError
        A name is unknown, or evidence is selected without data.

    Examples
    --------
    >>> from benchmarks.library import select_tasks
    >>> select_tasks(None, None)
    ['speed', 'cluster']
    """
    check_choices("task", tasks or (), TASKS)
    if not tasks:
        return [task for task in TASKS if task != "evidence" or data]
    if "evidence" in tasks and data is None:
        raise OptionError(
            "data", "must be given for the task evidence", remedy="name a file of questions in SQuAD's format"
        )
    return [task for task in TASKS if task in tasks]


def count_results(tasks: Sequence[str]) -> int:
    """Return the number of results that `run_tasks` yields."""
    return sum({"speed": len(QUERIES), "cluster": len(WORKERS)}.get(task, 1) for task in tasks)


def run_tasks(tasks: Sequence[str], keys: int, data: Path | None, questions: int) -> Iterator[dict[str, Any]]:
    """Measure tasks on all CPUs, each in processes of its own.

    Parameters
    ----------
    tasks
        Tasks from `select_tasks`.
    keys
        Number of keys.
    data
        Questions in SQuAD's format, for evidence.
    questions
        Questions of each article that the model reads passages for.

    Yields
    ------
    dict
        The results of the tasks.
    """
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            for result in TASKS[task](Path(folder), keys, data, questions):
                yield {"task": task, **result}


def make_library(path: Path, count: int) -> Any:
    """Create a library of random float16 keys of length 1.

    Its fragments have the size of those of `Library.add`.
    """
    import keywise as kw

    library = kw.Library.open(path, "a")
    random = np.random.default_rng(0)
    existing = library.dataset.count_rows() if library.dataset else 0
    for first in range(existing, count, FRAGMENT_KEYS):
        keys = random.standard_normal((min(FRAGMENT_KEYS, count - first), DIMENSION), np.float32)
        library.add_keys(keys / np.linalg.norm(keys, axis=1, keepdims=True))
    return library


def _run_speed(folder: Path, keys: int, _data: Path | None, _questions: int) -> Iterator[dict[str, Any]]:
    threads = len(list_available_cpus())
    (path,) = run_in_process(prepare_library, folder, keys, threads=threads)
    # In processes of their own: memory that earlier calls freed would hide new allocations.
    extra = {queries: next(run_in_process(measure_extra, path, queries, threads=threads)) for queries in QUERIES}
    for result in run_in_process(measure_speed, path, BUDGET, threads=threads):
        yield {**result, "extra_bytes": extra[result["queries"]]}


def prepare_library(folder: Path, keys: int) -> Iterator[Path]:
    """Create a library of one large fragment, as `Library.compact` leaves it, and yield its path."""
    library = make_library(folder / "compacted", keys)
    library.compact()
    yield folder / "compacted"


def measure_extra(path: Path, queries: int) -> Iterator[int]:
    """Measure the growth of the process's own memory during attention.

    The keys are not counted.
    """
    import keywise as kw

    library = kw.Library.open(path)
    _attend(library, _draw_queries(1), None)  # reads the keys, which are kept
    yield _measure_extra_bytes(partial(_attend, library, _draw_queries(queries), None))


def measure_speed(path: Path, budget: TimeBudget) -> Iterator[dict[str, Any]]:
    """Time one query and many over all keys on the backends that agree."""
    import keywise as kw
    from keywise.library.arrow_arrays import arrow_to_vectors

    threads = len(list_available_cpus())
    library = kw.Library.open(path)
    bytes_per_second = measure_limits(threads).read_bytes_per_second
    keys = np.concatenate([arrow_to_vectors(batch["key"]) for batch in library.dataset.to_batches(columns=["key"])])
    functions = _prepare_functions(library, keys, threads)
    convert_addresses = _make_address_converter(library)
    for count in QUERIES:
        queries = _draw_queries(count)
        expected = _compute_expected(keys, queries)
        backends = {name: Backend(partial(function, queries)) for name, function in functions.items()}
        excluded = {}
        if count > 1:
            excluded[LANCE] = "takes one query at a time"
            del backends[LANCE]
        for name, backend in backends.items():
            rows, weights = backend.call()
            row_numbers = convert_addresses(rows) if name in ADDRESSED else rows
            if error := _find_error(row_numbers, weights, expected):
                excluded[name] = error
        correct = {name: backend for name, backend in backends.items() if name not in excluded}
        calls, samples = time_interleaved(correct, budget)
        if not find_spec("faiss"):
            excluded["FAISS"] = "not installed"
        yield {
            "queries": count,
            "keys": len(keys),
            "dimension": DIMENSION,
            "threads": threads,
            "calls_per_sample": calls,
            "seconds_per_call": samples,
            "excluded": excluded,
            "read_bytes_per_second": bytes_per_second,
        }


def _draw_queries(count: int) -> Array:
    random = np.random.default_rng(1)
    queries = random.standard_normal((count, DIMENSION), np.float32)
    lengths: Array = np.linalg.norm(queries, axis=1, keepdims=True)
    return (queries / lengths).astype(np.float16)


def _attend(library: Any, queries: Array, values: str | None) -> tuple[Array, Array | None]:
    result = library.attend(queries, temperature=TEMPERATURE, top=TOP, values=values)
    return result.rows, result.weights


def _make_address_converter(library: Any) -> Callable[[Array], Array]:
    """Return a function that converts addresses of rows to their numbers."""
    fragments = library.dataset.get_fragments()
    first = np.cumsum([0, *(fragment.physical_rows for fragment in fragments)])
    starts = {fragment.fragment_id: int(number) for fragment, number in zip(fragments, first, strict=False)}
    return np.vectorize(lambda address: starts[address >> 32] + (address & 0xFFFFFFFF), otypes=[np.int64])


def _prepare_functions(library: Any, keys: Array, threads: int) -> dict[str, Search]:
    """Prepare the search function of every backend."""
    float32_keys = keys.astype(np.float32)
    functions: dict[str, Search] = {
        KEYWISE: lambda queries: _attend(library, queries, None),
        WITH_VALUE: lambda queries: _attend(library, queries, "key"),
        "NumPy float32": lambda queries: _search_numpy(float32_keys, queries),
        LANCE: lambda queries: (_search_lance(library, queries), None),
    }
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(threads)
        flat = faiss.IndexFlatIP(DIMENSION)
        half = faiss.IndexScalarQuantizer(DIMENSION, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        for name, index in (("float32", flat), ("float16", half)):
            index.train(float32_keys[:1])
            index.add(float32_keys)
            functions[f"FAISS {name}, top 10 only"] = partial(_search_faiss, index)
    return functions


def _search_faiss(index: Any, queries: Array) -> tuple[Array, None]:
    return index.search(queries.astype(np.float32), TOP)[1], None


def _search_numpy(keys: Array, queries: Array) -> tuple[Array, Array]:
    weights = queries.astype(np.float32) @ keys.T
    weights /= np.float32(TEMPERATURE)
    weights -= weights.max(axis=1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=1, keepdims=True)
    heaviest = np.argpartition(weights, -TOP, axis=1)[:, -TOP:]
    order = np.argsort(-np.take_along_axis(weights, heaviest, axis=1), axis=1)
    heaviest = np.take_along_axis(heaviest, order, axis=1)
    return heaviest, np.take_along_axis(weights, heaviest, axis=1)


def _search_lance(library: Any, queries: Array) -> Array:
    addresses = []
    for query in queries:
        nearest = {"column": "key", "q": query, "k": TOP, "metric": "dot", "use_index": False}
        rows = library.dataset.scanner(columns=["_distance"], nearest=nearest, with_row_address=True).to_table()
        addresses.append(rows["_rowaddr"].to_numpy().astype(np.int64))
    return np.stack(addresses)


def _find_error(rows: Array, weights: Array | None, expected: tuple[Array, Array]) -> str | None:
    """Compare a backend's rows and weights with the expected ones; None if they agree."""
    expected_rows, expected_weights = expected
    pairs = zip(rows.tolist(), expected_rows.tolist(), strict=True)
    if any(set(actual) != set(correct) for actual, correct in pairs):
        return "wrong: returns other rows"
    if weights is None:
        return None
    relative_error = np.abs(weights - expected_weights).max() / expected_weights.max()
    return f"wrong: weights off by {relative_error:.2g} of the largest" if relative_error > TOLERANCE else None


def _compute_expected(keys: Array, queries: Array) -> tuple[Array, Array]:
    """Return the heaviest rows and their weights, computed in float64."""
    transposed = queries.astype(np.float64).T
    chunks = [keys[first : first + FRAGMENT_KEYS] for first in range(0, len(keys), FRAGMENT_KEYS)]
    scores = np.concatenate([chunk.astype(np.float64) @ transposed for chunk in chunks]).T / TEMPERATURE
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    rows = np.argsort(-weights, axis=1, kind="stable")[:, :TOP]
    return rows, np.take_along_axis(weights, rows, axis=1) / weights.sum(axis=1, keepdims=True)


def _measure_extra_bytes(work: Callable[[], Any]) -> int:
    """Return the largest growth of the process's own memory while it works."""
    before = _read_anonymous_bytes()
    peak = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], _read_anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
        peak[0] = max(peak[0], _read_anonymous_bytes())
    finally:
        done.set()
        watcher.join()
    return max(peak[0] - before, 0)


def _read_anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


WORKERS = (0, 1, 2)
"""Workers of the cluster; 0 means this process alone, on all CPUs."""


def _run_cluster(folder: Path, keys: int, _data: Path | None, _questions: int) -> Iterator[dict[str, Any]]:
    for workers in WORKERS:
        yield from run_in_process(measure_cluster, folder, keys, workers, threads=len(list_available_cpus()))


def measure_cluster(path: Path, keys: int, workers: int, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Time 32 queries over all keys on a cluster of this machine."""
    library = make_library(path / "fragments", keys)
    queries = _draw_queries(QUERIES[-1])
    if workers:
        import ray

        ray.init(num_cpus=workers, log_to_driver=False, include_dashboard=False)
    engine = "ray" if workers else "local"
    options: dict[str, Any] = {"temperature": TEMPERATURE, "top": TOP, "values": None}
    expected = library.attend(queries, **options)
    same_bits = True
    samples = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        result = library.attend(queries, **options, engine=engine)
        samples.append(time.perf_counter() - start)
        same_bits &= np.array_equal(result.rows, expected.rows) and np.array_equal(result.weights, expected.weights)
    if workers:
        ray.shutdown()
    yield {
        "workers": workers,
        "keys": keys,
        "queries": len(queries),
        "fragments": len(library.dataset.get_fragments()),
        "partial_bytes": _measure_partial_bytes(len(queries)),
        "same_bits": bool(same_bits),
        "seconds_per_call": samples[1:],
    }


def _measure_partial_bytes(queries: int) -> int:
    import pickle

    from keywise.library.partials import LibraryPartial

    return len(pickle.dumps(LibraryPartial.empty(queries, 0, TOP)))


def _run_evidence(_folder: Path, _keys: int, data: Path | None, questions: int) -> Iterator[dict[str, Any]]:
    yield from run_in_process(library_evidence.measure_ranks, data, questions, threads=len(list_available_cpus()))


TASKS = {"speed": _run_speed, "cluster": _run_cluster, "evidence": _run_evidence}


def format_tables(runs: Sequence[Run]) -> str:
    """Format one table per run and task."""
    formatters = {"speed": _format_speed, "cluster": _format_cluster, "evidence": library_evidence.format_ranks}
    parts = []
    for run in runs:
        for task, formatter in formatters.items():
            members = [result for result in run.results if result["task"] == task]
            if members:
                parts.append(formatter(members))
    return "\n\n".join(parts)


def _format_speed(results: Sequence[dict[str, Any]]) -> str:
    parts = []
    for result in results:
        seconds = statistics.median(result["seconds_per_call"][KEYWISE])
        bytes_per_second = result["keys"] * result["dimension"] * 2 / seconds
        share_of_limit = bytes_per_second / result["read_bytes_per_second"]
        queries = "one query" if result["queries"] == 1 else f"{result['queries']} queries"
        parts.append(
            f"{result['keys']:,} keys of {result['dimension']} in float16, {queries} at a time, "
            f"{format_threads(result['threads'])}: keywise reads keys at {bytes_per_second / 1e9:.1f} GB/s, "
            f"{share_of_limit:.0%} of the {result['read_bytes_per_second'] / 1e9:.1f} GB/s measured, and needs "
            f"{result['extra_bytes'] / 1e6:.0f} MB of memory besides the keys."
        )
        rows = []
        for name, samples in result["seconds_per_call"].items():
            median = statistics.median(samples)
            cells = [format_number(median * 1e3), format_number(min(samples) * 1e3), f"{median / seconds:.2f}"]
            rows.append([name, *cells])
        parts.append(format_table(["", "ms, median", "ms, least", "keywise = 1"], rows))
        parts += [f"Not timed: {name} ({reason})." for name, reason in result["excluded"].items()]
    return "\n\n".join(parts)


def _format_cluster(results: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            _describe_workers(result["workers"]),
            format_number(statistics.median(result["seconds_per_call"]) * 1e3),
            str(result["fragments"]),
            f"{result['partial_bytes'] / 1e3:.1f} KB",
            "yes" if result["same_bits"] else "no",
        ]
        for result in results
    ]
    heading = f"{results[0]['queries']} queries, {results[0]['keys']:,} keys"
    return format_table([heading, "ms", "fragments", "returned per fragment", "same bits"], rows)


def _describe_workers(workers: int) -> str:
    if not workers:
        return "this process, all CPUs"
    return f"Ray, {workers} worker{'s' if workers > 1 else ''}"
