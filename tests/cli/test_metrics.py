"""The metrics of a run: damaged files, and disks that are full."""

import json
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli.conftest import training
from faults import needs_linux

if TYPE_CHECKING:
    from cli.conftest import Cli

DAMAGED = {
    "not UTF-8": b'{"step": "\xff"}',
    "a number": b"5",
    "another object": b'{"a": 1}',
    "deep nesting": b"[" * 100_000,
    "NaN": b'{"step": 1, "loss": NaN, "val_loss": null, "lr": 1.0, "tokens_per_second": 1.0, '
    b'"elapsed": 1.0}',
    "an empty line": b"",
    "NUL bytes": b"\0" * 100,
}


@pytest.fixture
def snapshots(cli: "Cli", names: Path, tmp_path: Path) -> Path:
    """A directory of a run of 7 steps, with snapshots until the 6th."""
    directory = tmp_path / "out"
    flags = ("--steps", 7, "--snapshot-every", 2, "--quiet")
    assert cli("train", "--input", names, "--output", directory, *flags).status == 0
    return directory


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_damaged_line_is_named(cli: "Cli", names: Path, snapshots: Path, line: bytes) -> None:
    path = snapshots / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    lines[2] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    for command in (("plot", snapshots), ("train", "--resume", snapshots)):
        result = cli(*command)
        assert (result.status, result.out) == (1, "")
        error, hint = result.err.splitlines()
        assert error.startswith(f"error: invalid {path}: line 3: ")
        assert hint == "hint: it was damaged: move it away"
    forced = cli("train", "--input", names, "--output", snapshots, "--force", "--steps", 2)
    assert (forced.status, forced.err) == (0, "")
    assert steps_in(path) == [1, 2]


def test_line_that_was_cut_short_is_left_out(cli: "Cli", snapshots: Path) -> None:
    path = snapshots / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert cli("plot", snapshots).status == 0
    assert cli("train", "--resume", snapshots, "--quiet").status == 0
    assert steps_in(path) == [1, 2, 3, 4, 5, 6, 7]


def test_run_that_is_resumed_elsewhere_keeps_its_own_metrics(
    cli: "Cli", names: Path, snapshots: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    job = ("train", "--input", names, "--output", other, "--lr", 0.5, "--quiet")
    assert cli(*job).status == 0
    resumed = cli("train", "--resume", snapshots, "--output", other, "--force", "--quiet")
    assert resumed.status == 0
    ours, theirs = (
        [(line["step"], line["lr"]) for line in map(json.loads, path.read_text().splitlines())]
        for path in (other / "metrics.jsonl", snapshots / "metrics.jsonl")
    )
    assert ours == theirs


def test_exported_model_does_not_take_over_the_metrics_of_another(
    cli: "Cli", model_dir: Path, snapshots: Path
) -> None:
    kept = cli("export", "--model-dir", snapshots, "--output", snapshots, "--force")
    assert kept.status == 0
    assert (snapshots / "metrics.jsonl").exists()
    assert cli("export", "--model-dir", model_dir, "--output", snapshots, "--force").status == 0
    assert sorted(path.name for path in snapshots.rglob("*")) == [
        "checkpoints",
        "meta.json",
        "weights.safetensors",
    ]


@needs_linux
def test_disk_that_is_full_for_a_moment_costs_no_line(
    program: Path, names: Path, tmp_path: Path
) -> None:
    path, forever = tmp_path / "out/metrics.jsonl", resource.RLIM_INFINITY
    flags = ("--input", names, "--output", tmp_path / "out", "--steps", 10**6)
    with training(program, "train", *flags) as process:
        assert process.stderr
        while len(path.read_bytes()) < 1000:
            time.sleep(0.01)
        limit = len(path.read_bytes()) + 200  # a line and a half
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, forever))
        warning = process.stderr.readline()
        content = path.read_bytes()
        reads = []
        for _ in range(30):  # some lines more; a part of one may stand there until it is removed
            time.sleep(0.01)
            reads.append(path.read_bytes())
        assert content in reads
        assert all(
            read.startswith(content) and read.count(b"\n") == content.count(b"\n") for read in reads
        )
        assert content.endswith(b"\n")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (forever, forever))
        while path.read_bytes() == content:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert warning.startswith(f"warning: cannot write {path}: File too large; training continues")
    assert err.startswith("warning: interrupted after step ")
    assert process.returncode == 130
    steps = steps_in(path)
    assert steps == list(range(1000, steps[-1] + 1, 1000))


@needs_linux
def test_metrics_that_are_never_written_are_an_error_in_the_end(
    program: Path, names: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out/metrics.jsonl"
    (tmp_path / "full").symlink_to("/dev/full")
    flags = ("--input", names, "--output", tmp_path / "out", "--steps", 10**6)
    with training(program, "train", *flags) as process:
        assert process.stderr
        (tmp_path / "full").replace(path)
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == f"error: cannot write {path}: No space left on device\n"
    assert (tmp_path / "out/weights.json").exists()
