"""The command line without the signals and locks of POSIX: see `windows`."""

import subprocess
from pathlib import Path

import microgpt
import windows
from cli.test_resume import training


def test_second_run_is_refused_and_the_first_interrupted_and_saved(
    names: Path, tmp_path: Path
) -> None:
    job = ("train", "--input", names, "--output", tmp_path / "out", "--steps", 10**7)
    command = windows.command("microgpt_cli", *job)
    with training(*command) as first:
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert second.stderr.startswith("error: another process trains into ")
        first.send_signal(windows.BREAK)
        _, errors = first.communicate(timeout=60)
    assert first.returncode == 128 + windows.BREAK, errors
    assert microgpt.load(tmp_path / "out").config.vocab_size > 5
    assert not list(tmp_path.glob("out/*.lock"))
