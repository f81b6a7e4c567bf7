"""The machine: its description, and its measured limits of arithmetic and memory."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

import keywise as kw
from benchmarks.cases import Case
from keywise.attention.targets import run_multiply_adds, sum_buffer
from keywise.util.machine import list_available_cpus, read_cpu_name

BUFFER_BYTES = 2**29
MULTIPLY_ADD_ROUNDS = 2_000_000
TRIES = 7
PACKAGES = (
    "numpy",
    "torch",
    "transformers",
    "onnxruntime",
    "openvino",
    "jax",
    "llama-cpp-python",
    "pylance",
    "faiss-cpu",
)


@dataclass(frozen=True)
class Limits:
    """Measured limits of this machine for a target and a number of threads.

    Attributes
    ----------
    target
        The target whose instructions were used.
    threads
        Number of threads.
    operations_per_second
        Multiplications and additions per dtype: fused multiply-adds, or dot products of bfloat16 pairs.
    read_bytes_per_second
        Bandwidth of reading a buffer far larger than the caches.
    """

    target: str
    threads: int
    operations_per_second: dict[str, float]
    read_bytes_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Return the limits as plain values."""
        return asdict(self)

    def compute_min_seconds(self, case: Case) -> float:
        """Return the least time of a case by the measured limits.

        It is the time of its operations, or of reading its keys and values from memory.
        """
        return max(
            case.operations / self.operations_per_second[case.dtype],
            case.key_value_bytes / self.read_bytes_per_second,
        )


def measure_limits(threads: int) -> Limits:
    """Measure the limits of the current target, the best of several tries.

    Examples
    --------
    >>> from benchmarks.machine import measure_limits
    >>> measure_limits(1).read_bytes_per_second > 1e6
    True
    """
    parts = np.array_split(np.ones(BUFFER_BYTES // 4, np.float32), threads)

    def read(part: int) -> float:
        sum_buffer(parts[part])
        return parts[part].nbytes

    with ThreadPoolExecutor(threads) as pool:

        def measure_best(work: Callable[[int], float]) -> float:
            return max(_measure_rate(pool, work, threads) for _ in range(TRIES))

        # float16 is widened to float32: no target multiplies it directly.
        single = measure_best(lambda _: run_multiply_adds(MULTIPLY_ADD_ROUNDS, "float32"))
        pairs = measure_best(lambda _: run_multiply_adds(MULTIPLY_ADD_ROUNDS, "bfloat16"))
        rates = {"float32": single, "float16": single, "bfloat16": pairs}
        target = str(kw.explain().target)
        return Limits(target, threads, rates, measure_best(read))


def _measure_rate(pool: ThreadPoolExecutor, work: Callable[[int], float], threads: int) -> float:
    # The current target is a context variable: each thread needs a copy of this context.
    contexts = [copy_context() for _ in range(threads)]
    start = time.perf_counter()
    amount = sum(pool.map(lambda part: contexts[part].run(work, part), range(threads)))
    return amount / (time.perf_counter() - start)


def describe_machine() -> dict[str, Any]:
    """Describe the CPU, its targets, the system and the versions of packages.

    Examples
    --------
    >>> from benchmarks.machine import describe_machine
    >>> sorted(describe_machine())
    ['cpu', 'cpus', 'system', 'targets', 'versions']
    """
    return {
        "cpu": read_cpu_name(),
        "cpus": len(list_available_cpus()),
        "targets": list(kw.targets()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": dict(_find_versions(("keywise", *PACKAGES))),
    }


def _find_versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue  # its baselines are excluded with a reason
