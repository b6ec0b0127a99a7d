import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import microgpt
import numpy as np
import pytest
from mpi import mpirun, needs_mpi

pytestmark = needs_mpi

FLAGS = ("--batch-size", 6, "--steps", 30, "--dtype", "float64", "--val-fraction", 0.25)


def run_job(n_processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command, environment = mpirun(n_processes, "-m", "microgpt_cli", "train", *arguments)
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=100
    )


@pytest.mark.parametrize(
    ("n_processes", "windows"), [(2, ("--long", "window", "--block-size", 3)), (3, ())]
)
def test_same_flags_give_the_same_model_on_several_processes(
    cli: Any, names: Path, tmp_path: Path, n_processes: int, windows: tuple[object, ...]
) -> None:
    flags = ("--input", names, *FLAGS, *windows)
    alone = cli("train", "--output", tmp_path / "alone", *flags)
    job = run_job(n_processes, "--output", tmp_path / "job", *flags, "--snapshot-every", 10)
    assert job.returncode == 0, job.stderr
    ours, theirs = job.stdout.splitlines(), alone.out.splitlines()
    ours.remove(f"processes:   {n_processes}")
    assert [line.replace("/job/", "/alone/") for line in ours] == theirs
    weights = [microgpt.load(tmp_path / name).parameters.flat for name in ("alone", "job")]
    # Sums in another order: 1e-16 each, which thirty steps amplify.
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-9, atol=1e-12)
    assert microgpt.read_snapshot(tmp_path / "job").step == 30
    assert len((tmp_path / "job" / "metrics.jsonl").read_text().splitlines()) == 30


def pid_of_rank(rank: int, mpirun_pid: int) -> int:
    """Return the process of an MPI job with that rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        is_ours = f"\nPPid:\t{mpirun_pid}\n" in status
        if is_ours and f"OMPI_COMM_WORLD_RANK={rank}\0".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no rank {rank}")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found through /proc")
def test_rank_that_dies_ends_the_job_with_a_snapshot(names: Path, tmp_path: Path) -> None:
    flags = ("--input", names, "--output", tmp_path / "out", "--batch-size", 4)
    command, environment = mpirun(
        2, "-m", "microgpt_cli", "train", *flags, "--steps", 10**7, "--snapshot-every", 100
    )
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout
        while not microgpt.holds_snapshot(tmp_path / "out"):
            assert job.poll() is None
            time.sleep(0.05)
        os.kill(pid_of_rank(1, job.pid), signal.SIGKILL)
        _, err = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "on signal 9 (Killed)" in err.replace("\n", " ")
    assert "error: rank 0 was asked to end, and the other 1 did not finish the step" in err
    assert f"hint: resume with microgpt-cli train --resume {tmp_path / 'out'}" in err
    snapshot = microgpt.read_snapshot(tmp_path / "out")
    assert snapshot.step >= 100
    assert np.isfinite(snapshot.arrays["weights"]).all()


def test_error_of_all_processes_is_reported_once(names: Path, tmp_path: Path) -> None:
    job = run_job(3, "--input", names, "--output", tmp_path / "out")
    assert job.returncode == 1
    errors = [line for line in job.stderr.splitlines() if line.startswith("error:")]
    assert errors == [
        "error: --batch-size is 1, expected at least one document for each of the 3 processes"
    ]
    assert not (tmp_path / "out").exists()


def test_error_of_one_ends_all(names: Path, tmp_path: Path) -> None:
    # Only the first process writes, and it cannot.
    (tmp_path / "out" / "metrics.jsonl.staged").mkdir(parents=True)
    flags = ("--batch-size", 2, "--steps", 10**7)
    job = run_job(2, "--input", names, "--output", tmp_path / "out", *flags)
    assert job.returncode == 1
    errors = [line for line in job.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: cannot write {tmp_path / 'out' / 'metrics.jsonl'}: ")


# Each process resumes from a disk of its own; that of the second is empty.
OWN_DISKS = """
import os, sys
from microgpt_cli.main import run

names, output = sys.argv[1:]
goes_on = os.environ["OMPI_COMM_WORLD_RANK"] == "0"
flags = ["--resume", output] if goes_on else ["--input", names, "--steps", "9", "--batch-size", "2"]
sys.argv = ["microgpt-cli", "train", *flags]
run()
"""


def test_process_that_does_not_resume_as_the_others_do_ends_all(
    cli: Any, names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--steps", 9, "--batch-size", 2, "--snapshot-every", 4, "--quiet")
    output = tmp_path / "out"
    assert cli("train", "--input", names, "--output", output, *flags).status == 0
    monkeypatch.chdir(tmp_path)
    command, environment = mpirun(2, "-c", OWN_DISKS, names, output)
    job = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert job.returncode == 1
    error, hint = (line for line in job.stderr.splitlines() if line.startswith(("error:", "hint:")))
    assert error == "error: rank 1 has other data, options or weights than rank 0"
    assert hint == "hint: give all processes the same files, flags and snapshot"
