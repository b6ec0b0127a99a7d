# ruff: noqa: ARG001 - flags are read from the context, by the names of the schema
"""`microgpt-cli train`: from a text file to a model directory."""

import random
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import microgpt
import typer

from microgpt_cli.datasets import STDIN, check_kind, read_dataset, with_subwords
from microgpt_cli.errors import Failures
from microgpt_cli.guidance import Guide, advice_on_size
from microgpt_cli.metrics import METRICS, MetricsLine, read_metrics
from microgpt_cli.mpi import job_ranks
from microgpt_cli.options import (
    JsonField,
    Seed,
    Split,
    Threads,
    VocabSize,
    check_vocab_size,
    field,
    positive,
)
from microgpt_cli.plan import (
    Pace,
    Plan,
    Source,
    chat_plan,
    check_sizes,
    chosen_flags,
    is_given,
    new_plan,
    resumed_plan,
)
from microgpt_cli.reporting import Reporter, Style
from microgpt_cli.run import Run, follow, lead
from microgpt_cli.saving import Saver
from microgpt_cli.terminal import counted, typed, warn
from microgpt_cli.writing import refuse_to_overwrite

__all__ = ["command"]

DEFAULTS, PACE = microgpt.TrainConfig(), Pace()
LONG = 1024  # positions of a document that no block should have to cover
TREATMENTS = {"truncate": "cut", "split": "split", "skip": "left out"}


