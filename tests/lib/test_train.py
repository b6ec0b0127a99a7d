import math
import random

import numpy as np
import pytest
from microgpt import GPT, Adam, ModelConfig, NonFiniteLossError, Value, train_step
from microgpt.train import train


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


# ---------------------------------------------------------------- clipping and weight decay


def test_longer_gradient_is_scaled_to_the_norm_it_is_clipped_to() -> None:
    clipped, scaled = [Value(1.0), Value(1.0)], [Value(1.0), Value(1.0)]
    for values, grads in ((clipped, (3.0, 4.0)), (scaled, (0.3, 0.4))):
        for value, grad in zip(values, grads, strict=True):
            value.grad = grad
    norm = Adam(clipped).step(0.1, clip=0.5)
    Adam(scaled).step(0.1)
    assert norm == 5.0
    assert [v.data for v in clipped] == pytest.approx([v.data for v in scaled], rel=1e-12)


def test_shorter_gradient_is_not_clipped() -> None:
    values = [Value(1.0), Value(1.0)]
    values[0].grad, values[1].grad = 3.0, 4.0
    adam = Adam(values)
    assert adam.step(0.1, clip=6.0) == 5.0
    assert adam.m == pytest.approx([0.15 * 3.0, 0.15 * 4.0])
    assert Adam([Value(1.0)]).step(0.1, clip=1.0) == 0.0  # no gradient, no division by its norm


def test_weight_decay_takes_off_a_share_before_the_step() -> None:
    value = Value(2.0)
    Adam([value]).step(0.1, weight_decay=0.5)
    assert value.data == pytest.approx(2.0 * (1 - 0.1 * 0.5))


# ---------------------------------------------------------------- the loop


def test_loop_takes_documents_in_turn_at_a_falling_rate() -> None:
    config = ModelConfig(vocab_size=3, n_embd=4)
    looped, stepped = (GPT.init(config, random.Random(1)) for _ in range(2))
    documents = [[2, 0, 1, 2], [2, 1, 2], [2, 0, 2]]
    losses = list(train(looped, documents, steps=4, learning_rate=0.1))
    adam = Adam(stepped.parameters())
    expected = [train_step(stepped, adam, documents[i % 3], 0.1 * (1 - i / 4)) for i in range(4)]
    assert losses == expected
    assert [p.data for p in looped.parameters()] == [p.data for p in stepped.parameters()]
