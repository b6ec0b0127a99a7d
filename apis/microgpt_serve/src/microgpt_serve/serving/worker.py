"""One process that serves, from its start to its last response."""

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from hypercorn.asyncio import serve
from hypercorn.config import Config, Sockets
from microgpt import MicrogptError
from starlette.applications import Starlette

from microgpt_serve.serving.errors import explained
from microgpt_serve.serving.limits import Limits
from microgpt_serve.serving.log import configure_logging, log
from microgpt_serve.serving.settings import READY_FD, Settings
from microgpt_serve.serving.system import MAX_SOCKETS, RELOADS, STOPS

__all__ = ["CANNOT_LOAD", "run_worker"]

CANNOT_LOAD = 3  # exit status of a worker whose model cannot be loaded
SECONDS_BEFORE_GRACE_END = 1.0  # for streams to send their error event, at most half the period
SECONDS_AFTER_GRACE_END = 0.5  # for the last bytes of responses
BACKLOG = 2048
N_OWN_SOCKETS = 8  # at most, of the listening one and those that wake up the loop
ACCEPT_PAUSE_SECONDS = 0.5  # shorter than the second after which asyncio accepts again
OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
SWITCH_SECONDS = 0.001  # until a thread that waits for the interpreter lock is given it


def run_worker(app: Starlette, settings: Settings, listening: socket.socket, limits: Limits) -> int:
    """Serve `app` on a socket until SIGTERM or SIGINT; return the exit status."""
    configure_logging(settings.log_level, settings.log_format)
    sys.setswitchinterval(SWITCH_SECONDS)
    # Not the default loop of Windows: a client that resets its connection at the wrong moment makes
    # it close the listening socket (python/cpython#93821).
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(_Worker(app, settings, listening, limits).run())


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that the event loop reports."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
        log(logging.ERROR, "cannot accept connections", error=error.strerror)
    else:
        loop.default_exception_handler(context)


