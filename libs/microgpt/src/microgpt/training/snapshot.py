"""Snapshots of training: all that it takes to resume a run as if it had never stopped.

A snapshot is one safetensors file in `checkpoints/` of the model directory, named after its step:
weights, Adam's moments and the best weights so far; options, vocabulary and counters are metadata.
The file is written under another name and renamed, so a snapshot is complete or absent.
"""

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from microgpt.checks import PathLike, cause_of, checked_path
from microgpt.corpus.byte_pairs import Pair
from microgpt.corpus.subwords import SubwordTokenizer
from microgpt.data import BaseTokenizer, Tokenizer
from microgpt.errors import CheckpointError, ConfigError
from microgpt.inference.language_model import LanguageModel
from microgpt.model import ModelConfig
from microgpt.parameters import DTYPES, FloatArray, Parameters
from microgpt.storage.commit import STAGED, write_whole
from microgpt.storage.model_directory import SNAPSHOTS, Origin
from microgpt.storage.system import remove, sync_directory
from microgpt.training.options import DEFAULTS, TrainConfig
from microgpt.training.trainer import Trainer
from microgpt.training.validation import Best

__all__ = [
    "Snapshot",
    "holds_snapshot",
    "read_snapshot",
    "remove_snapshots",
    "restore",
    "write_snapshot",
]

FORMAT = "microgpt-snapshot-1"
NAME = re.compile(r"step-(\d{8,})\.safetensors")


class _State(msgspec.Struct, kw_only=True):
    """The metadata of a snapshot; fields with a default are newer than the format."""

    model: dict[str, int]
    chars: list[str]
    is_chat: bool
    dtype: str
    engine: str
    step: int
    n_updates: int
    best_val_loss: float | None
    best_step: int | None
    data_digest: str
    options: dict[str, Any]
    train_config: dict[str, Any] | None = None
    loss: float | None = None
    origin: Origin | None = None
    has_system: bool = False
    merges: list[Pair] | None = None  # of subwords, in place of characters


@dataclass(frozen=True)
class Snapshot:
    """The state of a training run after some step.

    Args:
        path: the file.
        config: sizes of the model.
        tokenizer: its characters or subwords.
        engine: name of the engine that ran it.
        step: steps taken.
        n_updates: updates of the optimizer.
        data_digest: `Trainer.digest` of its data.
        options: stored by the application.
        arrays: "weights", "adam_m", "adam_v", each of shape (n_params,).
        best: the best model until then, with validation.
        train_config: options of the run, resolved; those that an older snapshot lacks have their
            defaults.
        loss: of the last step, in nats per token; None in older snapshots.
        origin: the model that the run has started from; None for initial weights.
    """

    path: Path
    config: ModelConfig
    tokenizer: BaseTokenizer
    engine: str
    step: int
    n_updates: int
    data_digest: str
    options: Mapping[str, Any]
    arrays: Mapping[str, FloatArray]
    best: Best | None
    train_config: TrainConfig = DEFAULTS
    loss: float | None = None
    origin: Origin | None = None

    def model(self, engine: str = "auto") -> LanguageModel:
        """Return a model with the latest weights.

        Args:
            engine: see `ENGINES`.
        """
        parameters = Parameters(self.config, self.arrays["weights"])
        return LanguageModel(self.tokenizer, parameters, engine=engine)


def write_snapshot(
    directory: PathLike, trainer: Trainer, options: Mapping[str, Any], *, keep: int = 3
) -> Path:
    """Save the state of a trainer, and remove the oldest snapshots.

    Args:
        directory: of the model; made if it does not exist.
        trainer: between two steps; its `config` is saved too.
        options: whatever else the application needs to set up the same run again; JSON values.
        keep: number of snapshots that are not removed.

    Returns:
        The file written.

    Raises:
        CheckpointError: it cannot be written; earlier snapshots are intact.
        ConfigError: `keep` is below 1.
    """
    from safetensors.numpy import save  # noqa: PLC0415 - 90 ms, and only here

    folder = checked_path(directory) / SNAPSHOTS
    path = folder / f"step-{trainer.step:08d}.safetensors"
    if keep < 1:
        raise ConfigError(f"keep is {keep}, expected at least 1")
    arrays = _arrays(trainer)
    state = msgspec.json.encode(_state(trainer, options)).decode()
    metadata = {"format": FORMAT, "state": state, "sha256": _digest(arrays, state)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stray in folder.glob(f"*{STAGED}"):
            remove(stray)
        write_whole(path, save(arrays, metadata))
        sync_directory(folder)
        for old in _snapshots(folder)[:-keep]:
            remove(old)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot write {path}: {cause_of(error)}", hint="earlier snapshots are intact"
        ) from error
    return path


