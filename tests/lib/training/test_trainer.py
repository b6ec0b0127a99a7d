import math
import random
from collections.abc import Iterable
from typing import Any

import microgpt
import numpy as np
import pytest
from microgpt import (
    GPT,
    Adam,
    ConfigError,
    Dataset,
    ModelConfig,
    NonFiniteLossError,
    TokenError,
    TrainConfig,
    Trainer,
    Value,
    train_step,
)
from microgpt.engines import ENGINES, select
from microgpt.parameters import Parameters
from microgpt.training.trainer import default_learning_rate

DOCUMENTS = ["anna", "bob", "hannah", "otto", "abba", "noah", "nora"]
FAST = [name for name in ENGINES if name not in {"auto", "scalar"}]


def prepared(**options: Any) -> Trainer:
    train = {key: options.pop(key) for key in list(options) if hasattr(TrainConfig(), key)}
    dataset = Dataset.from_documents(DOCUMENTS)
    sizes: dict[str, Any] = {"n_embd": 8, "n_head": 2, "block_size": 6, "dtype": "float64"}
    _, trainer = microgpt.prepare(
        dataset, TrainConfig(**train), random.Random(3), **(sizes | options)
    )
    return trainer


# ---------------------------------------------------------------- Adam


def test_adam_is_what_its_paper_says() -> None:
    parameters = [Value(0.5), Value(-2.0)]
    adam = Adam(parameters)
    rng = random.Random(1)
    x, m, v = [0.5, -2.0], [0.0, 0.0], [0.0, 0.0]
    for t in range(1, 6):
        for i, parameter in enumerate(parameters):
            parameter.grad = g = rng.gauss(0, 1)
            m[i] = 0.85 * m[i] + 0.15 * g
            v[i] = 0.99 * v[i] + 0.01 * g * g
            x[i] -= 0.03 * (m[i] / (1 - 0.85**t)) / (math.sqrt(v[i] / (1 - 0.99**t)) + 1e-8)
        adam.step(0.03)
        assert [p.data for p in parameters] == pytest.approx(x, rel=1e-12)
        assert [p.grad for p in parameters] == [0.0, 0.0]


def test_first_step_of_adam_is_the_learning_rate_against_the_gradient() -> None:
    parameters = [Value(1.0), Value(1.0)]
    for parameter, grad in zip(parameters, (1e-3, -70.0), strict=True):
        parameter.grad = grad
    Adam(parameters).step(0.1)
    # eps is 1e-5 of the smaller gradient
    assert [p.data for p in parameters] == pytest.approx([0.9, 1.1], rel=1e-5)


def test_train_step_returns_the_loss_before_its_update() -> None:
    model = GPT.init(ModelConfig(vocab_size=3, n_embd=4), random.Random(1))
    adam = Adam(model.parameters())
    before = model.loss([2, 0, 1, 2]).data
    assert train_step(model, adam, [2, 0, 1, 2], 0.01) == before
    assert model.loss([2, 0, 1, 2]).data < before


def test_train_step_changes_nothing_when_the_loss_is_not_finite() -> None:
    model = GPT.init(ModelConfig(vocab_size=3, n_embd=4), random.Random(1))
    model.weights["lm_head"][0][0].data = math.nan
    before = [p.data for p in model.parameters()]
    with pytest.raises(NonFiniteLossError, match=r"loss is nan at step 1 \(learning rate 0.5\)"):
        train_step(model, Adam(model.parameters()), [2, 0, 1, 2], 0.5)
    np.testing.assert_array_equal([p.data for p in model.parameters()], before)


# ---------------------------------------------------------------- the learning rate


