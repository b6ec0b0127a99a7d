"""The standard streams: results on stdout, everything that accompanies them on stderr.

Imported by every command, and before the library is loaded.
"""

import io
import os
import sys
from contextlib import suppress

import typer

__all__ = ["counted", "discard", "open_streams", "printable", "remark", "shown", "typed", "warn"]


def open_streams() -> None:
    """Give the standard streams their encoding, and replace those that are closed.

    Then no file of ours gets their number. Using such a stdin or stdout fails as it does on a
    closed stream; stderr is discarded.

    Files and pipes take UTF-8 and plain line ends on every system, because commands read them;
    Python before 3.15 takes the code page of Windows, which lacks most characters. PowerShell
    before 7.4 decodes what is piped, also into a file, by `[Console]::OutputEncoding`, an old code
    page unless it is set to UTF-8; `--output` needs no pipe.
    """
    if sys.stdin is None:
        sys.stdin = _opened(os.O_WRONLY)
    if sys.stdout is None:
        sys.stdout = _opened(os.O_RDONLY)
    if sys.stderr is None:
        sys.stderr = _opened(os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A model may know characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
            if not stream.isatty():
                stream.reconfigure(encoding="utf-8", newline="\n")


def _opened(flags: int) -> io.TextIOWrapper:
    file = io.FileIO(os.open(os.devnull, flags), "r+", closefd=False)
    # Written through, so that nothing is buffered after a failure.
    return io.TextIOWrapper(file, "utf-8", write_through=True)


def discard(number: int) -> None:
    """Redirect a stream, given by its number, to the null device."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def remark(text: str) -> None:
    """Print one line to stderr, control characters escaped; ignore a stderr that fails."""
    with suppress(OSError):
        typer.echo(printable(text, one_line=True), err=True)


def warn(message: str) -> None:
    """Print a warning."""
    remark(f"warning: {message}")


def counted(n: int, noun: str) -> str:
    """Return a number and its noun: "1 message", "2 messages"."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def typed(path: object) -> str:
    """Return a path as any shell takes it: in quotes if it holds a space."""
    return f'"{path}"' if " " in str(path) else str(path)


def printable(text: str, *, one_line: bool = False) -> str:
    r"""Return `text` with characters that control a terminal escaped, such as \x1b."""
    plain = "" if one_line else "\n\t"
    return "".join(
        char
        if char.isprintable() or char in plain
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def shown(text: str) -> str:
    """Return a model's text for stdout, with control characters escaped on a terminal."""
    return printable(text) if sys.stdout.isatty() else text
