"""Where texts are generated: a few threads, a queue that ends, deadlines, cancellation.

The engine lets the interpreter go while it computes, so threads generate at the same time and the
event loop stays free.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from microgpt import StopSignal

from microgpt_serve import metrics
from microgpt_serve.errors import BusyError, DeadlineError, ShuttingDownError

__all__ = ["Pool"]

T = TypeVar("T")


class _Job:
    """One text, or a few, for one request."""

    def __init__(self) -> None:
        self.signal = StopSignal()
        self.tell_end: Callable[[], None] | None = None  # to a reader who need not wait for the end
        self.submitted = time.perf_counter()


class _Inbox(Generic[T]):
    """Items on their way from a thread to the event loop that made this."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[T] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._ready: deque[T] = deque()

    def put_from_thread(self, item: T) -> None:
        self._ready.append(item)
        # One wake-up for all that is ready: a loop that is behind would find its pipe full of
        # them, and signals, which come through the same pipe, would be lost.
        if len(self._ready) == 1:
            self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        while self._ready:
            self.queue.put_nowait(self._ready.popleft())

    def replace(self, item: T) -> None:
        """Put `item` in the place of what a slow reader has not taken."""
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(item)


class Pool:
    """Runs work in threads.

    Args:
        n_threads: how much at once.
        max_queue: how much may wait.
        timeout: seconds that anything may take, waiting included.
    """

    def __init__(self, n_threads: int, max_queue: int, timeout: float) -> None:
        self._executor = ThreadPoolExecutor(n_threads, thread_name_prefix="generate")
        self._capacity = n_threads + max_queue
        self._timeout = timeout
        self._jobs: set[_Job] = set()
        self._is_ending = False

    @property
    def is_healthy(self) -> bool:
        """Whether more work is taken."""
        return not self._is_ending and len(self._jobs) < self._capacity

    def end_all(self) -> None:
        """End everything that runs or waits; each gets `ShuttingDownError`."""
        self._is_ending = True
        for job in list(self._jobs):
            job.signal.set()
            if job.tell_end:
                job.tell_end()
        self._executor.shutdown(wait=False)

    async def run(self, work: Callable[[StopSignal], T]) -> T:
        """Return what `work` returns; it must end soon after its signal is set.

        If the caller is cancelled, so is the work.

        Raises:
            BusyError: the queue is full.
            DeadlineError: it took too long.
            ShuttingDownError: `end_all` came first.
        """
        job = self._admit()
        future = self._executor.submit(self._do, job, work)
        try:
            async with asyncio.timeout(self._timeout):
                result = await asyncio.wrap_future(future)
        except TimeoutError:
            raise DeadlineError(self._timeout) from None
        finally:
            if future.cancel():  # it never ran
                self._forget(job)
            elif not future.done():
                job.signal.set()
        if job.signal.is_set:
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
        inbox: _Inbox[T | Exception | None] = _Inbox()

        def work(signal: StopSignal) -> None:
            for item in _until_end(start, signal):
                inbox.put_from_thread(item)

        job = self._admit()
        job.tell_end = lambda: inbox.replace(ShuttingDownError())
        future = self._executor.submit(self._do, job, work)
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    item = await inbox.queue.get()
                if item is None:
                    return
                if isinstance(item, Exception):
                    raise item
                yield item
        except TimeoutError:
            raise DeadlineError(self._timeout) from None
        finally:
            job.signal.set()
            if future.cancel():
                self._forget(job)

    def _admit(self) -> _Job:
        if self._is_ending:
            raise ShuttingDownError
        if len(self._jobs) >= self._capacity:
            metrics.REJECTED.labels("busy").inc()
            raise BusyError
        job = _Job()
        self._jobs.add(job)
        metrics.QUEUED.inc()
        return job

    def _forget(self, job: _Job) -> None:
        self._jobs.discard(job)
        metrics.QUEUED.dec()

    def _do(self, job: _Job, work: Callable[[StopSignal], T]) -> T:
        """Run in a thread of the pool."""
        metrics.QUEUED.dec()
        metrics.QUEUE_WAIT.observe(time.perf_counter() - job.submitted)
        metrics.IN_FLIGHT.inc()
        try:
            return work(job.signal)
        finally:
            metrics.IN_FLIGHT.dec()
            self._jobs.discard(job)


def _until_end(
    start: Callable[[], Iterator[T]], signal: StopSignal
) -> Iterator[T | Exception | None]:
    """Yield what the iterator yields, and at last the error that ended it, or None."""
    try:
        for piece in start():
            if signal.is_set:
                yield ShuttingDownError()
                return
            yield piece
    except Exception as error:  # noqa: BLE001 - raised again where it is awaited
        yield error
        return
    yield None
