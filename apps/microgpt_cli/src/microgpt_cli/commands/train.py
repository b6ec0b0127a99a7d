"""`microgpt-cli train`: from a text file to a model directory."""

import os
import random
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import microgpt
import typer

from microgpt_cli.datasets import read_dataset
from microgpt_cli.errors import Failures
from microgpt_cli.metrics import METRICS, read_metrics
from microgpt_cli.mpi import job_ranks
from microgpt_cli.options import Dtype, Engine, Long, LossOn, Schedule, Seed, Threads, positive
from microgpt_cli.reporting import Reporter, Style
from microgpt_cli.run import Pace, Run, follow, lead
from microgpt_cli.saving import Saver
from microgpt_cli.terminal import counted, warn
from microgpt_cli.writing import refuse_to_overwrite

__all__ = ["command"]

FILES = ("input", "val_input")


@dataclass(frozen=True)
class Options:
    """The flags that a run's results depend on; named like them, and kept in its snapshots."""

    input: str
    chat: bool
    n_embd: int
    n_head: int
    n_layer: int
    block_size: int
    steps: int
    lr: float | None
    batch_size: int
    warmup_steps: int
    schedule: str
    clip: float | None
    weight_decay: float
    seed: int
    shuffle: bool
    long: str
    loss_on: str
    val_fraction: float
    val_input: str | None
    eval_every: int
    dtype: str
    engine: str


def command(
    context: typer.Context,
    *,
    input: Annotated[  # noqa: A002 - the name of the flag
        Path | None,
        typer.Option(help="Text file, one document per line (with --chat: JSONL).  [required]"),
    ] = None,
    output: Annotated[Path, typer.Option(help="Directory for the model.")] = Path("output"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a model in OUTPUT.")] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Train on conversations: per line a JSON array.")
    ] = False,
    n_embd: Annotated[int, typer.Option(min=1, help="Width of the model.")] = 16,
    n_head: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 4,
    n_layer: Annotated[int, typer.Option(min=1, help="Transformer blocks.")] = 1,
    block_size: Annotated[int, typer.Option(min=1, help="Longest context in tokens.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Number of updates.")] = 1000,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Highest learning rate.", show_default="0.01 x 16 / N_EMBD", callback=positive
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents per step.")] = 1,
    warmup_steps: Annotated[
        int, typer.Option(min=0, help="First steps, over which the rate rises.")
    ] = 0,
    schedule: Annotated[Schedule, typer.Option(help="How the rate goes on.")] = Schedule.LINEAR,
    clip: Annotated[float | None, typer.Option(help="Longest gradient.", callback=positive)] = None,
    weight_decay: Annotated[
        float, typer.Option(min=0.0, help="Share of weights x rate taken off per step.")
    ] = 0.0,
    long: Annotated[
        Long, typer.Option(help="What to do with documents longer than BLOCK_SIZE.")
    ] = Long.TRUNCATE,
    loss_on: Annotated[LossOn, typer.Option(help="What of a conversation counts.")] = LossOn.ALL,
    val_fraction: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of documents held out to measure on.")
    ] = 0.0,
    val_input: Annotated[
        Path | None, typer.Option(help="Other documents to measure on, in place of a share.")
    ] = None,
    eval_every: Annotated[int, typer.Option(min=1, help="Measure every Nth step.")] = 100,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Save a snapshot to resume from every Nth step.")
    ] = None,
    keep_checkpoints: Annotated[int, typer.Option(min=1, help="Snapshots that stay.")] = 3,
    resume: Annotated[
        Path | None, typer.Option(help="Go on from the latest snapshot in this directory.")
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
        typer.Option(min=1, help="Print every Nth step, and the first and the last."),
    ] = 100,
    sample_every: Annotated[
        int | None, typer.Option(min=1, help="Show a sample every Nth step, but for --chat.")
    ] = None,
    num_samples: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Samples at the end, but for --chat.")
    ] = 5,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors and warnings only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per event, the result last.")
    ] = False,
) -> None:
    """Train a model on a text file and save it."""
    flags = locals().copy()
    if input is None and resume is None:
        raise typer.BadParameter("it is needed unless --resume is given.", param_hint="--input")
    if loss_on is LossOn.ASSISTANT and not chat and resume is None:
        raise typer.BadParameter("it needs --chat.", param_hint="--loss-on")
    if val_input is not None and val_fraction:
        raise typer.BadParameter("use it or --val-fraction, not both.", param_hint="--val-input")
    given = {field.name: _plain(flags[field.name]) for field in fields(Options)}
    pace = Pace(log_every, checkpoint_every, keep_checkpoints, sample_every, num_samples)
    with job_ranks() as ranks:
        snapshot, earlier = None, []
        if resume is not None:
            snapshot = microgpt.read_snapshot(resume)
            given = _options_of(snapshot, context, given)
            pace = _pace_of(snapshot, context, pace)
            output = output if _is_explicit(context, "output") else resume
            earlier = [line for line in read_metrics(resume) if line["step"] <= snapshot.step]
        if ranks:
            ranks.check_same(snapshot and snapshot.step)
        options = Options(**given)
        # By the directory itself: it may have several names.
        goes_on = resume is not None and output.resolve() == resume.resolve()
        _check_paths(options, output, may_replace=force or goes_on)
        train_config = _train_config(options)
        dataset = read_dataset(Path(options.input), chat=options.chat)
        rng = random.Random(options.seed)
        model, trainer = _set_up(dataset, train_config, rng, options, threads, ranks)
        if snapshot is not None:
            microgpt.restore(trainer, snapshot)
        if ranks and ranks.rank:
            follow(trainer, pace)
            return
        _warn(model, dataset, options, engine)
        kept = asdict(options) | {"engine": model.engine.name, "pace": asdict(pace)}
        kept |= {name: kept[name] and _as_unicode(kept[name]) for name in FILES}
        failures = Failures()
        saver = Saver(
            output,
            model,
            trainer,
            kept,
            keep_snapshots=pace.keep_checkpoints,
            earlier_metrics=earlier,
            replaces=not goes_on and _holds_run(output),
            failures=failures,
        )
        style: Style = "json" if as_json else "quiet" if quiet else "text"
        reporter = Reporter(style, options.steps, pace.log_every, failures)
        run = Run(model, trainer, pace, saver, reporter, failures)
        lead(run, _header(model, trainer, n_documents=len(dataset)), rng)


