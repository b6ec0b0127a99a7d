"""The lock of a run on its model directory, and the replacement of files."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from microgpt import CheckpointError, MicrogptError, fit, load, lock_directory, write_file
from microgpt.storage import system
from windows import fake_msvcrt

HOLDER = """
import sys
from microgpt import lock_directory
with lock_directory(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other branch of what POSIX and Windows do differently; `fcntl` cannot be imported."""
    monkeypatch.setitem(sys.modules, "msvcrt", fake_msvcrt())
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(system, "PAUSE_SECONDS", 0.001)


@pytest.fixture(params=["posix", "windows"] if sys.platform != "win32" else ["real"], autouse=True)
def _systems(request: pytest.FixtureRequest) -> None:
    if request.param == "windows":
        request.getfixturevalue("windows")


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
        pytest.raises(CheckpointError, match=r"cannot write .*file(/out: Not a directory|: )"),
        lock_directory(tmp_path / "file/out"),
    ):
        pytest.fail("locked")


def test_model_is_saved_and_loaded_again(tmp_path: Path) -> None:
    for seed in (1, 2):
        model = fit(["anna", "bob"], steps=2, n_embd=4, seed=seed)
        model.save(tmp_path / "out")
        assert load(tmp_path / "out").generate(seed=3) == model.generate(seed=3)
    assert not list(tmp_path.glob("out/*.lock"))


def test_file_that_is_open_is_replaced_once_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, tried = Path.replace, list[Path]()

    def refuse_twice(path: Path, target: Path) -> Path:
        tried.append(path)
        if len(tried) <= 2:
            raise PermissionError(13, "Permission denied")
        return replace(path, target)

    model = fit(["anna", "bob"], steps=2, n_embd=4)
    model.save(tmp_path / "out")
    monkeypatch.setattr(Path, "replace", refuse_twice)
    if sys.platform == "win32":
        model.save(tmp_path / "out")
        assert len(set(tried[:3])) == 1
    else:  # where an open file can be replaced, the permission will not come
        with pytest.raises(CheckpointError, match="Permission denied"):
            model.save(tmp_path / "out")
        assert len(tried) == 1


def test_file_that_stays_open_is_an_error_in_the_end(tmp_path: Path) -> None:
    model = fit(["anna", "bob"], steps=2, n_embd=4)
    model.save(tmp_path / "out")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(CheckpointError, match="Permission denied"):
            model.save(tmp_path / "out")
    assert load(tmp_path / "out").generate(seed=3) == model.generate(seed=3)


def test_file_that_cannot_be_replaced_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_file(path, b"one")
    with pytest.MonkeyPatch.context() as patch:
        error = PermissionError(13, "Permission denied")
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(MicrogptError, match=r"cannot write .*a\.txt: Permission denied"):
            write_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_file_under_another_number_is_locked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows no open file is removed, and drives may number files in two ways."""
    numbered = os.fstat

    def renumbered(descriptor: int) -> os.stat_result:
        fields = list(numbered(descriptor))
        fields[1] += 1
        return os.stat_result(fields)

    if sys.platform == "win32":  # on POSIX the file's number tells whether it was removed
        monkeypatch.setattr(os, "fstat", renumbered)
    with lock_directory(tmp_path / "out"):
        pass


def test_content_is_flushed_to_the_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = list[str]()
    monkeypatch.setattr(os, "fsync", lambda _: flushed.append("fsync"))
    write_file(tmp_path / "a", b"a")
    assert flushed == ["fsync"]
    if sys.platform == "win32":
        return
    fcntl = sys.modules["fcntl"]
    # macOS keeps what `fsync` writes in the cache of the drive, unless it is asked for more.
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda _, number: flushed.append(str(number)))
    write_file(tmp_path / "a", b"a")
    assert flushed == ["fsync", "51"]

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOTTY, "not on this drive")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    write_file(tmp_path / "a", b"a")
    assert flushed == ["fsync", "51", "fsync"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_drive_that_flushes_no_directories_will_do(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    model = fit(["anna", "bob"], steps=2, n_embd=4)
    if number == errno.EINVAL or sys.platform == "win32":
        model.save(tmp_path)
    else:
        with pytest.raises(CheckpointError, match="Input/output error"):
            model.save(tmp_path)
