import hashlib
import json
import math
import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import microgpt
import msgspec
import numpy as np
import pytest
from faults import FAULTS, needs_strace, strike_each_call
from microgpt import (
    CheckpointError,
    ConfigError,
    Dataset,
    LanguageModel,
    TrainConfig,
    Trainer,
    holds_snapshot,
    read_snapshot,
    remove_snapshots,
    restore,
    write_snapshot,
)
from safetensors import safe_open
from safetensors.numpy import save_file

DOCUMENTS = ["anna", "bob", "hannah", "otto", "abba", "noah", "nora", "hanno"]
STEPS = 10

Damage: TypeAlias = Callable[[Path], object]  # what it does to a snapshot


def prepared(**options: Any) -> tuple[LanguageModel, Trainer, random.Random]:
    rng = random.Random(options.pop("seed", 3))
    config = TrainConfig(
        steps=STEPS,
        batch_size=2,
        warmup_steps=3,
        schedule="cosine",
        clip=0.5,
        weight_decay=0.1,
        learning_rate=0.05,
    )
    dataset = Dataset.from_documents(options.pop("documents", DOCUMENTS))
    sizes = {"n_embd": 8, "n_head": 2, "block_size": 6, "val_fraction": 0.25, "eval_every": 3}
    model, trainer = microgpt.prepare(dataset, config, rng, **(sizes | options))
    return model, trainer, rng


