"""The progress bar of training."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from microgpt import StepReport

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["TrainingDisplay", "training_display"]

SECONDS_PER_DRAWING = 0.1


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

    def steps(self, reports: list[StepReport]) -> None:
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
