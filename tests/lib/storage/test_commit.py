"""The lock of a run on its model directory."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from microgpt import CheckpointError, lock_directory

HOLDER = """
import sys
from microgpt import lock_directory
with lock_directory(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Return another process that trains into the directory."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_directory_that_another_process_trains_into_is_refused(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    for _ in range(2):
        with (
            pytest.raises(CheckpointError, match=r"another process trains into .*out") as caught,
            lock_directory(tmp_path / "out"),
        ):
            pytest.fail("locked twice")
        assert "choose another directory" in str(caught.value.hint)
    holder.kill()
    holder.wait()
    with lock_directory(tmp_path / "out"):
        pass


def test_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with lock_directory(tmp_path / "new/out"):
        assert (tmp_path / "new/out/train.lock").exists()
    assert not (tmp_path / "new").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.txt").write_text("a")
    with lock_directory(tmp_path / "out"):
        pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]


def test_lock_that_a_killed_process_left_does_not_keep_others_out(tmp_path: Path) -> None:
    (tmp_path / "train.lock").touch()
    with lock_directory(tmp_path):
        pass


def test_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(CheckpointError, match=r"cannot write .*file/out: Not a directory"),
        lock_directory(tmp_path / "file/out"),
    ):
        pytest.fail("locked")
