"""Replacing several files of a directory as one, and keeping other processes out meanwhile.

A save must never lose a model. New files are written beside the old ones under other names and
flushed to disk; then a list of them (`commit.json`) appears, in one rename; then they replace the
old files, and the list is removed. Every reader and writer completes a commit that it finds, so a
save that is cut short at any point leaves either the old files or the new ones.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from microgpt.checks import PathLike, cause_of, checked_path
from microgpt.errors import CheckpointError, MicrogptError
from microgpt.storage.system import (
    locked_for_writing,
    open_locked,
    remove,
    replace,
    sync_directory,
    sync_file,
    unlock,
)

__all__ = [
    "COMMIT",
    "FILES",
    "STAGED",
    "check_commit",
    "complete_commit",
    "current_path",
    "lock_directory",
    "replace_together",
    "write_file",
    "write_whole",
]

# Files that may be replaced together.
FILES = ("meta.json", "weights.json", "weights.safetensors", "tokenizer.json")
COMMIT = "commit.json"
STAGED = ".staged"  # suffix of a new file before it replaces the old one
LOCK = "train.lock"  # held by a run that trains into the directory


def replace_together(
    path: Path, contents: dict[str, bytes], before_replacing: Callable[[], None]
) -> None:
    """Replace several files in `path` such that all of them change or none does."""
    with locked_for_writing(path):
        complete_commit(path)
        try:
            for name, content in contents.items():
                _write_durably(path / (name + STAGED), content)
            _write_durably(path / (COMMIT + STAGED), msgspec.json.encode(list(contents)))
            sync_directory(path)
            before_replacing()
            replace(path / (COMMIT + STAGED), path / COMMIT)
        except BaseException:
            for name in (*contents, COMMIT):
                with suppress(OSError):
                    (path / (name + STAGED)).unlink()
            raise
        sync_directory(path)
        complete_commit(path)
        _remove_others(path, contents)


def _remove_others(path: Path, kept: Collection[str]) -> None:
    """Remove the other files of the model before, and staged files of a save that failed."""
    for name in (*FILES, COMMIT):
        remove(path / (name + STAGED))
        if name not in kept:
            remove(path / name)


def complete_commit(path: Path) -> None:
    """Replace files by their staged successors if a commit lists them."""
    try:
        names = check_commit(path)
        for name in names:
            with suppress(FileNotFoundError):  # replaced already
                replace(path / (name + STAGED), path / name)
        if names:
            sync_directory(path)
            remove(path / COMMIT)
    except FileNotFoundError:
        pass  # another process has completed it


def check_commit(path: Path) -> Sequence[str]:
    """Return the files that a commit in `path` lists, none without a commit.

    Raises:
        CheckpointError: `commit.json` is not one of ours.
    """
    try:
        names = msgspec.json.decode((path / COMMIT).read_bytes(), type=list[str])
    except FileNotFoundError:
        return ()
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"invalid {path / COMMIT}: {error}", hint="it is not one of ours: move it away"
        ) from error
    if strange := set(names) - {*FILES}:
        raise CheckpointError(f"invalid {path / COMMIT}: it names {sorted(strange)}")
    return names


def current_path(path: Path) -> Path:
    """Return the path of the committed content of `path`: its staged file before the rename."""
    staged = path.with_name(path.name + STAGED)
    is_committed = path.name in check_commit(path.parent) and staged.exists()
    return staged if is_committed else path


def _write_durably(path: Path, content: bytes) -> None:
    """Write a file, and flush it to disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        sync_file(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Write or replace one file, or on failure leave everything as it was."""
    staged = path.with_name(path.name + STAGED)
    try:
        _write_durably(staged, content)
        replace(staged, path)
    except BaseException:
        with suppress(OSError):
            staged.unlink(missing_ok=True)
        raise


def write_file(path: PathLike, content: bytes) -> None:
    """Write or replace a file that is no part of a model, or leave everything as it was.

    On Windows, replacing waits up to a second for other programs to close the file.

    Args:
        path: of the file; what a link leads to is replaced, and the link is kept.
        content: of the file.

    Raises:
        MicrogptError: the file cannot be written, or `path` is something else, such as a device.
        ConfigError: `path` is no path.
    """
    place = checked_path(path)
    try:
        if place.is_symlink():
            place = Path(os.path.realpath(place))
        if place.exists() and not place.is_file():
            raise MicrogptError(f"cannot write {path}: it is not a regular file")
        write_whole(place, content)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise MicrogptError(f"cannot write {path}: {cause_of(error)}") from error


@contextmanager
def lock_directory(directory: PathLike) -> Iterator[None]:
    """Yield with other processes kept from training into a directory.

    Args:
        directory: of the model; made if it does not exist.

    Raises:
        CheckpointError: another process trains into it, or it cannot be written.
    """
    path = checked_path(directory)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = open_locked(path / LOCK, wait=False)
    except BlockingIOError as error:
        raise CheckpointError(
            f"another process trains into {path}",
            hint="wait until it has ended, or choose another directory",
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        place = getattr(error, "filename", None) or path
        raise CheckpointError(f"cannot write {place}: {cause_of(error)}") from error
    try:
        yield
    finally:
        unlock(path / LOCK, descriptor)
        with suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()
