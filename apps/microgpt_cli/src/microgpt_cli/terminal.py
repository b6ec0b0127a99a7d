"""What goes to the terminal: errors, warnings, and the progress bar of training.

Results go to stdout. Everything that only accompanies them goes to stderr.
"""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from microgpt import Dataset, StepReport
    from rich.progress import Progress

__all__ = [
    "TrainingDisplay",
    "counted",
    "discard",
    "open_streams",
    "printable",
    "read_dataset",
    "remark",
    "report_error",
    "shown",
    "training_display",
    "warn",
]

SECONDS_PER_DRAWING = 0.1


def open_streams() -> None:
    """Open what we were started without, so that no file of ours takes its number.

    Using stdin or stdout then fails as it does on a stream that is closed; stderr goes nowhere.
    """
    if sys.stdin is None:
        sys.stdin = _opened(os.O_WRONLY)
    if sys.stdout is None:
        sys.stdout = _opened(os.O_RDONLY)
    if sys.stderr is None:
        sys.stderr = _opened(os.O_WRONLY)


def _opened(flags: int) -> io.TextIOWrapper:
    file = io.FileIO(os.open(os.devnull, flags), "r+", closefd=False)
    return io.TextIOWrapper(file, write_through=True)  # what cannot be written is not kept


def discard(number: int) -> None:
    """Send to nowhere what is still to be written to a stream, by its number."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def remark(text: str) -> None:
    """Print a line to stderr, which may quote anything; a failure of that nobody can be told."""
    with suppress(OSError):
        typer.echo(printable(text, one_line=True), err=True)


def counted(n: int, noun: str) -> str:
    """Return a number and what it counts: "1 turn", "2 turns"."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def printable(text: str, *, one_line: bool = False) -> str:
    r"""Return `text` with everything that could steer a terminal written out, such as \x1b."""
    plain = "" if one_line else "\n\t"
    return "".join(
        char
        if char.isprintable() or char in plain
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def shown(text: str) -> str:
    """Return what stdout is given of a model's text: a terminal would obey control characters."""
    return printable(text) if sys.stdout.isatty() else text


def report_error(error: BaseException, prefix: str = "") -> bool:
    """Print an error that is not ours to fix; return False if it is a bug instead."""
    from microgpt import MicrogptError  # noqa: PLC0415 - only when there is an error

    if isinstance(error, MicrogptError):
        remark(f"error: {prefix}{error}")
        if error.hint:
            remark(f"hint: {error.hint}")
        return True
    if isinstance(error, MemoryError):
        remark(f"error: {prefix}not enough memory for a model or dataset of this size")
        return True
    return False


def warn(message: str) -> None:
    """Print a warning."""
    remark(f"warning: {message}")


def read_dataset(path: "Path", *, chat: bool) -> "Dataset":
    """Read documents or conversations, and warn about what had to be left out."""
    import microgpt  # noqa: PLC0415 - see main

    if not chat:
        return microgpt.Dataset.from_documents(microgpt.read_documents(path))
    conversations = microgpt.read_conversations(path)
    if conversations.n_trimmed:
        trimmed = counted(conversations.n_trimmed, "conversation")
        warn(f"{trimmed} trimmed: nobody answers the user turn at the end")
    if conversations.n_skipped:
        skipped = counted(conversations.n_skipped, "conversation")
        warn(f"{skipped} left out: there is no assistant turn")
    return microgpt.Dataset.from_conversations(conversations.conversations)


class TrainingDisplay:
    """Lines of training on stdout, and on a terminal a bar below them on stderr."""

    def __init__(self, n_steps: int, progress: "Progress | None") -> None:
        self._n_steps = n_steps
        self._progress = progress
        self._task: Any = None
        if progress is not None:
            self._task = progress.add_task("training", total=n_steps, loss="", rates="")
        self._start = time.perf_counter()
        self._shown_at = 0.0  # when the bar was last drawn
        self._n_tokens = 0

    def line(self, text: str) -> None:
        """Print a line to stdout; a bar gives way until it is drawn again."""
        if self._progress is None:
            print(text, flush=True)  # noqa: T201
            return
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()
        print(text, flush=True)  # noqa: T201

    def steps(self, reports: "list[StepReport]") -> None:
        """Move the bar."""
        self._n_tokens += sum(report.n_tokens for report in reports)
        if self._progress is None or not reports:
            return
        last = reports[-1]
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        self._progress.update(
            self._task,
            completed=last.step,
            loss=f"loss {last.loss:.4f}",
            rates=f"{last.step / elapsed:,.0f} steps/s  {self._n_tokens / elapsed:,.0f} tokens/s",
        )
        self._draw()

    def _draw(self) -> None:
        """Draw the bar, unless it was drawn just now: that takes longer than many a step."""
        now = time.perf_counter()
        if self._progress and now - self._shown_at >= SECONDS_PER_DRAWING:
            self._shown_at = now
            self._progress.refresh()


@contextmanager
def training_display(n_steps: int, *, shown: bool) -> Iterator[TrainingDisplay]:
    """Show progress on a terminal while the context lasts, if it is to be shown."""
    if not (shown and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"):
        yield TrainingDisplay(n_steps, None)
        return
    from rich.console import Console  # noqa: PLC0415 - 70 ms, and only for terminals
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (
        BarColumn(bar_width=None),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rates]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True)
    console.width -= len("^C ")  # a full line would wrap when the terminal echoes this
    with Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=False,  # by a thread, which would draw between a line and the bar below it
        redirect_stdout=False,  # the lines of training belong to stdout, wherever that goes
        redirect_stderr=False,
    ) as progress:
        yield TrainingDisplay(n_steps, progress)
