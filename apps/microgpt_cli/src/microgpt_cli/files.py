"""Files of ours that are written whole or not at all."""

from contextlib import suppress
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Give a file its content, or on failure leave everything as it was.

    Raises:
        OSError: it cannot be written.
        ValueError: it has no name, or one with a NUL byte.
    """
    staged = path.with_name(path.name + ".staged")
    try:
        staged.write_bytes(content)
        staged.replace(path)
    except OSError:
        with suppress(OSError):
            staged.unlink()
        raise