@contextmanager
def _woken_by_signals(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Wake up a loop at a signal, because on Windows no signal ends its wait for sockets."""
    reader, writer = socket.socketpair()
    with reader, writer:
        for end in (reader, writer):
            end.setblocking(False)  # noqa: FBT003 - as the method takes it
        loop.add_reader(reader, reader.recv, 4096)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(reader)


class _Listening(socket.socket):
    """A socket that pauses after a connection could not be accepted.

    Otherwise asyncio tries once per place of the backlog, and again one second after each of these
    failures: thousands of failures more every second.
    """

    _paused_until = 0.0  # in seconds of `time.monotonic`

    def __init__(self, fileno: int, max_sockets: int | None = MAX_SOCKETS) -> None:
        super().__init__(fileno=fileno)
        self._most = None if max_sockets is None else max_sockets - N_OWN_SOCKETS
        self._accepted = WeakSet[socket.socket]()

    def accept(self) -> tuple[socket.socket, Any]:
        if time.monotonic() < self._paused_until:
            raise BlockingIOError  # as if the backlog were empty
        try:
            return self._accept_one()
        except OSError as error:
            if error.errno in OUT_OF_RESOURCES:
                self._paused_until = time.monotonic() + ACCEPT_PAUSE_SECONDS
            raise

    def _accept_one(self) -> tuple[socket.socket, Any]:
        if self._most is None:
            return super().accept()
        if len(self._accepted) >= self._most:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        connection, address = super().accept()
        self._accepted.add(connection)
        return connection, address


class _Config(Config):
    """Hypercorn's configuration, for a socket that is open already."""

    def __init__(
        self, listening: socket.socket, grace_period: float, header_seconds: float
    ) -> None:
        super().__init__()
        self._listening = listening
        self.backlog = BACKLOG
        self.include_server_header = False
        # Shorter than the worker's own deadline: Hypercorn fails if cancelled while it waits.
        self.graceful_timeout = grace_period
        self.keep_alive_timeout = header_seconds
        self.errorlog = logging.getLogger("hypercorn.error")  # else it takes a handler of its own

    def create_sockets(self) -> Sockets:
        self._listening.setblocking(False)  # noqa: FBT003 - as the method takes it
        return Sockets(secure_sockets=[], insecure_sockets=[self._listening], quic_sockets=[])


class _Worker:
    def __init__(
        self, app: Starlette, settings: Settings, listening: socket.socket, limits: Limits
    ) -> None:
        self._app = app
        self._settings = settings
        self._listening = _Listening(fileno=listening.detach())
        self._limits = limits
        # The supervisor's pipe, if there is a supervisor.
        self._ready_pipe = int(os.environ[READY_FD]) if READY_FD in os.environ else None
        self._stop = asyncio.Event()
        self._stopped_at: float | None = None  # in seconds of `time.monotonic`
        self._status = 0
        self._loading: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._is_reload_due = False

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_loop_error)
        with _woken_by_signals(loop):
            return await self._run(loop)

    async def _run(self, loop: asyncio.AbstractEventLoop) -> int:
        def stop(*_: object) -> None:
            # The grace period counts from the signal, even if the event loop is late.
            self._stopped_at = self._stopped_at or time.monotonic()
            loop.call_soon_threadsafe(self._stop.set)

        # Not `add_signal_handler`, which loses a signal while the event loop's pipe is full.
        for number in STOPS:
            signal.signal(number, stop)
        for number in RELOADS:
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._reload))
        if self._ready_pipe is not None:
            # The pipe reports an error once its reader, the supervisor, has exited.
            loop.add_reader(self._ready_pipe, self._stop_orphan, loop, self._ready_pipe)
        config = _Config(self._listening, self._settings.grace_period, self._limits.header_seconds)
        serving = asyncio.create_task(
            serve(self._app, config, shutdown_trigger=self._stop.wait)  # type: ignore[arg-type]
        )
        self._loading = asyncio.create_task(self._load())
        await asyncio.wait(
            (serving, asyncio.create_task(self._stop.wait())), return_when="FIRST_COMPLETED"
        )
        await self._drain(serving)
        self._loading.cancel()
        for number in STOPS + RELOADS:
            signal.signal(number, signal.SIG_IGN)  # the worker has stopped already
        return self._status

    def _stop_orphan(self, loop: asyncio.AbstractEventLoop, ready_pipe: int) -> None:
        """Stop a worker without a supervisor, which would keep the port in use for ever."""
        loop.remove_reader(ready_pipe)
        log(logging.ERROR, "the supervisor has exited")
        self._stopped_at = self._stopped_at or time.monotonic()
        self._stop.set()

    async def _load(self) -> None:
        """Load the models for the first time."""
        models = self._app.state.models
        try:
            await asyncio.to_thread(models.load)
        except MicrogptError as error:
            log(logging.ERROR, "cannot load the model", error=explained(error))
            self._status = CANNOT_LOAD
            self._stop.set()
            return
        gc.freeze()  # modules and models: the collector need not visit them again
        if self._ready_pipe is not None:
            os.write(self._ready_pipe, b"+")
        for served in models:
            log(
                logging.INFO,
                "ready",
                model=served.id,
                engine=served.model.engine.name,
                n_params=served.model.config.n_params,
            )

    def _reload(self) -> None:
        """Reload the models; if a reload is running, once more after it."""
        self._is_reload_due = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._load_again())

    async def _load_again(self) -> None:
        if self._loading:
            await asyncio.wait((self._loading,))  # else the first load could replace a later one
        while self._is_reload_due:
            self._is_reload_due = False
            await asyncio.to_thread(self._app.state.models.reload)

    async def _drain(self, serving: "asyncio.Task[None]") -> None:
        """Let requests in flight finish, or abort them at the end of the grace period."""
        state = self._app.state
        state.is_draining = True
        log(logging.INFO, "draining")
        end = (self._stopped_at or time.monotonic()) + self._settings.grace_period
        margin = min(SECONDS_BEFORE_GRACE_END, self._settings.grace_period / 2)
        await _wait_until(end - margin, serving)
        state.pool.abort_all()
        state.models.abort_all()
        await _wait_until(end + SECONDS_AFTER_GRACE_END, serving)
        serving.cancel()
        try:
            await serving
        # Hypercorn raises InvalidStateError if it is cancelled while it waits for requests.
        except (asyncio.CancelledError, asyncio.InvalidStateError):
            log(logging.WARNING, "some requests did not finish within the grace period")
        log(logging.INFO, "stopped")


async def _wait_until(end: float, task: "asyncio.Task[None]") -> None:
    """Wait for a task, at most until `end`, a time of `time.monotonic`."""
    await asyncio.wait((task,), timeout=max(end - time.monotonic(), 0))
