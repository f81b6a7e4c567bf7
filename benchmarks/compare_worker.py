"""The process that runs one build of keywise for `benchmarks.compare`.

keywise is imported only after the build was selected, and only through its public interface: the build may be older
than this file.
"""

# ruff: noqa: PLC0415  (see above)

from __future__ import annotations

import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Case

TOP_K = 8
SEGMENTS = 64
MAX_WARMED_SECONDS = 0.1
CALLS_PER_CLOCK = 16
RENAMED_FIELDS = {"covered": "top_mass"}
"""Statistics of older builds, and their present names."""

Results = dict[str, Any]


def serve(connection: Connection, folder: Path, threads: int, cpus: Sequence[int]) -> None:
    """Run the requests of a connection on one build, until None comes.

    Parameters
    ----------
    connection
        Sends requests ``(name, arguments, options)`` and receives ``(True, result)`` or ``(False, message)``.
    folder
        The folder that holds the `keywise` package.
    threads
        Number of threads.
    cpus
        CPUs that the process may use.
    """
    # Ctrl-C reaches every process of the terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cpus)
        select_build(folder, threads)
        worker = Worker()
    except Exception as error:  # noqa: BLE001 - whatever stops this build is reported
        connection.send((False, f"{type(error).__name__}: {error}"))
        return
    connection.send((True, None))
    while (request := connection.recv()) is not None:
        name, arguments, options = request
        try:
            connection.send((True, getattr(worker, name)(*arguments, **options)))
        except Exception as error:  # noqa: BLE001
            connection.send((False, f"{type(error).__name__}: {error}"))


def select_build(folder: Path, threads: int) -> None:
    """Import keywise from a folder, even if another build is installed in editable mode."""
    # The finder of an editable installation comes before sys.path.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
    sys.path.insert(0, str(folder))
    import torch

    import keywise as kw

    if not Path(str(kw.__file__)).resolve().is_relative_to(folder.resolve()):
        raise ImportError(f"keywise was imported from {kw.__file__}, not from {folder}")
    torch.set_num_threads(threads)
    # Older builds call it set_threads.
    build: Any = kw
    set_num_threads = build.set_num_threads if hasattr(build, "set_num_threads") else build.set_threads
    set_num_threads(threads)


class Worker:
    """One case at a time, prepared, called and timed."""

    def __init__(self) -> None:
        self._call: Callable[[], Any] = lambda: None

    def prepare(self, case: Case, library: str, operation: str) -> tuple[dict[str, str], float]:
        """Prepare a call, and return the digests of its results and its seconds."""
        self._call = prepare_call(case, library, operation)
        digests = {name: compute_digest(array) for name, array in collect_results(self._call()).items()}
        seconds = self.time(1)
        if seconds < MAX_WARMED_SECONDS:
            seconds = min(self.time(1) for _ in range(5))
        return digests, seconds

    def compute_results(self) -> dict[str, NDArray[Any]]:
        """Return the results of the prepared call as NumPy arrays, floating ones in float64."""
        return {name: convert_results(array) for name, array in collect_results(self._call()).items()}

    def time(self, calls: int, *, warm: bool = False, max_seconds: float = math.inf) -> float:
        """Return the mean seconds of calls, after one that is not timed if `warm`.

        Fewer calls are made if other work on the machine delays them beyond `max_seconds`.
        """
        if warm:
            self._call()
        done = 0
        start = time.perf_counter()
        elapsed = 0.0
        while done < calls and elapsed < max_seconds:
            # Reading the clock takes long compared with the shortest calls.
            count = min(CALLS_PER_CLOCK, calls - done)
            for _ in range(count):
                self._call()
            done += count
            elapsed = time.perf_counter() - start
        return elapsed / done


def prepare_call(case: Case, library: str, operation: str) -> Callable[[], Any]:
    """Return a function that runs an operation on a case's arrays."""
    import keywise as kw
    from benchmarks.inputs import make_inputs

    inputs = make_inputs(case)
    arrays = inputs.arrays if library == "numpy" else (inputs.query, inputs.key, inputs.value)
    mask = inputs.mask if case.causal else None
    if operation == "attend":
        return lambda: kw.attend(*arrays, mask=mask)
    bounds = np.unique(np.linspace(0, case.keys, SEGMENTS + 1).astype(np.int64))
    if hasattr(kw, "attention_stats"):
        return lambda: kw.attention_stats(*arrays, mask=mask, top_k=TOP_K, segment_bounds=bounds)
    # Older builds call it read, with other names of two arguments.
    older_build: Any = kw
    return lambda: older_build.read(*arrays, mask=mask, top=TOP_K, segments=bounds)


def collect_results(result: Any) -> Results:
    """Return the arrays of a result by name."""
    fields = vars(result) if hasattr(result, "lse") else {"output": result}
    return {RENAMED_FIELDS.get(name, name): array for name, array in fields.items() if array is not None}


def compute_digest(array: Any) -> str:
    """Return a digest of the bits of an array or tensor."""
    if not isinstance(array, np.ndarray):
        import torch

        array = array.contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def convert_results(array: Any) -> NDArray[Any]:
    """Return an array or tensor as a NumPy array, in float64 if it is floating."""
    if not isinstance(array, np.ndarray):
        array = array.double().numpy() if array.is_floating_point() else array.numpy()
    converted: NDArray[Any] = array.astype(np.float64) if array.dtype.kind == "f" else array
    return converted