def _train_config(options: Options) -> microgpt.TrainConfig:
    """Return how to train, or raise where flags do not fit together."""
    if options.n_embd % options.n_head:
        raise microgpt.ConfigError(
            f"n_embd ({options.n_embd}) must be divisible by n_head ({options.n_head})"
        )
    return microgpt.TrainConfig(
        steps=options.steps,
        learning_rate=options.lr,
        batch_size=options.batch_size,
        warmup_steps=options.warmup_steps,
        schedule=options.schedule,  # type: ignore[arg-type] # checked there
        clip=options.clip,
        weight_decay=options.weight_decay,
    )


def _holds_run(directory: Path) -> bool:
    return microgpt.holds_model(directory) or microgpt.holds_snapshot(directory)


def _set_up(
    dataset: microgpt.Dataset,
    train_config: microgpt.TrainConfig,
    rng: random.Random,
    options: Options,
    threads: int | None,
    ranks: microgpt.Ranks | None,
) -> tuple[microgpt.LanguageModel, microgpt.Trainer]:
    val_dataset = None
    if options.val_input:
        try:
            val_dataset = read_dataset(Path(options.val_input), chat=options.chat)
        except microgpt.DataError as error:
            message = f"the documents to measure on: {error}"
            raise microgpt.DataError(message, hint=error.hint) from error
    return microgpt.prepare(
        dataset,
        train_config,
        rng,
        n_embd=options.n_embd,
        n_head=options.n_head,
        n_layer=options.n_layer,
        block_size=options.block_size,
        long=options.long,
        loss_on=options.loss_on,
        shuffle=options.shuffle,
        val_fraction=options.val_fraction,
        val_dataset=val_dataset,
        eval_every=options.eval_every,
        dtype=options.dtype,
        engine=options.engine,
        threads=1 if ranks and threads is None else threads,  # processes share a machine's cores
        ranks=ranks,
    )


def _plain(value: Any) -> Any:
    """Return the value of a flag as JSON knows it."""
    return str(value) if isinstance(value, str | Path) else value


