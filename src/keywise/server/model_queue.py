"""The queue of the one model: requests run one after the other, and those that nobody waits for are dropped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from keywise.server.api_errors import ApiError
from keywise.util.progress import InterruptedReading

PING_SECONDS: Final = 10.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class Progress:
    """Number of tokens that were read, and of all to read."""

    done_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class Delta:
    """A new part of an answer's text."""

    text: str


@dataclass(frozen=True)
class Ping:
    """A sign of life, while nothing else is to tell."""


@dataclass(frozen=True)
class Finished(Generic[Result]):
    """The result of a job."""

    result: Result


Event = Progress | Delta | Ping | Finished[Any]


class Job:
    """A piece of work for the model, which its owner can cancel.

    Parameters
    ----------
    emit
        Called with progress and parts of the answer.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask for its end; it ends before the next token or chunk."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise if the job was cancelled.

        Raises
        ------
        InterruptedReading
            Nobody waits for the result.
        """
        if self._cancelled.is_set():
            raise InterruptedReading

    def report_progress(self, done_tokens: int, total_tokens: int) -> None:
        """Tell how much was read; see `check`."""
        self.check()
        self._emit(Progress(done_tokens, total_tokens))

    def report_text(self, text: str) -> None:
        """Tell a new part of the answer; see `check`."""
        self.check()
        if text:
            self._emit(Delta(text))


class ModelQueue:
    """Runs jobs in one thread, in the order in which they came.

    Parameters
    ----------
    max_waiting
        Most jobs that wait; further ones are refused.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keywise-model")
        self._jobs: set[Job] = set()
        self._is_closed = False

    @property
    def waiting(self) -> int:
        """Number of jobs that run or wait."""
        return len(self._jobs)

    async def stream(self, function: Callable[[Job], Result]) -> AsyncGenerator[Event, None]:
        """Run a function of a job in the model's thread and yield what it tells; last `Finished` with its result.

        A consumer that stops early cancels the job.

        Parameters
        ----------
        function
            The work.

        Raises
        ------
        ApiError
            Too many jobs wait, or the server stops.
        """
        if self._is_closed:
            raise ApiError(503, "The server stops.", None, "server_stopping")
        if len(self._jobs) >= self._max_waiting:
            raise ApiError(429, f"{len(self._jobs)} requests wait for the model; try again later.", None, "queue_full")
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        job = Job(lambda event: _call_in(loop, events.put_nowait, event))

        def run() -> Result:
            job.check()
            return function(job)

        self._jobs.add(job)
        future: Future[Result] = self._executor.submit(run)
        future.add_done_callback(lambda _: _call_in(loop, self._jobs.discard, job))
        future.add_done_callback(lambda _: _call_in(loop, events.put_nowait, None))
        try:
            while True:
                try:
                    async with asyncio.timeout(PING_SECONDS):
                        event = await events.get()
                except TimeoutError:
                    yield Ping()
                    continue
                if event is None:
                    break
                yield event
            try:
                result = future.result()
            except InterruptedReading:
                raise ApiError(503, "The server stops.", None, "server_stopping") from None
            yield Finished(result)
        finally:
            job.cancel()
            future.cancel()

    def cancel_all(self) -> None:
        """Cancel all jobs, and refuse further ones."""
        self._is_closed = True
        for job in list(self._jobs):
            job.cancel()

    def close(self) -> None:
        """Cancel all jobs and wait for the running one to end."""
        self.cancel_all()
        self._executor.shutdown(wait=True, cancel_futures=True)


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    with suppress(RuntimeError):  # the loop was closed: nobody listens any more
        loop.call_soon_threadsafe(function, *arguments)
