"""The training loop of the command line: what it prints and when it saves."""

import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import microgpt
import typer

from microgpt_cli.errors import translated
from microgpt_cli.interruption import interruptible
from microgpt_cli.metrics import MetricsLog, remove_record
from microgpt_cli.progress import TrainingDisplay, training_display
from microgpt_cli.terminal import discard, shown, warn

__all__ = ["Pace", "Run", "run_training"]

SAMPLE_TEMPERATURE = 0.5
SECONDS_PER_CALL = 0.1  # what may pass before signals and the progress bar get their turn
SECONDS_PER_SHARED_CALL = 0.02  # the same with other processes: mpirun leaves little time to save
MODEL_LABELS = ("n_embd", "n_head", "n_layer", "block_size")  # indented in the header


@dataclass(frozen=True)
class Pace:
    """What happens every so many steps, and at the end."""

    log_every: int
    checkpoint_every: int | None
    keep_checkpoints: int
    sample_every: int | None
    num_samples: int

    def next_stop(self, step: int) -> int:
        """Return the next step after which something is due."""
        if step == 0:
            return 1
        paces = (self.log_every, self.checkpoint_every, self.sample_every)
        return min(step + pace - step % pace for pace in paces if pace)


@dataclass
class Output:
    """Tells events in one of three styles: lines of text, nothing, or lines of JSON."""

    style: Literal["text", "quiet", "json"]
    display: TrainingDisplay | None = None

    def tell(self, event: str, text: str, /, **details: Any) -> None:
        """Tell one event; text may be several lines or empty.

        Raises:
            MicrogptError: stdout cannot be written, as on a full disk; then nothing more will be.
                A reader that has left is no error.
        """
        if self.style == "json":
            text = json.dumps({"event": event, **details})
        if self.style == "quiet" or (self.style == "text" and not text):
            return
        try:
            if self.display:
                self.display.line(text)
            else:
                print(text, flush=True)  # noqa: T201
        except OSError as error:
            discard(sys.stdout.fileno())  # also what Python would still print as it ends
            if not isinstance(error, BrokenPipeError):
                with translated("cannot write to stdout"):
                    raise