def _arrays(trainer: Trainer) -> dict[str, FloatArray]:
    engine = trainer.engine
    arrays = {
        "weights": engine.parameters.flat,
        "adam_m": engine.adam_m.flat,
        "adam_v": engine.adam_v.flat,
    }
    if trainer.best:
        arrays["best"] = trainer.best.weights
    return arrays


def _digest(arrays: Mapping[str, FloatArray], state: str = "") -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _state(trainer: Trainer, options: Mapping[str, Any]) -> _State:
    engine, tokenizer, best = trainer.engine, trainer.dataset.tokenizer, trainer.best
    return _State(
        model={name: getattr(engine.config, name) for name in ModelConfig.__dataclass_fields__},
        chars=list(tokenizer.chars),
        is_chat=tokenizer.is_chat,
        dtype=engine.parameters.dtype,
        engine=engine.name,
        step=trainer.step,
        n_updates=engine.n_updates,
        best_val_loss=best.val_loss if best else None,
        best_step=best.step if best else None,
        data_digest=trainer.digest,
        options=dict(options),
        train_config=msgspec.to_builtins(trainer.config),
        loss=trainer.loss,
        origin=trainer.origin,
        has_system=tokenizer.has_system,
        merges=list(tokenizer.merges) if isinstance(tokenizer, SubwordTokenizer) else None,
    )


def _tokenizer(state: _State) -> BaseTokenizer:
    if state.merges is None:
        return Tokenizer(tuple(state.chars), state.is_chat, state.has_system)
    return SubwordTokenizer(tuple(state.merges), state.is_chat, state.has_system)


def _train_config(state: _State) -> TrainConfig:
    """Return the options of the run.

    Older snapshots of the command line hold them among its own options; those of other programs
    hold none, so all but sizes, type and engine are the defaults.
    """
    stored = state.train_config
    if stored is None:
        is_ours = {"input", "chat", "lr", "steps"} <= state.options.keys()
        options = state.options if is_ours else {}
        sizes = {**state.model, "vocab_size": None}  # an option of subwords, which are newer
        stored = options | {"learning_rate": options.get("lr")} | sizes
    known = {name: stored[name] for name in TrainConfig.__struct_fields__ if name in stored}
    return TrainConfig(**(known | {"dtype": state.dtype, "engine": state.engine}))


def _snapshots(folder: Path) -> list[Path]:
    """Return the snapshots in a folder, the latest last."""
    found = []
    with suppress(OSError, ValueError):  # there is no such folder
        found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(NAME.fullmatch(path.name)[1]))  # type: ignore[index]


def holds_snapshot(directory: PathLike) -> bool:
    """Return whether there are snapshots in a model directory.

    Args:
        directory: of a model; may be missing.
    """
    return bool(_snapshots(checked_path(directory) / SNAPSHOTS))


def remove_snapshots(directory: PathLike) -> None:
    """Remove the snapshots in a model directory.

    Args:
        directory: of a model; may be missing.

    Raises:
        CheckpointError: one cannot be removed.
    """
    folder = checked_path(directory) / SNAPSHOTS
    for path in (*folder.glob(f"*{STAGED}"), *_snapshots(folder)):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot remove {path}: {cause_of(error)}") from error


