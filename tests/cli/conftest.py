"""The command line as its users meet it: arguments in; status, stdout and stderr out."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import microgpt
import pytest
import windows
from microgpt_cli.main import run

# Under nohup it is ignored, also by the programs that tests start.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

NAMES = ["anna", "bob", "hannah", "otto", "eve", "ava", "elle", "abel"]


class Result(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `microgpt-cli` with arguments in this process; quicker than a new one by a second."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["microgpt-cli", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run()
        status = caught.value.code or 0
        assert isinstance(status, int)
        return Result(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def program() -> Path:
    """The installed command, for what only a process of its own can show."""
    found = shutil.which("microgpt-cli", path=Path(sys.executable).parent)  # .exe on Windows
    assert found
    return Path(found)


@contextmanager
def training(*program_and_arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run `train` in a process of its own, and wait until it has taken its first step."""
    command = list(map(str, program_and_arguments))
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        creationflags=windows.NEW_GROUP,
    ) as process:
        try:
            assert process.stdout
            for line in process.stdout:
                if line.startswith("step "):
                    break
            yield process
        finally:
            process.kill()


@pytest.fixture
def names(tmp_path: Path) -> Path:
    """A file to train on."""
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return path


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A model of these names."""
    directory = tmp_path / "model"
    microgpt.fit(NAMES, steps=200).save(directory)
    return directory
