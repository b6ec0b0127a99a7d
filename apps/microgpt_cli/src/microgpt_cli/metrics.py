"""The record of a training run: `metrics.jsonl` in the model directory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microgpt_cli.files import write_whole

if TYPE_CHECKING:
    from microgpt import StepReport

__all__ = ["METRICS", "MetricsLog", "read_metrics"]

METRICS = "metrics.jsonl"
MAX_RECORDS = 1000  # of one run, apart from those with a validation loss


class MetricsLog:
    """Collects reports and writes a line for every so many of them.

    Args:
        directory: of the model.
        n_steps: of the run.
        first_step: steps that an earlier part of the run has recorded; later lines are dropped.
    """

    def __init__(self, directory: Path, n_steps: int, first_step: int = 0) -> None:
        self._path = directory / METRICS
        self._every = -(-n_steps // MAX_RECORDS)
        self._losses: list[float] = []
        kept = [line for line in read_metrics(directory) if line["step"] <= first_step]
        self._n_seconds_before = kept[-1]["elapsed"] if first_step and kept else 0.0
        text = "".join(f"{json.dumps(line)}\n" for line in kept if first_step)
        write_whole(self._path, text.encode())

    def add(self, reports: "list[StepReport]", tokens_per_second: float, elapsed: float) -> None:
        """Take reports in; `elapsed` in seconds since training started."""
        lines = []
        for report in reports:
            self._losses.append(report.loss)
            if report.step % self._every and report.val_loss is None:
                continue
            record = {
                "step": report.step,
                "loss": sum(self._losses) / len(self._losses),
                "val_loss": report.val_loss,
                "lr": report.learning_rate,
                "tokens_per_second": round(tokens_per_second, 1),
                "elapsed": round(self._n_seconds_before + elapsed, 4),
            }
            lines.append(json.dumps(record) + "\n")
            self._losses.clear()
        if lines:
            with self._path.open("a") as file:
                file.writelines(lines)


def read_metrics(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a run; a last line that was cut short is left out."""
    path = directory / METRICS
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