def read_snapshot(directory: PathLike) -> Snapshot:
    """Load the latest snapshot of a model directory, and check everything about it.

    Args:
        directory: of a model.

    Returns:
        The latest snapshot.

    Raises:
        CheckpointError: there is none, or it is damaged or of another version.
    """
    folder = checked_path(directory) / SNAPSHOTS
    paths = _snapshots(folder)
    if not paths:
        raise CheckpointError(
            f"{directory} holds no snapshot of training: there is nothing in {folder}",
            hint="train with --snapshot-every, or interrupt training with Ctrl-C, to have one",
        )
    hint = f"remove {paths[-1].name} to resume from the snapshot before" if paths[1:] else None
    try:
        return _read(paths[-1])
    except CheckpointError as error:
        error.hint = error.hint or hint
        raise


def _fit(arrays: Mapping[str, FloatArray], state: _State, config: ModelConfig) -> bool:
    """Return whether there are the arrays that the metadata describes."""
    has_best = state.best_val_loss is not None and state.best_step is not None
    return (
        arrays.keys() == {"weights", "adam_m", "adam_v", *(["best"] if has_best else [])}
        and state.dtype in DTYPES
        and all(
            array.shape == (config.n_params,) and array.dtype == state.dtype
            for array in arrays.values()
        )
    )


def _read(path: Path) -> Snapshot:
    import safetensors  # noqa: PLC0415 - 90 ms, and only here

    if not path.is_file():
        raise CheckpointError(f"cannot read {path}: it is not a regular file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has the format {metadata.get('format')!r}, expected {FORMAT!r}",
                hint="resume with the version of microgpt that wrote it",
            )
        state = msgspec.json.decode(metadata["state"], type=_State)
        config = ModelConfig(**state.model)
        tokenizer = _tokenizer(state)
        train_config = _train_config(state)
    except (safetensors.SafetensorError, msgspec.DecodeError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"invalid {path}: {error}") from error
    is_intact = metadata.get("sha256") == _digest(arrays, metadata["state"])
    if not is_intact or not _fit(arrays, state, config):
        raise CheckpointError(f"{path} is damaged: its arrays are not what its metadata describes")
    best = None
    if state.best_val_loss is not None and state.best_step is not None:
        best = Best(state.best_val_loss, state.best_step, arrays.pop("best"))
    return Snapshot(
        path,
        config,
        tokenizer,
        state.engine,
        state.step,
        state.n_updates,
        state.data_digest,
        state.options,
        arrays,
        best,
        train_config,
        state.loss,
        state.origin,
    )


def restore(trainer: Trainer, snapshot: Snapshot) -> None:
    """Give a trainer, set up for the same run, the state of a snapshot.

    Args:
        trainer: set up with the same data, sizes, type and engine; changed in place.
        snapshot: of the run.

    Raises:
        CheckpointError: the data or the model is not the one of the snapshot.
        ConfigError: processes that train together do not have the same snapshot.
    """
    engine = trainer.engine
    if trainer.digest != snapshot.data_digest:
        raise CheckpointError(
            f"the training data is not that of {snapshot.path}: its digest is "
            f"{trainer.digest[:12]}, expected {snapshot.data_digest[:12]}",
            hint="give the same files as --input and --val-input, unchanged",
        )
    for what, found, expected in (
        ("sizes", engine.config, snapshot.config),
        ("dtype", engine.parameters.dtype, str(snapshot.arrays["weights"].dtype)),
        ("engine", engine.name, snapshot.engine),
    ):
        if found != expected:
            raise CheckpointError(
                f"the run's {what}: got {found}, expected {expected} as in {snapshot.path}"
            )
    if trainer.ranks:
        trainer.ranks.check_same(snapshot.step, _digest(snapshot.arrays))
    engine.parameters.flat[:] = snapshot.arrays["weights"]
    engine.adam_m.flat[:] = snapshot.arrays["adam_m"]
    engine.adam_v.flat[:] = snapshot.arrays["adam_v"]
    engine.n_updates = snapshot.n_updates
    trainer.step = snapshot.step
    trainer.best = snapshot.best
    trainer.loss = snapshot.loss
    trainer.origin = snapshot.origin
