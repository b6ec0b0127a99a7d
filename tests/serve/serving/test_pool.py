"""How work in threads is bounded, ended and refused."""

import asyncio
import threading
import time

import pytest
from microgpt import StopSignal
from microgpt_serve.serving.errors import BusyError, DeadlineError, ShuttingDownError
from microgpt_serve.serving.pool import Pool

TIMEOUT = 30.0


def until_signal(signal: StopSignal) -> str:
    while not signal.is_set:
        time.sleep(0.001)
    return "ended"


def test_no_more_work_runs_at_once_than_there_are_threads() -> None:
    lock = threading.Lock()
    n_now, n_most = 0, 0

    def work(_: StopSignal) -> None:
        nonlocal n_now, n_most
        with lock:
            n_now += 1
            n_most = max(n_most, n_now)
        time.sleep(0.005)
        with lock:
            n_now -= 1

    async def scenario() -> None:
        pool = Pool(2, 8, TIMEOUT)
        await asyncio.gather(*(pool.run(work) for _ in range(8)))
        pool.abort_all()

    asyncio.run(scenario())
    assert n_most == 2


def test_work_beyond_the_queue_is_refused() -> None:
    async def scenario() -> None:
        pool = Pool(1, 1, TIMEOUT)
        running = [asyncio.create_task(pool.run(until_signal)) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert not pool.is_healthy
        with pytest.raises(BusyError):
            await pool.run(until_signal)
        pool.abort_all()
        for task in running:
            with pytest.raises(ShuttingDownError):
                await task

    asyncio.run(scenario())


def test_cancelled_work_frees_its_place_once_its_thread_returns() -> None:
    is_computing = threading.Event()

    def work(_: StopSignal) -> None:
        is_computing.set()
        time.sleep(0.05)
        is_computing.clear()

    async def scenario() -> None:
        pool = Pool(1, 0, TIMEOUT)
        running = asyncio.create_task(pool.run(work))
        await asyncio.to_thread(is_computing.wait, 10)
        assert not pool.is_healthy
        running.cancel()
        await asyncio.wait((running,))
        assert not is_computing.is_set()
        assert pool.is_healthy
        assert await pool.run(lambda _: 3) == 3
        pool.abort_all()

    asyncio.run(scenario())


def test_work_that_misses_its_deadline_is_ended() -> None:
    async def scenario() -> None:
        pool = Pool(1, 0, 0.05)
        with pytest.raises(DeadlineError, match=r"longer than 0\.05 seconds"):
            await pool.run(until_signal)
        assert pool.is_healthy
        pool.abort_all()

    asyncio.run(scenario())