def trained(n_steps: int, **options: Any) -> Trainer:
    _, trainer, _ = prepared(engine="vectorized", **options)
    while trainer.step < n_steps:
        trainer.advance(1)
    return trainer


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return the latest of two snapshots."""
    write_snapshot(tmp_path, trained(3), {})
    return write_snapshot(tmp_path, trained(6), {"lr": 0.05})


# ---------------------------------------------------------------- as if it had never stopped


RUNS = [
    *product(["vectorized", "native"], ["float32", "float64"], [1, 5, 9, 10]),
    ("scalar", "float32", 5),
]


@pytest.mark.parametrize(("engine", "dtype", "stopped_at"), RUNS)
@pytest.mark.parametrize("others", [{}, {"long": "window", "block_size": 3}, {"optimizer": "muon"}])
def test_restored_run_ends_as_the_uninterrupted_one(
    tmp_path: Path, engine: str, dtype: str, stopped_at: int, others: dict[str, Any]
) -> None:
    options = {"engine": engine, "dtype": dtype} | others
    if engine == "scalar":
        options["n_embd"] = 4  # a quarter of the weights, and of the time
    model, trainer, rng = prepared(**options)
    expected_reports = list(trainer)
    first_half, first = prepared(**options)[1], []
    while first_half.step < stopped_at:
        first += first_half.advance(1)
    write_snapshot(tmp_path, first_half, {})

    resumed_model, resumed, resumed_rng = prepared(**options)
    restore(resumed, read_snapshot(tmp_path))
    assert resumed.step == stopped_at
    assert first + list(resumed) == expected_reports
    for ours, theirs in (
        (resumed.engine.parameters, trainer.engine.parameters),
        (resumed.engine.adam_m, trainer.engine.adam_m),
        (resumed.engine.adam_v, trainer.engine.adam_v),
    ):
        np.testing.assert_array_equal(ours.flat, theirs.flat)
    assert resumed.best
    assert trainer.best
    assert (resumed.best.step, resumed.best.val_loss) == (trainer.best.step, trainer.best.val_loss)
    np.testing.assert_array_equal(resumed.best.weights, trainer.best.weights)
    assert resumed_model.generate(3, rng=resumed_rng) == model.generate(3, rng=rng)
    assert resumed_model.windows == ("long" in others)
    assert resumed_rng.getstate() == rng.getstate()


def test_run_with_other_windows_is_not_resumed(tmp_path: Path) -> None:
    def started(seed: int) -> Trainer:
        config = TrainConfig(steps=2, long="window", block_size=4, seed=seed)
        dataset = Dataset.from_documents(["hannah and otto"])
        return microgpt.prepare(dataset, config, random.Random(1))[1]

    (trainer := started(1)).advance(1)
    write_snapshot(tmp_path, trainer, {})
    restore(started(1), read_snapshot(tmp_path))
    with pytest.raises(CheckpointError, match="the training data is not that of"):
        restore(started(2), read_snapshot(tmp_path))


def test_best_model_before_the_snapshot_is_not_forgotten(tmp_path: Path) -> None:
    trainer = trained(6)
    assert trainer.best
    trainer.best = microgpt.Best(-1.0, 2, trainer.best.weights + 1)  # no later one is better
    write_snapshot(tmp_path, trainer, {})
    _, resumed, _ = prepared(engine="vectorized")
    restore(resumed, read_snapshot(tmp_path))
    list(resumed)
    resumed.use_best()
    np.testing.assert_array_equal(resumed.engine.parameters.flat, trainer.best.weights)


def test_snapshot_tells_what_it_holds(saved: Path) -> None:
    snapshot = read_snapshot(saved.parents[1])
    assert snapshot.path == saved
    assert (snapshot.step, snapshot.n_updates, snapshot.engine) == (6, 6, "vectorized")
    assert snapshot.options == {"lr": 0.05}
    assert snapshot.config.n_embd == 8
    assert snapshot.tokenizer.chars == ("a", "b", "h", "n", "o", "r", "t")


# ---------------------------------------------------------------- which ones stay


def test_latest_snapshots_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 10):  # by number: as text, 10 comes before 2
        write_snapshot(tmp_path, trained(step), {}, keep=2)
    assert names_in(tmp_path) == ["step-00000004.safetensors", "step-00000010.safetensors"]
    assert read_snapshot(tmp_path).step == 10


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep is 0, expected at least 1"):
        write_snapshot(tmp_path, trained(1), {}, keep=0)


def test_removed_snapshots_are_gone_and_other_files_are_not(saved: Path) -> None:
    directory = saved.parents[1]
    (saved.parent / "notes.txt").write_text("mine")
    assert holds_snapshot(directory)
    remove_snapshots(directory)
    assert not holds_snapshot(directory)
    assert names_in(directory) == ["notes.txt"]
    remove_snapshots(directory / "nowhere")


# ---------------------------------------------------------------- what cannot be resumed


@pytest.mark.parametrize("name", ["", "nowhere", "a\0b"])
def test_directory_without_snapshots_is_named(tmp_path: Path, name: str) -> None:
    directory = f"{tmp_path}/{name}"
    with pytest.raises(CheckpointError, match="holds no snapshot of training") as caught:
        read_snapshot(directory)
    assert str(Path(directory)) in str(caught.value)
    assert "train with --snapshot-every" in str(caught.value.hint)


def rewritten(change: Callable[[dict[str, Any], dict[str, str]], object]) -> Damage:
    def rewrite(path: Path) -> None:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(arrays, metadata)
        save_file(arrays, path, metadata)

    return rewrite


def state_with(**changes: Any) -> Damage:
    """Return what changes the metadata and signs it again."""

    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        state = json.loads(metadata["state"]) | changes
        metadata["state"] = json.dumps({k: v for k, v in state.items() if v is not ...})
        digest = hashlib.sha256(metadata["state"].encode())
        for name in sorted(arrays):
            digest.update(name.encode())
            digest.update(arrays[name].data)
        metadata["sha256"] = digest.hexdigest()

    return rewritten(change)


def flip_bit(at: float) -> Damage:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[math.floor(at * len(content))] ^= 1
        path.write_bytes(content)

    return flip


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


OTHER_MODEL = {"vocab_size": 9, "n_embd": 8, "n_head": 2, "n_layer": 1, "block_size": 6}
DAMAGE: list[tuple[str, Damage, str]] = [
    ("empty", lambda path: path.write_bytes(b""), "cannot read .*step-00000006.safetensors"),
    ("cut", cut, "cannot read .*step-00000006.safetensors"),
    ("noise", lambda path: path.write_bytes(b"\xff" * 999), "cannot read .*step-00000006"),
    ("folder", become_folder, "step-00000006.safetensors: it is not a regular file"),
    ("weights", flip_bit(0.99), "step-00000006.safetensors is damaged"),
    (
        "step in the metadata",
        rewritten(lambda _, meta: meta.update(state=meta["state"].replace(':6,"', ':7,"'))),
        "is damaged",
    ),
    (
        "other version",
        rewritten(lambda _, metadata: metadata.update(format="microgpt-snapshot-2")),
        "has the format 'microgpt-snapshot-2', expected 'microgpt-snapshot-1'",
    ),
    ("not ours", lambda path: save_file({"a": np.zeros(2)}, path), "has the format None"),
    ("missing state", rewritten(lambda _, metadata: metadata.pop("state")), "invalid"),
    ("missing array", rewritten(lambda arrays, _: arrays.pop("adam_v")), "is damaged"),
    ("missing key", state_with(step=...), "missing required field `step`"),
    ("other type", state_with(step="6"), "Expected `int`, got `str`"),
    ("sizes that cannot be", state_with(model=OTHER_MODEL | {"n_head": 3}), "must be divisible"),
    ("sizes of another model", state_with(model=OTHER_MODEL), "is damaged"),
    ("unknown size", state_with(model={"width": 3}), "invalid"),
    ("unknown dtype", state_with(dtype="int8"), "dtype is 'int8', expected one of float32"),
    ("characters", state_with(chars=["ab"]), "invalid"),
]


@pytest.mark.parametrize(
    ("damage", "message"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE]
)
def test_damaged_snapshot_is_refused(saved: Path, damage: Damage, message: str) -> None:
    damage(saved)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_snapshot(saved.parents[1])
    assert str(saved) in str(caught.value)
    assert caught.value.hint


def test_snapshot_before_a_damaged_one_still_loads(saved: Path) -> None:
    cut(saved)
    with pytest.raises(CheckpointError) as caught:
        read_snapshot(saved.parents[1])
    assert caught.value.hint == f"remove {saved.name} to resume from the snapshot before"
    saved.unlink()
    assert read_snapshot(saved.parents[1]).step == 3


def test_signing_again_is_not_what_is_refused(saved: Path) -> None:
    state_with(step=7)(saved)
    assert read_snapshot(saved.parents[1]).step == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"documents": [*DOCUMENTS[:-1], "hanna"]}, "training data is not that of"),
        ({"documents": DOCUMENTS[:-1]}, "training data is not that of"),
        ({"seed": 4}, "training data is not that of"),
        ({"shuffle": False}, "training data is not that of"),
        ({"val_dataset": Dataset.from_documents(["anna"])}, "training data is not that of"),
        ({"n_embd": 4}, "the run's sizes: got .*n_embd=4.* expected .*n_embd=8"),
        ({"dtype": "float64"}, "the run's dtype: got float64, expected float32"),
        ({"engine": "scalar"}, "the run's engine: got scalar, expected vectorized"),
    ],
)
def test_run_that_is_set_up_otherwise_is_not_resumed(
    saved: Path, options: dict[str, Any], message: str
) -> None:
    _, trainer, _ = prepared(**({"engine": "vectorized"} | options))
    before = trainer.engine.parameters.flat.copy()
    with pytest.raises(CheckpointError, match=message):
        restore(trainer, read_snapshot(saved.parents[1]))
    np.testing.assert_array_equal(trainer.engine.parameters.flat, before)
    assert trainer.step == 0


def test_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"cannot write .*step-00000001") as caught:
        write_snapshot(tmp_path, trained(1), {})
    assert caught.value.hint == "earlier snapshots are intact"


# ---------------------------------------------------------------- killed at any system call

SETUP = """
import random, microgpt, safetensors.numpy
dataset = microgpt.Dataset.from_documents(["anna", "bob"])
config = microgpt.TrainConfig(steps=9)
_, trainer = microgpt.prepare(dataset, config, random.Random(3), n_embd=4, engine="vectorized")
trainer.advance(3)
def save(directory):
    microgpt.write_snapshot(directory, trainer, {}, keep=2)
