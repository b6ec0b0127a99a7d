"""The command `microgpt-serve`."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from measuring import measuring
from microgpt_serve import main
from microgpt_serve.serving.settings import describe
from microgpt_serve.serving.system import RELOADS
from serve.service import running

ANYWHERE = "0.0.0.0"  # noqa: S104 - what the warning is about

NO_SUCH_HOST = os.strerror(errno.EADDRNOTAVAIL)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "microgpt_serve", *arguments],
        env=environment | measuring(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_help_and_version() -> None:
    shown = run("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert describe() in shown.stdout
    assert version("microgpt-serve") in run("--version").stdout


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # it ends with the program
@pytest.mark.parametrize(
    ("arguments", "environment", "status", "error"),
    [
        (["serve"], {}, 2, "unexpected argument 'serve'; see microgpt-serve --help"),
        ([], {"PORT": "x"}, 2, "PORT is 'x', expected an integer"),
        ([], {"PORT": "99999"}, 2, "PORT is '99999', expected at most 65535"),
        ([], {"HOST": "203.0.113.7"}, 1, f"cannot listen on 203.0.113.7:8080: {NO_SUCH_HOST}"),
        ([], {"HOST": "[2001:db8::7]"}, 1, "cannot listen on [2001:db8::7]:8080: "),
        ([], {"HOST": "a" * 70}, 1, f"cannot listen on {'a' * 70}:8080: "),
        ([], {"HOST": "no such host"}, 1, "cannot listen on no such host:8080: "),
    ],
)
def test_an_error_at_start_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environment: dict[str, str],
    status: int,
    error: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["microgpt-serve", *arguments])
    monkeypatch.setattr(os, "environ", environment)
    handlers = {number: signal.getsignal(number) for number in RELOADS}
    ended_with = None
    try:
        main.run()
    except SystemExit as end:  # pytest.raises would keep the socket until a later test
        ended_with = end.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert ended_with == status
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"error: {error}")
    assert stderr.count("\n") == 1
    assert stderr.endswith("; choose another HOST or PORT\n") is ("listen" in error)


def test_an_error_at_start_is_json_where_the_log_is() -> None:
    done = run(PORT="“x”", LOG_FORMAT="JSON", PYTHONIOENCODING="cp1252")  # of Windows
    assert done.returncode == 2
    line = json.loads(done.stderr)
    assert (line["level"], line["event"]) == ("error", "PORT is '“x”', expected an integer")


def test_a_model_that_cannot_be_loaded_ends_it(tmp_path: Path, names_dir: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(names_dir, damaged)
    with (damaged / "weights.json").open("a") as file:
        file.write(" ")
    empty = tmp_path / "empty"
    empty.mkdir()
    for workers, directory, error in (
        ("1", empty, f"error='there is no model in {empty}, expected MODEL_DIR to be"),
        ("2", damaged, "it was changed or damaged after it was saved; restore all files"),
    ):
        done = run(MODEL_DIR=str(directory), PORT="0", WORKERS=workers)
        assert done.returncode == 1
        assert error in done.stderr
        assert "Traceback" not in done.stderr


def test_workers_without_a_temporary_directory_are_one_line() -> None:
    code = """
import tempfile
tempfile._candidate_tempdir_list = lambda: ["/nowhere"]
from microgpt_serve.main import run
run()
"""
    environment = {"PORT": "0", "WORKERS": "2"} | measuring()
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error='No usable temporary directory found in ['/nowhere']'" in done.stderr.replace(
        '"', "'"
    )
    assert "Traceback" not in done.stderr


def test_host_may_have_the_brackets_of_a_url(names_dir: Path) -> None:
    with running(names_dir, host="[::1]") as server:
        assert f"listens on http://[::1]:{server.port}\n" in server.log
        assert "warning" not in server.log
        with socket.create_connection(("::1", server.port), 5):
            pass


def test_an_open_service_without_a_key_warns(names_dir: Path) -> None:
    with running(names_dir, host=ANYWHERE) as server:
        assert f"warning: anyone who reaches {ANYWHERE} can use this service" in server.log
    with running(names_dir, host=ANYWHERE, api_key="x") as server:
        assert "warning" not in server.log


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_a_closed_pipe_ends_it_quietly(argument: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "microgpt_serve", argument]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
def test_a_full_disk_is_one_line() -> None:
    command = [sys.executable, "-m", "microgpt_serve", "--help"]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"error: cannot write to stdout: No space left on device\n"
