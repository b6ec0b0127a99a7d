"""Several workers on one socket: starts them, replaces dead ones, forwards signals."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from types import FrameType

from microgpt import CheckpointError
from prometheus_client import multiprocess

from microgpt_serve.serving.limits import Limits
from microgpt_serve.serving.log import configure_logging, log
from microgpt_serve.serving.models import model_directories
from microgpt_serve.serving.settings import DEFAULT_MODEL, LISTEN_FD, READY_FD, Settings
from microgpt_serve.serving.system import RELOADS, STOPS, unblock_reloads
from microgpt_serve.serving.worker import CANNOT_LOAD

assert sys.platform != "win32", "processes do not share a socket there"

__all__ = ["supervise"]

POLL_SECONDS = 0.05
MAX_SHORT_LIVES = 5  # in a row, before any worker was ready


class _Supervisor:
    def __init__(
        self, settings: Settings, listening: socket.socket, limits: Limits, metrics_dir: str
    ) -> None:
        self._settings = settings
        self._listening = listening
        self._limits = limits
        self._ready_pipe, self._worker_end = os.pipe()
        os.set_blocking(self._ready_pipe, False)
        self._environment = dict(os.environ) | {
            LISTEN_FD: str(listening.fileno()),
            READY_FD: str(self._worker_end),
            DEFAULT_MODEL: _default_model(settings.model_dir),
            "PROMETHEUS_MULTIPROC_DIR": metrics_dir,
        }
        self._started_at: dict[subprocess.Popen[bytes], float] = {}  # by worker
        self._n_to_start = settings.workers
        self._next_start = 0.0
        self._n_short_lives = 0
        self._was_ready = False  # the service continues once any worker was ready
        self._is_stopping = False
        self._status = 0

    def run(self) -> int:
        for number in STOPS + RELOADS:
            signal.signal(number, self._on_signal)
        while not self._is_stopping:
            self._start_missing_workers()
            time.sleep(POLL_SECONDS)
            self._read_ready_pipe()
            self._replace_dead_workers()
        return self._stop()

    def _start_missing_workers(self) -> None:
        while self._n_to_start and time.monotonic() >= self._next_start:
            self._n_to_start -= 1
            self._start_worker()

    def _start_worker(self) -> None:
        # The worker inherits the mask: SIGHUP would end it before it has a handler.
        signal.pthread_sigmask(signal.SIG_BLOCK, RELOADS)
        worker = subprocess.Popen(
            [sys.executable, "-m", "microgpt_serve"],
            env=self._environment,
            pass_fds=[self._listening.fileno(), self._worker_end],
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which forwards it
        )
        unblock_reloads()
        self._started_at[worker] = time.monotonic()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if number in RELOADS:
            self._forward(number)
        else:
            self._is_stopping = True

    def _forward(self, number: int) -> None:
        for worker in list(self._started_at):
            if worker.poll() is None:
                worker.send_signal(number)

    def _read_ready_pipe(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._was_ready |= bool(os.read(self._ready_pipe, 1024))

    def _replace_dead_workers(self) -> None:
        """Schedule a start per dead worker; stop if not even the first workers can start."""
        for worker, started_at in list(self._started_at.items()):
            if worker.poll() is None:
                continue
            del self._started_at[worker]
            multiprocess.mark_process_dead(  # type: ignore[no-untyped-call]
                worker.pid, self._environment["PROMETHEUS_MULTIPROC_DIR"]
            )
            is_short = time.monotonic() - started_at < self._limits.short_life_seconds
            self._n_short_lives = self._n_short_lives + 1 if is_short else 0
            cannot_start = worker.returncode == CANNOT_LOAD
            if not self._was_ready and (cannot_start or self._n_short_lives == MAX_SHORT_LIVES):
                self._status, self._is_stopping = 1, True
                return
            log(logging.WARNING, "worker died, starting another", status=worker.returncode)
            self._n_to_start += 1
            if cannot_start or is_short:
                self._next_start = time.monotonic() + self._limits.restart_seconds

    def _stop(self) -> int:
        """Stop the workers; the socket is closed first, so that no client can connect."""
        self._listening.close()
        self._forward(signal.SIGTERM)
        seconds = self._settings.grace_period + self._limits.kill_seconds
        deadline = time.monotonic() + seconds
        for worker in self._started_at:
            try:
                worker.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                log(logging.ERROR, "killing a worker that did not stop", seconds=seconds)
                worker.kill()
                worker.wait()
        for number in STOPS + RELOADS:
            signal.signal(number, signal.SIG_IGN)  # the service has stopped already
        return self._status


def _default_model(model_dir: str) -> str:
    """Return the name of the default model; a worker may start when the directory has others."""
    try:
        return next(iter(model_directories(model_dir)))
    except CheckpointError:
        return ""  # which the workers report


def supervise(settings: Settings, listening: socket.socket, limits: Limits) -> int:
    """Run the workers until SIGTERM or SIGINT; return the exit status."""
    configure_logging(settings.log_level, settings.log_format)
    try:
        metrics_dir = tempfile.TemporaryDirectory(prefix="microgpt-serve-")
    except OSError as error:
        log(
            logging.ERROR,
            "workers share their metrics in a temporary directory; set TMPDIR, or WORKERS=1",
            error=error.strerror,
        )
        return 1
    with metrics_dir as path:
        return _Supervisor(settings, listening, limits, path).run()
