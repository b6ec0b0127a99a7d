"""The progress of training and of many samples, on a terminal as stderr."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from microgpt_cli.system import obeys_escapes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["ProgressBar", "progress_bar", "sample_count"]

STDERR = 2
SECONDS_PER_DRAWING = 0.1


class ProgressBar:
    """A bar below the lines of stdout.

    Args:
        progress: of rich.
        task: the bar in it.
    """

    def __init__(self, progress: "Progress", task: "TaskID") -> None:
        self._progress = progress
        self._task = task
        self._drawn_at = 0.0

    def clear(self) -> None:
        """Remove the bar until its next drawing, so that a line can be printed."""
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()

    def update(
        self, step: int, loss: float, steps_per_second: float, tokens_per_second: float
    ) -> None:
        """Move the bar, and draw it at most every 0.1 s: drawing takes longer than many a step."""
        rates = f"{steps_per_second:,.0f} steps/s  {tokens_per_second:,.0f} tokens/s"
        self._progress.update(self._task, completed=step, loss=f"loss {loss:.4f}", rates=rates)
        now = time.perf_counter()
        if now - self._drawn_at >= SECONDS_PER_DRAWING:
            self._drawn_at = now
            self._progress.refresh()


def _is_shown() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and obeys_escapes(STDERR)


@contextmanager
def sample_count(n: int, *, is_shown: bool) -> Iterator[Callable[[int], None]]:
    """Yield what shows a number of samples on a terminal, and remove it at the end.

    Args:
        n: of all samples.
        is_shown: whether it is to be shown, unless stdout shows the samples there themselves.
    """
    drawn_at = time.perf_counter()
    is_shown = _is_shown() and (is_shown or not sys.stdout.isatty())

    def show(number: int) -> None:
        nonlocal drawn_at
        now = time.perf_counter()
        if is_shown and now - drawn_at >= SECONDS_PER_DRAWING:
            drawn_at = now
            sys.stderr.write(f"\r\x1b[2K{number:,} of {n:,} samples")
            sys.stderr.flush()

    try:
        yield show
    finally:
        if is_shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


@contextmanager
def progress_bar(first_step: int, n_steps: int) -> Iterator[ProgressBar | None]:
    """Yield a bar, or None if stderr is no terminal that can show one.

    Args:
        first_step: steps taken before, by the run that is resumed.
        n_steps: of the run.
    """
    if not _is_shown():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - 70 ms, for terminals only
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(bar_width=None),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rates]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
    )
    # On Windows rich asks stdout, perhaps a file, whether stderr obeys escape sequences.
    console = Console(stderr=True, legacy_windows=False)
    console.width -= len("^C ")  # a full line would wrap when the terminal echoes this
    with Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=False,  # by a thread, which would draw between a line and the bar below it
        redirect_stdout=False,  # the lines of training belong to stdout, wherever that goes
        redirect_stderr=False,
    ) as progress:
        task = progress.add_task("training", total=n_steps, completed=first_step, loss="", rates="")
        yield ProgressBar(progress, task)
