"""The record of a training run: `metrics.jsonl` in the model directory."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import microgpt
import msgspec

from microgpt_cli.errors import translated
from microgpt_cli.writing import write_whole

__all__ = ["METRICS", "MetricsLog", "Record", "read_metrics", "remove_record"]

METRICS = "metrics.jsonl"
MAX_RECORDS = 1000  # of one run, apart from those with a validation loss


class Record(TypedDict):
    """One line: what the steps since the line before have shown."""

    step: int
    loss: float
    val_loss: float | None
    lr: float
    tokens_per_second: float
    elapsed: float


class MetricsLog:
    """Collects reports and writes a line for every so many of them.

    Args:
        directory: of the model.
        n_steps: of the run.
        earlier: records of an earlier part of the run.
    """

    def __init__(self, directory: Path, n_steps: int, earlier: Sequence[Record] = ()) -> None:
        self._path = directory / METRICS
        self._every = -(-n_steps // MAX_RECORDS)
        self._losses: list[float] = []
        self._waiting: list[str] | None = [f"{json.dumps(record)}\n" for record in earlier]
        self._n_seconds_before = earlier[-1]["elapsed"] if earlier else 0.0

    def begin(self) -> None:
        """Write the file, which until then may be that of another run.

        Raises:
            MicrogptError: it cannot be written; then nothing more will be.
        """
        lines, self._waiting = self._waiting or [], None
        try:
            write_whole(self._path, "".join(lines).encode())
        except microgpt.MicrogptError as error:
            self._give_up(error)

    def add(
        self, reports: list[microgpt.StepReport], tokens_per_second: float, elapsed: float
    ) -> None:
        """Take reports in; `elapsed` in seconds since training started.

        Raises:
            MicrogptError: the file cannot be written; then nothing more will be.
        """
        lines = []
        for report in reports:
            self._losses.append(report.loss)
            if report.step % self._every and report.val_loss is None:
                continue
            record = Record(
                step=report.step,
                loss=sum(self._losses) / len(self._losses),
                val_loss=report.val_loss,
                lr=report.learning_rate,
                tokens_per_second=round(tokens_per_second, 1),
                elapsed=round(self._n_seconds_before + elapsed, 4),
            )
            lines.append(json.dumps(record) + "\n")
            self._losses.clear()
        if self._waiting is not None:
            self._waiting += lines
        elif lines:
            try:
                with translated(f"cannot write {self._path}"), self._path.open("a") as file:
                    file.writelines(lines)
            except microgpt.MicrogptError as error:
                self._give_up(error)

    def _give_up(self, error: microgpt.MicrogptError) -> None:
        """Stop writing: a line after one that was cut short would make the file unreadable."""
        self._path = Path(os.devnull)
        raise microgpt.MicrogptError(f"{error}; it ends there") from error


def read_metrics(directory: Path) -> list[Record]:
    """Return the records of a run, none if there is no file; a line that was cut short is left out.

    Raises:
        MicrogptError: the file cannot be read, or a line is not one of ours.
    """
    path = directory / METRICS
    if not path.exists():
        return []
    if not path.is_file():
        raise microgpt.DataError(f"cannot read {path}: it is not a regular file")
    with translated(f"cannot read {path}"):
        content = path.read_bytes()
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            records.append(msgspec.json.decode(line, type=Record))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise microgpt.DataError(
                f"invalid {path}: line {number}: {error}", hint="it was damaged: move it away"
            ) from error
    return records


def remove_record(directory: Path) -> None:
    """Remove what training has left beside a model: its snapshots and its metrics.

    Raises:
        CheckpointError, OSError: they cannot be removed.
    """
    microgpt.remove_snapshots(directory)
    (directory / METRICS).unlink(missing_ok=True)
