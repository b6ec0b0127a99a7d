"""One process that serves: its life from start to the last answer."""

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import sys
import time
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config, Sockets
from microgpt import MicrogptError
from starlette.applications import Starlette

from microgpt_serve.serving.log import configure_logging, log
from microgpt_serve.serving.settings import READY_FD, Settings

__all__ = ["CANNOT_LOAD", "run_worker"]

CANNOT_LOAD = (
    3  # exit status of a worker whose model cannot be loaded: starting it again is useless
)
SECONDS_AFTER_GRACE = 0.5  # for the last bytes of answers that were ended
SECONDS_BEFORE_GRACE = 1.0  # streams are ended that much earlier, so that they can say so
BACKLOG = 2048
SECONDS_OF_REST = 0.5  # less than the second after which asyncio tries again
OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
SWITCH_SECONDS = 0.001  # how soon a thread that waits for the interpreter gets it


def run_worker(app: Starlette, settings: Settings, listening: socket.socket) -> int:
    """Serve `app` on a socket until SIGTERM or SIGINT; return the exit status."""
    configure_logging(settings.log_level, settings.log_format)
    sys.setswitchinterval(SWITCH_SECONDS)
    return asyncio.run(_Worker(app, settings, listening).run())


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the event loop tells of."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
        log(logging.ERROR, "cannot take more connections", error=error.strerror)
    else:
        loop.default_exception_handler(context)


class _Listening(socket.socket):
    """A socket that asyncio leaves alone for a while where no connection can be taken.

    Else it tries once for each place of the backlog, and again a second after each of these
    failures, and so on: thousands of times more each second, for ever.
    """

    _resting_until = 0.0  # in seconds of `time.monotonic`

    def accept(self) -> tuple[socket.socket, Any]:
        if time.monotonic() < self._resting_until:
            raise BlockingIOError  # as if nobody waited
        try:
            return super().accept()
        except OSError as error:
            if error.errno in OUT_OF_RESOURCES:
                self._resting_until = time.monotonic() + SECONDS_OF_REST
            raise


class _Config(Config):
    """What Hypercorn is told; serves on a socket of ours."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__()
        self._listening = listening

    def create_sockets(self) -> Sockets:
        self._listening.setblocking(False)  # noqa: FBT003 - as the method takes it
        return Sockets(secure_sockets=[], insecure_sockets=[self._listening], quic_sockets=[])


class _Worker:
    def __init__(self, app: Starlette, settings: Settings, listening: socket.socket) -> None:
        self._app = app
        self._settings = settings
        self._listening = _Listening(fileno=listening.detach())
        # Where the supervisor, if there is one, listens.
        self._say_ready = int(os.environ[READY_FD]) if READY_FD in os.environ else None
        self._stop = asyncio.Event()
        self._stopped_at: float | None = None  # in seconds of `time.monotonic`
        self._status = 0
        self._loading: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._is_reload_due = False

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_loop_error)

        def stop(*_: object) -> None:
            # Here, however late the loop hears of it: the grace period counts from the signal.
            self._stopped_at = self._stopped_at or time.monotonic()
            loop.call_soon_threadsafe(self._stop.set)

        # Not `add_signal_handler`: it loses a signal that comes while the loop's pipe is full.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(self._reload))
        if self._say_ready is not None:
            # It reports an error once nobody can read there: the supervisor was killed.
            loop.add_reader(self._say_ready, self._stop_alone, loop, self._say_ready)
        config = _Config(self._listening)
        config.backlog = BACKLOG
        config.include_server_header = False
        # Before we end it ourselves: Hypercorn fails if it is cancelled while it waits for this.
        config.graceful_timeout = self._settings.grace_period
        config.loglevel = "WARNING"
        serving = asyncio.create_task(
            serve(self._app, config, shutdown_trigger=self._stop.wait)  # type: ignore[arg-type]
        )
        self._loading = asyncio.create_task(self._load())
        await asyncio.wait(
            (serving, asyncio.create_task(self._stop.wait())), return_when="FIRST_COMPLETED"
        )
        await self._drain(serving)
        self._loading.cancel()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # too late to ask for what is done
        return self._status

    def _stop_alone(self, loop: asyncio.AbstractEventLoop, say_ready: int) -> None:
        """End: nobody else would do it, and the port would stay taken."""
        loop.remove_reader(say_ready)
        log(logging.ERROR, "the supervisor is gone")
        self._stopped_at = self._stopped_at or time.monotonic()
        self._stop.set()

    async def _load(self) -> None:
        """Load the first model."""
        models = self._app.state.models
        try:
            model = await asyncio.to_thread(models.load)
        except MicrogptError as error:
            log(logging.ERROR, "cannot load the model", error=str(error))
            self._status = CANNOT_LOAD
            self._stop.set()
            return
        gc.freeze()  # what is here stays: the collector need not look at it again
        if self._say_ready is not None:
            os.write(self._say_ready, b"+")
        log(
            logging.INFO,
            "ready",
            model=models.id,
            engine=model.engine.name,
            n_params=model.config.n_params,
        )

    def _reload(self) -> None:
        """Load the model again; if that is being done, once more after it."""
        self._is_reload_due = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._swap())

    async def _swap(self) -> None:
        if self._loading:
            await asyncio.wait((self._loading,))  # or the older one could come last
        while self._is_reload_due:
            self._is_reload_due = False
            try:
                await asyncio.to_thread(self._app.state.models.load)
            except MicrogptError as error:
                log(logging.ERROR, "cannot load the new model, kept the old one", error=str(error))
            else:
                log(logging.INFO, "model loaded again", model=self._app.state.models.id)

    async def _drain(self, serving: "asyncio.Task[None]") -> None:
        """Let requests end, or end them, within the grace period."""
        state = self._app.state
        state.is_draining = True
        log(logging.INFO, "draining")
        end = (self._stopped_at or time.monotonic()) + self._settings.grace_period
        seconds_to_tell = min(SECONDS_BEFORE_GRACE, self._settings.grace_period / 2)
        await _wait_until(end - seconds_to_tell, serving)
        state.pool.end_all()
        await _wait_until(end + SECONDS_AFTER_GRACE, serving)
        serving.cancel()
        try:
            await serving
        # The latter from Hypercorn, if it is cancelled while it waits for them itself.
        except (asyncio.CancelledError, asyncio.InvalidStateError):
            log(logging.WARNING, "some requests did not end in time")
        log(logging.INFO, "stopped")


async def _wait_until(end: float, task: "asyncio.Task[None]") -> None:
    """Wait for a task until a time of `time.monotonic`, and no longer."""
    await asyncio.wait((task,), timeout=max(end - time.monotonic(), 0))
