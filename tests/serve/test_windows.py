"""The service without SIGHUP, `pthread_sigmask`, `pass_fds` and `add_reader`: see `windows`."""

import subprocess
from pathlib import Path

import httpx2
import windows
from serve.service import running

COMMAND = windows.command("microgpt_serve")


def test_one_worker_starts_serves_and_drains(names_dir: Path) -> None:
    with running(names_dir, command=COMMAND) as server:
        answer = httpx2.post(f"{server.url}/microgpt/v1/generate", json={"seed": 1})
        assert answer.json()["samples"]
        server.process.send_signal(windows.BREAK)
        assert server.process.wait(30) == 0
        assert "draining" in server.log
        assert server.log.rstrip().endswith("stopped")


def test_what_windows_lacks_is_refused_in_one_line() -> None:
    command = ["env", "WORKERS=2", *COMMAND]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    expected = "error: WORKERS is 2, expected 1: on Windows processes cannot share a port\n"
    assert done.stderr == expected


def test_help_names_no_signal_that_windows_lacks() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert "Ctrl-Break stops" in done.stdout
    assert "SIGHUP" not in done.stdout
