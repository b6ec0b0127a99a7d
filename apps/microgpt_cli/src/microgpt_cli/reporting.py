"""Reports of a training run on stdout: lines of text, lines of JSON, or none."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import microgpt

from microgpt_cli.errors import Failures, translated
from microgpt_cli.progress import ProgressBar, progress_bar
from microgpt_cli.system import reader_has_left
from microgpt_cli.terminal import discard, shown, warn

__all__ = ["Reporter", "Style"]

Style: TypeAlias = Literal["text", "json", "quiet"]

TOKENIZER = "tokenizer.json"  # of models of subwords
INDENTED = ("n_embd", "n_head", "n_layer", "block_size")  # in the header


class Reporter:
    """Reports the events of a run; a stdout that fails does not end the run.

    Args:
        style: how.
        n_steps: of the run.
        log_every: steps between two reports of the loss.
        failures: where an error of stdout goes. A reader that has left is no error.
    """

    def __init__(
        self,
        style: Style,
        n_steps: int,
        log_every: int,
        failures: Failures,
    ) -> None:
        self.style = style
        self._n_steps = n_steps
        self._log_every = log_every
        self._failures = failures
        self._bar: ProgressBar | None = None
        self._n_logs = 0  # times `log_every` until the latest validation in text

    def start(self, header: dict[str, Any], first_step: int) -> None:
        """Report the start of a run.

        Args:
            header: of the run, by label.
            first_step: steps taken before, by the run that is resumed.

        Raises:
            MicrogptError: stdout cannot be written.
        """
        (title, kind), *rows = header.items()
        lines = [f"{title} ({kind})"]
        for label, value in rows:
            lines.append(f"{'  ' * (label in INDENTED)}{label + ':':<13}{value}")
        self._print("start", "\n".join([*lines, ""]), first_step=first_step, **header)

    @contextmanager
    def progress(self, first_step: int) -> Iterator[None]:
        """Show a progress bar on a terminal, unless the style is another than text."""
        if self.style != "text":
            yield
            return
        with progress_bar(first_step, self._n_steps) as bar:
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def steps(
        self,
        last: microgpt.StepReport,
        steps_per_second: float,
        tokens_per_second: float,
        *,
        is_best: bool,
        is_last: bool,
    ) -> None:
        """Report the loss where that is due, and the validation loss where there is one.

        Lines of text hold at most one validation per `log_every` steps, JSON all.

        Args:
            last: the report of the latest step.
            steps_per_second: of this run.
            tokens_per_second: of this run.
            is_best: whether the validation loss is the least so far.
            is_last: whether the run ends here.
        """
        progress = f"step {last.step:4d} / {self._n_steps:4d}"
        if last.step in (1, self._n_steps) or last.step % self._log_every == 0:
            self.event(
                "step",
                f"{progress} | loss {last.loss:.4f}",
                step=last.step,
                loss=last.loss,
                lr=last.learning_rate,
            )
        n_logs = last.step // self._log_every
        is_due = self.style == "json" or is_last or n_logs > self._n_logs
        if last.val_loss is not None and is_due:
            self._n_logs = n_logs
            self.event(
                "validation",
                f"{progress} | val loss {last.val_loss:.4f}{', the best so far' * is_best}",
                step=last.step,
                val_loss=last.val_loss,
                is_best=is_best,
            )
        if self._bar:
            self._bar.update(last.step, last.loss, steps_per_second, tokens_per_second)

    def sample(self, step: int, text: str) -> None:
        """Report a sample that was drawn during training."""
        self.event("sample", f"step {step:4d} | sample: {shown(text)}", step=step, text=text)

    def stopped_early(self, trainer: microgpt.Trainer) -> None:
        """Report that validation has ended the run."""
        step, patience = trainer.step, trainer.config.patience
        self.event(
            "stopped early",
            f"stopped after step {step} of {self._n_steps}: {patience} validations in a row were "
            "not better",
            step=step,
            patience=patience,
        )

    def best(self, best: microgpt.Best) -> None:
        """Report which model is saved, where validation has chosen it."""
        self.event(
            "best",
            f"best model: step {best.step}, val loss {best.val_loss:.4f}",
            step=best.step,
            val_loss=best.val_loss,
        )

    def saved(self, directory: Path) -> None:
        """Report the files of the model that was saved."""
        weights, meta = directory / "weights.json", directory / "meta.json"
        lines = ["", f"weights saved to {weights}", f"metadata saved to {meta}"]
        if (directory / TOKENIZER).exists():
            lines.append(f"subwords saved to {directory / TOKENIZER}")
        self.event(
            "saved",
            "\n".join(lines),
            weights=str(weights),
            meta=str(meta),
        )

    def advise(self, text: str) -> None:
        """Warn on stderr, above the bar."""
        if self._bar:
            self._bar.clear()
        warn(text)

    def event(self, event: str, text: str, /, **details: Any) -> None:
        """Report one event; text may be several lines or empty."""
        with self._failures.collecting():
            self._print(event, text, **details)

    def _print(self, event: str, text: str, /, **details: Any) -> None:
        if self.style == "json":
            text = json.dumps({"event": event, **details})
        if self.style == "quiet" or not text:
            return
        try:
            if self._bar:
                self._bar.clear()
            print(text, flush=True)  # noqa: T201
        except OSError as error:
            discard(sys.stdout.fileno())  # also the text that Python would still print at exit
            if not reader_has_left(error):
                with translated("cannot write to stdout"):
                    raise
