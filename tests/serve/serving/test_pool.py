"""How streams share threads with each other, and with the event loop."""

import asyncio
import threading
import time
from collections.abc import Iterator
from itertools import groupby

import pytest
from microgpt_serve.serving.errors import ShuttingDownError
from microgpt_serve.serving.pool import Pool

TIMEOUT = 30.0


def make_items(n: int, seconds: float = 0.0) -> Iterator[int]:
    for i in range(n):
        time.sleep(seconds)
        yield i


async def read_all(pool: Pool, items: Iterator[int]) -> list[int]:
    return [item async for item in pool.stream(lambda: items)]


def test_no_more_streams_generate_at_once_than_there_are_cores() -> None:
    lock = threading.Lock()
    n_now, n_most = 0, 0

    def items() -> Iterator[int]:
        nonlocal n_now, n_most
        for i in range(20):
            with lock:
                n_now += 1
                n_most = max(n_most, n_now)
            time.sleep(0.001)
            with lock:
                n_now -= 1
            yield i

    async def scenario() -> None:
        pool = Pool(8, 2, 0, TIMEOUT)
        texts = await asyncio.gather(*(read_all(pool, items()) for _ in range(8)))
        assert texts == [list(range(20))] * 8
        pool.abort_all()

    asyncio.run(scenario())
    assert n_most == 2


def test_streams_share_a_core_in_time_slices() -> None:
    order: list[int] = []

    def items(number: int) -> Iterator[int]:
        for item in make_items(50, 0.001):
            order.append(number)
            yield item

    async def scenario() -> None:
        pool = Pool(4, 1, 0, TIMEOUT)
        await asyncio.gather(*(read_all(pool, items(number)) for number in range(4)))
        pool.abort_all()

    asyncio.run(scenario())
    assert max(len(list(run)) for _, run in groupby(order[:-50])) < 25


def test_a_reader_that_stops_reading_keeps_no_place() -> None:
    async def scenario() -> None:
        pool = Pool(1, 1, 1, TIMEOUT)
        unread = pool.stream(lambda: make_items(1000))
        assert await anext(unread) == 0
        assert await asyncio.wait_for(read_all(pool, make_items(3)), 10) == [0, 1, 2]
        assert [item async for item in unread] == list(range(1, 1000))
        pool.abort_all()

    asyncio.run(scenario())


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("broken")

    async def scenario() -> None:
        pool = Pool(1, 1, 0, TIMEOUT)
        stream = pool.stream(items)
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="broken"):
            await anext(stream)
        pool.abort_all()

    asyncio.run(scenario())


def test_abort_reaches_running_waiting_and_paused_work() -> None:
    async def scenario() -> None:
        pool = Pool(2, 2, 2, TIMEOUT)
        paused = pool.stream(lambda: make_items(1000, 0.001))
        await anext(paused)
        running, waiting = (
            asyncio.create_task(read_all(pool, make_items(100_000, 0.001))) for _ in range(2)
        )
        await asyncio.sleep(0.05)
        pool.abort_all()
        start = time.monotonic()
        for ended in (running, anext(paused), waiting):
            with pytest.raises(ShuttingDownError):
                await ended
        assert time.monotonic() - start < 1

    asyncio.run(scenario())


def test_a_cancelled_stream_frees_its_place_once_its_thread_returns() -> None:
    is_computing = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        is_computing.set()
        time.sleep(0.05)
        is_computing.clear()
        yield 1

    async def scenario() -> None:
        pool = Pool(1, 1, 0, TIMEOUT)
        reading = asyncio.create_task(read_all(pool, items()))
        await asyncio.to_thread(is_computing.wait, 10)
        assert not pool.is_healthy
        reading.cancel()
        await asyncio.wait((reading,))
        assert not is_computing.is_set()
        assert pool.is_healthy
        assert await read_all(pool, make_items(3)) == [0, 1, 2]
        pool.abort_all()

    asyncio.run(scenario())
