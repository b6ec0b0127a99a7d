"""The command line on Windows, or without the signals and locks of POSIX: see `windows`."""

import ctypes
import errno
import io
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import microgpt
import pytest
import windows
from cli.conftest import Cli, training
from microgpt_cli import system
from microgpt_cli.interruption import interruptible
from microgpt_cli.main import run


def test_second_run_is_refused_and_the_first_interrupted_and_saved(
    names: Path, tmp_path: Path
) -> None:
    job = ("train", "--input", names, "--output", tmp_path / "out", "--steps", 10**7)
    command = windows.command("microgpt_cli", *job)
    with training(*command) as first:
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert second.stderr.startswith("error: another process trains into ")
        first.send_signal(windows.PRESS_BREAK)
        _, errors = first.communicate(timeout=60)
    assert first.returncode == 128 + windows.BREAK, errors
    assert microgpt.load(tmp_path / "out").config.vocab_size > 5
    assert not list(tmp_path.glob("out/*.lock"))


def run_with(stdout: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `microgpt-cli` in this process; return its status."""
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["microgpt-cli", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        run()
    stdout.flush()
    assert isinstance(caught.value.code, int)
    return caught.value.code


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (io.TextIOWrapper, "“é日🙂”\n".encode()),
        (Terminal, "“é\\u65e5\\U0001f642”\r\n".encode("cp1252")),
    ],
)
def test_pipe_takes_utf_8_and_plain_line_ends_and_a_terminal_its_own(
    kind: type[io.TextIOWrapper], expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    microgpt.fit(["“é日🙂”"], steps=50).save(tmp_path)
    raw = io.BytesIO()
    stdout = kind(raw, "cp1252", newline="\r\n")  # as Python opens it on Windows
    command = ("generate", tmp_path, "--plain", "--num-samples", 2, "--temperature", 0)
    assert run_with(stdout, monkeypatch, *command) == 0
    assert raw.getvalue() == 2 * expected


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> windows.Console:
    """Windows, with a console as stream 2."""
    console = windows.Console()
    monkeypatch.setitem(sys.modules, "msvcrt", windows.fake_msvcrt())
    monkeypatch.setattr(ctypes, "windll", windows.windll(console), raising=False)
    monkeypatch.setattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    return console


class LeftPipe(io.FileIO):
    """A pipe whose reader has left, as Windows reports it, until it is redirected."""

    numbers: Iterator[int] = iter(())  # of the first errors; later errors are EINVAL

    def write(self, content: Any) -> int:
        if stat.S_ISFIFO(os.fstat(self.fileno()).st_mode):
            raise OSError(next(self.numbers, errno.EINVAL), "the reader has left")
        return super().write(content)


@pytest.mark.usefixtures("console")
@pytest.mark.parametrize("numbers", [(), (errno.EPIPE,)])
@pytest.mark.parametrize("command", ["generate {model}", "train --input {names} --output {out}"])
def test_reader_that_has_left_is_no_error(
    command: str,
    numbers: tuple[int, ...],
    names: Path,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"model": model_dir, "names": names, "out": tmp_path / "out"}
    arguments = [*command.format(**places).split(), "--num-samples", "3"]
    reader, writer = os.pipe()
    os.close(reader)
    pipe = LeftPipe(writer, "w")
    pipe.numbers = iter(numbers)
    with io.TextIOWrapper(io.BufferedWriter(pipe), "utf-8") as stdout:
        assert run_with(stdout, monkeypatch, *arguments) == 0
    assert capsys.readouterr().err == ""
    assert microgpt.holds_model(places["out"]) is ("train" in command)


def test_console_is_asked_to_obey_escape_sequences(console: windows.Console) -> None:
    assert system.obeys_escapes(2)
    assert console.mode == 3 | 4
    assert not system.obeys_escapes(1)  # the null device, which claims to be a terminal


def test_closed_window_is_a_request_to_save(
    console: windows.Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "MOST_SECONDS", 0)
    with interruptible() as received:
        (handle,) = console.handlers
        assert [handle(event) for event in (0, 1)] == [0, 0]  # Ctrl-C and Ctrl-Break
        assert not received
        assert handle(2) == 1
        assert received == [system.REQUESTS[-1]]
    assert not console.handlers


def test_clock_may_not_tick_between_two_steps(
    cli: Cli, names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 1e6)
    job = ("train", "--input", names, "--output", tmp_path / "out", "--steps", 5)
    assert cli(*job, "--quiet") == (0, "", "")


def test_metrics_of_another_run_that_are_open_do_not_keep_a_model_from_being_saved(
    cli: Cli, names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ("train", "--input", names, "--output", tmp_path / "out", "--quiet")
    assert cli(*job, "--steps", 2).status == 0
    unlink = Path.unlink

    def refuse(path: Path, **options: bool) -> None:
        if path.name == "metrics.jsonl":
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    result = cli(*job, "--steps", 3, "--force")
    assert result.status == 0
    assert result.err.startswith("warning: cannot remove ")
    training = microgpt.load(tmp_path / "out").training
    assert training
    assert training.steps == 3
