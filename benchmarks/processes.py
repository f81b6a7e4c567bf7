"""Processes that measure, each with its own number of CPUs and threads.

Libraries size their thread pools once, by the CPUs that a process may use.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from keywise.errors import KeywiseError
from keywise.util.machine import list_available_cpus

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
"""Environment of every process: JAX does not look for accelerators, tokenizers start no threads."""


def run_in_process(
    work: Callable[..., Iterable[Any]], *arguments: Any, threads: int, environment: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """Run a generator function in a new process, and yield what it yields.

    Parameters
    ----------
    work
        A generator function of a module; it, its arguments and its results are pickled.
    threads
        Number of CPUs that the process may use, and of torch's and keywise's threads.
    environment
        Environment variables of the process.

    Raises
    ------
    KeywiseError
        `work` raised it, or the process ended before `work` did.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_all, args=(sender, work, arguments, threads), daemon=True)
    with set_environment({**ENVIRONMENT, **(environment or {})}):
        process.start()
    sender.close()
    try:
        while True:
            try:
                result = receiver.recv()
            except EOFError:
                break
            if isinstance(result, KeywiseError):
                raise result
            yield result
        process.join()
        if process.exitcode:
            raise KeywiseError(
                "process",
                f"ended with exit code {process.exitcode}",
                remedy="its own message is above; earlier results are kept",
            )
    finally:
        process.terminate()
        process.join()


@contextmanager
def set_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes that start in the block.

    Some variables are read before Python's first line.
    """
    earlier = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def restrict_cpus(count: int) -> None:
    """Restrict this process to its first CPUs, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, list_available_cpus()[:count])


def _send_all(
    sender: Connection,
    work: Callable[..., Iterable[Any]],
    arguments: tuple[Any, ...],
    threads: int,
) -> None:
    # Ctrl-C reaches every process of the terminal; the parent saves the results, then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    restrict_cpus(threads)
    import torch  # noqa: PLC0415 - heavy, and after the CPUs are chosen

    import keywise as kw  # noqa: PLC0415

    torch.set_num_threads(threads)
    kw.set_num_threads(threads)
    try:
        for result in work(*arguments):
            sender.send(result)
    except KeywiseError as error:
        sender.send(error)