def command(
    context: typer.Context,
    *,
    input: Annotated[  # noqa: A002 - the name of the flag
        list[str] | None,
        typer.Option(
            help="Text file, folder of them, or - for stdin; may be repeated.  [required]"
        ),
    ] = None,
    split: Split = "line",
    field: JsonField = None,
    output: Annotated[Path, typer.Option(help="Directory of the model.")] = Path("output"),
    force: Annotated[bool, typer.Option("--force", help="Replace a model in OUTPUT.")] = False,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", help="Train on conversations; options that are not given suit them."
        ),
    ] = False,
    init_from: Annotated[
        str | None,
        typer.Option(help="Directory of a model to start from; its sizes are kept.", metavar="DIR"),
    ] = None,
    extend_vocab: Annotated[
        bool, typer.Option("--extend-vocab", help="Add characters that INIT_FROM lacks.")
    ] = False,
    tokenizer: Annotated[Literal["characters", "bpe"], field("tokenizer")] = DEFAULTS.tokenizer,
    vocab_size: VocabSize = DEFAULTS.vocab_size,
    n_embd: Annotated[int, field("n_embd")] = DEFAULTS.n_embd,
    n_head: Annotated[int, field("n_head")] = DEFAULTS.n_head,
    n_layer: Annotated[int, field("n_layer")] = DEFAULTS.n_layer,
    block_size: Annotated[int, field("block_size")] = DEFAULTS.block_size,
    steps: Annotated[int, field("steps")] = DEFAULTS.steps,
    learning_rate: Annotated[
        float | None,
        field(
            "learning_rate",
            "--lr",
            "--learning-rate",
            show_default="0.01 x 16 / N_EMBD; more with muon, a fifth with --init-from",
            callback=positive,
        ),
    ] = DEFAULTS.learning_rate,
    batch_size: Annotated[int, field("batch_size")] = DEFAULTS.batch_size,
    warmup_steps: Annotated[int, field("warmup_steps")] = DEFAULTS.warmup_steps,
    schedule: Annotated[
        Literal["linear", "cosine", "constant"], field("schedule")
    ] = DEFAULTS.schedule,
    clip: Annotated[float | None, field("clip", callback=positive)] = DEFAULTS.clip,
    weight_decay: Annotated[float, field("weight_decay")] = DEFAULTS.weight_decay,
    optimizer: Annotated[Literal["adam", "muon"], field("optimizer")] = DEFAULTS.optimizer,
    muon_learning_rate: Annotated[
        float | None,
        field(
            "muon_learning_rate",
            "--muon-lr",
            "--muon-learning-rate",
            show_default="0.02",
            callback=positive,
        ),
    ] = DEFAULTS.muon_learning_rate,
    muon_momentum: Annotated[
        float | None, field("muon_momentum", min=0.0, show_default="0.95")
    ] = DEFAULTS.muon_momentum,
    muon_iterations: Annotated[
        int | None, field("muon_iterations", min=1, max=100, show_default="5")
    ] = DEFAULTS.muon_iterations,
    long: Annotated[Literal["truncate", "split", "skip", "window"], field("long")] = DEFAULTS.long,
    loss_on: Annotated[Literal["all", "assistant"], field("loss_on")] = DEFAULTS.loss_on,
    val_fraction: Annotated[float, field("val_fraction", max=1.0)] = DEFAULTS.val_fraction,
    val_input: Annotated[
        list[str] | None,
        typer.Option(help="Validation documents, as --input, instead of a share."),
    ] = None,
    eval_every: Annotated[int, field("eval_every")] = DEFAULTS.eval_every,
    patience: Annotated[int | None, field("patience", min=1)] = DEFAULTS.patience,
    snapshot_every: Annotated[
        int | None,
        typer.Option(
            "--snapshot-every", "--checkpoint-every", min=1, help="Steps between snapshots."
        ),
    ] = PACE.snapshot_every,
    keep_snapshots: Annotated[
        int,
        typer.Option("--keep-snapshots", "--keep-checkpoints", min=1, help="Snapshots to keep."),
    ] = PACE.keep_snapshots,
    resume: Annotated[
        Path | None, typer.Option(help="Resume from the latest snapshot in this directory.")
    ] = None,
    seed: Seed = DEFAULTS.seed,
    shuffle: Annotated[bool, field("shuffle", "--shuffle/--no-shuffle")] = DEFAULTS.shuffle,
    dtype: Annotated[Literal["float32", "float64"], field("dtype")] = DEFAULTS.dtype,
    engine: Annotated[
        Literal["auto", "native", "vectorized", "scalar"], field("engine")
    ] = DEFAULTS.engine,  # type: ignore[assignment] # a string in the schema
    threads: Threads = None,
    log_every: Annotated[
        int, typer.Option(min=1, help="Steps between printed losses.")
    ] = PACE.log_every,
    sample_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between printed samples; not with --chat.")
    ] = PACE.sample_every,
    num_samples: Annotated[
        int,
        typer.Option(min=0, max=1_000_000, help="Samples at the end, or answers of a chat model."),
    ] = PACE.num_samples,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors and warnings only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per event, the result last.")
    ] = False,
) -> None:
    """Train a model on text and save it."""
    _check_flags(context.params)
    with job_ranks() as ranks:
        snapshot = _snapshot_of(resume) if resume else None
        plan = resumed_plan(context, snapshot) if snapshot else new_plan(context)
        if ranks:
            ranks.check_same(snapshot and snapshot.step)
        if resume and not is_given(context, "output"):
            output = resume
        # Compared by the directory itself, because it may have several names.
        resumes = resume is not None and output.resolve() == resume.resolve()
        _check_paths(plan.source, output, ranks)
        follows = ranks is not None and ranks.rank > 0
        with nullcontext() if follows else microgpt.lock_directory(output):
            if not (force or resumes):
                refuse_to_overwrite(output)
            init = _model_to_start_from(context, plan, snapshot)
            plan, dataset, val_dataset = _read(context, plan, init)
            rng = random.Random(plan.config.seed)
            model, trainer = microgpt.prepare(
                dataset,
                plan.config,
                rng,
                val_dataset=val_dataset,
                init_from=init,
                extend_vocab=plan.source.extend_vocab,
                threads=1 if ranks and threads is None else threads,  # a machine's cores are shared
                ranks=ranks,
            )
            if snapshot:
                microgpt.restore(trainer, snapshot)
            if follows:
                follow(trainer, plan.pace)
                return
            _warn(model, dataset, trainer, was_chosen=engine != "auto")
            failures = Failures()
            saver = Saver(
                output,
                model,
                trainer,
                plan,
                earlier_metrics=_earlier_metrics(resume, trainer.step),
                force=force,
                resumes=resumes,
                failures=failures,
            )
            style: Style = "json" if as_json else "quiet" if quiet else "text"
            reporter = Reporter(style, trainer.config.steps, plan.pace.log_every, failures)
            run = Run(model, trainer, plan.pace, saver, reporter, failures, Guide(trainer))
            lead(run, _header(run, plan, dataset, chosen_flags(context, plan)), rng)


