"""Steps taken one by one in a loop: the same steps, and what the loop may do between them."""

import random
from pathlib import Path
from typing import Any

import microgpt
import numpy as np
import pytest
from microgpt import (
    Dataset,
    NonFiniteLossError,
    TrainConfig,
    Trainer,
    read_snapshot,
    restore,
    write_snapshot,
)
from microgpt.engines import ENGINES
from msgspec.structs import replace

DOCUMENTS = ["anna", "bob", "hannah", "otto", "abba", "noah", "nora"]
FAST = [name for name in ENGINES if name not in {"auto", "scalar"}]


def prepared(**options: Any) -> Trainer:
    sizes: dict[str, Any] = {"n_embd": 8, "n_head": 2, "block_size": 6, "engine": "native"}
    config = TrainConfig(**(sizes | options))
    _, trainer = microgpt.prepare(Dataset.from_documents(DOCUMENTS), config, random.Random(3))
    return trainer


def weights_of(trainer: Trainer) -> list[float]:
    weights: list[float] = trainer.engine.parameters.flat.tolist()
    return weights


KINDS: list[dict[str, Any]] = [
    {"engine": "scalar", "steps": 3},
    {"engine": "vectorized", "clip": 0.5},
    {},
    {"dtype": "float64", "weight_decay": 0.1},
    {"batch_size": 3, "clip": 0.5, "warmup_steps": 3, "schedule": "cosine"},
    {"optimizer": "muon", "batch_size": 2},
    {"long": "window", "block_size": 3},
    {"val_fraction": 0.3, "eval_every": 4},
    {"val_fraction": 0.3, "eval_every": 1, "patience": 2, "learning_rate": 0.5},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_each_report_comes_with_the_weights_after_its_step(options: dict[str, Any]) -> None:
    looped, called = (prepared(**{"steps": 19} | options) for _ in range(2))
    for report in looped:
        assert [report] == called.advance(1)
        assert (looped.step, looped.loss) == (report.step, report.loss)
        assert weights_of(looped) == weights_of(called)
    assert looped.is_finished
    assert called.is_finished
    assert looped.engine.n_updates == called.engine.n_updates == looped.step
    assert list(looped) == []


def test_loop_that_is_left_stays_at_its_step_and_goes_on_there() -> None:
    trainer, whole = prepared(steps=30), prepared(steps=30).advance(30)
    taken = []
    for report in trainer:
        taken.append(report)
        if report.step == 7:
            break
    assert (trainer.step, trainer.engine.n_updates) == (7, 7)
    assert [*taken, *trainer] == whole


def test_iterator_that_rests_takes_no_step() -> None:
    trainer = prepared(steps=30)
    reports = iter(trainer)
    next(reports)
    before = weights_of(trainer)
    trainer.engine.loss(trainer.dataset.batch([0], 6))
    assert (trainer.step, weights_of(trainer)) == (1, before)


def test_loop_may_take_further_steps_itself() -> None:
    trainer, whole = prepared(steps=30), prepared(steps=30).advance(30)
    taken = []
    for report in trainer:
        taken.append(report)
        if report.step % 5 == 0:
            taken += trainer.advance(3)
    assert taken == whole


def test_loop_may_change_the_options() -> None:
    trainer, other = prepared(steps=30), prepared(steps=30)
    for report in trainer:
        if report.step == 10:
            trainer.config = replace(trainer.config, learning_rate=0.5)
    other.advance(10)
    other.config = trainer.config
    other.advance(20)
    assert weights_of(trainer) == weights_of(other)


def test_loop_may_change_the_weights() -> None:
    losses = []
    trainer = prepared(steps=3)
    for report in trainer:
        losses.append(report.loss)
        trainer.engine.parameters.flat[:] = 0
    assert losses[1:] == pytest.approx([np.log(8)] * 2, rel=1e-6)  # of float32; V is 8
    assert losses[0] != pytest.approx(np.log(8), rel=1e-6)


def test_two_loops_may_share_an_engine() -> None:
    first = prepared(steps=6)
    second = Trainer(first.engine, first.dataset, first.order, first.config)
    steps = [(one.step, other.step) for one, other in zip(first, second, strict=True)]
    assert steps == [(i, i) for i in range(1, 7)]
    assert first.engine.n_updates == 12


@pytest.mark.parametrize("engine", FAST)
def test_divergence_ends_the_loop_with_the_step_before(engine: str) -> None:
    looped, called = (
        prepared(steps=50, learning_rate=1e30, engine=engine, clip=1e30) for _ in range(2)
    )
    with pytest.raises(NonFiniteLossError) as expected:
        called.advance(50)
    with pytest.raises(NonFiniteLossError) as caught:
        list(looped)
    assert str(caught.value) == str(expected.value)
    assert looped.step == called.step == looped.engine.n_updates
    np.testing.assert_array_equal(weights_of(looped), weights_of(called))  # NaN among them


@pytest.mark.parametrize("take", [list, lambda trainer: trainer.advance(9)])
def test_interrupt_during_a_step_counts_the_step(take: Any, monkeypatch: Any) -> None:
    trainer, whole = prepared(steps=9), prepared(steps=9)
    functions = {**trainer.engine.functions}  # type: ignore[attr-defined] # of the native engine
    train = functions["train"]

    def interrupted(*arguments: Any) -> None:  # Python raises it when the call returns
        train(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setitem(functions, "train", interrupted)
    monkeypatch.setattr(trainer.engine, "functions", functions)
    with pytest.raises(KeyboardInterrupt):
        take(trainer)
    assert trainer.step == trainer.engine.n_updates > 0
    whole.advance(trainer.step)
    assert weights_of(trainer) == weights_of(whole)


@pytest.mark.parametrize(("batch_size", "n_steps"), [(1, 9000), (3, 3000)])
def test_batches_of_many_steps_are_prepared_together(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, n_steps: int
) -> None:
    made: list[int] = []
    batches = Dataset.batches

    def count(self: Dataset, indices: Any, batch_size: int) -> Any:
        made.append(len(indices))
        return batches(self, indices, batch_size)

    monkeypatch.setattr(Dataset, "batches", count)
    assert len(list(prepared(steps=n_steps, batch_size=batch_size))) == n_steps
    assert sum(made) == 9000
    assert 3 <= len(made) <= 4  # of some 16,000 positions each, five per document


def test_loop_may_go_back_to_a_snapshot(tmp_path: Path) -> None:
    trainer, whole = prepared(steps=12), prepared(steps=12)
    taken = []
    for report in trainer:
        taken.append(report.step)
        if report.step == 4 and taken.count(4) == 1:
            write_snapshot(tmp_path, trainer, {})
        if report.step == 7 and taken.count(7) == 1:
            restore(trainer, read_snapshot(tmp_path))
    assert taken == [*range(1, 8), *range(5, 13)]
    whole.advance(12)
    assert weights_of(trainer) == weights_of(whole)
