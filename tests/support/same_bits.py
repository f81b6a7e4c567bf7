"""Compute the same problems under many conditions and print, as JSON, which conditions had the same bits.

The conditions are denormal mode, number of threads, affinity, load, and the thread or process of the call. Run it in a
process of its own: it changes all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import keywise as kw

QUERY_WEIGHT = np.full(1, 1e-39, np.float32)
STATS = ("output", "lse", "entropy", "top_keys", "top_weights", "key_mass", "segment_mass")


def make_problems() -> list[dict[str, Any]]:
    """Return problems whose products, weights or outputs are denormal, or on the border."""
    rng = np.random.default_rng(0)

    def draw(size: float, *shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * size).astype(np.float32)

    def make(sizes: tuple[float, float, float], heads: int, queries: int, keys: int, head_dim: int) -> dict[str, Any]:
        tokens = (queries, keys, keys)
        names = ("query", "key", "value")
        return {
            name: draw(size, 1, heads, count, head_dim) for name, size, count in zip(names, sizes, tokens, strict=True)
        }

    products = make((1e36, 1e-39, 1), 3, 50, 130, 24) | {"scale": 100.0}
    by_keys = make((30, 3, 1e-38), 2, 5, 2500, 40)
    outputs = make((1, 1, 1e-40), 2, 9, 70, 16)
    weights = outputs | {"bias": draw(40, 2, 9, 70), "mask": kw.Mask(causal=True)}
    bfloat16 = {name: torch.from_numpy(array).bfloat16() for name, array in outputs.items()}
    return [products, by_keys, outputs, weights, bfloat16]


def as_bytes(array: Any) -> bytes:
    """Return the bytes of a result."""
    return (array.view(torch.uint8).numpy() if isinstance(array, torch.Tensor) else array).tobytes()


def compute(problems: list[dict[str, Any]]) -> str:
    """Return the bits of every result of every problem on every kernel, in short."""
    results = []
    for target, problem in itertools.product(kw.targets()[:-1], problems):
        with kw.using(target):
            options = {"top_k": 3, "segment_bounds": [0, 20, 70], "query_weights": QUERY_WEIGHT}
            stats = kw.attention_stats(**problem, **options)
            part = kw.partial(**problem)
            arrays = [kw.attend(**problem), *(getattr(stats, name) for name in STATS)]
            arrays += [part.values, part.running_max, part.running_sum]
        results += [hashlib.sha256(as_bytes(array)).hexdigest()[:8] for array in arrays]
    return " ".join(results)


def call_in_thread(work: Callable[[], str]) -> str:
    """Return what a function returns in a new thread."""
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def call_in_child(work: Callable[[], str]) -> str:
    """Return what a function returns in a forked process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, work().encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


@contextlib.contextmanager
def another_caller() -> Iterator[None]:
    """Call keywise in another thread, again and again."""
    done = threading.Event()

    def call() -> None:
        x = np.ones((1, 2, 300, 32), np.float32)
        while not done.is_set():
            kw.attend(x, x, x)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield
    finally:
        done.set()
        caller.join()


def main() -> None:
    """Print the conditions, grouped by bits."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # forks of processes with threads
    problems = make_problems()
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    conditions: dict[str, list[Any]] = {}

    for flushes in (False, True):

        def work(flushes: bool = flushes) -> str:
            torch.set_flush_denormal(flushes)
            return compute(problems)

        def call_on_torch_threads(work: Callable[[], str] = work) -> str:
            torch.set_num_threads(kw.get_num_threads())
            bits = work()
            torch.set_num_threads(1)
            return bits

        places = {
            "main": work,
            "torch": call_on_torch_threads,
            "thread": lambda work=work: call_in_thread(work),
            "child": lambda work=work: call_in_child(work),
        }
        for threads, one_cpu, is_loaded in ((1, 0, 0), (2, 0, 0), (3, 1, 1), (7, 0, 0), (3, 0, 1), (7, 1, 0)):
            kw.set_num_threads(threads)
            if cpus:
                os.sched_setaffinity(0, {min(cpus)} if one_cpu else cpus)
            for place, call in places.items():
                with another_caller() if is_loaded else contextlib.nullcontext():
                    bits = call()
                conditions.setdefault(bits, []).append((flushes, threads, one_cpu, is_loaded, place))
    torch.set_flush_denormal(False)
    sys.stdout.write(json.dumps(list(conditions.values())))


if __name__ == "__main__":
    main()