@dataclass
class Run:
    """A training run that is set up.

    Args:
        model: what is trained.
        trainer: trains it.
        directory: where everything is written.
        options: what snapshots keep, to resume from.
        pace: when to do what.
        output: whom to tell.
        metrics: the record; None in a process that writes no files: of several, all but the first.
        replaces: whether the directory holds another run or model, which stays as it is until this
            one has something to save.

    Attributes:
        failures: what could not be written; none of it keeps the model from being saved.
    """

    model: microgpt.LanguageModel
    trainer: microgpt.Trainer
    directory: Path
    options: dict[str, Any]
    pace: Pace
    output: Output
    metrics: MetricsLog | None
    replaces: bool
    failures: list[microgpt.MicrogptError] = field(default_factory=list)

    @contextmanager
    def _failing_later(self) -> Iterator[None]:
        try:
            yield
        except microgpt.MicrogptError as error:
            self.failures.append(error)

    def tell(self, event: str, text: str, /, **details: Any) -> None:
        """Tell one event."""
        with self._failing_later():
            self.output.tell(event, text, **details)

    def begin_record(self) -> None:
        """Write the first of the record, unless that of another run still stays.

        Raises:
            MicrogptError: the directory cannot be made.
        """
        if not self.metrics or self.replaces:
            return
        with translated(f"cannot write {self.directory}"):
            self.directory.mkdir(parents=True, exist_ok=True)
        self.metrics.begin()

    def record(
        self, reports: list[microgpt.StepReport], tokens_per_second: float, elapsed: float
    ) -> None:
        """Record steps."""
        if self.metrics:
            with self._failing_later():
                self.metrics.add(reports, tokens_per_second, elapsed)

    def save_snapshot(self) -> None:
        """Save what it takes to resume."""
        if not (self.metrics and self.trainer.step):
            return
        with self._failing_later():
            if self.replaces:
                self._write_model()
            keep = self.pace.keep_checkpoints
            microgpt.write_snapshot(self.directory, self.trainer, self.options, keep=keep)

    def _write_model(self) -> None:
        """Save the current weights; what another run has left goes when they take its place."""
        if not self.replaces:
            self.model.save(self.directory)
            return
        self.model.save(self.directory, before_replacing=partial(remove_record, self.directory))
        self.replaces = False
        with self._failing_later():
            self.begin_record()

    def save_model(self) -> None:
        """Save the best model so far, or without validation the latest."""
        trainer, directory = self.trainer, self.directory
        if not (self.metrics and trainer.step):
            return
        trainer.use_best()
        if trainer.best:
            self.tell(
                "best",
                f"best model: step {trainer.best.step}, val loss {trainer.best.val_loss:.4f}",
                step=trainer.best.step,
                val_loss=trainer.best.val_loss,
            )
        self._write_model()
        weights, meta = directory / "weights.json", directory / "meta.json"
        self.tell(
            "saved",
            f"\nweights saved to {weights}\nmetadata saved to {meta}",
            weights=str(weights),
            meta=str(meta),
        )

    def tell_step(self, last: microgpt.StepReport) -> None:
        """Tell the loss where that is due, and the validation loss where there is one."""
        trainer, n_steps = self.trainer, self.trainer.config.steps
        progress = f"step {last.step:4d} / {n_steps:4d}"
        if last.step in (1, n_steps) or last.step % self.pace.log_every == 0:
            self.tell(
                "step",
                f"{progress} | loss {last.loss:.4f}",
                step=last.step,
                loss=last.loss,
                lr=last.learning_rate,
            )
        if last.val_loss is not None:
            is_best = trainer.best is not None and trainer.best.step == last.step
            self.tell(
                "validation",
                f"{progress} | val loss {last.val_loss:.4f}{', the best so far' * is_best}",
                step=last.step,
                val_loss=last.val_loss,
                is_best=is_best,
            )

    def tell_sample(self) -> None:
        """Show what the model would write now; its draws are not those of training."""
        step = self.trainer.step
        if self.output.style == "quiet" or self.model.tokenizer.is_chat:
            return
        (text,) = self.model.generate(1, temperature=SAMPLE_TEMPERATURE, seed=step)
        self.tell("sample", f"step {step:4d} | sample: {shown(text)}", step=step, text=text)


class LastGood:
    """The latest weights that are known to give a finite loss.

    Args:
        trainer: whose weights; remember them before each call of `advance`.
    """

    def __init__(self, trainer: microgpt.Trainer) -> None:
        self._trainer = trainer
        self._weights: list[tuple[int, Any]] = []  # after so many steps; two at most

    def remember(self) -> None:
        """Copy the current weights."""
        now = (self._trainer.step, self._trainer.engine.parameters.flat.copy())
        self._weights = [*self._weights[-1:], now]

    def put_back(self) -> bool:
        """Go back to them, if they learned anything; return whether they did."""
        # A step was taken from those that gave a finite loss.
        good = [weights for step, weights in self._weights if 0 < step < self._trainer.step]
        if good:
            self._trainer.engine.parameters.flat[:] = good[-1]
        return bool(good)


def run_training(run: Run, header: dict[str, Any], rng: random.Random) -> None:
    """Train to the end or until a signal, save, and show samples.

    Args:
        run: what to do.
        header: what to tell first, by label.
        rng: for the samples at the end.
    """
    trainer, n_steps = run.trainer, run.trainer.config.steps
    start = time.perf_counter()
    with interruptible() as received:
        # What cannot be told or written at the start is an error at once.
        run.output.tell("start", _header_text(header), first_step=trainer.step, **header)
        run.begin_record()
        good = LastGood(trainer)
        try:
            with training_display(n_steps, shown=run.output.style == "text") as display:
                run.output.display = display
                _train(run, received, good)
        except microgpt.NonFiniteLossError as error:
            run.output.display = None
            if run.metrics:
                error.hint = f"{error.hint}; {_keep_good(run, good)}"
            raise
        except microgpt.RankLostError as error:
            run.save_snapshot()
            if not run.failures:
                error.hint = f"go on with microgpt-cli train --resume {run.directory}"
            raise
        except BaseException:
            _save(run)
            raise
        _save(run)
    if trainer.step < n_steps:
        if run.failures:
            raise run.failures[0]
        if run.metrics:
            _warn_interrupted(run)
        raise typer.Exit(128 + (received[0] if received else signal.SIGTERM))
    samples = _closing_samples(run, rng)
    run.tell(
        "result",
        "",
        steps=trainer.step,
        val_loss=trainer.best and trainer.best.val_loss,
        best_step=trainer.best and trainer.best.step,
        elapsed=round(time.perf_counter() - start, 3),
        model_dir=str(run.directory),
        samples=samples,
    )
    if run.failures:
        raise run.failures[0]


