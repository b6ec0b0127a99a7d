"""From documents to a model: what is drawn, in which order, and what is refused."""

import math
import random
from typing import Any

import microgpt
import numpy as np
import pytest
from microgpt import (
    ConfigError,
    DataError,
    Dataset,
    EngineError,
    LanguageModel,
    MicrogptError,
    NonFiniteLossError,
    StepReport,
    TrainConfig,
    Trainer,
)
from microgpt.parameters import Parameters
from small_models import DOCUMENTS, SIZES, learned


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return learned()


def test_fit_is_prepare_and_the_trainer(model: LanguageModel) -> None:
    prepared, trainer = microgpt.prepare(
        Dataset.from_documents(DOCUMENTS),
        TrainConfig(steps=60),
        random.Random(42),
        dtype="float64",
        engine="vectorized",
        **SIZES,
    )
    reports = list(trainer)
    assert reports[-1].loss < reports[0].loss
    np.testing.assert_array_equal(prepared.parameters.flat, model.parameters.flat)


@pytest.mark.parametrize(("n_words", "long"), [(100, "truncate"), (10**5, "window")])
def test_fit_takes_no_more_steps_at_once_than_an_interrupt_may_wait_for(
    monkeypatch: pytest.MonkeyPatch, n_words: int, long: Any
) -> None:
    advance, taken = Trainer.advance, list[int]()

    def count(self: Trainer, n_steps: int) -> list[StepReport]:
        taken.append(len(reports := advance(self, n_steps)))
        return reports

    monkeypatch.setattr(Trainer, "advance", count)
    microgpt.fit(["ab" * n_words], steps=20, n_embd=64, n_layer=2, block_size=200, long=long)
    assert sum(taken) == 20
    assert 1 < max(taken) < 20


@pytest.mark.parametrize(
    ("option", "default", "other"),
    [
        ("seed", 42, 43),
        ("learning_rate", 0.01 * 16 / 6, 0.01),
        ("batch_size", 1, 2),
        ("shuffle", True, False),
        ("steps", 1000, 1),
        ("dtype", "float32", "float64"),
        ("n_layer", 1, 2),
    ],
)
def test_fit_heeds_its_options(option: str, default: float | str, other: float | str) -> None:
    fixed: dict[str, Any] = {"steps": 3, "n_embd": 6, "n_head": 3} if option != "steps" else {}
    without = microgpt.fit(DOCUMENTS, **fixed).parameters.flat
    same = microgpt.fit(DOCUMENTS, **fixed, **{option: default}).parameters.flat  # type: ignore[arg-type]
    different = microgpt.fit(DOCUMENTS, **fixed, **{option: other}).parameters.flat  # type: ignore[arg-type]
    np.testing.assert_array_equal(without, same)
    assert (without.dtype, without.tolist()) != (different.dtype, different.tolist())


@pytest.mark.parametrize("shuffle", [True, False])
def test_draws_are_the_shuffle_if_any_and_then_the_weights(*, shuffle: bool) -> None:
    rng, expected = random.Random(7), random.Random(7)
    dataset = Dataset.from_documents(DOCUMENTS)
    model, trainer = microgpt.prepare(dataset, TrainConfig(), rng, shuffle=shuffle, **SIZES)
    order = list(range(len(DOCUMENTS)))
    if shuffle:
        expected.shuffle(order)
    weights = Parameters.init(model.config, expected, "float32")
    assert list(trainer.order) == order
    np.testing.assert_array_equal(model.parameters.flat, weights.flat)
    assert rng.getstate() == expected.getstate()


WINDOWS: dict[str, Any] = SIZES | {"long": "window", "block_size": 3}


@pytest.mark.parametrize("shuffle", [True, False])
def test_draws_for_windows_are_the_shuffle_that_split_has_and_the_weights(*, shuffle: bool) -> None:
    dataset = Dataset.from_documents(DOCUMENTS)
    rngs = random.Random(7), random.Random(7)
    model, trainer = microgpt.prepare(dataset, TrainConfig(), rngs[0], shuffle=shuffle, **WINDOWS)
    options = WINDOWS | {"long": "split"}
    other, split = microgpt.prepare(dataset, TrainConfig(), rngs[1], shuffle=shuffle, **options)
    whole = np.searchsorted(dataset.starts, split.dataset.starts, "right") - 1  # of each part
    assert list(trainer.order) == [whole[i] for i in split.order]
    assert (list(trainer.order) == sorted(trainer.order)) != shuffle
    np.testing.assert_array_equal(model.parameters.flat, other.parameters.flat)
    assert rngs[0].getstate() == rngs[1].getstate()


@pytest.mark.parametrize("shuffle", [True, False])
def test_windows_hold_out_the_last_share_of_all_positions(*, shuffle: bool) -> None:
    rng, expected = random.Random(7), random.Random(7)
    dataset = Dataset.from_documents(DOCUMENTS)
    options = WINDOWS | {"shuffle": shuffle, "val_fraction": 0.3}
    model, trainer = microgpt.prepare(dataset, TrainConfig(), rng, **options)
    order = list(range(len(DOCUMENTS)))
    if shuffle:
        expected.shuffle(order)
    whole = [i for at in order for i in range(len(DOCUMENTS[at]) + 1)]
    n_val = round(0.3 * len(whole))
    assert int(trainer.dataset.lengths.sum()) == len(whole) - n_val
    assert trainer.validation
    held_out = trainer.validation.dataset
    assert int(held_out.lengths.sum()) == n_val
    assert held_out.lengths.max() == 3
    last = dataset[order[-1]].tolist()
    assert held_out[len(held_out) - 1].tolist()[-2:] == last[-2:]
    if shuffle:
        expected.shuffle(list(trainer.order))
    weights = Parameters.init(model.config, expected, "float32")
    np.testing.assert_array_equal(model.parameters.flat, weights.flat)


