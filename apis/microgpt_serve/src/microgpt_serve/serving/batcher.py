"""One batch of texts for all requests of a model: each step reads the weights once for all of them.

A text joins the batch when there is a place for it and leaves it when it ends. In between, all
texts grow by the same number of tokens in each turn of a few milliseconds. A turn is computed in a
thread, without the interpreter lock; what comes of it is delivered by the event loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from microgpt import (
    ChosenToken,
    LanguageModel,
    LiveText,
    MicrogptError,
    PrefixCache,
    Prompt,
    SamplingConfig,
    StopSignal,
    TextBatch,
)

from microgpt_serve.serving import metrics
from microgpt_serve.serving.errors import BusyError, DeadlineError, ShuttingDownError

__all__ = ["Batcher", "Grown"]

# How long all texts grow before what they gained is sent and others may join: long enough that a
# turn costs little, short enough that no reader notices pieces arriving together.
TURN_SECONDS = 0.005
MAX_STEPS = 256  # of a turn
PROMPT_TOKENS = 512  # of the texts that join in one turn, so that the others wait a moment only


@dataclass(frozen=True)
class Grown:
    """What a text of a request has gained in a turn.

    Args:
        index: number of the text in the request.
        piece: of the text; the whole text where only its end is delivered.
        tokens: what `of_token` returned for those that begin in the piece.
        n_tokens: of the text so far.
        finish_reason: why the text has ended; None while it goes on.
    """

    index: int
    piece: str
    tokens: Sequence[Any]
    n_tokens: int
    finish_reason: Literal["stop", "length"] | None


@dataclass(eq=False)
class _Job:
    """The texts of one request."""

    model: LanguageModel
    waiting: deque[tuple[int, Prompt, SamplingConfig]]
    is_streamed: bool
    of_token: Callable[[ChosenToken], Any] | None
    since: float = field(default_factory=time.perf_counter)
    n_live: int = 0
    is_started: bool = False
    is_closed: bool = False
    signal: StopSignal = field(default_factory=StopSignal)
    grown: "asyncio.Queue[list[Grown] | Exception | None]" = field(default_factory=asyncio.Queue)

    def close(self) -> None:
        """Begin no more texts, and end those that grow."""
        self.is_closed = True
        self.waiting.clear()
        self.signal.set()

    def fail(self, error: Exception) -> None:
        """Close the job; its reader raises `error` after what came before."""
        if not self.is_closed:
            self.grown.put_nowait(error)
            self.close()


class Batcher:
    """Generates the texts of requests to one model, many at once.

    Args:
        n_texts: texts that grow at the same time.
        max_queue: requests that wait; more are refused.
        timeout: seconds until the deadline of any request, waiting included.
        prefix_bytes: memory for the beginnings of prompts that were read.
        name: of the model, for the metrics.
    """

    def __init__(
        self,
        n_texts: int,
        max_queue: int,
        timeout: float,
        prefix_bytes: int = 1 << 20,
        name: str = "",
    ) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self._n_texts, self._max_queue, self._timeout = n_texts, max_queue, timeout
        self._prefix_bytes = prefix_bytes
        self._batch_size = metrics.BATCH_SIZE.labels(name)
        self._tokens_per_second = metrics.TOKENS_PER_SECOND.labels(name)
        self._jobs: deque[_Job] = deque()  # in the order in which their next texts begin
        self._live: dict[LiveText, tuple[_Job, int]] = {}
        self._batches: dict[LanguageModel, tuple[TextBatch, PrefixCache]] = {}
        self._turns: asyncio.Task[None] | None = None
        self._step_seconds = TURN_SECONDS
        self._is_shutting_down = False

    @property
    def is_healthy(self) -> bool:
        """Whether more requests are accepted."""
        return not self._is_shutting_down and len(self._jobs) < self._n_texts + self._max_queue

    def abort_all(self) -> None:
        """Abort all requests with `ShuttingDownError`, and accept no more."""
        self._is_shutting_down = True
        for job in self._jobs:
            job.fail(ShuttingDownError())
        self._executor.shutdown(wait=False)

    async def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        configs: Sequence[SamplingConfig],
        *,
        pieces: bool = False,
        of_token: Callable[[ChosenToken], Any] | None = None,
        since: float | None = None,
    ) -> AsyncGenerator[Grown]:
        """Yield what the texts of a request gain; to be closed, which ends them.

        Args:
            model: generates the texts.
            prompts: the tokens that texts continue.
            configs: sampling options of the texts of each prompt; text `i * len(configs) + j`
                continues prompt i with options j.
            pieces: whether to yield texts as they grow; else each as a whole, at its end.
            of_token: returns what is kept of a token and the logits that it was chosen from, which
                may be large; called in the thread of the texts. None to keep nothing.
            since: time of the event loop from which the deadline counts; None for now.

        Raises:
            BusyError: the queue is full.
            DeadlineError: the texts did not end in time.
            ShuttingDownError: `abort_all` was called.
            MicrogptError: the model cannot generate them.
        """
        if self._is_shutting_down:
            raise ShuttingDownError
        if not self.is_healthy:
            metrics.REJECTED.labels("busy").inc()
            raise BusyError
        texts = product(prompts, configs)
        waiting = deque((index, *text) for index, text in enumerate(texts))
        job = _Job(model, waiting, pieces or of_token is not None, of_token)
        self._jobs.append(job)
        metrics.QUEUED.inc()
        loop = asyncio.get_running_loop()
        end = (loop.time() if since is None else since) + self._timeout
        deadline = loop.call_at(end, job.fail, DeadlineError(self._timeout))
        try:
            self._begin_turns()
            while (grown := await job.grown.get()) is not None:
                if isinstance(grown, Exception):
                    raise grown
                for each in grown:
                    if self._is_shutting_down:  # even if the reader is slow
                        raise ShuttingDownError
                    yield each
        finally:
            deadline.cancel()
            job.close()

    # ------------------------------------------------------------ turns

    def _begin_turns(self) -> None:
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._take_turns())

    async def _take_turns(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._jobs and not self._is_shutting_down:
                self._remove_closed()
                joining = self._joining()
                if self._live or joining:
                    n_steps = self._n_steps() if self._live else 1  # the first token comes at once
                    failed, tokens = await loop.run_in_executor(
                        self._executor, self._turn, joining, n_steps
                    )
                    self._deliver(failed, tokens)
                self._show()
        except Exception as error:  # noqa: BLE001 - the readers raise it
            self._batches.clear()
            for job in self._jobs:
                job.fail(error)
        finally:
            if self._is_shutting_down:
                self._batches.clear()
            for job in [job for job in self._jobs if job.is_closed]:
                self._drop(job)
            self._live.clear()
            self._show()

    def _n_steps(self) -> int:
        return max(1, min(MAX_STEPS, int(TURN_SECONDS / self._step_seconds)))

    def _remove_closed(self) -> None:
        """Take the texts out of the batch whose request has ended."""
        for text, (job, _) in list(self._live.items()):
            if job.is_closed:
                self._batches[job.model][0].remove(text)
                self._leave(text)
        for job in [job for job in self._jobs if job.is_closed]:
            self._drop(job)

    def _drop(self, job: _Job) -> None:
        self._jobs.remove(job)
        (metrics.IN_FLIGHT if job.is_started else metrics.QUEUED).dec()

    def _joining(self) -> list[tuple[_Job, int, Prompt, SamplingConfig]]:
        """Return texts for the free places, of each request in turn."""
        joining: list[tuple[_Job, int, Prompt, SamplingConfig]] = []
        n_tokens = 0
        waiting = [job for job in self._jobs if job.waiting]
        while waiting and len(self._live) + len(joining) < self._n_texts:
            job = waiting.pop(0)
            n_tokens += len(job.waiting[0][1].token_ids)
            if joining and n_tokens > PROMPT_TOKENS:
                break
            joining.append((job, *job.waiting.popleft()))
            if job.waiting:
                waiting.append(job)
            self._jobs.remove(job)
            self._jobs.append(job)
        return joining

    def _turn(
        self, joining: list[tuple[_Job, int, Prompt, SamplingConfig]], n_steps: int
    ) -> tuple[list[tuple[_Job, MicrogptError]], dict[LiveText, list[Any]]]:
        """Let texts join, and all of them grow.

        Returns:
            The requests that failed, and what is kept of the tokens of each text.
        """
        start = time.perf_counter()
        n_before = {text: text.n_tokens for text in self._live}
        failed = []
        for job, index, prompt, config in joining:
            if not job.is_started:
                job.is_started = True
                metrics.QUEUED.dec()
                metrics.IN_FLIGHT.inc()
                metrics.QUEUE_WAIT.observe(start - job.since)
            batch, prefixes = self._batch_of(job.model)
            n_hits, n_reused = prefixes.n_hits, prefixes.n_reused
            try:
                text = batch.add(
                    prompt, config, signal=job.signal, keep_logits=job.of_token is not None
                )
            except MicrogptError as error:
                failed.append((job, error))
            else:
                self._live[text] = job, index
                job.n_live += 1
            metrics.PREFIX_HITS.inc(prefixes.n_hits - n_hits)
            metrics.PREFIX_TOKENS.inc(prefixes.n_reused - n_reused)
        read = time.perf_counter()
        for batch, _ in self._batches.values():
            batch.advance(n_steps)
        tokens = {
            text: list(
                map(job.of_token, text.tokens if text.end is None else [*text.tokens, text.end])
            )
            for text, (job, _) in self._live.items()
            if job.of_token and not job.is_closed
        }
        seconds = time.perf_counter() - read
        gained = [text.n_tokens - n_before.get(text, 0) for text in self._live]
        self._step_seconds = max(seconds / max(*gained, 1, 1), 1e-6)
        metrics.COMPLETION_TOKENS.inc(sum(gained))
        self._tokens_per_second.set(sum(gained) / (time.perf_counter() - start))
        return failed, tokens

    def _batch_of(self, model: LanguageModel) -> tuple[TextBatch, PrefixCache]:
        """Return the batch of a model; those of models that were replaced end with their texts."""
        if model not in self._batches:
            prefixes = PrefixCache(self._prefix_bytes)
            self._batches[model] = model.batch(prefixes), prefixes
        for each in [each for each in self._batches if each is not model]:
            if not len(self._batches[each][0]):
                del self._batches[each]
        return self._batches[model]

    def _deliver(
        self, failed: list[tuple[_Job, MicrogptError]], tokens: dict[LiveText, list[Any]]
    ) -> None:
        """Give each request what its texts have gained."""
        for job, error in failed:
            job.fail(error)
        grown: dict[_Job, list[Grown]] = {}
        for text, (job, index) in list(self._live.items()):
            piece = text.piece
            if text.is_finished:
                self._leave(text)
                try:
                    reply = text.reply()
                except MicrogptError as error:
                    job.fail(error)
                    continue
                piece = piece if job.is_streamed else reply.content
            elif not piece or not job.is_streamed:
                continue
            grown.setdefault(job, []).append(
                Grown(index, piece, tokens.get(text, ()), text.n_tokens, text.finish_reason)
            )
        for job, each in grown.items():
            if not job.is_closed:
                job.grown.put_nowait(each)
                if not job.waiting and not job.n_live:
                    job.grown.put_nowait(None)
                    job.close()  # before its reader has read all: the place is free

    def _leave(self, text: LiveText) -> None:
        job, _ = self._live.pop(text)
        job.n_live -= 1

    def _show(self) -> None:
        """Update the gauges."""
        self._batch_size.set(len(self._live))
        if not self._live:
            self._tokens_per_second.set(0)
