"""The metrics of a training run: `metrics.jsonl` in the model directory."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import microgpt
import msgspec

from microgpt_cli.errors import translated
from microgpt_cli.terminal import warn

__all__ = ["METRICS", "MetricsLine", "MetricsLog", "read_metrics", "remove_run"]

METRICS = "metrics.jsonl"
MAX_LINES = 1000  # of one run, apart from those with a validation loss


class MetricsLine(TypedDict):
    """One line: a step, and the mean loss of the steps since the line before."""

    step: int
    loss: float
    val_loss: float | None
    lr: float
    tokens_per_second: float
    elapsed: float


class MetricsLog:
    """Collects reports and writes a line for every so many steps.

    Lines that cannot be written are kept, and written together with the next ones.

    Args:
        directory: of the model.
        n_steps: of the run.
        earlier: lines of the run that is resumed.
    """

    def __init__(self, directory: Path, n_steps: int, earlier: Sequence[MetricsLine] = ()) -> None:
        self._path = directory / METRICS
        self._every = -(-n_steps // MAX_LINES)
        self._losses: list[float] = []
        self._unwritten = "".join(f"{json.dumps(line)}\n" for line in earlier)
        self._n_seconds_before = earlier[-1]["elapsed"] if earlier else 0.0
        self._is_begun = False
        self._is_new = True

    def begin(self) -> None:
        """Replace the file of another run by this one's lines; until then nothing is written.

        Raises:
            MicrogptError: the file cannot be written.
        """
        self._is_begun = True
        self.write()

    def add(
        self, reports: Sequence[microgpt.StepReport], tokens_per_second: float, elapsed: float
    ) -> None:
        """Add the reports of some steps.

        Args:
            reports: of consecutive steps.
            tokens_per_second: the speed so far.
            elapsed: seconds since training started or was resumed.

        Raises:
            MicrogptError: the file cannot be written.
        """
        for report in reports:
            self._losses.append(report.loss)
            if report.step % self._every and report.val_loss is None:
                continue
            line = MetricsLine(
                step=report.step,
                loss=sum(self._losses) / len(self._losses),
                val_loss=report.val_loss,
                lr=report.learning_rate,
                tokens_per_second=round(tokens_per_second, 1),
                elapsed=round(self._n_seconds_before + elapsed, 4),
            )
            self._unwritten += json.dumps(line) + "\n"
            self._losses.clear()
        self.write()

    def move(self, directory: Path) -> None:
        """Move the file to another directory.

        Raises:
            MicrogptError: it cannot be moved; the lines to come are written there nevertheless.
        """
        before, self._path = self._path, directory / METRICS
        if not self._is_new:
            with translated(f"cannot move {before}"):
                before.rename(self._path)

    def write(self) -> None:
        """Write the lines that are not yet written.

        Raises:
            MicrogptError: the file cannot be written.
        """
        content = self._unwritten.encode()
        if not self._is_begun:
            return
        if self._is_new:
            microgpt.write_file(self._path, content)
        elif content:
            _append(self._path, content)
        self._unwritten, self._is_new = "", False


def _append(path: Path, content: bytes) -> None:
    """Append to a file, or on failure leave it as it was."""
    with translated(f"cannot write {path}"), path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)  # a line that is cut short makes the file unreadable
            raise


def read_metrics(directory: Path) -> list[MetricsLine]:
    """Return the lines of a run, none without a file; drop a last line that is cut short.

    Raises:
        MicrogptError: the file cannot be read.
        DataError: a line is not valid.
    """
    path = directory / METRICS
    if not path.exists():
        return []
    if not path.is_file():
        raise microgpt.DataError(f"cannot read {path}: it is not a regular file")
    with translated(f"cannot read {path}"):
        content = path.read_bytes()
    lines = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            lines.append(msgspec.json.decode(line, type=MetricsLine))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise microgpt.DataError(
                f"invalid {path}: line {number}: {error}", hint="it was damaged: move it away"
            ) from error
    return lines


def remove_run(directory: Path) -> None:
    """Remove the snapshots and the metrics of a run; its model is kept.

    Raises:
        CheckpointError, OSError: they cannot be removed.
    """
    microgpt.remove_snapshots(directory)
    path = directory / METRICS
    try:
        path.unlink(missing_ok=True)
    except PermissionError as error:  # on Windows, another program has it open: no loss of a model
        warn(f"cannot remove {path}, the metrics of another run: {error.strerror}")
