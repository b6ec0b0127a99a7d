"""The plan of a run: its options, its data and its pace, from flags or from a snapshot."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import microgpt
import msgspec
import typer
from msgspec.structs import replace

from microgpt_cli.terminal import typed

__all__ = [
    "Pace",
    "Plan",
    "Source",
    "chat_plan",
    "check_sizes",
    "chosen_flags",
    "is_given",
    "new_plan",
    "resumed_plan",
]

PATHS = ("input", "val_input")
RENAMED = {"checkpoint_every": "snapshot_every", "keep_checkpoints": "keep_snapshots"}  # after 0.1


class Source(msgspec.Struct, frozen=True):
    """The data of a run: paths, "-" for stdin, how to read them; and the model to start from."""

    input: list[str]
    val_input: list[str] = []
    chat: bool = False
    split: Literal["line", "paragraph", "file"] = "line"
    field: str | None = None
    init_from: str | None = None
    extend_vocab: bool = False


class Pace(msgspec.Struct, frozen=True):
    """When a run reports, saves and shows samples; no result depends on it."""

    log_every: int = 100
    snapshot_every: int | None = None
    keep_snapshots: int = 3
    sample_every: int | None = None
    num_samples: int = 5

    def next_stop(self, step: int) -> int:
        """Return the next step after which something is due."""
        if step == 0:
            return 1
        paces = (self.log_every, self.snapshot_every, self.sample_every)
        return min(step + pace - step % pace for pace in paces if pace)


class Plan(NamedTuple):
    """All that determines a run, and its pace."""

    config: microgpt.TrainConfig
    source: Source
    pace: Pace

    def stored(self) -> dict[str, Any]:
        """Return what a snapshot stores besides the options: JSON values.

        A path that is not UTF-8 is escaped; it has to be given again to resume.
        """
        source = msgspec.structs.asdict(self.source)
        for name in PATHS:
            source[name] = [
                os.fsencode(path).decode(errors="backslashreplace") for path in source[name]
            ]
        return source | {"pace": msgspec.to_builtins(self.pace)}


def new_plan(context: typer.Context) -> Plan:
    """Return the plan that the flags describe.

    Raises:
        ConfigError: flags do not fit together.
    """
    config = microgpt.TrainConfig(**_early_options(context))
    return Plan(config, Source(**_values(context, Source)), Pace(**_values(context, Pace)))


def _early_options(context: typer.Context) -> dict[str, Any]:
    """Return the options that the flags give before the data is read.

    Of conversations, those that depend on what the data chooses are left out: `chat_plan` has them.
    """
    if not context.params["chat"]:
        return _values(context, microgpt.TrainConfig)
    given = _values(context, microgpt.TrainConfig, given_only=True)
    for name, other in (("n_head", "n_embd"), ("warmup_steps", "steps")):
        if other not in given:
            given.pop(name, None)
    return {"optimizer": "muon"} | given


def chat_plan(
    context: typer.Context,
    plan: Plan,
    dataset: microgpt.Dataset,
    init_from: microgpt.LanguageModel | None,
) -> tuple[Plan, microgpt.Dataset]:
    """Return plan and dataset with what is chosen for new conversations, unless flags give it."""
    if not plan.source.chat or context.params["resume"]:
        return plan, dataset
    given = _values(context, microgpt.TrainConfig, given_only=True)
    config, dataset = microgpt.chat_setup(dataset, init_from=init_from, **given)
    return plan._replace(config=config), dataset


def chosen_flags(context: typer.Context, plan: Plan) -> str:
    """Return the flags that would give the options that `chat_plan` has chosen."""
    if context.params["resume"]:
        return ""
    options = msgspec.structs.asdict(plan.config)
    return " ".join(
        _spelled(flag, options[flag.name])
        for flag in context.command.params
        if flag.name in options and options[flag.name] != context.params[flag.name]
    )


def check_sizes(context: typer.Context, model: microgpt.LanguageModel) -> None:
    """Raise ConfigError for a flag that contradicts the model to start from."""
    is_bpe = isinstance(model.tokenizer, microgpt.SubwordTokenizer)
    expected = {"tokenizer": "bpe" if is_bpe else "characters"} | asdict(model.config)
    for flag in context.command.params:
        name = flag.name or ""
        given = context.params.get(name)
        if name in expected and is_given(context, name) and given != expected[name]:
            raise microgpt.ConfigError(
                f"got {_spelled(flag, given)}, expected {_spelled(flag, expected[name])} as in "
                f"{context.params['init_from']}",
                hint="leave it out; another needs a new model",
            )


def resumed_plan(context: typer.Context, snapshot: microgpt.Snapshot) -> Plan:
    """Return the plan of the run that is resumed, with the pace and the paths that are given.

    Raises:
        CheckpointError: the snapshot is not one of `microgpt-cli train`.
        ConfigError: a flag contradicts the snapshot.
    """
    try:
        source = msgspec.convert(_with_lists(snapshot.options), Source)
        stored = msgspec.convert(snapshot.options.get("pace", {}), dict[str, Any])
        pace = msgspec.convert({RENAMED.get(name, name): stored[name] for name in stored}, Pace)
    except msgspec.ValidationError as error:
        raise microgpt.CheckpointError(
            f"{snapshot.path} does not hold the options of microgpt-cli train: {error}"
        ) from error
    config = snapshot.train_config
    if is_given(context, "engine") and context.params["engine"] == "auto":
        config = replace(config, engine="auto")  # `restore` compares the engine that it selects
    _check_contradictions(context, snapshot, config, source)
    return Plan(
        config,
        replace(source, **_values(context, Source, given_only=True)),
        replace(pace, **_values(context, Pace, given_only=True)),
    )


def _with_lists(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored options with lists of paths, which were single paths in 0.1."""
    paths = {name: options[name] for name in PATHS if name in options}
    return dict(options) | {
        name: [value] if isinstance(value, str) else value or [] for name, value in paths.items()
    }


