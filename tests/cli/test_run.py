"""Training that fails, or a file beside it: no earlier model is lost."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import microgpt
import numpy as np
import pytest
from cli.conftest import training
from faults import FAULTS, needs_linux, needs_strace, strike_each_call
from measuring import unmeasured

if TYPE_CHECKING:
    from cli.conftest import Cli

SMALL = ("--steps", 20, "--n-embd", 8, "--n-head", 2, "--block-size", 8)
MAX_FILE = 4096
FOREVER = ("--steps", 10**7)


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def files(directory: Path) -> dict[str, bytes]:
    """Return everything in a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def finished(cli: "Cli", names: Path, tmp_path: Path) -> Path:
    """A directory with model, snapshots and metrics of a run of 25 steps, 16 wide."""
    directory = tmp_path / "out"
    flags = ("--steps", 25, "--snapshot-every", 10, "--quiet")
    assert cli("train", "--input", names, "--output", directory, *flags).status == 0
    return directory


# ---------------------------------------------------------------- a run that was there before


def test_forced_run_that_is_killed_early_leaves_the_earlier_run(
    program: Path, names: Path, finished: Path
) -> None:
    before = files(finished)
    with training(
        program, "train", "--input", names, "--output", finished, "--force", *FOREVER
    ) as process:
        process.kill()
    (finished / "train.lock").unlink()  # of the killed process; nothing holds it
    assert files(finished) == before


def test_forced_run_that_diverges_leaves_the_earlier_run(
    cli: "Cli", names: Path, finished: Path
) -> None:
    before = files(finished)
    result = cli("train", "--input", names, "--output", finished, "--force", "--lr", 1e30)
    assert result.err.endswith(f"{finished} is as it was before\n")
    assert files(finished) == before


def test_full_disk_leaves_the_earlier_run(program: Path, names: Path, finished: Path) -> None:
    before = files(finished)
    run = limited(program, "--input", names, "--output", finished, "--force", *SMALL)
    assert run.returncode == 1
    assert run.stderr == (
        f"error: cannot write {finished}: File too large\n"
        "hint: the model that was there before is intact\n"
    )
    assert files(finished) == before


