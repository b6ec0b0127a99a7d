"""The files of a training run: the model, its snapshots and its metrics."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import microgpt

from microgpt_cli.errors import Failures, translated
from microgpt_cli.metrics import MetricsLine, MetricsLog, remove_run
from microgpt_cli.terminal import warn

__all__ = ["Saver"]


class Saver:
    """Saves a run into a directory; a file that fails does not end the run.

    Args:
        directory: of the model.
        model: the model that is trained.
        trainer: trains it.
        options: what snapshots store besides, to resume the run.
        keep_snapshots: how many.
        earlier_metrics: of the run that is resumed.
        replaces: the directory holds a model or another run, which is kept until this run has
            something to save.
        failures: where errors go, apart from those of the model.
    """

    def __init__(
        self,
        directory: Path,
        model: microgpt.LanguageModel,
        trainer: microgpt.Trainer,
        options: Mapping[str, Any],
        *,
        keep_snapshots: int,
        earlier_metrics: Sequence[MetricsLine],
        replaces: bool,
        failures: Failures,
    ) -> None:
        self.directory = directory
        self.replaces = replaces
        self._model = model
        self._trainer = trainer
        self._options = options
        self._keep_snapshots = keep_snapshots
        self._metrics = MetricsLog(directory, trainer.config.steps, earlier_metrics)
        self._failures = failures
        self._has_warned = False

    def begin(self) -> None:
        """Write the metrics until now, unless those of another run are kept.

        Raises:
            MicrogptError: the directory cannot be made, or the metrics cannot be written.
        """
        if self.replaces:
            return
        with translated(f"cannot write {self.directory}"):
            self.directory.mkdir(parents=True, exist_ok=True)
        self._metrics.begin()

    def add_metrics(
        self, reports: Sequence[microgpt.StepReport], tokens_per_second: float, elapsed: float
    ) -> None:
        """Add steps to the metrics, and warn at the first failure; see `MetricsLog.add`."""
        try:
            self._metrics.add(reports, tokens_per_second, elapsed)
        except microgpt.MicrogptError as error:
            if not self._has_warned:
                warn(f"{error}; training goes on, and its metrics are written later")
            self._has_warned = True

    def save_snapshot(self) -> None:
        """Save the state of training, if a step was taken."""
        if not self._trainer.step:
            return
        with self._failures.collecting():
            if self.replaces:
                self.save_model()
            microgpt.write_snapshot(
                self.directory, self._trainer, self._options, keep=self._keep_snapshots
            )

    def save_model(self) -> None:
        """Save the current weights, and the metrics; they replace all that another run has left.

        Raises:
            CheckpointError: the model cannot be written; the model before is intact.
        """
        remove = partial(remove_run, self.directory) if self.replaces else lambda: None
        self._model.save(self.directory, before_replacing=remove)
        self.replaces = False
        with self._failures.collecting():
            self.begin()
