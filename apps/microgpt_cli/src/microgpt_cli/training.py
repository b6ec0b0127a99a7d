"""The training loop of the command line: what it prints, when it saves, how it is interrupted."""

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from microgpt_cli.metrics import MetricsLog
from microgpt_cli.terminal import TrainingDisplay, training_display, warn

if TYPE_CHECKING:
    from microgpt import LanguageModel, StepReport, Trainer

__all__ = ["Pace", "Run", "run_training"]

SAMPLE_TEMPERATURE = 0.5
SECONDS_PER_CALL = 0.1  # what may pass before signals and the progress bar get their turn
SECONDS_PER_SHARED_CALL = 0.02  # the same with other processes: mpirun leaves little time to save
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h"  # which the progress bar hides
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
        """Tell one event; text may be several lines or empty."""
        if self.style == "json":
            text = json.dumps({"event": event, **details})
        if self.style == "quiet" or (self.style == "text" and not text):
            return
        if self.display:
            self.display.line(text)
        else:
            typer.echo(text)


@dataclass(frozen=True)
class Run:
    """A training run that is set up.

    Args:
        model: what is trained.
        trainer: trains it.
        directory: where everything is written.
        options: what snapshots keep, to resume from.
        pace: when to do what.
        output: whom to tell.
    """

    model: "LanguageModel"
    trainer: "Trainer"
    directory: Path
    options: dict[str, Any]
    pace: Pace
    output: Output

    @property
    def writes(self) -> bool:
        """Whether this process writes files: of several, only the first does."""
        ranks = self.trainer.ranks
        return ranks is None or ranks.rank == 0

    def save_snapshot(self) -> None:
        """Save what it takes to resume."""
        import microgpt  # noqa: PLC0415 - see main

        if self.writes and self.trainer.step:
            keep = self.pace.keep_checkpoints
            microgpt.write_snapshot(self.directory, self.trainer, self.options, keep=keep)

    def save_model(self) -> None:
        """Save the best model so far, or without validation the latest."""
        trainer, directory = self.trainer, self.directory
        if not (self.writes and trainer.step):
            return
        trainer.use_best()
        if trainer.best:
            self.output.tell(
                "best",
                f"best model: step {trainer.best.step}, val loss {trainer.best.val_loss:.4f}",
                step=trainer.best.step,
                val_loss=trainer.best.val_loss,
            )
        self.model.save(directory)
        weights, meta = directory / "weights.json", directory / "meta.json"
        self.output.tell(
            "saved",
            f"\nweights saved to {weights}\nmetadata saved to {meta}",
            weights=str(weights),
            meta=str(meta),
        )

    def tell_step(self, last: "StepReport") -> None:
        """Tell the loss where that is due, and the validation loss where there is one."""
        trainer, n_steps = self.trainer, self.trainer.config.steps
        progress = f"step {last.step:4d} / {n_steps:4d}"
        if last.step in (1, n_steps) or last.step % self.pace.log_every == 0:
            self.output.tell(
                "step",
                f"{progress} | loss {last.loss:.4f}",
                step=last.step,
                loss=last.loss,
                lr=last.learning_rate,
            )
        if last.val_loss is not None:
            is_best = trainer.best is not None and trainer.best.step == last.step
            self.output.tell(
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
        self.output.tell("sample", f"step {step:4d} | sample: {text}", step=step, text=text)


class LastGood:
    """The latest weights that are known to give a finite loss.

    Args:
        trainer: whose weights; remember them before each call of `advance`.
    """

    def __init__(self, trainer: "Trainer") -> None:
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
    trainer, output = run.trainer, run.output
    n_steps = trainer.config.steps
    output.tell("start", _header_text(header), first_step=trainer.step, **header)
    metrics = None
    if run.writes:
        run.directory.mkdir(parents=True, exist_ok=True)
        metrics = MetricsLog(run.directory, n_steps, trainer.step)
    start = time.perf_counter()
    with _interruptible() as received:
        with training_display(n_steps, shown=output.style == "text") as display:
            output.display = display
            _train(run, metrics, received)
        output.display = None
        if trainer.step < n_steps:
            run.save_snapshot()
        run.save_model()
    if trainer.step < n_steps:
        if run.writes:
            _warn_interrupted(run)
        raise typer.Exit(128 + (received[0] if received else signal.SIGTERM))
    samples = _closing_samples(run, rng)
    output.tell(
        "result",
        "",
        steps=trainer.step,
        val_loss=trainer.best and trainer.best.val_loss,
        best_step=trainer.best and trainer.best.step,
        elapsed=round(time.perf_counter() - start, 3),
        model_dir=str(run.directory),
        samples=samples,
    )


def _header_text(header: dict[str, Any]) -> str:
    (title, kind), *rows = header.items()
    lines = [f"{title} ({kind})"]
    for label, value in rows:
        indent = "  " if label in MODEL_LABELS else ""
        lines.append(f"{indent}{label + ':':<13}{value}")
    return "\n".join([*lines, ""])


def _train(run: Run, metrics: MetricsLog | None, received: list[int]) -> None:
    """Take the remaining steps, until the last or a signal."""
    trainer, pace, ranks = run.trainer, run.pace, run.trainer.ranks
    if ranks:
        ranks.is_leaving = lambda: bool(received)
    seconds_per_call = SECONDS_PER_SHARED_CALL if ranks else SECONDS_PER_CALL
    first_step, n_tokens, start = trainer.step, 0, time.perf_counter()
    good = LastGood(trainer)
    while trainer.step < trainer.config.steps:
        elapsed = time.perf_counter() - start
        n_in_time = 1 + int((trainer.step - first_step) / elapsed * seconds_per_call)
        n = 0 if received else min(pace.next_stop(trainer.step) - trainer.step, n_in_time)
        reports = _advance(run, n, good)
        if not reports:
            return
        elapsed = time.perf_counter() - start
        n_tokens += sum(report.n_tokens for report in reports)
        if metrics:
            metrics.add(reports, n_tokens / elapsed, elapsed)
        run.tell_step(reports[-1])
        if run.output.display:
            run.output.display.steps(reports)
        if pace.sample_every and trainer.step % pace.sample_every == 0:
            run.tell_sample()
        if pace.checkpoint_every and trainer.step % pace.checkpoint_every == 0:
            run.save_snapshot()


def _advance(run: Run, n: int, good: LastGood) -> "list[StepReport]":
    """Take `n` steps, or as many as all processes agree on; save what can be if they fail."""
    import microgpt  # noqa: PLC0415 - see main

    trainer = run.trainer
    try:
        n = trainer.ranks.least(n) if trainer.ranks else n
        good.remember()
        return trainer.advance(n)
    except microgpt.NonFiniteLossError as error:
        if run.writes:
            error.hint = f"{error.hint}; {_keep_good(run, good)}"
        raise
    except microgpt.RankLostError as error:
        run.save_snapshot()
        error.hint = f"go on with microgpt-cli train --resume {run.directory}"
        raise


def _keep_good(run: Run, good: LastGood) -> str:
    """Save the last good model unless there is one already; return what to tell about it."""
    import microgpt  # noqa: PLC0415 - see main

    if microgpt.holds_model(run.directory):
        return f"the model in {run.directory} is the one from before"
    if not good.put_back() and run.trainer.best is None:
        return "nothing was learned before"
    run.save_model()
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
    if run.model.tokenizer.is_chat or not run.pace.num_samples or not run.writes:
        return []
    samples = run.model.generate(run.pace.num_samples, temperature=SAMPLE_TEMPERATURE, rng=rng)
    text = "\n".join(["\n--- samples ---", *(f"  {sample}" for sample in samples)])
    run.output.tell("samples", text, samples=samples)
    return samples


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in the list that is yielded; a second one ends the process."""
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, lambda number, _: received.append(number))
    # Handlers run between two steps only, which may be long. A thread is told at once.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous_writer = signal.set_wakeup_fd(writer)
    threading.Thread(target=_exit_on_second, args=(reader,), daemon=True).start()
    try:
        yield received
    finally:
        signal.set_wakeup_fd(previous_writer)
        os.close(writer)  # which ends the thread
        for number in SIGNALS:
            signal.signal(number, previous[number])


def _exit_on_second(reader: int) -> None:
    """Read numbers of signals until their writer is closed; exit when a second one asks to end."""
    n_received = 0
    while number := os.read(reader, 1):
        n_received += number[0] in SIGNALS
        if n_received > 1:
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), SHOW_CURSOR)
            os._exit(128 + number[0])
    os.close(reader)