def limited(
    program: Path, *arguments: object, stdout: Any = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Train where no file can be larger than MAX_FILE."""
    return subprocess.run(
        [program, "train", *map(str, arguments)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE,) * 2),
        env=unmeasured(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def test_full_disk_without_a_model_does_not_speak_of_one(
    program: Path, names: Path, tmp_path: Path
) -> None:
    run = limited(program, "--input", names, "--output", tmp_path / "out", *SMALL)
    assert run.stderr == f"error: cannot write {tmp_path / 'out'}: File too large\n"


def test_first_snapshot_of_a_forced_run_replaces_the_earlier_run(
    program: Path, names: Path, finished: Path
) -> None:
    flags = ("--n-embd", 8, "--lr", 0.001, "--snapshot-every", 5, "--keep-snapshots", 10**6)
    with training(
        program, "train", "--input", names, "--output", finished, "--force", *flags, *FOREVER
    ) as process:
        while not (finished / "checkpoints" / "step-00000005.safetensors").exists():
            time.sleep(0.01)
        process.kill()
    assert microgpt.load(finished).config.n_embd == 8
    assert microgpt.read_snapshot(finished).config.n_embd == 8
    rates = [
        json.loads(line)["lr"] for line in (finished / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(rate <= 0.001 for rate in rates)


TAKE_OVER = """
import sys
import microgpt_cli.commands.train
from microgpt_cli.main import run

flags = "--n-embd 8 --lr 0.001 --steps 5 --snapshot-every 5 --num-samples 0 --engine vectorized"
command = "microgpt-cli train --force --quiet --input {names} " + flags + " --output"

def save(directory):
    sys.argv = [*command.split(), directory]
    try:
        run()
    except SystemExit:
        pass

given = sys.argv
save({first!r})  # loads once what every child would load
sys.argv = given
"""


def runs_in(directory: Path) -> set[str]:
    """Return which runs the model, the snapshots and the metrics in a directory are of."""
    found = {f"{microgpt.load(directory).config.n_embd} wide"}
    if microgpt.holds_snapshot(directory):
        found.add(f"{microgpt.read_snapshot(directory).config.n_embd} wide")
    metrics = directory / "metrics.jsonl"
    if metrics.exists():
        rates = [json.loads(line)["lr"] for line in metrics.read_text().splitlines()]
        found |= {"8 wide" if rate <= 0.001 else "16 wide" for rate in rates[:1]}
    return found


@needs_strace
@pytest.mark.parametrize("fault", FAULTS[:2])
def test_run_and_the_one_before_are_never_mixed_wherever_a_save_fails(
    cli: "Cli", names: Path, tmp_path: Path, fault: str
) -> None:
    before = tmp_path / "before"
    flags = ("--steps", 20, "--snapshot-every", 10, "--quiet")
    assert cli("train", "--input", names, "--output", before, *flags).status == 0
    calls = {"rename": 10, "unlink": 24, "write": 10, "fsync": 16}
    directories = strike_each_call(
        TAKE_OVER.format(names=names, first=str(tmp_path / "first")),
        fault,
        tmp_path,
        partial(shutil.copytree, before),
        calls,
    )
    for directory in directories:
        runs = runs_in(directory)
        assert len(runs) == 1, (directory, runs)
        if directory.name == str(calls[directory.parent.name]):  # no fault
            assert runs == {"8 wide"}


# ---------------------------------------------------------------- something beside training fails


def test_snapshot_that_cannot_be_written_does_not_end_training(
    cli: "Cli", names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise microgpt.CheckpointError("cannot write a snapshot")

    expected = microgpt.fit(names.read_text(encoding="utf-8").split(), steps=20)
    monkeypatch.setattr(microgpt, "write_snapshot", fail)
    flags = ("--steps", 20, "--snapshot-every", 10)
    result = cli("train", "--input", names, "--output", tmp_path / "out", *flags)
    assert result.status == 1
    assert result.err.splitlines() == [
        *["warning: cannot write a snapshot; training continues"] * 2,
        "error: cannot write a snapshot",
    ]
    assert "--- samples ---" in result.out
    saved = microgpt.load(tmp_path / "out")
    np.testing.assert_array_equal(saved.parameters.flat, expected.parameters.flat)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a bug of ours")])
def test_model_is_saved_whatever_fails_in_training(
    cli: "Cli",
    names: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(microgpt.LanguageModel, "generate", fail)
    job = ("train", "--input", names, "--output", tmp_path / "out", "--sample-every", 10)
    if isinstance(error, MemoryError):
        assert cli(*job).err.startswith("error: not enough memory")
    else:
        with pytest.raises(RuntimeError, match="a bug of ours"):
            cli(*job)
    assert microgpt.load(tmp_path / "out").config.n_embd == 16
    assert microgpt.read_snapshot(tmp_path / "out").step == 10


def test_reader_that_leaves_does_not_end_training(
    cli: "Cli", program: Path, names: Path, tmp_path: Path
) -> None:
    flags = ("--input", names, "--steps", 2000, "--log-every", 1)
    cli("train", *flags, "--output", tmp_path / "whole")
    command = [str(program), "train", *map(str, flags), "--output", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert (tmp_path / "out" / "weights.json").read_bytes() == (
        tmp_path / "whole" / "weights.json"
    ).read_bytes()


@pytest.mark.parametrize(
    ("redirection", "number"),
    [pytest.param(">/dev/full", errno.ENOSPC, marks=needs_linux), (">&-", errno.EBADF)],
)
def test_stdout_that_fails_is_an_error_before_training(
    program: Path, names: Path, tmp_path: Path, redirection: str, number: int
) -> None:
    arguments = ["train", "--input", names, "--output", tmp_path / "out", *SMALL]
    command = ["sh", "-c", f'exec "$0" "$@" {redirection}', program, *arguments]
    done = subprocess.run(list(map(str, command)), stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: cannot write to stdout: {os.strerror(number)}\n"
    assert not (tmp_path / "out").exists()


def test_stdout_that_fills_up_is_an_error_after_the_save(
    program: Path, names: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"." * (MAX_FILE - 500))  # room for the header, not for all steps
    tiny = ("--steps", 20, "--n-embd", 2, "--n-head", 1, "--block-size", 7, "--log-every", 1)
    with log.open("a") as stdout:
        run = limited(program, "--input", names, "--output", tmp_path / "out", *tiny, stdout=stdout)
    problem = f"cannot write to stdout: {os.strerror(errno.EFBIG)}"
    assert run.stderr == f"warning: {problem}; training continues\nerror: {problem}\n"
    assert run.returncode == 1
    assert microgpt.load(tmp_path / "out").config.n_embd == 2


def test_directory_that_vanishes_is_made_again_for_the_model(
    program: Path, names: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    flags = ("--input", names, "--output", output, "--steps", 20_000, "--log-every", 5000)
    with training(program, "train", *flags) as process:
        shutil.rmtree(output)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err == (
        f"warning: cannot write {output / 'metrics.jsonl'}: No such file or directory; training "
        "continues, and its metrics are written later\n"
    )
    assert microgpt.load(output).config.n_embd == 16
    assert steps_in(output / "metrics.jsonl")[-1] == 20_000


# ---------------------------------------------------------------- found before training starts


@pytest.mark.parametrize(
    "name",
    [
        "weights.json/",
        "weights.json.staged/",
        "meta.json.staged/",
        "commit.json/",
        "metrics.jsonl/",
        "checkpoints",
        "checkpoints/step-00000100.safetensors/",
        "checkpoints/step-00000100.safetensors.staged/",
        "commit.json",
    ],
)
def test_place_that_is_taken_is_found_before_training(
    cli: "Cli", names: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    if name.endswith("/"):
        (output / name).mkdir(parents=True)
    else:
        (output / name).write_text("[" * 100_000)
    result = cli("train", "--input", names, "--output", output, "--force")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert str(output / name.rstrip("/")) in result.err.splitlines()[0]
    assert [path.name for path in output.iterdir()] == [name.rstrip("/").split("/")[0]]


def test_directory_that_is_gone_is_named(program: Path, names: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$0" && rmdir "$0" && exec "$@"'
    command = ["sh", "-c", script, gone, program, "train", "--input", names, *SMALL]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "step" not in done.stdout
    assert done.stderr == "error: cannot write output: No such file or directory\n"


# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize("engine", ["vectorized", "native"])
@pytest.mark.parametrize("flags", [(), ("--val-fraction", 0.4, "--eval-every", 1)])
@pytest.mark.parametrize("rate", ["--lr", "--optimizer=muon --muon-lr"])
@pytest.mark.parametrize("lr", [1e10, 1e19, 1e30])
def test_divergence_is_an_ordinary_error_on_every_engine(
    cli: "Cli",
    names: Path,
    tmp_path: Path,
    engine: str,
    flags: tuple[object, ...],
    rate: str,
    lr: float,
) -> None:
    job = ("train", "--input", names, "--output", tmp_path / "out", "--engine", engine, *flags)
    for steps in (1, 2, 3, 30):
        result = cli(*job, *rate.split(), lr, "--steps", steps, "--force")
        if result.status:
            assert result.status == 1
            assert result.err.startswith("error: ")
            assert len(result.err.splitlines()) <= 2


def test_last_update_that_spoils_the_weights_keeps_the_last_good_ones(
    cli: "Cli", names: Path, tmp_path: Path
) -> None:
    job = ("train", "--input", names, "--output", tmp_path / "out", "--dtype", "float64")
    result = cli(*job, "--steps", 1, "--lr", "1e308", "--weight-decay", 1e10)
    assert result.status == 1
    assert result.err.startswith("error: a weight is ")
    assert "at step 1 (learning rate 1e+308)" in result.err
    assert result.err.endswith("; nothing was learned before\n")
    assert not microgpt.holds_model(tmp_path / "out")


# ---------------------------------------------------------------- Ctrl-C while the program loads


def test_ctrl_c_while_loading_is_quiet() -> None:
    project = Path(__file__).parents[2] / "apps/microgpt_cli/pyproject.toml"
    entry = tomllib.loads(project.read_text())["project"]["scripts"]["microgpt-cli"]
    module, _, function = entry.partition(":")
    code = f"""
import sys
import time
import tomllib
from functools import partial
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from {module} import {function}
{function}()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
