"""`microgpt-cli train`: from a text file to a model directory."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microgpt_cli.options import Dtype, Engine, Seed, Threads, positive
from microgpt_cli.terminal import TrainingDisplay, training_display, warn

if TYPE_CHECKING:
    from types import FrameType

    from microgpt import Dataset, LanguageModel, Trainer

__all__ = ["train"]

SAMPLE_TEMPERATURE = 0.5
SECONDS_PER_CALL = 0.1  # what may pass before Ctrl-C and the progress bar get their turn
INTERRUPTED = 130


def train(
    *,
    input: Annotated[  # noqa: A002 - the name of the flag
        Path, typer.Option(help="Text file, one document per line (with --chat: JSONL).")
    ],
    output: Annotated[Path, typer.Option(help="Directory for the model.")] = Path("output"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a model in OUTPUT.")] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Train on conversations: per line a JSON array.")
    ] = False,
    n_embd: Annotated[int, typer.Option(min=1, help="Width.")] = 16,
    n_head: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 4,
    n_layer: Annotated[int, typer.Option(min=1, help="Transformer blocks.")] = 1,
    block_size: Annotated[int, typer.Option(min=1, help="Longest context in tokens.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Number of updates.")] = 1000,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the first step.",
            show_default="0.01 x 16 / N_EMBD",
            callback=positive,
        ),
    ] = None,
    seed: Seed = 42,
    shuffle: Annotated[
        bool,
        typer.Option("--shuffle/--no-shuffle", help="Take documents in random order."),
    ] = True,
    dtype: Annotated[Dtype, typer.Option(help="Type of numbers.")] = Dtype.FLOAT32,
    engine: Annotated[Engine, typer.Option(help="Way to compute.")] = Engine.AUTO,
    threads: Threads = None,
    log_every: Annotated[
        int,
        typer.Option(min=1, help="Print every Nth step, first and last."),
    ] = 100,
    num_samples: Annotated[int, typer.Option(min=0, help="Samples at the end.")] = 5,
) -> None:
    """Train a model on a text file and save it."""
    import microgpt  # noqa: PLC0415 - see main

    if n_embd % n_head:
        raise microgpt.ConfigError(f"n_embd ({n_embd}) must be divisible by n_head ({n_head})")
    _check_paths(input, output, force=force)
    dataset = _read_dataset(input, chat=chat)
    rng = random.Random(seed)
    model, trainer = microgpt.prepare(
        dataset,
        microgpt.TrainConfig(steps=steps, learning_rate=lr),
        rng,
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        block_size=block_size,
        shuffle=shuffle,
        dtype=dtype.value,
        engine=engine.value,
        threads=threads,
    )
    _print_header(model, trainer)
    if engine is Engine.AUTO:
        for name, reason in microgpt.unavailable_engines().items():
            warn(f"no {name} engine, {model.engine.name} is slower: {reason}")
    _warn_about_cut(dataset, block_size)
    with _interruptible() as interrupted:
        with training_display(steps) as display:
            _run(trainer, display, log_every, interrupted)
        if trainer.step == 0:
            raise typer.Exit(INTERRUPTED)
        typer.echo()
        model.save(output)
        typer.echo(f"weights saved to {output / 'weights.json'}")
        typer.echo(f"metadata saved to {output / 'meta.json'}")
    if trainer.step < steps:
        warn(f"interrupted; the model is that of step {trainer.step} of {steps}")
        raise typer.Exit(INTERRUPTED)
    if not chat and num_samples:
        typer.echo("\n--- samples ---")
        for sample in model.generate(num_samples, temperature=SAMPLE_TEMPERATURE, rng=rng):
            typer.echo(f"  {sample}")


def _check_paths(input_: Path, output: Path, *, force: bool) -> None:
    """Raise now what would otherwise fail after training."""
    import microgpt  # noqa: PLC0415 - see main

    if not input_.exists():
        raise microgpt.DataError(f"input file not found: {input_}")
    if microgpt.holds_model(output) and not force:
        raise microgpt.CheckpointError(
            f"{output} already holds a model",
            hint="use --force to overwrite it, or choose another --output",
        )
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise microgpt.CheckpointError(f"cannot write {output}: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise microgpt.CheckpointError(f"cannot write {output}: no permission to write {existing}")


def _read_dataset(path: Path, *, chat: bool) -> "Dataset":
    import microgpt  # noqa: PLC0415 - see main

    if not chat:
        return microgpt.Dataset.from_documents(microgpt.read_documents(path))
    conversations = microgpt.read_conversations(path)
    if conversations.n_trimmed:
        warn(
            f"{conversations.n_trimmed} conversations end with a user turn that nobody answers; "
            "these turns are left out"
        )
    if conversations.n_skipped:
        warn(f"{conversations.n_skipped} conversations without an assistant turn are left out")
    return microgpt.Dataset.from_conversations(conversations.conversations)


def _print_header(model: "LanguageModel", trainer: "Trainer") -> None:
    config = model.config
    is_chat = model.tokenizer.is_chat
    typer.echo(f"microgpt train ({'chat' if is_chat else 'text'})")
    for name in ("n_embd", "n_head", "n_layer", "block_size"):
        typer.echo(f"  {name + ':':<13}{getattr(config, name)}")
    for label, value in {
        "num convos" if is_chat else "num docs": len(trainer.dataset),
        "vocab size": config.vocab_size,
        "num params": config.n_params,
        "engine": f"{trainer.engine.name}, {model.dtype}",
        "lr": f"{trainer.learning_rate:g}",
    }.items():
        typer.echo(f"{label + ':':<13}{value}")
    typer.echo()


def _warn_about_cut(dataset: "Dataset", block_size: int) -> None:
    n_cut = int((dataset.lengths > block_size).sum())
    if n_cut:
        warn(
            f"{n_cut} of {len(dataset)} documents are longer than block_size={block_size} and are "
            f"cut; a block size of {int(dataset.lengths.max())} holds them all"
        )


def _run(
    trainer: "Trainer", display: TrainingDisplay, log_every: int, interrupted: list[int]
) -> None:
    """Train until the last step or an interruption, printing every `log_every` steps."""
    n_steps = trainer.config.steps
    start = time.perf_counter()
    while trainer.step < n_steps and not interrupted:
        until_line = log_every - trainer.step % log_every if trainer.step else 1
        steps_per_second = trainer.step / (time.perf_counter() - start)
        reports = trainer.advance(min(until_line, 1 + int(steps_per_second * SECONDS_PER_CALL)))
        last = reports[-1]
        if last.step in (1, n_steps) or last.step % log_every == 0:
            display.line(f"step {last.step:4d} / {n_steps:4d} | loss {last.loss:.4f}")
        display.steps(reports)


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collect SIGINT in the list that is yielded; a second one ends the process at once."""
    received: list[int] = []

    def on_signal(number: int, _: "FrameType | None") -> None:
        received.append(number)
        signal.signal(number, previous)

    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)