@pytest.mark.parametrize(("n_embd", "rate"), [(16, 0.01), (32, 0.005), (128, 0.00125)])
def test_default_rate_shrinks_with_the_width(n_embd: int, rate: float) -> None:
    assert default_learning_rate(n_embd) == rate


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1 / 3, 2 / 3, 1, 1, 0.75, 0.5, 0.25]),
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
        (
            "cosine",
            [1 / 3, 2 / 3, 1, *((1 + math.cos(math.pi * x)) / 2 for x in (0, 0.25, 0.5, 0.75))],
        ),
    ],
)
def test_rate_rises_over_the_warmup_and_then_follows_its_schedule(
    schedule: Any, expected: list[float]
) -> None:
    config = TrainConfig(steps=7, warmup_steps=3, schedule=schedule)
    assert [config.rate_at(step) for step in range(7)] == pytest.approx(expected, rel=1e-12)


def test_default_schedule_is_the_original_one() -> None:
    config = TrainConfig(steps=1000)
    assert [config.rate_at(step) for step in (0, 250, 999)] == [1.0, 0.75, 1 - 999 / 1000]


def test_reports_tell_the_rate_of_their_step() -> None:
    trainer = prepared(steps=4, learning_rate=0.02, warmup_steps=2)
    rates = [report.learning_rate for report in trainer]
    assert rates == pytest.approx([0.01, 0.02, 0.02, 0.01])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 0}, "steps is 0, expected an integer of at least 1"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected a finite number above 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
        (
            {"warmup_steps": 1000},
            "warmup_steps is 1000, expected at least 0 and less than the 1000",
        ),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"schedule": "step"}, "schedule is 'step', expected one of linear, cosine, constant"),
    ],
)
def test_numbers_out_of_their_domain_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**option)


# ---------------------------------------------------------------- Trainer


@pytest.mark.parametrize("engine", FAST)
def test_trainer_takes_the_steps_of_the_reference(engine: str) -> None:
    trainer = prepared(engine=engine, steps=9, shuffle=False, learning_rate=0.05)
    gpt = GPT.init(trainer.engine.config, random.Random(3))
    adam = Adam(gpt.parameters())
    documents = [trainer.dataset[i].tolist() for i in range(len(DOCUMENTS))]
    for step, report in enumerate(trainer):
        rate = 0.05 * (1 - step / 9)
        expected = train_step(gpt, adam, documents[step % 7], rate)
        assert report.loss == pytest.approx(expected, rel=1e-10)  # nine steps amplify rounding
        assert report.n_tokens == min(len(documents[step % 7]) - 1, 6)
    assert trainer.step == 9
    expected_weights = [parameter.data for parameter in gpt.parameters()]
    np.testing.assert_allclose(trainer.engine.parameters.flat, expected_weights, rtol=1e-8)


def documents_of_batches(trainer: Trainer, n_steps: int) -> list[list[int]]:
    """Return which documents each step took, by watching what reaches the engine."""
    seen: list[list[int]] = []
    lengths = {tuple(trainer.dataset[i][:-1].tolist()): i for i in range(len(trainer.dataset))}
    engine = trainer.engine
    original = engine.train_steps

    def watch(batches: Iterable[Any], *rest: Any) -> Any:
        batches = list(batches)
        for batch in batches:
            parts = np.split(batch.inputs, np.cumsum(batch.lengths)[:-1])
            seen.append([lengths[tuple(part.tolist())] for part in parts])
        return original(batches, *rest)

    engine.train_steps = watch  # type: ignore[method-assign, assignment] # to listen
    trainer.advance(n_steps)
    return seen


def test_documents_are_taken_in_order_and_again_from_the_start() -> None:
    trainer = prepared(steps=9, batch_size=3, block_size=9)
    order = list(trainer.order)
    assert order != list(range(7))  # shuffled
    taken = documents_of_batches(trainer, 5)
    assert taken == [[order[(3 * step + i) % 7] for i in range(3)] for step in range(5)]


def test_one_call_of_many_steps_is_the_same_as_many_calls() -> None:
    one, many = prepared(steps=10, batch_size=2), prepared(steps=10, batch_size=2)
    reports = one.advance(99)
    assert [*many] == reports
    assert [report.step for report in reports] == list(range(1, 11))
    np.testing.assert_array_equal(one.engine.parameters.flat, many.engine.parameters.flat)
    assert one.advance(1) == []