def _save(run: Run) -> None:
    """Save what was learned, and unless that is all, what it takes to go on."""
    run.output.display = None
    if run.trainer.step < run.trainer.config.steps:
        run.save_snapshot()  # first, as the best model takes the place of the latest
    run.save_model()


def _header_text(header: dict[str, Any]) -> str:
    (title, kind), *rows = header.items()
    lines = [f"{title} ({kind})"]
    for label, value in rows:
        indent = "  " if label in MODEL_LABELS else ""
        lines.append(f"{indent}{label + ':':<13}{value}")
    return "\n".join([*lines, ""])


def _train(run: Run, received: list[int], good: LastGood) -> None:
    """Take the remaining steps, until the last or a signal."""
    trainer, pace, ranks = run.trainer, run.pace, run.trainer.ranks
    if ranks:
        ranks.is_leaving = lambda: bool(received)
    seconds_per_call = SECONDS_PER_SHARED_CALL if ranks else SECONDS_PER_CALL
    first_step, n_tokens, start = trainer.step, 0, time.perf_counter()
    while trainer.step < trainer.config.steps:
        elapsed = time.perf_counter() - start
        n_in_time = 1 + int((trainer.step - first_step) / elapsed * seconds_per_call)
        n = 0 if received else min(pace.next_stop(trainer.step) - trainer.step, n_in_time)
        n = ranks.least(n) if ranks else n
        good.remember()
        reports = trainer.advance(n)
        if not reports:
            return
        elapsed = time.perf_counter() - start
        n_tokens += sum(report.n_tokens for report in reports)
        n_failures = len(run.failures)
        run.record(reports, n_tokens / elapsed, elapsed)
        run.tell_step(reports[-1])
        if run.output.display:
            run.output.display.steps(reports)
        if pace.sample_every and trainer.step % pace.sample_every == 0:
            run.tell_sample()
        if pace.checkpoint_every and trainer.step % pace.checkpoint_every == 0:
            run.save_snapshot()
        for failure in run.failures[n_failures:]:
            warn(f"{failure}; training goes on")


def _keep_good(run: Run, good: LastGood) -> str:
    """Save the last good model unless another one still stays; return what to tell about it."""
    if run.replaces:
        return f"{run.directory} is as it was before"
    if not good.put_back() and run.trainer.best is None:
        return "nothing was learned before"
    try:
        run.save_model()
    except microgpt.CheckpointError as error:
        return str(error)
    return f"{run.directory} holds the last good weights"


def _warn_interrupted(run: Run) -> None:
    step, n_steps = run.trainer.step, run.trainer.config.steps
    if step:
        warn(
            f"interrupted after step {step} of {n_steps}; go on with "
            f"microgpt-cli train --resume {run.directory}"
        )
    else:
        warn("interrupted before the first step; there is nothing to save")


def _closing_samples(run: Run, rng: random.Random) -> list[str]:
    if run.model.tokenizer.is_chat or not run.pace.num_samples or not run.metrics:
        return []
    samples = run.model.generate(run.pace.num_samples, temperature=SAMPLE_TEMPERATURE, rng=rng)
    text = "\n".join(["\n--- samples ---", *(f"  {shown(sample)}" for sample in samples)])
    run.tell("samples", text, samples=samples)
    return samples