def _as_unicode(path: str) -> str:
    """Return a path as JSON can hold it: one that is not UTF-8 has to be named again to resume."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _spelled(name: str, value: Any) -> str:
    """Return a flag and its value as they are typed."""
    flag = f"--{name.replace('_', '-')}"
    if name == "shuffle":
        return flag if value else "--no-shuffle"
    if value is None or value is False:
        return f"no {flag}"
    return flag if value is True else f"{flag} {value}"


def _is_explicit(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _options_of(
    snapshot: microgpt.Snapshot, context: typer.Context, given: dict[str, Any]
) -> dict[str, Any]:
    """Return the options of the run that is resumed, or raise where flags contradict them."""
    stored = snapshot.options
    if given["engine"] == Engine.AUTO:
        missing_engines = microgpt.unavailable_engines()
        given["engine"] = next(e for e in microgpt.ENGINES[1:] if e not in missing_engines)
    if missing := given.keys() - stored.keys():
        raise microgpt.CheckpointError(
            f"{snapshot.path} does not hold the flags of this program: it lacks "
            f"{', '.join(sorted(missing))}"
        )
    contradictions = [
        f"got {_spelled(name, value)}, expected {_spelled(name, stored[name])}"
        for name, value in given.items()
        if _is_explicit(context, name)
        and value != stored[name]
        # Files may have moved; their content is compared.
        and (name not in FILES or stored[name] is None)
    ]
    if contradictions:
        raise microgpt.ConfigError(
            f"{'; '.join(contradictions)} as in {snapshot.path}",
            hint="a resumed run keeps its flags: leave these out, or start a new run",
        )
    moved = {name for name in FILES if _is_explicit(context, name)}
    return {name: given[name] if name in moved else stored[name] for name in given}


def _pace_of(snapshot: microgpt.Snapshot, context: typer.Context, given: Pace) -> Pace:
    """Return the pace of the run that is resumed, but for what is given now: no result needs it."""
    stored = snapshot.options.get("pace", {})  # missing in snapshots that are older
    names = [field.name for field in fields(Pace) if field.name in stored]
    return replace(given, **{n: stored[n] for n in names if not _is_explicit(context, n)})


def _check_paths(options: Options, output: Path, *, may_replace: bool) -> None:
    """Raise now what would otherwise fail after training."""
    for path in filter(None, (options.input, options.val_input)):
        if not Path(path).exists():
            raise microgpt.DataError(f"input file not found: {path}")
    if not may_replace:
        refuse_to_overwrite(output)
    microgpt.check_writable(output)
    if (output / METRICS).is_dir():
        raise microgpt.CheckpointError(f"cannot write {output}: {output / METRICS} is a directory")


def _header(
    model: microgpt.LanguageModel, trainer: microgpt.Trainer, n_documents: int
) -> dict[str, Any]:
    """Return what is told about a run before it starts, by label."""
    config = model.config
    is_chat = model.tokenizer.is_chat
    header: dict[str, Any] = {
        "microgpt train": "chat" if is_chat else "text",
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
        "block_size": config.block_size,
        "num convos" if is_chat else "num docs": n_documents,
    }
    if trainer.validation:
        header["held out"] = len(trainer.validation.order)
    if trainer.ranks:
        header["processes"] = trainer.ranks.size
    return header | {
        "vocab size": config.vocab_size,
        "num params": config.n_params,
        "engine": f"{trainer.engine.name}, {model.dtype}",
        "lr": f"{trainer.learning_rate:g}",
    }


def _warn(
    model: microgpt.LanguageModel, dataset: microgpt.Dataset, options: Options, engine: Engine
) -> None:
    """Warn about a slow engine, and documents that are too long."""
    if engine is Engine.AUTO:
        for name, reason in microgpt.unavailable_engines().items():
            warn(f"no {name} engine, {model.engine.name} is slower: {reason}")
    n_long = int((dataset.lengths > options.block_size).sum())
    if not n_long:
        return
    p50, p90, p99 = dataset.length_percentiles(50, 90, 99)
    done = {"truncate": "cut", "split": "split", "skip": "left out"}[options.long]
    warn(
        f"{n_long:,} of {counted(len(dataset), 'document')} {done}: longer than "
        f"block_size={options.block_size}; a block size of {p50} covers half of them all, {p90} "
        f"covers 90 %, {p99} 99 %, {int(dataset.lengths.max())} all"
    )
