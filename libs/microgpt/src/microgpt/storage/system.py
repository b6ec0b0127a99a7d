"""Locks and replacement of files, which POSIX and Windows do in different ways."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

__all__ = [
    "locked_for_writing",
    "open_locked",
    "remove",
    "replace",
    "sync_directory",
    "sync_file",
    "unlock",
]

LOCK = "save.lock"  # Windows: held by a process that saves into the directory
N_TRIES, PAUSE_SECONDS = 40, 0.025  # Windows: a second for another process to close a file

Result = TypeVar("Result")


def replace(source: Path, target: Path) -> None:
    """Rename a file, in the place of another one."""
    _patiently(lambda: source.replace(target))


def remove(path: Path) -> None:
    """Remove a file if it exists."""
    _patiently(lambda: path.unlink(missing_ok=True))


def _patiently(act: Callable[[], Result]) -> Result:
    """Call `act`; on Windows again while another process has the file open."""
    for _ in range(N_TRIES if sys.platform == "win32" else 0):
        with suppress(PermissionError):
            return act()
        time.sleep(PAUSE_SECONDS)
    return act()


def sync_file(descriptor: int) -> None:
    """Flush an open file to disk, so that its content survives a loss of power."""
    if sys.platform == "darwin":  # `fsync` leaves it in the cache of the drive there
        import fcntl  # noqa: PLC0415 - exists on POSIX only

        with suppress(OSError):  # not every file system can
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Flush a directory to disk, so that its renames survive a loss of power; not on Windows."""
    if sys.platform != "win32":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # of some network file systems
                raise
        finally:
            os.close(descriptor)


@contextmanager
def locked_for_writing(path: Path) -> Iterator[None]:
    """Let one process at a time write to a directory."""
    if sys.platform == "win32":  # directories cannot be opened
        descriptor = open_locked(path / LOCK, wait=True)
        try:
            yield
        finally:
            unlock(path / LOCK, descriptor)
    else:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _lock(descriptor, wait=True)
            yield
        finally:
            os.close(descriptor)  # which also releases the lock


def open_locked(path: Path, *, wait: bool) -> int:
    """Return the descriptor of a lock file, locked; the file is made if it does not exist.

    Args:
        path: of the lock file.
        wait: for its holder; otherwise a file that is locked raises BlockingIOError.
    """
    while True:
        descriptor = _patiently(lambda: os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
        try:
            _lock(descriptor, wait=wait)
            # Windows removes no open file, and its file systems may number files in two ways.
            if sys.platform == "win32" or path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # of a file that its last holder has removed: open the new one


def unlock(path: Path, descriptor: int) -> None:
    """Remove a lock file, and release its lock."""
    if sys.platform == "win32":
        os.close(descriptor)  # Windows removes no file that is open, here or at its next holder
    with suppress(OSError):
        path.unlink()
    if sys.platform != "win32":
        os.close(descriptor)  # last: the next holder notices that the file is not there


def _lock(descriptor: int, *, wait: bool) -> None:
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415 - exists on Windows only

        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            except PermissionError as error:
                if not wait:
                    raise BlockingIOError from error
                time.sleep(PAUSE_SECONDS)
            else:
                return
    else:
        import fcntl  # noqa: PLC0415 - exists on POSIX only

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
