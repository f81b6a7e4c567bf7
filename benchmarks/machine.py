"""The machine: what it is, and what it can do at most, measured in registers and over a large buffer."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import keywise as kw
from benchmarks.cases import Case
from keywise.attention.targets import sum_buffer, multiply_adds

BUFFER_BYTES = 2**29
ROUNDS = 2_000_000
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
    """What a number of threads can do at most on this machine with one target.

    Attributes
    ----------
    target
        The target whose instructions were used.
    threads
        Number of threads.
    operations_per_second
        Multiplications and additions per dtype in fused multiply-adds, or in dot products of bfloat16 pairs.
    read_bytes_per_second
        Reading a buffer far larger than the caches.
    """

    target: str
    threads: int
    operations_per_second: dict[str, float]
    read_bytes_per_second: float

    def plain(self) -> dict[str, Any]:
        """Give the limits as plain values."""
        return asdict(self)

    def least_seconds(self, case: Case) -> float:
        """Give the time that a case's operations take at least, or reading its keys and values from memory."""
        return max(
            case.operations / self.operations_per_second[case.dtype],
            case.key_value_bytes / self.read_bytes_per_second,
        )


def measure_limits(threads: int) -> Limits:
    """Measure the limits of the chosen target; the best of several tries, since other work only slows them.

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

        def best(work: Callable[[int], float]) -> float:
            return max(_rate(pool, work, threads) for _ in range(TRIES))

        # float16 has no instructions of its own here: it is widened to float32.
        plain = best(lambda _: multiply_adds(ROUNDS, "float32"))
        pairs = best(lambda _: multiply_adds(ROUNDS, "bfloat16"))
        target = str(kw.explain().target)
        return Limits(target, threads, {"float32": plain, "float16": plain, "bfloat16": pairs}, best(read))


def _rate(pool: ThreadPoolExecutor, work: Callable[[int], float], threads: int) -> float:
    # The chosen target is a context variable: each thread gets a copy of this context.
    contexts = [copy_context() for _ in range(threads)]
    start = time.perf_counter()
    done = sum(pool.map(lambda part: contexts[part].run(work, part), range(threads)))
    return done / (time.perf_counter() - start)


def describe_machine() -> dict[str, Any]:
    """Name the CPU, its targets, the system and the versions of what takes part.

    Examples
    --------
    >>> from benchmarks.machine import describe_machine
    >>> sorted(describe_machine())
    ['cpu', 'cpus', 'system', 'targets', 'versions']
    """
    return {
        "cpu": cpu_name(),
        "cpus": len(available_cpus()),
        "targets": list(kw.targets()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": dict(_versions(("keywise", *PACKAGES))),
    }


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue  # not installed: the rivals that need it say so


def available_cpus() -> list[int]:
    """Name the CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cpu_name() -> str:
    """Name the CPU.

    Examples
    --------
    >>> from benchmarks.machine import cpu_name
    >>> len(cpu_name()) > 0
    True
    """
    # platform.processor() is empty or just the architecture on most Linux systems.
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        first = listing.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
        if name := facts.get("model name"):
            # Virtual machines often say the brand alone.
            return f"{name} (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else name
    return platform.processor() or platform.machine()
