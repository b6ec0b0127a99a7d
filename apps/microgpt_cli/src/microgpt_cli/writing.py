"""What is written: whole or not at all, and over nothing that somebody may still need."""

import errno
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["refuse_to_overwrite", "write_whole"]


def refuse_to_overwrite(directory: Path) -> None:
    """Raise CheckpointError if a directory holds a model, or what it takes to go on with one."""
    import microgpt  # noqa: PLC0415 - see main

    if microgpt.holds_model(directory):
        raise microgpt.CheckpointError(
            f"{directory} already holds a model",
            hint="use --force to overwrite it, or choose another --output",
        )
    if microgpt.holds_snapshot(directory):
        raise microgpt.CheckpointError(
            f"{directory} already holds snapshots of a run that was not finished",
            hint=f"go on with --resume {directory}, or use --force to start anew",
        )


def write_whole(path: Path, content: bytes) -> None:
    """Give a file its content, or on failure leave everything as it was.

    Raises:
        OSError: it cannot be written, or is something else than a file, such as a device.
        ValueError: it has no name, or one with a NUL byte.
    """
    if path.is_symlink():  # it stays one
        path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")
    staged = path.with_name(path.name + ".staged")
    try:
        staged.write_bytes(content)
        staged.replace(path)
    except OSError:
        with suppress(OSError):
            staged.unlink()
        raise
