"""The queue of the model: order, cancellation, limits, the end."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing
from typing import Any

import pytest

from keywise.server import model_queue
from keywise.server.api_errors import ApiError
from keywise.server.model_queue import Delta, Finished, Job, ModelQueue, Ping, Progress
from keywise.util.progress import InterruptedReading


async def collect(queue: ModelQueue, function: Any) -> list[Any]:
    async with aclosing(queue.stream(function)) as events:
        return [event async for event in events]


def test_events_come_in_order_and_the_result_last() -> None:
    def work(job: Job) -> int:
        job.report_progress(1, 2)
        job.report_text("a")
        job.report_text("")
        job.report_text("b")
        return 7

    queue = ModelQueue(4)
    assert asyncio.run(collect(queue, work)) == [Progress(1, 2), Delta("a"), Delta("b"), Finished(7)]
    queue.close()


def test_jobs_run_one_after_the_other_in_the_order_in_which_they_came() -> None:
    running, order = [], []

    def make(number: int) -> Any:
        def work(_job: Job) -> int:
            running.append(number)
            assert len(running) == 1
            time.sleep(0.01)
            order.append(number)
            running.pop()
            return number

        return work

    async def main() -> list[Any]:
        return await asyncio.gather(*(collect(queue, make(number)) for number in range(8)))

    queue = ModelQueue(8)
    results = asyncio.run(main())
    assert [events[-1].result for events in results] == list(range(8)) == order
    queue.close()


def test_a_consumer_that_leaves_stops_its_job_and_the_next_one_runs() -> None:
    ended = threading.Event()

    def endless(job: Job) -> None:
        try:
            while True:
                job.report_text("x")
                time.sleep(0.005)
        except InterruptedReading:
            ended.set()
            raise

    async def main() -> list[Any]:
        async with aclosing(queue.stream(endless)) as events:
            async for event in events:
                assert event == Delta("x")
                break
        return await collect(queue, lambda _job: "next")

    queue = ModelQueue(4)
    assert asyncio.run(main()) == [Finished("next")]
    assert ended.is_set()
    queue.close()


def test_a_waiting_job_whose_consumer_leaves_never_runs() -> None:
    release, ran = threading.Event(), []

    async def main() -> None:
        first = asyncio.create_task(collect(queue, lambda _job: release.wait(5)))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(collect(queue, lambda _job: ran.append(2)))
        await asyncio.sleep(0.02)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        release.set()
        await first
        await collect(queue, lambda _job: ran.append(3))

    queue = ModelQueue(4)
    asyncio.run(main())
    assert ran == [3]
    assert queue.waiting == 0
    queue.close()


def test_too_many_jobs_are_refused() -> None:
    release = threading.Event()

    async def main() -> None:
        first = asyncio.create_task(collect(queue, lambda _job: release.wait(5)))
        await asyncio.sleep(0.02)
        with pytest.raises(ApiError) as caught:
            await collect(queue, lambda _job: None)
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        release.set()
        await first

    queue = ModelQueue(1)
    asyncio.run(main())
    queue.close()


def test_an_error_of_a_job_is_raised_and_the_next_job_runs() -> None:
    def fail(_job: Job) -> None:
        raise ValueError("no")

    async def main() -> list[Any]:
        with pytest.raises(ValueError, match="no"):
            await collect(queue, fail)
        return await collect(queue, lambda _job: 1)

    queue = ModelQueue(4)
    assert asyncio.run(main()) == [Finished(1)]
    queue.close()


def test_a_job_that_tells_nothing_is_kept_alive_by_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_queue, "PING_SECONDS", 0.02)
    queue = ModelQueue(4)
    events = asyncio.run(collect(queue, lambda _job: time.sleep(0.1)))
    assert events[0] == Ping()
    assert events[-1] == Finished(None)
    queue.close()


def test_a_queue_that_stops_ends_its_jobs_and_refuses_others() -> None:
    def endless(job: Job) -> None:
        while True:
            job.check()
            time.sleep(0.005)

    async def main() -> None:
        job = asyncio.create_task(collect(queue, endless))
        await asyncio.sleep(0.02)
        queue.cancel_all()
        with pytest.raises(ApiError) as caught:
            await job
        assert caught.value.status == 503
        with pytest.raises(ApiError):
            await collect(queue, lambda _job: None)

    queue = ModelQueue(4)
    asyncio.run(main())
    queue.close()
