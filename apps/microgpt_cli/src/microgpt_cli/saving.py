"""The files of a training run: the model, its snapshots and its metrics."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import microgpt

from microgpt_cli.errors import Failures, translated
from microgpt_cli.metrics import MetricsLine, MetricsLog, remove_run
from microgpt_cli.plan import Plan
from microgpt_cli.terminal import warn
from microgpt_cli.writing import holds_run, new_sibling

__all__ = ["Saver"]


class Saver:
    """Saves a run into a directory; a file that fails does not end the run.

    Args:
        directory: of the model.
        model: the model that is trained.
        trainer: trains it.
        plan: of the run; snapshots store it.
        earlier_metrics: of the run that is resumed.
        force: a model or another run in the directory may be replaced.
        resumes: the run in the directory is the one that is resumed.
        failures: where errors go, apart from those of the model.

    Attributes:
        directory: of the model, or a new one beside it; see `save_model`.
        replaces: the directory holds a model or another run, which is kept until this run has
            something to save.
    """

    def __init__(
        self,
        directory: Path,
        model: microgpt.LanguageModel,
        trainer: microgpt.Trainer,
        plan: Plan,
        *,
        earlier_metrics: Sequence[MetricsLine],
        force: bool,
        resumes: bool,
        failures: Failures,
    ) -> None:
        self.directory = directory
        self.replaces = not resumes and holds_run(directory)
        self._may_overwrite = force or resumes
        self._model = model
        self._trainer = trainer
        self._plan = plan
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
                warn(f"{error}; training continues, and its metrics are written later")
            self._has_warned = True

    def save_snapshot(self) -> None:
        """Save the state of training, if a step was taken."""
        if not self._trainer.step:
            return
        with self._failures.collecting():
            self._leave_other_model()
            if self.replaces:
                self.save_model()
            stored, keep = self._plan.stored(), self._plan.pace.keep_snapshots
            microgpt.write_snapshot(self.directory, self._trainer, stored, keep=keep)

    def save_model(self) -> None:
        """Save the current weights, and the metrics; they replace all that another run has left.

        A model that another program has saved since the start is kept, unless `force` is set; then
        the run continues in a new directory.

        Raises:
            CheckpointError: the model cannot be written; the model before is intact.
        """
        self._leave_other_model()
        self._model.training = self._trainer.record()
        remove = partial(remove_run, self.directory) if self.replaces else lambda: None
        self._model.save(self.directory, before_replacing=remove)
        self.replaces, self._may_overwrite = False, True
        with self._failures.collecting():
            self.begin()

    def _leave_other_model(self) -> None:
        """Continue in a new directory if another program has saved a model into this one."""
        if self._may_overwrite or not microgpt.holds_model(self.directory):
            return
        other, self.directory = self.directory, new_sibling(self.directory)
        self._may_overwrite = True
        warn(f"another model has appeared in {other}; this run is saved into {self.directory}")
        with self._failures.collecting():
            self._metrics.move(self.directory)