def test_windows_of_short_documents_are_the_documents_and_prompts_have_bos() -> None:
    options: dict[str, Any] = {"steps": 9, "block_size": 8}
    model, whole = (microgpt.fit(DOCUMENTS, **options, long=long) for long in ("window", "skip"))
    np.testing.assert_array_equal(model.parameters.flat, whole.parameters.flat)
    assert not model.windows
    assert microgpt.fit(DOCUMENTS, steps=9, block_size=2, long="window").windows


def test_single_document_holds_out_its_tail() -> None:
    dataset = Dataset.from_documents(["abcdefghij"])
    options = WINDOWS | {"val_fraction": 0.3}
    _, trainer = microgpt.prepare(dataset, TrainConfig(), **options)
    assert trainer.validation
    held_out = trainer.validation.dataset
    ids = dataset[0].tolist()
    assert trainer.dataset[0].tolist() == ids[:9]
    assert [held_out[i].tolist() for i in trainer.validation.order] == [ids[8:12]]


def test_windows_are_validated_on_every_position_once() -> None:
    dataset = Dataset.from_documents(DOCUMENTS)
    val_dataset = Dataset.from_documents(["ottonatha", "ba"])
    options = WINDOWS | {"steps": 1, "dtype": "float64", "val_fraction": 0.5}
    model, trainer = microgpt.prepare(dataset, TrainConfig(), val_dataset=val_dataset, **options)
    assert trainer.dataset is dataset  # of which no share is held out
    (report,) = trainer
    blocks = val_dataset.encoded_with(model.tokenizer).fitted(3, "split")
    losses = [model.engine.loss(blocks.batch([i], 3)) for i in range(len(blocks))]
    total, n_tokens = map(sum, zip(*losses, strict=True))
    assert n_tokens == 10 + 3
    assert report.val_loss == pytest.approx(total / n_tokens, rel=1e-12)


@pytest.mark.parametrize("val_fraction", [0.01, 0.99])
def test_share_that_leaves_no_token_is_refused(val_fraction: float) -> None:
    options = WINDOWS | {"val_fraction": val_fraction}
    with pytest.raises(ConfigError, match=r"leaves tokens on both sides of 5$"):
        microgpt.prepare(Dataset.from_documents(["anna"]), TrainConfig(), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"documents": []}, DataError, "dataset is empty"),
        ({"documents": ["", " \t"]}, DataError, "dataset is empty"),
        ({"steps": 0}, ConfigError, "steps is 0, expected an integer of at least 1"),
        ({"steps": 1.5}, ConfigError, "steps is 1.5, expected an integer"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0, expected an integer of at least 1"),
        ({"learning_rate": 0.0}, ConfigError, "learning_rate is 0.0, expected a finite number"),
        ({"learning_rate": math.nan}, ConfigError, "learning_rate is nan, expected a finite"),
        ({"n_layer": 0}, ConfigError, "n_layer is 0, expected an integer of at least 1"),
        ({"block_size": -1}, ConfigError, "block_size is -1, expected an integer of at least 1"),
        ({"n_head": 5}, ConfigError, r"n_embd \(16\) must be divisible by n_head \(5\)"),
        ({"dtype": "float16"}, ConfigError, "dtype is 'float16', expected one of float32, float64"),
        ({"engine": "gpu"}, EngineError, "engine is 'gpu', expected one of auto, "),
        ({"learning_rate": 1e300}, NonFiniteLossError, "loss is nan at step 2"),
    ],
)
def test_fit_refuses_what_it_cannot_do(
    options: dict[str, Any], error: type[MicrogptError], message: str
) -> None:
    with pytest.raises(error, match=message):
        microgpt.fit(**({"documents": DOCUMENTS} | options))


def test_callback_gets_the_report_of_each_step() -> None:
    reports: list[microgpt.StepReport] = []
    options: dict[str, Any] = {"steps": 50, "val_fraction": 0.4, "eval_every": 20}
    words = ["anna", "bob", "hannah", "otto", "emma"]
    model = microgpt.fit(words, **options, on_step=reports.append)
    _, trainer = microgpt.prepare(
        microgpt.Dataset.from_documents(words), microgpt.TrainConfig(**options)
    )
    assert reports == list(trainer)
    np.testing.assert_array_equal(
        model.parameters.flat, microgpt.fit(words, **options).parameters.flat
    )


def test_error_of_the_callback_ends_training() -> None:
    def stop(report: microgpt.StepReport) -> None:
        raise KeyboardInterrupt(report.step)

    with pytest.raises(KeyboardInterrupt, match=r"^1$"):
        microgpt.fit(["anna", "bob"], steps=10**9, on_step=stop)
