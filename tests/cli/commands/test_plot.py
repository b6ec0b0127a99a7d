import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

CHART = """
 3.5┤
    │
    │               o···
    │                   ········
    │                           ···o···
 3.0┤ ⠠⢄⣀⡀                             ·······
    │    ⠈⠉⠑⠒⠢⠤⣀⣀                             ···o···
    │            ⠉⠉⠒⠒⠤⢄⣀⡀                            ········
    │                   ⠈⠉⠑⠒⠢⠤⣀⣀                             ···o···
    │                           ⠉⠉⠒⠒⠤⢄⣀⡀                            ········
 2.5┤                                  ⠈⠉⠑⠒⠤⢄⣀⡀                             ···*
    │                                         ⠈⠉⠑⠒⠢⠤⣀⣀
    │                                                 ⠉⠉⠒⠒⠤⢄⣀⡀
    │                                                        ⠈⠉⠑⠒⠢⠤⣀⣀
    │                                                                ⠉⠉⠒⠒⠤⢄⣀⡀
 2.0┤                                                                       ⠈⠉⠑⠂
    └┬──────────────┬──────────────┬─────────────┬──────────────┬──────────────┬
     0             50             100           150            200           250
"""
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
    monkeypatch.setenv("LINES", "24")
    result = cli("plot", run_directory)
    assert (result.status, result.err) == (0, "")
    assert max(map(len, result.lines)) == 80
    assert result.lines[0] == "loss in nats per token, by step"
    assert result.lines[1:-2] == CHART.splitlines()[1:]
    assert result.lines[-1] == "best model: step 250, val loss 2.5000"
    assert len(result.lines) <= 24 - 2  # and two lines of the shell


def test_chart_without_validation_has_no_marks(
    cli: Any, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_directory / "metrics.jsonl"
    lines = [json.loads(line) | {"val_loss": None} for line in path.read_text().split("\n")[:-1]]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    monkeypatch.setenv("COLUMNS", "80")
    result = cli("plot", run_directory)
    assert result.lines[-1].split() == ["0", "50", "100", "150", "200", "250"]
    assert not {*"o*\N{MIDDLE DOT}"} & {*"".join(result.lines[1:])}


@pytest.mark.parametrize(
    ("columns", "lines", "width", "height"),
    [(40, 16, 40, 12), (80, 24, 80, 16), (120, 40, 120, 28), (20, 5, 40, 12), (300, 100, 120, 28)],
)
def test_chart_fits_the_terminal(
    cli: Any,
    run_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    lines: int,
    width: int,
    height: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    shown = cli("plot", run_directory).lines
    assert max(map(len, shown)) == width
    rows = [line for line in shown if {*"┤│"} & {*line}]
    assert 0.75 * height < len(rows) <= height


@pytest.mark.parametrize("step", [0, -5, 1, 10**26])
def test_curve_of_one_strange_line_is_drawn(cli: Any, run_directory: Path, step: int) -> None:
    line = {"step": step, "loss": 3.0, "val_loss": 3.0, "lr": 0.01, "tokens_per_second": 1.0}
    text = json.dumps(line | {"elapsed": 1.0}) + "\n"
    (run_directory / "metrics.jsonl").write_text(text)
    result = cli("plot", run_directory)
    assert (result.status, result.err) == (0, "")
    assert "*" in "".join(result.lines[1:-3])
    assert len(result.lines[-3]) <= 80


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
    assert "a.pdf ends in none of .svg, .png." in result.err


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


def test_picture_shows_the_best_model_on_axes_with_round_ticks(
    cli: Any, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    assert cli("plot", run_directory, "--output", run_directory / "a.svg").status == 0
    axes: Any = figures[0].axes[0]
    training, validation, best = axes.lines
    assert (training.get_label(), validation.get_label()) == ("training", "validation")
    assert not best.get_clip_on()  # it is on the edge
    assert best.get_label() == "best model: step 250, val loss 2.5000"
    assert [*best.get_xdata(), *best.get_ydata()] == [250, 2.5]
    assert [*validation.get_xdata()] == [50, 100, 150, 200, 250]
    assert [*axes.get_xticks()] == [0, 50, 100, 150, 200, 250]
    assert [*axes.get_yticks()] == pytest.approx([2, 2.2, 2.4, 2.6, 2.8, 3, 3.2, 3.4])
    assert [*axes.get_xlim(), *axes.get_ylim()] == pytest.approx([0, 250, 2, 3.4])


def test_curve_needs_no_further_package_and_a_picture_names_it(
    cli: Any, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli("plot", run_directory).status == 0
    path = run_directory / "a.svg"
    result = cli("plot", run_directory, "--output", path)
    assert (result.status, result.out) == (1, "")
    assert "error: cannot draw a picture: matplotlib is not installed" in result.err
    assert "hint: pip install matplotlib" in result.err
    assert not path.exists()
