"""A process of its own for each number of threads: libraries size their thread pools once, by the CPUs they may use."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.machine import available_cpus
from keywise.errors import KeywiseError

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
"""Set for every process: JAX does not look for accelerators, tokenizers start no threads."""


def stream(
    work: Callable[..., Iterable[Any]], *arguments: Any, threads: int, environment: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """Run a generator function in a fresh process on as many CPUs as threads, and yield what it yields.

    Parameters
    ----------
    work
        A generator function of some module; it and its arguments and findings are pickled.
    threads
        Number of CPUs that the process may use, and of torch's and keywise's threads.
    environment
        Environment variables of the process.

    Raises
    ------
    KeywiseError
        Whatever `work` raised of that kind, or that the process ended before it was done.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_all, args=(sender, work, arguments, threads), daemon=True)
    with _environment({**ENVIRONMENT, **(environment or {})}):
        process.start()
    sender.close()
    try:
        while True:
            try:
                found = receiver.recv()
            except EOFError:
                break
            if isinstance(found, KeywiseError):
                raise found
            yield found
        process.join()
        if process.exitcode:
            ended = f"a process that measured ended with exit code {process.exitcode}"
            raise KeywiseError(f"{ended}; what it said is above, and what was measured before is kept")
    finally:
        process.terminate()
        process.join()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that begin meanwhile: some are read before Python's first line."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _send_all(
    sender: Connection,
    work: Callable[..., Iterable[Any]],
    arguments: tuple[Any, ...],
    threads: int,
) -> None:
    # Ctrl-C reaches every process of the terminal; the parent ends this one when it has kept the results.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, available_cpus()[:threads])
    import torch  # noqa: PLC0415 - heavy, and after the CPUs are chosen

    import keywise as kw  # noqa: PLC0415

    torch.set_num_threads(threads)
    kw.set_num_threads(threads)
    try:
        for found in work(*arguments):
            sender.send(found)
    except KeywiseError as error:
        sender.send(error)
