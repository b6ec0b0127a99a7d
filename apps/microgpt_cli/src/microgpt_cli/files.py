"""Files of ours that are written whole or not at all."""

import errno
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Give a file its content, or on failure leave everything as it was.

    Raises:
        OSError: it cannot be written, or is something else than a file, such as a device.
        ValueError: it has no name, or one with a NUL byte.
    """
    path = Path(os.path.realpath(path))  # a link stays one
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