def test_loss_of_a_batch_is_the_mean_over_its_tokens() -> None:
    trainer = prepared(steps=1, batch_size=7, shuffle=False)
    gpt = GPT.init(trainer.engine.config, random.Random(3))
    documents = [trainer.dataset[i].tolist() for i in range(7)]
    n_tokens = [min(len(ids) - 1, 6) for ids in documents]
    total = sum(gpt.loss(ids).data * n for ids, n in zip(documents, n_tokens, strict=True))
    (report,) = trainer
    assert report.n_tokens == sum(n_tokens)
    assert report.loss == pytest.approx(total / sum(n_tokens), rel=1e-12)


def test_clipping_reports_the_norm_and_bounds_the_step() -> None:
    free, clipped = prepared(steps=3), prepared(steps=3, clip=1e-12)
    assert [report.grad_norm for report in free] == [None] * 3
    before = clipped.engine.parameters.flat.copy()
    norms = [report.grad_norm for report in clipped]
    assert all(norm and norm > 0.01 for norm in norms)
    # Gradients of 1e-12 vanish beside Adam's eps of 1e-8.
    assert abs(clipped.engine.parameters.flat - before).max() < 1e-4


def test_weight_decay_takes_off_a_share_of_the_weights() -> None:
    plain, decayed = prepared(steps=1), prepared(steps=1, weight_decay=0.5)
    before = plain.engine.parameters.flat.copy()
    list(plain), list(decayed)
    taken_off = plain.engine.parameters.flat - decayed.engine.parameters.flat
    np.testing.assert_allclose(taken_off, before * 0.5 * plain.learning_rate, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("engine", FAST)
def test_divergence_stops_with_the_last_good_weights(engine: str) -> None:
    trainer = prepared(steps=50, learning_rate=1e30, engine=engine, dtype="float32")
    kept = [trainer.engine.parameters.flat.copy()]

    with pytest.raises(NonFiniteLossError) as caught:
        kept.extend(trainer.engine.parameters.flat.copy() for _ in trainer)
    assert caught.value.step == trainer.step + 1 == len(kept)
    assert f"at step {len(kept)} (learning rate " in str(caught.value)
    assert caught.value.hint == "try a smaller learning rate"
    np.testing.assert_array_equal(trainer.engine.parameters.flat, kept[-1])


def test_validation_loss_that_is_no_number_stops_too() -> None:
    trainer = prepared(steps=9, learning_rate=1e30, dtype="float32", val_fraction=0.4, eval_every=1)
    message = r"^validation loss is (nan|inf) at step 2 \(learning rate 8\.89e\+29\)"
    with pytest.raises(NonFiniteLossError, match=message):
        list(trainer)
    assert trainer.best is not None
    assert np.isfinite(trainer.best.val_loss)


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"documents to train on is 7, .* batch_size=8"):
        prepared(batch_size=8)


def test_trainer_needs_documents() -> None:
    trainer = prepared()
    with pytest.raises(ConfigError, match="documents to train on is 0"):
        Trainer(trainer.engine, trainer.dataset, [], TrainConfig())


def test_validation_documents_must_be_of_known_characters() -> None:
    with pytest.raises(TokenError, match="characters that the model does not know: 'z'"):
        prepared(val_dataset=Dataset.from_documents(["zoo"]))


def test_engine_is_told_and_weights_are_shared() -> None:
    parameters = Parameters.init(ModelConfig(vocab_size=6, n_embd=4), random.Random(1), "float64")
    engine = select("vectorized", parameters)
    dataset = Dataset.from_documents(["abc", "cde"])
    trainer = Trainer(engine, dataset, range(2), TrainConfig(steps=2))
    before = parameters.flat.copy()
    list(trainer)
    assert trainer.engine.parameters is parameters
    assert not np.array_equal(parameters.flat, before)