def _check_flags(given: dict[str, Any]) -> None:
    """Raise BadParameter for flags that do not fit together."""
    if not given["input"] and given["resume"] is None:
        raise typer.BadParameter(
            "it is needed unless --resume is given; - for stdin.", param_hint="--input"
        )
    if given["loss_on"] == "assistant" and not given["chat"] and given["resume"] is None:
        raise typer.BadParameter("it needs --chat.", param_hint="--loss-on")
    check_kind(given["split"], given["field"], chat=given["chat"])
    if given["resume"] is None:
        check_vocab_size(given["vocab_size"], given["tokenizer"])
    if given["extend_vocab"] and given["init_from"] is None and given["resume"] is None:
        raise typer.BadParameter("it needs --init-from.", param_hint="--extend-vocab")
    has_validation = given["val_input"] or given["val_fraction"] or given["resume"]
    if given["patience"] is not None and not has_validation:
        raise typer.BadParameter("it needs --val-fraction or --val-input.", param_hint="--patience")
    if given["val_input"] and given["val_fraction"]:
        raise typer.BadParameter("use it or --val-fraction, not both.", param_hint="--val-input")


def _snapshot_of(directory: Path) -> microgpt.Snapshot:
    try:
        return microgpt.read_snapshot(directory)
    except microgpt.CheckpointError as error:
        if microgpt.holds_model(directory) and not microgpt.holds_snapshot(directory):
            error.hint = (
                f"to train its model further: microgpt-cli train --init-from {typed(directory)} "
                "--input INPUT --output OUTPUT"
            )
        raise


def _model_to_start_from(
    context: typer.Context, plan: Plan, snapshot: microgpt.Snapshot | None
) -> microgpt.LanguageModel | None:
    """Return the model that the run starts from; a resumed run has its weights in the snapshot."""
    if plan.source.init_from is None:
        return None
    if snapshot:
        return snapshot.model(plan.config.engine)
    dtype = plan.config.dtype if is_given(context, "dtype") else None
    model = microgpt.load(plan.source.init_from, engine=plan.config.engine, dtype=dtype)
    check_sizes(context, model)
    return model


def _check_paths(source: Source, output: Path, ranks: microgpt.Ranks | None) -> None:
    """Raise now the errors that would otherwise come after reading much, or after training."""
    paths = [*source.input, *source.val_input]
    for path in paths:
        if path != STDIN and not Path(path).exists():
            raise microgpt.DataError(f"input file not found: {path}")
    if paths.count(STDIN) > 1:
        raise microgpt.DataError(
            "stdin (-) is given twice, expected once: it can be read only once"
        )
    if STDIN in paths and ranks and ranks.size > 1:
        raise microgpt.DataError(
            f"the input is stdin, expected files for {ranks.size} processes: only the first has it"
        )
    microgpt.check_writable(output)
    if (output / METRICS).is_dir():
        raise microgpt.CheckpointError(f"cannot write {output}: {output / METRICS} is a directory")


