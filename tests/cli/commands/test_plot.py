import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SVG, PNG = b"<?xml", b"\x89PNG"


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """Return a directory with the metrics of a run of 250 steps."""
    rest = {"lr": 0.01, "tokens_per_second": 1.0, "elapsed": 1.0}
    lines = [
        {"step": i, "loss": 3 - i / 250, "val_loss": 3.5 - i / 250 if i % 50 == 0 else None, **rest}
        for i in range(1, 251)
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 251, "lo')  # cut short
    return tmp_path


def test_curve_is_drawn_in_the_terminal(
    cli: Any, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = cli("plot", run_directory)
    assert result.status == 0
    assert max(map(len, result.lines)) <= 80
    assert "(nats)" in result.lines[0]
    assert "(step)" in result.out
    assert result.out.count("o") >= 5  # a mark for each measurement
    braille = [line for line in result.lines if any("\u2801" <= c <= "\u28ff" for c in line)]
    first, last = (
        next(i for i, line in enumerate(result.lines) if edge in line) for edge in ("3.", "2.0")
    )
    assert len(braille) > 8
    assert first < last  # it falls


@pytest.mark.parametrize("step", [0, -5, 1, 10**26])
def test_curve_of_one_strange_line_is_drawn(cli: Any, run_directory: Path, step: int) -> None:
    line = {"step": step, "loss": 3.0, "val_loss": 3.0, "lr": 0.01, "tokens_per_second": 1.0}
    text = json.dumps(line | {"elapsed": 1.0}) + "\n"
    (run_directory / "metrics.jsonl").write_text(text)
    result = cli("plot", run_directory)
    assert (result.status, result.err) == (0, "")
    assert "(step)" in result.out


@pytest.mark.parametrize(("name", "magic"), [("a.svg", SVG), ("a.png", PNG)])
def test_picture_is_written(cli: Any, run_directory: Path, name: str, magic: bytes) -> None:
    path = run_directory / name
    result = cli("plot", run_directory, "--output", path)
    assert result.lines[-1] == f"picture saved to {path}"
    content = path.read_bytes()
    assert content.startswith(magic)
    again = cli("plot", run_directory, "--output", path)
    assert (again.status, again.err.splitlines()[0]) == (1, f"error: {path} exists")
    assert cli("plot", run_directory, "--output", path, "--force").status == 0
    assert path.read_bytes() == content  # one curve, one file
    assert sorted(p.name for p in run_directory.iterdir()) == [name, "metrics.jsonl"]


def test_picture_is_written_though_the_reader_of_stdout_has_left(
    program: Path, run_directory: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    path = run_directory / "a.svg"
    run = subprocess.run(
        [program, "plot", run_directory, "--output", path], stdout=writer, check=False
    )
    os.close(writer)
    assert run.returncode == 0
    assert path.read_bytes().startswith(SVG)


def test_picture_of_another_kind_is_refused(cli: Any, run_directory: Path) -> None:
    result = cli("plot", run_directory, "--output", "a.pdf")
    assert result.status == 2
    assert "ends in neither .svg nor .png" in result.err


def test_picture_that_cannot_be_written_is_an_error(cli: Any, run_directory: Path) -> None:
    path = run_directory / "none" / "a.svg"
    result = cli("plot", run_directory, "--output", path)
    assert result.err == f"error: cannot write {path}: No such file or directory\n"


def test_picture_takes_the_place_of_a_file_only(cli: Any, run_directory: Path) -> None:
    path = run_directory / "a.svg"
    os.mkfifo(path)
    result = cli("plot", run_directory, "--output", path, "--force")
    assert result.err == f"error: cannot write {path}: it is not a regular file\n"
    assert path.is_fifo()


def test_metrics_that_are_no_file_are_an_error(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path)
    assert cli("plot", tmp_path).err == f"error: cannot read {path}: it is not a regular file\n"


def test_directory_without_metrics_is_named(cli: Any, tmp_path: Path) -> None:
    result = cli("plot", tmp_path)
    assert result.status == 1
    assert result.err.startswith(f"error: nothing to draw: {tmp_path / 'metrics.jsonl'} does not")


@pytest.mark.parametrize("package", ["plotille", "matplotlib"])
def test_missing_extra_is_named(
    cli: Any, run_directory: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = cli("plot", run_directory, "--output", run_directory / "a.svg")
    assert result.status == 1
    assert f"error: cannot draw: {package} is not installed" in result.err
    assert 'hint: pip install "microgpt-cli[plot]"' in result.err
