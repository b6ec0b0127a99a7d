"""The service without SIGHUP, `pthread_sigmask`, `pass_fds` and `add_reader`: see `windows`."""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
import windows
from microgpt_serve.serving import worker
from serve.service import running

COMMAND = windows.command("microgpt_serve")


def test_one_worker_starts_serves_and_drains(names_dir: Path) -> None:
    with running(names_dir, command=COMMAND) as server:
        answer = httpx2.post(f"{server.url}/microgpt/v1/generate", json={"seed": 1})
        assert answer.json()["samples"]
        server.process.send_signal(windows.PRESS_BREAK)
        assert server.process.wait(30) == 0
        assert "draining" in server.log
        assert server.log.rstrip().endswith("stopped")


def test_what_windows_lacks_is_refused_in_one_line() -> None:
    environment = os.environ | {"WORKERS": "2"}
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    expected = "error: WORKERS is 2, expected 1: on Windows processes cannot share a port\n"
    assert done.stderr == expected


def test_help_names_no_signal_that_windows_lacks() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert "Ctrl-Break stops" in done.stdout
    assert "$env:MODEL_DIR = 'out' in PowerShell" in done.stdout
    assert "SIGHUP" not in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="all do, and none can be blocked")
def test_signal_that_reaches_another_thread_wakes_up_the_loop() -> None:
    """A handler of Python runs in the main thread, which the system does not interrupt."""
    number, signals = signal.SIGUSR2, {signal.SIGUSR2}

    def receive() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        time.sleep(0.05)  # until the loop waits
        signal.raise_signal(number)

    async def wait() -> float:
        loop, received = asyncio.get_running_loop(), asyncio.Event()
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(received.set))
        start = time.monotonic()
        with worker._woken_by_signals(loop):
            threading.Thread(target=receive).start()
            async with asyncio.timeout(5):
                await received.wait()
        return time.monotonic() - start

    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        assert asyncio.run(wait()) < 3
    finally:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def test_connections_are_no_more_than_the_event_loop_can_wait_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        listening = worker._Listening(server.detach(), max_sockets=worker.N_OWN_SOCKETS + 2)
    with listening:
        clients = [socket.create_connection(address) for _ in range(3)]
        accepted = [listening.accept()[0] for _ in range(2)]
        with pytest.raises(OSError, match="open files") as caught:
            listening.accept()
        assert caught.value.errno == errno.EMFILE  # asyncio accepts again later
        with pytest.raises(BlockingIOError):
            listening.accept()
        accepted.pop().close()
        listening._paused_until = 0.0
        accepted.append(listening.accept()[0])
        for each in clients + accepted:
            each.close()
