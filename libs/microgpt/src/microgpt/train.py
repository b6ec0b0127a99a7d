"""Learning: the Adam optimizer, one reference step over `Value`, and the loop over any engine."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from microgpt.autograd import Value
from microgpt.data import Dataset
from microgpt.engines.base import ADAM_EPS, BETA1, BETA2, Engine
from microgpt.errors import ConfigError, NonFiniteLossError
from microgpt.model import GPT

__all__ = ["Adam", "StepReport", "TrainConfig", "Trainer", "default_learning_rate", "train_step"]


def default_learning_rate(n_embd: int) -> float:
    """Return 0.01 x 16 / n_embd: Adam's best rate shrinks as the model gets wider.

    Source: Yang et al. 2022, arXiv:2203.03466; 0.01 is microgpt.py's, at its own width.
    """
    return 0.01 * 16 / n_embd


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    Args:
        steps: number of updates.
        learning_rate: of the first step; it falls linearly towards 0 after the last. None for
            `default_learning_rate` of the model's width.
        batch_size: documents per step.
        clip: longest gradient; None for any.
        weight_decay: share of each weight, times the learning rate, taken off at each step.

    Raises:
        ConfigError: a number is out of its domain.
    """

    steps: int = 1000
    learning_rate: float | None = None
    batch_size: int = 1
    clip: float | None = None
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ConfigError(f"{name} is {count!r}, expected an integer of at least 1")
        for name in ("learning_rate", "clip"):
            number = getattr(self, name)
            if number is not None and not 0.0 < number < math.inf:
                raise ConfigError(f"{name} is {number!r}, expected a finite number above 0")
        if not 0.0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"weight_decay is {self.weight_decay!r}, expected a finite number of at least 0"
            )


class Adam:
    """The optimizer over `Value`, one number at a time: the reference for the engines' own.

    Args:
        parameters: what to train.
        beta1: how much of the running mean of gradients is kept each step.
        beta2: how much of the running mean of their squares.
        eps: added to the root of the latter.

    Example:
        >>> x = Value(1.0)
        >>> adam = Adam([x])
        >>> for _ in range(20):
        ...     (x * x).backward()
        ...     adam.step(learning_rate=0.1)
        >>> abs(x.data) < 0.5
        True

    Source: Kingma & Ba 2015, arXiv:1412.6980; the constants are microgpt.py's.
    """

    def __init__(
        self,
        parameters: Sequence[Value],
        beta1: float = BETA1,
        beta2: float = BETA2,
        eps: float = ADAM_EPS,
    ) -> None:
        self.parameters = list(parameters)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.m = [0.0] * len(self.parameters)
        self.v = [0.0] * len(self.parameters)
        self.n_updates = 0

    def step(self, learning_rate: float) -> None:
        """Move every parameter against its gradient, and set the gradients to 0."""
        self.n_updates += 1
        for i, parameter in enumerate(self.parameters):
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * parameter.grad
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * parameter.grad**2
            m_hat = self.m[i] / (1 - self.beta1**self.n_updates)
            v_hat = self.v[i] / (1 - self.beta2**self.n_updates)
            parameter.data -= learning_rate * m_hat / (v_hat**0.5 + self.eps)
            parameter.grad = 0.0


def train_step(
    model: GPT, optimizer: Adam, token_ids: Sequence[int], learning_rate: float
) -> float:
    """Learn from one document: forward, backward, update.

    Args:
        model: over `Value`.
        optimizer: of that model's parameters.
        token_ids: at least 2 ids; what exceeds block_size + 1 is left out.
        learning_rate: of this step.

    Returns:
        The mean loss in nats, before the update.

    Raises:
        ShapeError: fewer than 2 tokens.
        TokenError: an id is not in the vocabulary.
        NonFiniteLossError: the loss is NaN or infinite; nothing was changed.

    Example:
        >>> import random
        >>> from microgpt import ModelConfig
        >>> model = GPT.init(ModelConfig(vocab_size=3, n_embd=4), random.Random(42))
        >>> adam = Adam(model.parameters())
        >>> losses = [train_step(model, adam, [2, 0, 1, 2], learning_rate=0.1) for _ in range(9)]
        >>> losses[-1] < losses[0] / 2
        True
    """
    loss = model.loss(token_ids)
    if not math.isfinite(loss.data):
        raise NonFiniteLossError(optimizer.n_updates + 1, learning_rate, loss.data)
    loss.backward()
    optimizer.step(learning_rate)
    return loss.data


@dataclass(frozen=True)
class StepReport:
    """One training step, as the `Trainer` tells it.

    Args:
        step: counted from 1.
        loss: mean over the predicted tokens, in nats, before the update.
        learning_rate: of this step.
        n_tokens: predicted tokens.
    """

    step: int
    loss: float
    learning_rate: float
    n_tokens: int


class Trainer:
    """Trains an engine on a dataset, one report per step.

    Args:
        engine: holds the weights; they are changed in place.
        dataset: encoded documents.
        order: indices into `dataset`; taken from the start again after the last.
        config: steps, rate, batch size.

    Attributes:
        step: steps taken so far.
        learning_rate: of the first step.

    Raises:
        ConfigError: there is nothing in `order`.

    Example:
        >>> import random
        >>> import microgpt
        >>> dataset = Dataset.from_documents(["anna", "bob", "hannah"])
        >>> rng = random.Random(42)
        >>> model, trainer = microgpt.prepare(dataset, TrainConfig(steps=3), rng)
        >>> [(report.step, round(report.loss, 2)) for report in trainer]
        [(1, 1.82), (2, 1.8), (3, 1.72)]
    """

    def __init__(
        self, engine: Engine, dataset: Dataset, order: Sequence[int], config: TrainConfig
    ) -> None:
        self.engine = engine
        self.dataset = dataset
        self.order = order
        self.config = config
        self.step = 0
        rate = config.learning_rate
        self.learning_rate = default_learning_rate(engine.config.n_embd) if rate is None else rate
        if len(order) == 0:
            raise ConfigError("the order names no document, expected at least one")

    def __iter__(self) -> Iterator[StepReport]:
        """Take the remaining steps one by one."""
        while self.step < self.config.steps:
            yield from self.advance(1)

    def advance(self, n_steps: int) -> list[StepReport]:
        """Take up to `n_steps` of the remaining steps in one call, and report each.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite; the weights are those before that step.
        """
        steps = range(self.step, min(self.step + n_steps, self.config.steps))
        batch_size = self.config.batch_size
        batches = self.dataset.batches(
            [
                self.order[i % len(self.order)]
                for i in range(steps.start * batch_size, steps.stop * batch_size)
            ],
            batch_size,
            self.engine.config.block_size,
        )
        rates = [self.learning_rate * (1 - step / self.config.steps) for step in steps]
        results = self.engine.train_steps(
            batches, rates, self.config.clip, self.config.weight_decay
        )
        self.step = steps.stop
        return [
            StepReport(step + 1, result.loss, rate, result.n_tokens)
            for step, rate, result in zip(steps, rates, results, strict=True)
        ]
