"""Several workers on one socket: starts them, replaces those that die, passes signals on."""

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

from prometheus_client import multiprocess

from microgpt_serve.serving.log import configure_logging, log
from microgpt_serve.serving.settings import LISTEN_FD, READY_FD, Settings
from microgpt_serve.serving.worker import CANNOT_LOAD

__all__ = ["supervise"]


SECONDS_AFTER_GRACE = 3.0  # after which a worker that did not end is killed
SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_BEFORE_RETRY = 1.0
SHORT_LIFE_SECONDS = 1.0
MAX_SHORT_LIVES = 5  # in a row


class _Supervisor:
    def __init__(self, settings: Settings, listening: socket.socket, metrics_dir: str) -> None:
        self._settings = settings
        self._listening = listening
        self._ready, self._say_ready = os.pipe()
        os.set_blocking(self._ready, False)
        self._environment = dict(os.environ) | {
            LISTEN_FD: str(listening.fileno()),
            READY_FD: str(self._say_ready),
            "PROMETHEUS_MULTIPROC_DIR": metrics_dir,
        }
        self._workers: dict[subprocess.Popen[bytes], float] = {}  # and when they started
        self._n_to_start = settings.workers
        self._next_start = 0.0
        self._n_short_lives = 0
        self._was_ready = False  # once any worker was, the service goes on
        self._is_stopping = False
        self._status = 0

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        while not self._is_stopping:
            self._start_missing()
            time.sleep(SECONDS_BETWEEN_LOOKS)
            self._look_for_ready()
            self._look_for_dead()
        return self._stop()

    def _start_missing(self) -> None:
        while self._n_to_start and time.monotonic() >= self._next_start:
            self._n_to_start -= 1
            self._start()

    def _start(self) -> None:
        # Inherited, so that no SIGHUP ends a worker that does not listen to it yet.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        worker = subprocess.Popen(
            [sys.executable, "-m", "microgpt_serve"],
            env=self._environment,
            pass_fds=[self._listening.fileno(), self._say_ready],
            start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on
        )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        self._workers[worker] = time.monotonic()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._send(signal.SIGHUP)
        else:
            self._is_stopping = True

    def _send(self, number: int) -> None:
        for worker in list(self._workers):
            if worker.poll() is None:
                worker.send_signal(number)

    def _look_for_ready(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._was_ready |= bool(os.read(self._ready, 1024))

    def _look_for_dead(self) -> None:
        """Have those that died replaced; end if none can be started, not even the first ones."""
        for worker, started in list(self._workers.items()):
            if worker.poll() is None:
                continue
            del self._workers[worker]
            multiprocess.mark_process_dead(  # type: ignore[no-untyped-call]
                worker.pid, self._environment["PROMETHEUS_MULTIPROC_DIR"]
            )
            is_short = time.monotonic() - started < SHORT_LIFE_SECONDS
            self._n_short_lives = self._n_short_lives + 1 if is_short else 0
            cannot_start = worker.returncode == CANNOT_LOAD
            if not self._was_ready and (cannot_start or self._n_short_lives == MAX_SHORT_LIVES):
                self._status, self._is_stopping = 1, True
                return
            log(logging.WARNING, "worker died, starting another", status=worker.returncode)
            self._n_to_start += 1
            if cannot_start or is_short:  # rather than try all the time
                self._next_start = time.monotonic() + SECONDS_BEFORE_RETRY

    def _stop(self) -> int:
        """End the workers; the socket is closed first, so that nobody new gets in."""
        self._listening.close()
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.grace_period + SECONDS_AFTER_GRACE
        for worker in self._workers:
            try:
                worker.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # too late to ask for what is done
        return self._status


def supervise(settings: Settings, listening: socket.socket) -> int:
    """Run the workers until SIGTERM or SIGINT; return the exit status."""
    configure_logging(settings.log_level, settings.log_format)
    with tempfile.TemporaryDirectory(prefix="microgpt-serve-") as metrics_dir:
        return _Supervisor(settings, listening, metrics_dir).run()