def _check_contradictions(
    context: typer.Context,
    snapshot: microgpt.Snapshot,
    config: microgpt.TrainConfig,
    source: Source,
) -> None:
    stored = msgspec.structs.asdict(config) | msgspec.structs.asdict(source)
    given = _values(context, type(config), given_only=True)
    given |= _values(context, Source, given_only=True)
    for name in PATHS:
        if stored[name]:  # a file may have moved, and its content is compared
            given.pop(name, None)
    contradictions = [
        f"got {_spelled(flag, given[flag.name])}, expected {_spelled(flag, stored[flag.name])}"
        for flag in context.command.params
        if flag.name in given and given[flag.name] != stored[flag.name]
    ]
    if contradictions:
        hint = "a resumed run keeps its flags: leave these out, or start a new run"
        directory, n_more = context.params["resume"], given.get("steps", 0) - config.steps
        if n_more > 0 and microgpt.holds_model(directory):
            hint = (
                "a resumed run keeps its flags; to train its model further: microgpt-cli train "
                f"--init-from {typed(directory)} --steps {n_more} --input INPUT --output OUTPUT"
            )
        raise microgpt.ConfigError(f"{'; '.join(contradictions)} as in {snapshot.path}", hint=hint)


def _values(
    context: typer.Context, schema: type[msgspec.Struct], *, given_only: bool = False
) -> dict[str, Any]:
    """Return the values of the flags that are fields of a schema."""
    names = [name for name in schema.__struct_fields__ if is_given(context, name) or not given_only]
    return {
        name: list(context.params[name] or []) if name in PATHS else context.params[name]
        for name in names
    }


def is_given(context: typer.Context, name: str) -> bool:
    """Return whether a flag is given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _spelled(flag: Any, value: Any) -> str:
    """Return a flag and its value as they are typed."""
    name = flag.opts[0]
    if value in (None, False, []):
        return flag.secondary_opts[0] if flag.secondary_opts else f"no {name}"
    if isinstance(value, list):
        return " ".join(f"{name} {each}" for each in value)
    return name if value is True else f"{name} {value}"
