"""Threads for work that would hold the event loop up, with a bounded queue and deadlines.

The engine releases the interpreter lock while it computes, so several threads work at the same time
and the event loop stays responsive.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from microgpt import StopSignal

from microgpt_serve.serving import metrics
from microgpt_serve.serving.errors import BusyError, DeadlineError, ShuttingDownError

__all__ = ["Pool"]

T = TypeVar("T")


class Pool:
    """Runs work in threads.

    Args:
        n_threads: work that runs at the same time.
        max_queue: work that waits; more is refused.
        timeout: seconds until the deadline of any work, waiting included.
    """

    def __init__(self, n_threads: int, max_queue: int, timeout: float) -> None:
        self._executor = ThreadPoolExecutor(n_threads, thread_name_prefix="work")
        self._capacity = n_threads + max_queue
        self._timeout = timeout
        self._places = asyncio.Semaphore(n_threads)
        self._signals: set[StopSignal] = set()  # of the work that runs or waits
        self._is_shutting_down = False

    @property
    def is_healthy(self) -> bool:
        """Whether the pool accepts more work."""
        return not self._is_shutting_down and len(self._signals) < self._capacity

    def abort_all(self) -> None:
        """Abort all work that runs or waits, with `ShuttingDownError`, and accept no more."""
        self._is_shutting_down = True
        for signal in list(self._signals):
            signal.set()
        self._executor.shutdown(wait=False)

    async def run(self, work: Callable[[StopSignal], T]) -> T:
        """Return the result of `work`, which must return soon after its signal is set.

        Cancelling the caller cancels the work.

        Raises:
            BusyError: the queue is full.
            DeadlineError: the work did not finish in time.
            ShuttingDownError: `abort_all` was called.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        async with self._place(deadline) as signal:
            result = await self._in_thread(lambda: work(signal), signal, deadline)
            if signal.is_set:
                raise ShuttingDownError
            return result

    def run_inline(self, work: Callable[[StopSignal], T]) -> T:
        """Return the result of `work`, run by the event loop itself: for less than a millisecond.

        Raises:
            ShuttingDownError: `abort_all` was called.
        """
        if self._is_shutting_down:
            raise ShuttingDownError
        metrics.QUEUE_WAIT.observe(0.0)
        return work(StopSignal())

    @asynccontextmanager
    async def _place(self, deadline: float) -> AsyncIterator[StopSignal]:
        """Wait for a place among the threads; yield the signal that aborts the work."""
        if self._is_shutting_down:
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

    async def _in_thread(self, work: Callable[[], T], signal: StopSignal, deadline: float) -> T:
        """Return the result of `work`; abort it at the deadline, or if the caller is cancelled."""
        if signal.is_set:
            raise ShuttingDownError
        future = asyncio.wrap_future(self._executor.submit(work))
        try:
            return await self._until(deadline, asyncio.shield(future))
        finally:
            if not future.done():
                signal.set()
                await asyncio.wait((future,))  # a thread is counted until it has returned
                future.exception()  # retrieved: no caller is left to raise it

    async def _until(self, deadline: float, result: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout_at(deadline):
                return await result
        except TimeoutError:
            raise DeadlineError(self._timeout) from None
