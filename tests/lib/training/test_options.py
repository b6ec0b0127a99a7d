import inspect
import math
import random
from typing import Any, get_type_hints

import microgpt
import msgspec
import numpy as np
import pytest
from microgpt import ConfigError, DataError, TrainConfig
from microgpt.engines.muon import Muon
from microgpt.training.options import default_learning_rate, muon_of, resolved

FIELDS = TrainConfig.__struct_fields__
OTHERS: dict[str, Any] = {  # a value of each that is not its default
    "steps": 4,
    "learning_rate": 0.02,
    "batch_size": 2,
    "warmup_steps": 1,
    "schedule": "cosine",
    "clip": 1.0,
    "weight_decay": 0.1,
    "optimizer": "muon",
    "muon_learning_rate": 0.03,
    "muon_momentum": 0.9,
    "muon_iterations": 3,
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 2,
    "tokenizer": "bpe",
    "vocab_size": 300,
    "block_size": 4,
    "long": "split",
    "loss_on": "assistant",
    "shuffle": False,
    "val_fraction": 0.3,
    "eval_every": 2,
    "patience": 3,
    "seed": 7,
    "dtype": "float64",
    "engine": "vectorized",
}


@pytest.mark.parametrize(("n_embd", "rate"), [(16, 0.01), (64, 0.005), (256, 0.0025)])
def test_default_rate_beside_muon_shrinks_with_the_root_of_the_width(
    n_embd: int, rate: float
) -> None:
    config = resolved(TrainConfig(n_embd=n_embd, optimizer="muon"))
    assert (config.learning_rate, config.muon_learning_rate) == (rate, 0.02)
    assert (config.muon_momentum, config.muon_iterations) == (0.95, 5)


def test_chosen_options_of_muon_are_kept() -> None:
    chosen: dict[str, Any] = {
        "muon_learning_rate": 0.03,
        "muon_momentum": 0.0,
        "muon_iterations": 3,
    }
    config = resolved(TrainConfig(optimizer="muon", learning_rate=0.004, **chosen))
    assert {name: getattr(config, name) for name in chosen} == chosen
    assert muon_of(config) == Muon(7.5, 0.0, 3)
    assert muon_of(resolved(TrainConfig())) is None


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
        ({"optimizer": "sgd"}, "optimizer is 'sgd', expected one of adam, muon"),
        ({"optimizer": "muon", "muon_momentum": 1.0}, "at least 0 and below 1"),
        ({"optimizer": "muon", "muon_iterations": 0}, "muon_iterations is 0, expected an integer"),
        ({"optimizer": "muon", "muon_learning_rate": 0.0}, "muon_learning_rate is 0.0"),
        ({"muon_learning_rate": 0.1}, "muon_learning_rate is 0.1, expected None without optimizer"),
        ({"muon_momentum": 0.0}, "muon_momentum is 0.0, expected None without optimizer muon"),
        ({"muon_iterations": 5}, "muon_iterations is 5, expected None without optimizer muon"),
        ({"tokenizer": "words"}, "tokenizer is 'words', expected one of characters, bpe"),
        ({"vocab_size": 300}, "vocab_size is 300, expected None without tokenizer bpe"),
        (
            {"vocab_size": 0, "tokenizer": "bpe"},
            "vocab_size is 0, expected an integer of at least 1",
        ),
        ({"schedule": "step"}, "schedule is 'step', expected one of linear, cosine, constant"),
    ],
)
def test_numbers_out_of_their_domain_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**option)


# ---------------------------------------------------------------- the schema


def test_fit_has_a_keyword_with_the_default_of_each_option() -> None:
    parameters = inspect.signature(microgpt.fit).parameters
    defaults = {name: p.default for name, p in parameters.items() if name in FIELDS}
    assert defaults == {name: getattr(TrainConfig(), name) for name in FIELDS}
    hints = get_type_hints(microgpt.fit)
    bare = get_type_hints(TrainConfig)
    assert {name: hints[name] for name in FIELDS} == bare


@pytest.mark.parametrize(("name", "value"), OTHERS.items())
def test_fit_hands_every_option_on(name: str, value: Any) -> None:
    needs_others = name in ("warmup_steps", "patience", "vocab_size") or name.startswith("muon")
    given = OTHERS if needs_others else {name: value}
    if name == "loss_on":
        with pytest.raises(DataError, match="expected conversations"):
            microgpt.fit(["anna", "bob", "otto"], steps=1, loss_on=value)
        return
    given = {key: each for key, each in given.items() if key != "loss_on"}
    model = microgpt.fit(["anna", "bob", "otto"], **({"steps": 3} | given))
    assert model.training is not None
    made = model.training.options | {"seed": model.training.seed}
    assert made[name] == value


def test_every_option_has_another_value_in_these_tests() -> None:
    assert OTHERS.keys() == set(FIELDS)
    assert all(value != getattr(TrainConfig(), name) for name, value in OTHERS.items())


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_is_described(name: str) -> None:
    hint = get_type_hints(TrainConfig, include_extras=True)[name]
    assert hint.__metadata__[0].description


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, int])
def test_numbers_of_numpy_become_plain_ones(kind: Any) -> None:
    share: Any = np.float32(0.5)
    config = TrainConfig(steps=kind(5), batch_size=kind(2), weight_decay=share)
    assert (config.steps, config.batch_size, config.weight_decay) == (5, 2, 0.5)
    assert type(config.steps) is int
    assert type(config.weight_decay) is float
    assert msgspec.json.decode(msgspec.json.encode(config), type=TrainConfig) == config


def test_none_is_resolved_from_the_width_and_the_machine() -> None:
    config = resolved(TrainConfig(n_embd=64))
    assert config.learning_rate == 0.0025
    assert config.engine in microgpt.ENGINES[1:]
    assert resolved(config) == config
    assert resolved(TrainConfig(n_embd=64, learning_rate=0.5)).learning_rate == 0.5


def test_sizes_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^n_embd \(10\) must be divisible by n_head \(4\)$"):
        TrainConfig(n_embd=10)


def test_prepare_takes_fields_in_place_of_those_of_the_config() -> None:
    dataset = microgpt.Dataset.from_documents(["anna", "bob"])
    config = TrainConfig(n_embd=8, n_layer=2)
    model, trainer = microgpt.prepare(dataset, config, n_embd=12, engine="vectorized")
    assert (model.config.n_embd, model.config.n_layer) == (12, 2)
    assert (trainer.config.n_embd, trainer.config.engine) == (12, "vectorized")
    with pytest.raises(TypeError, match="n_embed"):
        microgpt.prepare(dataset, config, n_embed=12)


def test_seed_is_recorded_where_the_draws_are_of_it() -> None:
    dataset = microgpt.Dataset.from_documents(["anna", "bob"])

    def seed(rng: random.Random | None) -> int | None:
        _, trainer = microgpt.prepare(dataset, TrainConfig(seed=7), rng)
        return trainer.record().seed

    assert [seed(None), seed(random.Random(7)), seed(random.Random(8))] == [7, 7, None]


def test_generator_without_a_state_has_no_seed() -> None:
    dataset = microgpt.Dataset.from_documents(["anna", "bob"])
    _, trainer = microgpt.prepare(dataset, TrainConfig(), random.SystemRandom())
    assert trainer.record().seed is None
