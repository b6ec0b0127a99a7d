"""Log lines."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from microgpt_serve.serving.log import log
from microgpt_serve.serving.worker import _Config
from serve.service import StartLog

ANYWHERE = "0.0.0.0"  # noqa: S104 - what the warning is about


def test_log_lines_cannot_be_forged(
    capsys: pytest.CaptureFixture[str], start_log: StartLog
) -> None:
    for style, expected in (("text", r" name='a\nb c'"), ("json", r'"name":"a\nb c"}')):
        start_log(style)
        log(logging.INFO, "event", name="a\nb c")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(expected)


def test_lines_of_the_server_below_are_like_ours(
    capsys: pytest.CaptureFixture[str], start_log: StartLog
) -> None:
    start_log("json")
    with socket.socket() as listening:
        config = _Config(listening, grace_period=1.0, header_seconds=1.0)
        try:
            1 / 0  # noqa: B018 - fails
        except ZeroDivisionError:
            asyncio.run(config.log.exception("Error in ASGI Framework"))
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["event"]) == ("error", "Error in ASGI Framework")
    assert line["traceback"].endswith("ZeroDivisionError: division by zero")


def test_name_that_is_not_utf_8_can_be_logged(
    capsys: pytest.CaptureFixture[str], start_log: StartLog
) -> None:
    start_log("json")
    log(logging.INFO, "ready", model=os.fsdecode(b"na\\m\xff"), path=Path("p"))
    line = msgspec.json.decode(capsys.readouterr().err)
    assert (line["model"], line["path"]) == (r"na\m\udcff", "p")


TROUBLE = """
import logging, os, signal, threading, warnings
from microgpt_serve.main import run

class Unraisable:
    def __del__(self):
        raise ZeroDivisionError("while deleted")

def fail():
    raise ZeroDivisionError("in a thread")

def cause_trouble():
    is_ready.wait(20)
    warnings.warn("a warning\\nof two lines")
    Unraisable()
    failing = threading.Thread(target=fail)
    failing.start()
    failing.join()
    os.kill(os.getpid(), signal.SIGTERM)

def watch(record):
    if record.getMessage() == "ready":
        is_ready.set()
    return True

is_ready = threading.Event()
logging.getLogger("microgpt_serve").addFilter(watch)
threading.Thread(target=cause_trouble).start()
try:
    run()
finally:
    raise ZeroDivisionError("of the program")
"""


def test_whatever_python_prints_is_json_too(names_dir: Path) -> None:
    given = {"MODEL_DIR": str(names_dir), "PORT": "0", "HOST": ANYWHERE, "LOG_FORMAT": "json"}
    command = [sys.executable, "-c", TROUBLE]
    done = subprocess.run(command, env=os.environ | given, capture_output=True, check=False)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines[:3]] == ["info", "warning", "info"]
    listening, warning, ready = lines[:3]
    assert listening["event"] == "listening"
    assert listening["url"].startswith(f"http://{ANYWHERE}:")
    assert warning["event"].startswith(f"anyone who reaches {ANYWHERE} can use this service")
    assert ready["event"] == "ready"
    assert "UserWarning: a warning\nof two lines" in lines[3]["event"]
    causes = [line["traceback"].splitlines()[-1] for line in lines if "traceback" in line]
    assert causes == [
        f"ZeroDivisionError: {cause}"
        for cause in ("while deleted", "in a thread", "of the program")
    ]