def _read(
    context: typer.Context, plan: Plan, init_from: microgpt.LanguageModel | None
) -> tuple[Plan, microgpt.Dataset, microgpt.Dataset | None]:
    """Return the plan, with what the data chooses, documents to train on and those to validate on.

    The last are None unless they are in other files.
    """
    source = plan.source
    plan, dataset = chat_plan(context, plan, read_dataset(source.input, source), init_from)
    if plan.config.tokenizer == "bpe" and source.init_from is None:
        dataset = with_subwords(dataset, plan.config.vocab_size)
    if not source.val_input:
        return plan, dataset, None
    if same := {*source.input} & {*source.val_input}:
        warn(f"{', '.join(sorted(same))}: validation documents are trained on too")
    try:
        return plan, dataset, read_dataset(source.val_input, source)
    except microgpt.DataError as error:
        message = f"the validation documents: {error}"
        raise microgpt.DataError(message, hint=error.hint) from error


def _earlier_metrics(resume: Path | None, step: int) -> list[MetricsLine]:
    """Return the metrics of the run that is resumed, up to a step."""
    return [line for line in read_metrics(resume) if line["step"] <= step] if resume else []


def _header(run: Run, plan: Plan, dataset: microgpt.Dataset, chosen: str) -> dict[str, Any]:
    """Return the first report of a run, by label."""
    model, trainer, config = run.model, run.trainer, run.model.config
    is_chat = model.tokenizer.is_chat
    header: dict[str, Any] = {
        "microgpt train": "chat" if is_chat else "text",
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
        "block_size": config.block_size,
        "num convos" if is_chat else "num docs": len(dataset),
    }
    if trainer.config.long == "window":
        header["windows"] = len(trainer.order)
    if plan.source.init_from:
        header["init from"] = plan.source.init_from
    if trainer.validation:
        header["held out"] = len(trainer.validation.order)
    if trainer.ranks:
        header["processes"] = trainer.ranks.size
    header |= {
        "vocab size": config.vocab_size,
        "num params": config.n_params,
        "engine": f"{trainer.engine.name}, {model.dtype}",
        "lr": f"{trainer.learning_rate:g}",
    }
    if trainer.config.muon_learning_rate:
        header["muon lr"] = f"{trainer.config.muon_learning_rate:g}"
    if chosen:
        header |= {"chosen": chosen, "reason": _reason(trainer, dataset)}
    return header


def _reason(trainer: microgpt.Trainer, dataset: microgpt.Dataset) -> str:
    """Return what the options that were chosen for conversations come to."""
    config = trainer.config
    lengths = dataset.encoded_with(trainer.dataset.tokenizer).lengths
    share = int((lengths <= config.block_size).sum()) / len(lengths)
    n_times = config.steps * config.batch_size / len(trainer.order)
    return (
        f"{share:.0%} of the conversations fit into the block, and each is seen {n_times:.0f} times"
    )


def _warn(
    model: microgpt.LanguageModel,
    dataset: microgpt.Dataset,
    trainer: microgpt.Trainer,
    *,
    was_chosen: bool,
) -> None:
    """Warn about a slow engine that was not chosen, little text, and documents that are cut."""
    if not was_chosen:
        for name, reason in microgpt.unavailable_engines().items():
            warn(f"no {name} engine, {model.engine.name} is slower: {reason}")
    if advice := advice_on_size(trainer):
        warn(advice)
    config = trainer.config
    if config.long == "window":  # all of each document is trained on
        return
    if isinstance(model.tokenizer, microgpt.SubwordTokenizer):  # of other lengths
        dataset = dataset.encoded_with(model.tokenizer)
    n_long = int((dataset.lengths > config.block_size).sum())
    if not n_long:
        return
    p50, p90, p99 = dataset.length_percentiles(50, 90, 99)
    warn(
        f"{n_long:,} of {counted(len(dataset), 'document')} {TREATMENTS[config.long]}: longer than "
        f"block_size={config.block_size}; a block size of {p50} covers half of them, {p90} "
        f"covers 90 %, {p99} 99 %, {int(dataset.lengths.max())} all"
        + "; --long window learns all of it"
        * (p50 > LONG and not dataset.tokenizer.is_chat)
    )
