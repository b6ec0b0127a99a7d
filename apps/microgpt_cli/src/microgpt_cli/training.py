"""The training loop of the command line: what it prints, when it saves, how it is interrupted."""

import json
import random
import signal
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
    from types import FrameType

    from microgpt import LanguageModel, StepReport, Trainer

__all__ = ["Pace", "run_training"]

SAMPLE_TEMPERATURE = 0.5
SECONDS_PER_CALL = 0.1  # what may pass before signals and the progress bar get their turn
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


def run_training(
    model: "LanguageModel",
    trainer: "Trainer",
    directory: Path,
    *,
    header: dict[str, Any],
    options: dict[str, Any],
    rng: random.Random,
    pace: Pace,
    style: Literal["text", "quiet", "json"],
) -> None:
    """Train to the end or until a signal, save, and show samples.

    Args:
        model: what is trained.
        trainer: trains it.
        directory: where everything is written.
        header: what to tell first, by label.
        options: what snapshots keep, to resume from.
        rng: for the samples at the end.
        pace: when to do what.
        style: how to tell.
    """
    output = Output(style)
    output.tell("start", _header_text(header), first_step=trainer.step, **header)
    directory.mkdir(parents=True, exist_ok=True)
    metrics = MetricsLog(directory, trainer.config.steps, trainer.step)
    start = time.perf_counter()
    with _interruptible() as received:
        with training_display(trainer.config.steps, shown=style == "text") as display:
            output.display = display
            _train(model, trainer, directory, output, metrics, options, pace, received)
        output.display = None
        is_done = trainer.step == trainer.config.steps
        if not is_done and trainer.step:
            _save_snapshot(trainer, directory, options, pace)
        if trainer.step:
            _save_model(model, trainer, directory, output)
    if not is_done:
        if trainer.step:
            warn(
                f"interrupted after step {trainer.step} of {trainer.config.steps}; go on with "
                f"microgpt-cli train --resume {directory}"
            )
        raise typer.Exit(128 + received[0])
    samples = []
    if not model.tokenizer.is_chat and pace.num_samples:
        samples = model.generate(pace.num_samples, temperature=SAMPLE_TEMPERATURE, rng=rng)
        text = "\n".join(["\n--- samples ---", *(f"  {sample}" for sample in samples)])
        output.tell("samples", text, samples=samples)
    output.tell(
        "result",
        "",
        steps=trainer.step,
        val_loss=trainer.best and trainer.best.val_loss,
        best_step=trainer.best and trainer.best.step,
        elapsed=round(time.perf_counter() - start, 3),
        model_dir=str(directory),
        samples=samples,
    )


def _header_text(header: dict[str, Any]) -> str:
    (title, kind), *rows = header.items()
    lines = [f"{title} ({kind})"]
    for label, value in rows:
        indent = "  " if label in MODEL_LABELS else ""
        lines.append(f"{indent}{label + ':':<13}{value}")
    return "\n".join([*lines, ""])


def _train(
    model: "LanguageModel",
    trainer: "Trainer",
    directory: Path,
    output: Output,
    metrics: MetricsLog,
    options: dict[str, Any],
    pace: Pace,
    received: list[int],
) -> None:
    """Take the remaining steps, until the last or a signal."""
    n_steps = trainer.config.steps
    first_step, n_tokens, start = trainer.step, 0, time.perf_counter()
    while trainer.step < n_steps and not received:
        n_until_stop = pace.next_stop(trainer.step) - trainer.step
        elapsed = time.perf_counter() - start
        n_in_time = 1 + int((trainer.step - first_step) / elapsed * SECONDS_PER_CALL)
        reports = trainer.advance(min(n_until_stop, n_in_time))
        elapsed = time.perf_counter() - start
        n_tokens += sum(report.n_tokens for report in reports)
        metrics.add(reports, n_tokens / elapsed, elapsed)
        _tell_step(output, trainer, reports[-1], pace)
        if output.display:
            output.display.steps(reports)
        if pace.sample_every and trainer.step % pace.sample_every == 0:
            _tell_sample(output, model, trainer.step)
        if pace.checkpoint_every and trainer.step % pace.checkpoint_every == 0:
            _save_snapshot(trainer, directory, options, pace)


def _tell_step(output: Output, trainer: "Trainer", last: "StepReport", pace: Pace) -> None:
    n_steps = trainer.config.steps
    progress = f"step {last.step:4d} / {n_steps:4d}"
    if last.step in (1, n_steps) or last.step % pace.log_every == 0:
        output.tell(
            "step",
            f"{progress} | loss {last.loss:.4f}",
            step=last.step,
            loss=last.loss,
            lr=last.learning_rate,
        )
    if last.val_loss is not None:
        is_best = trainer.best is not None and trainer.best.step == last.step
        output.tell(
            "validation",
            f"{progress} | val loss {last.val_loss:.4f}{', the best so far' * is_best}",
            step=last.step,
            val_loss=last.val_loss,
            is_best=is_best,
        )


def _tell_sample(output: Output, model: "LanguageModel", step: int) -> None:
    if model.tokenizer.is_chat:
        return
    (text,) = model.generate(1, temperature=SAMPLE_TEMPERATURE, seed=step)
    output.tell("sample", f"step {step:4d} | sample: {text}", step=step, text=text)


def _save_snapshot(
    trainer: "Trainer", directory: Path, options: dict[str, Any], pace: Pace
) -> None:
    import microgpt  # noqa: PLC0415 - see main

    microgpt.write_snapshot(directory, trainer, options, keep=pace.keep_checkpoints)


def _save_model(
    model: "LanguageModel", trainer: "Trainer", directory: Path, output: Output
) -> None:
    trainer.use_best()
    if trainer.best:
        output.tell(
            "best",
            f"best model: step {trainer.best.step}, val loss {trainer.best.val_loss:.4f}",
            step=trainer.best.step,
            val_loss=trainer.best.val_loss,
        )
    model.save(directory)
    weights, meta = directory / "weights.json", directory / "meta.json"
    output.tell(
        "saved",
        f"\nweights saved to {weights}\nmetadata saved to {meta}",
        weights=str(weights),
        meta=str(meta),
    )


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in the list that is yielded; a second one acts at once."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}

    def put_back() -> None:
        for number in numbers:
            signal.signal(number, previous[number])

    def on_signal(number: int, _: "FrameType | None") -> None:
        received.append(number)
        put_back()

    for number in numbers:
        signal.signal(number, on_signal)
    try:
        yield received
    finally:
        put_back()
