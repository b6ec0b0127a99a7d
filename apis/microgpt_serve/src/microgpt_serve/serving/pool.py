"""Where texts are generated: a few threads, a queue that ends, deadlines, cancellation.

The engine lets the interpreter go while it computes, so threads generate at the same time and the
event loop stays free.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from microgpt import StopSignal

from microgpt_serve.serving import metrics
from microgpt_serve.serving.errors import BusyError, DeadlineError, ShuttingDownError

__all__ = ["Pool"]

T = TypeVar("T")

# For which a stream generates before another has its turn: long enough that handing over costs
# little, and short enough that nobody sees pieces come together.
TURN_SECONDS = 0.005


def _in_turns(start: Callable[[], Iterator[T]], signal: StopSignal) -> Iterator[list[T]]:
    """Yield what the iterator yields that `start` returns, a turn's items together.

    The first turn ends with the first item.
    """
    items: list[T] = []
    end = 0.0
    try:
        for item in start():
            items.append(item)
            if signal.is_set or time.perf_counter() >= end:
                yield items
                items = []
                end = time.perf_counter() + TURN_SECONDS
    except Exception:  # told after what came before it
        yield items
        raise
    yield items


class Pool:
    """Runs work in threads.

    Streams take turns of a few milliseconds, as many at once as there are cores: the threads of
    all of them together would keep the event loop from the interpreter. The loop starts each turn,
    so where it is behind, they wait for it.

    Args:
        n_threads: how much at once.
        max_queue: how much may wait.
        timeout: seconds that anything may take, waiting included.
    """

    def __init__(self, n_threads: int, max_queue: int, timeout: float) -> None:
        self._executor = ThreadPoolExecutor(n_threads, thread_name_prefix="generate")
        self._capacity = n_threads + max_queue
        self._timeout = timeout
        self._places = asyncio.Semaphore(n_threads)
        self._turns = asyncio.Semaphore(min(n_threads, os.cpu_count() or 1))
        self._signals: set[StopSignal] = set()  # of what runs or waits
        self._is_ending = False

    @property
    def is_healthy(self) -> bool:
        """Whether more work is taken."""
        return not self._is_ending and len(self._signals) < self._capacity

    def end_all(self) -> None:
        """End everything that runs or waits; each gets `ShuttingDownError`."""
        self._is_ending = True
        for signal in list(self._signals):
            signal.set()
        self._executor.shutdown(wait=False)

    async def run(self, work: Callable[[StopSignal], T]) -> T:
        """Return what `work` returns; it must end soon after its signal is set.

        If the caller is cancelled, so is the work.

        Raises:
            BusyError: the queue is full.
            DeadlineError: it took too long.
            ShuttingDownError: `end_all` came first.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        async with self._place(deadline) as signal:
            result = await self._in_thread(lambda: work(signal), signal, deadline)
            if signal.is_set:
                raise ShuttingDownError
            return result

    def run_here(self, work: Callable[[StopSignal], T]) -> T:
        """Return what `work` returns, at once: for what takes less time than a thread's turn.

        Raises:
            ShuttingDownError: `end_all` came first.
        """
        if self._is_ending:
            raise ShuttingDownError
        metrics.QUEUE_WAIT.observe(0.0)
        return work(StopSignal())

    async def stream(self, start: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """Yield what the iterator yields that `start` returns, as it comes.

        Raises:
            As `run`.
        """
        made: asyncio.Queue[list[T] | Exception | None] = asyncio.Queue()
        making = asyncio.create_task(self._make(start, made))
        try:
            while (items := await made.get()) is not None:
                if isinstance(items, Exception):
                    raise items
                for item in items:
                    if self._is_ending:  # however slow the reader is
                        raise ShuttingDownError
                    yield item
        finally:
            making.cancel()
            await asyncio.wait((making,))

    async def _make(
        self,
        start: Callable[[], Iterator[T]],
        made: "asyncio.Queue[list[T] | Exception | None]",
    ) -> None:
        """Put what a stream yields into `made`, and at last the error that ended it, or None.

        Apart from the reader: one who does not read must not keep a place that others wait for.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            async with self._place(deadline) as signal:
                turns = _in_turns(start, signal)
                while (items := await self._take_turn(turns, signal, deadline)) is not None:
                    made.put_nowait(items)
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            made.put_nowait(error)
        else:
            made.put_nowait(None)

    @asynccontextmanager
    async def _place(self, deadline: float) -> AsyncIterator[StopSignal]:
        """Wait until work may begin; what tells it to end."""
        if self._is_ending:
            raise ShuttingDownError
        if len(self._signals) >= self._capacity:
            metrics.REJECTED.labels("busy").inc()
            raise BusyError
        signal = StopSignal()
        self._signals.add(signal)
        try:
            start = time.perf_counter()
            with metrics.QUEUED.track_inprogress():
                await self._until(deadline, self._places.acquire())
            metrics.QUEUE_WAIT.observe(time.perf_counter() - start)
            try:
                with metrics.IN_FLIGHT.track_inprogress():
                    yield signal
            finally:
                self._places.release()
        finally:
            self._signals.discard(signal)

    async def _take_turn(
        self, turns: Iterator[list[T]], signal: StopSignal, deadline: float
    ) -> list[T] | None:
        """Return the next items of a stream, None at its end."""
        await self._until(deadline, self._turns.acquire())
        try:
            return await self._in_thread(lambda: next(turns, None), signal, deadline)
        finally:
            self._turns.release()

    async def _in_thread(self, work: Callable[[], T], signal: StopSignal, deadline: float) -> T:
        """Return what `work` returns; end it at the deadline, or when the caller is cancelled."""
        if signal.is_set:
            raise ShuttingDownError
        future = asyncio.wrap_future(self._executor.submit(work))
        try:
            return await self._until(deadline, asyncio.shield(future))
        finally:
            if not future.done():
                signal.set()
                await asyncio.wait((future,))  # so that nothing runs on that is not counted
                future.exception()  # nobody is left to be told

    async def _until(self, deadline: float, result: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout_at(deadline):
                return await result
        except TimeoutError:
            raise DeadlineError(self._timeout) from None