"""


@needs_strace
@pytest.mark.parametrize("fault", FAULTS)
def test_save_that_fails_at_any_system_call_loses_nothing(tmp_path: Path, fault: str) -> None:
    first, second, next_one = trained(1), trained(2), trained(4)

    def save_two(directory: Path) -> None:
        write_snapshot(directory, first, {})
        write_snapshot(directory, second, {})

    calls = {"openat": 6, "write": 3, "fsync": 4, "rename": 3, "unlink": 3, "mkdir": 3}
    for directory in strike_each_call(SETUP, fault, tmp_path, save_two, calls):
        assert read_snapshot(directory).step in {2, 3}, directory
        write_snapshot(directory, next_one, {}, keep=2)
        assert read_snapshot(directory).step == 4, directory
        before = {"step-00000002.safetensors", "step-00000003.safetensors"}
        assert set(names_in(directory)) - before == {"step-00000004.safetensors"}
        assert len(names_in(directory)) == 2


# ---------------------------------------------------------------- the options of the run


def test_snapshot_holds_the_resolved_options_of_the_run(tmp_path: Path) -> None:
    trainer = trained(3)
    write_snapshot(tmp_path, trainer, {"input": "names.txt"})
    snapshot = read_snapshot(tmp_path)
    assert snapshot.train_config == trainer.config
    assert snapshot.train_config.engine == "vectorized"
    assert snapshot.options == {"input": "names.txt"}


def test_option_that_a_snapshot_lacks_has_its_default(saved: Path) -> None:
    config = msgspec.to_builtins(trained(3).config)
    for name in ("clip", "optimizer", "muon_learning_rate", "muon_momentum", "muon_iterations"):
        del config[name]
    state_with(train_config=config | {"option_of_a_later_version": 1})(saved)
    found = read_snapshot(saved.parents[1]).train_config
    assert (found.clip, found.optimizer) == (TrainConfig().clip, "adam")
    assert found.weight_decay == 0.1


def test_older_snapshot_has_its_options_among_those_of_the_application(tmp_path: Path) -> None:
    stored = {"lr": 0.05, "steps": 10, "seed": 9, "long": "split", "input": "a", "chat": False}
    path = write_snapshot(tmp_path, trained(3), stored)
    state_with(train_config=...)(path)
    config = read_snapshot(tmp_path).train_config
    assert (config.learning_rate, config.steps, config.seed) == (0.05, 10, 9)
    assert (config.long, config.n_embd, config.engine) == ("split", 8, "vectorized")
    assert config.batch_size == TrainConfig().batch_size


@pytest.mark.parametrize("options", [{"warmup_steps": 5000}, {"seed": "run-7"}, {"lr": "auto"}])
def test_older_snapshot_of_another_program_keeps_its_own_options(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = write_snapshot(tmp_path, trained(3), options)
    state_with(train_config=...)(path)
    snapshot = read_snapshot(tmp_path)
    assert snapshot.options == options
    assert (snapshot.train_config.n_embd, snapshot.train_config.seed) == (8, TrainConfig().seed)


def test_resumed_run_knows_its_last_loss(tmp_path: Path) -> None:
    trainer = trained(3)
    write_snapshot(tmp_path, trainer, {})
    resumed = trained(0)
    restore(resumed, read_snapshot(tmp_path))
    assert resumed.record().loss == trainer.record().loss is not None


def test_digest_is_of_the_documents_as_given() -> None:
    dataset = Dataset.from_documents(["abcdefghij", "abc"])
    _, whole = microgpt.prepare(dataset, TrainConfig(block_size=16), shuffle=False)
    short, _ = microgpt.prepare(dataset, TrainConfig(block_size=4))
    config = TrainConfig(block_size=4)
    assert Trainer(short.engine, dataset, range(2), config).digest == whole.digest
