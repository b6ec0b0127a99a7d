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
    train_step,
)
from microgpt.corpus.windows import place_of
from microgpt.engines import ENGINES, select
from microgpt.parameters import Parameters

DOCUMENTS = ["anna", "bob", "hannah", "otto", "abba", "noah", "nora"]
FAST = [name for name in ENGINES if name not in {"auto", "scalar"}]


def prepared(**options: Any) -> Trainer:
    others = {key: options.pop(key) for key in ("val_dataset", "threads") if key in options}
    sizes: dict[str, Any] = {"n_embd": 8, "n_head": 2, "block_size": 6, "dtype": "float64"}
    config = TrainConfig(**(sizes | options))
    dataset = Dataset.from_documents(DOCUMENTS)
    _, trainer = microgpt.prepare(dataset, config, random.Random(3), **others)
    return trainer


# ---------------------------------------------------------------- Trainer


def test_reports_tell_the_rate_of_their_step() -> None:
    trainer = prepared(steps=4, learning_rate=0.02, warmup_steps=2)
    rates = [report.learning_rate for report in trainer]
    assert rates == pytest.approx([0.01, 0.02, 0.02, 0.01])


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


def test_trainer_draws_the_windows_of_documents_in_an_order() -> None:
    text, config = "abcdefghijklmnop", TrainConfig(long="window", batch_size=3, seed=5)
    dataset = Dataset.from_documents([text, "ac"])
    sizes = ModelConfig(vocab_size=17, n_embd=4, block_size=4)
    engine = select("vectorized", Parameters.init(sizes, random.Random(1), "float64"))
    trainer = Trainer(engine, dataset, [1, 0, 0, 0], config)
    taken = []
    engine.train_steps = lambda batches, *_: taken.extend(batches)  # type: ignore[method-assign, assignment] # to listen
    with pytest.raises(TypeError):
        trainer.advance(2)  # there are no reports
    for step, batch in enumerate(taken):
        for row, ids in enumerate(np.split(batch.inputs, np.cumsum(batch.lengths)[:-1])):
            document = [1, 0, 0, 0][(3 * step + row) % 4]
            whole = dataset[document].tolist()
            start = 0 if document else place_of(5, step, row, 17 - 4 + 1)
            assert ids.tolist() == whole[start : start + 4][: len(whole) - 1]
    assert len(taken) == 2


def test_too_few_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match="windows to train on is 7, expected at least batch_size"):
        prepared(batch_size=8, long="window", block_size=9)


@pytest.mark.parametrize("options", [{}, {"long": "window", "block_size": 3}])
def test_one_call_of_many_steps_is_the_same_as_many_calls(options: dict[str, Any]) -> None:
    one, many = (prepared(steps=10, batch_size=2, **options) for _ in range(2))
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


@pytest.mark.parametrize("engine", ENGINES)
def test_muon_follows_the_schedule_with_its_own_rate(engine: str) -> None:
    rates = {"learning_rate": 0.04, "muon_learning_rate": 0.1}
    trainer = prepared(engine=engine, steps=1, weight_decay=0.5, optimizer="muon", **rates)
    warmed_up = prepared(
        engine=engine, steps=9, warmup_steps=4, weight_decay=0.5, optimizer="muon", **rates
    )
    before = {name: weights.copy() for name, weights in trainer.engine.parameters.items()}
    trainer.advance(1)
    warmed_up.advance(1)  # at a fourth of both rates
    for name, weights in trainer.engine.parameters.items():
        rate = 0.1 if name.startswith("layer") else 0.04
        moved = weights - before[name] * (1 - rate * 0.5)
        moved_less = warmed_up.engine.parameters[name] - before[name] * (1 - rate / 4 * 0.5)
        np.testing.assert_allclose(moved_less, moved / 4, rtol=1e-7, atol=1e-12)
        assert moved.any()
    fc1 = trainer.engine.parameters["layer0.mlp_fc1"] - 0.95 * before["layer0.mlp_fc1"]
    assert 0.68 < np.linalg.norm(fc1, 2) / (0.1 * 2) < 1.21  # the root of out / in is 2


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
