"""Learning: the Adam optimizer, one reference step over `Value`, and the loop over any engine."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from microgpt.autograd import Value
from microgpt.checks import check_type, is_integer, is_number
from microgpt.corpus.dataset import Batch, Batches, Dataset
from microgpt.engines.base import ADAM_EPS, BETA1, BETA2, Engine, StepResult
from microgpt.errors import ConfigError, NonFiniteLossError
from microgpt.inference.score import ROWS_TOGETHER
from microgpt.model import GPT
from microgpt.parameters import FloatArray
from microgpt.training.ranks import Ranks

__all__ = [
    "Adam",
    "Best",
    "StepReport",
    "TrainConfig",
    "Trainer",
    "Validation",
    "default_learning_rate",
    "evaluate",
    "train_step",
]


def default_learning_rate(n_embd: int) -> float:
    """Return 0.01 x 16 / n_embd: Adam's best rate shrinks as the model gets wider.

    Source: Yang et al. 2022, arXiv:2203.03466; 0.01 is microgpt.py's, at its own width.
    """
    return 0.01 * 16 / n_embd


Schedule: TypeAlias = Literal["linear", "cosine", "constant"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    Args:
        steps: number of updates.
        learning_rate: the highest; None for `default_learning_rate` of the model's width.
        batch_size: documents per step.
        warmup_steps: over how many first steps the rate rises from 0 to its highest.
        schedule: what it does then: "linear" falls towards 0 after the last step, "cosine" does so
            slowly, fast and slowly, "constant" stays.
        clip: longest gradient; None for any.
        weight_decay: share of each weight, times the learning rate, taken off at each step.

    Raises:
        ConfigError: a number is out of its domain.
    """

    steps: int = 1000
    learning_rate: float | None = None
    batch_size: int = 1
    warmup_steps: int = 0
    schedule: Schedule = "linear"
    clip: float | None = None
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ConfigError(f"{name} is {count!r}, expected an integer of at least 1")
        for name in ("learning_rate", "clip"):
            number = getattr(self, name)
            if number is not None and not (is_number(number) and 0.0 < number < math.inf):
                raise ConfigError(f"{name} is {number!r}, expected a finite number above 0")
        if not is_integer(self.warmup_steps) or not 0 <= self.warmup_steps < self.steps:
            raise ConfigError(
                f"warmup_steps is {self.warmup_steps!r:.80}, expected at least 0 and less than the "
                f"{self.steps} steps of the run"
            )
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"schedule is {self.schedule!r}, expected one of {', '.join(SCHEDULES)}"
            )
        if not is_number(self.weight_decay) or not 0.0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"weight_decay is {self.weight_decay!r}, expected a finite number of at least 0"
            )

    def rate_at(self, step: int) -> float:
        """Return the share of the highest learning rate that `step`, counted from 0, takes.

        Args:
            step: 0 to `steps` - 1.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        if self.schedule == "linear":
            return 1 - progress
        return (1 + math.cos(math.pi * progress)) / 2 if self.schedule == "cosine" else 1.0


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
        """Move every parameter against its gradient, and set the gradients to 0.

        Args:
            learning_rate: how far to move, at most about; in the units of the parameters.
        """
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


@np.errstate(over="ignore", invalid="ignore")  # a model that diverges is told by its loss
def evaluate(
    engine: Engine, dataset: Dataset, order: Sequence[int], ranks: Ranks | None = None
) -> float:
    """Return the mean loss of documents in nats per predicted token.

    Args:
        engine: any.
        dataset: each document as long as the engine's block at most; see `Dataset.fitted`.
        order: which documents, at least one.
        ranks: processes to share them with.
    """
    longest = int(dataset.lengths[np.asarray(order)].max())
    n_together = max(1, ROWS_TOGETHER // longest)
    total, n_tokens = 0.0, 0
    if ranks:
        order = ranks.share_of(order)
    for first in range(0, len(order), n_together):
        batch = dataset.batch(order[first : first + n_together], engine.config.block_size)
        nll, n = engine.loss(batch)
        total += nll
        n_tokens += n
    if ranks:
        total, n_tokens = ranks.add_up(total, n_tokens)
    return total / n_tokens


def shared_loss_and_grads(engine: Engine, ranks: Ranks, batch: Batch) -> tuple[float, int]:
    """Do what `Engine.loss_and_grads` does, with the batch shared among processes.

    Raises:
        RankLostError: another process no longer answers.
    """
    nll, n_tokens = ranks.add_up(*engine.loss_and_grads(ranks.share(batch)))
    ranks.add(engine.grads.flat)
    return nll, n_tokens


@dataclass(frozen=True)
class Validation:
    """Held-out documents, and how often to look at them.

    Args:
        dataset: encoded with the tokenizer of the training set.
        order: which of its documents, at least one.
        every: steps between two looks; there is one more after the last step.

    Raises:
        ConfigError: there is nothing in `order`, or `every` is below 1.
    """

    dataset: Dataset
    order: Sequence[int]
    every: int = 100

    def __post_init__(self) -> None:
        if len(self.order) == 0 or self.every < 1:
            raise ConfigError(
                f"documents to validate on: {len(self.order)}, steps between: {self.every}; "
                "expected at least 1 of each"
            )


class StepReport(NamedTuple):
    """One training step, as the `Trainer` tells it.

    Args:
        step: counted from 1.
        loss: mean over the predicted tokens, in nats, before the update.
        learning_rate: of this step.
        n_tokens: predicted tokens.
        grad_norm: of the gradient before clipping; None without clipping.
        val_loss: mean over the held-out tokens, in nats, after the update; None between two looks.
    """

    step: int
    loss: float
    learning_rate: float
    n_tokens: int
    grad_norm: float | None = None
    val_loss: float | None = None


@dataclass(frozen=True)
class Best:
    """The model with the least validation loss so far.

    Args:
        val_loss: in nats per token.
        step: after which it was seen.
        weights: a copy, laid out as `Parameters.flat`.
    """

    val_loss: float
    step: int
    weights: FloatArray


class Trainer:
    """Trains an engine on a dataset, one report per step.

    Args:
        engine: holds the weights; they are changed in place.
        dataset: encoded documents.
        order: indices into `dataset`; taken from the start again after the last.
        config: steps, rate, batch size.
        validation: what to measure the model on; None for nothing.
        ranks: processes that do the same, to share every batch with; None to train alone.

    Attributes:
        step: steps taken so far.
        learning_rate: the highest.
        best: the best model so far, with validation.

    Raises:
        ConfigError: there is nothing in `order`, or less than one batch; or the processes are not
            set up alike, or more than there are documents in a batch.

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
        self,
        engine: Engine,
        dataset: Dataset,
        order: Sequence[int],
        config: TrainConfig,
        validation: Validation | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.engine = engine
        self.dataset = dataset
        self.order = order
        self.config = config
        self.validation = validation
        self.ranks = ranks
        self.step = 0
        self.best: Best | None = None
        rate = config.learning_rate
        self.learning_rate = default_learning_rate(engine.config.n_embd) if rate is None else rate
        if len(order) < config.batch_size:
            raise ConfigError(
                f"the number of documents to train on is {len(order)}, expected at least "
                f"batch_size={config.batch_size}"
            )
        if ranks is not None:
            check_type("ranks", ranks, Ranks)
            if config.batch_size < ranks.size:
                raise ConfigError(
                    f"batch_size is {config.batch_size}, expected at least one document for each "
                    f"of the {ranks.size} processes"
                )
            weights = hashlib.sha256(engine.parameters.flat.data).hexdigest()
            eval_every = validation and validation.every
            ranks.check_same(self.digest, config, eval_every, weights)

    @cached_property
    def digest(self) -> str:
        """A hash of the documents that are trained on and measured on, and of their order."""
        digests = [self.dataset.digest(), hashlib.sha256(np.array(self.order).data).hexdigest()]
        if self.validation:
            digests.append(self.validation.dataset.digest())
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def __iter__(self) -> Iterator[StepReport]:
        """Take the remaining steps one by one."""
        while self.step < self.config.steps:
            yield from self.advance(1)

    def advance(self, n_steps: int) -> list[StepReport]:
        """Take up to `n_steps` of the remaining steps in one call, and report each.

        There are fewer where the next look at the validation set comes before.

        Args:
            n_steps: the most to take.

        Returns:
            One report for each step that was taken; none after the last step.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite, and the weights are those that gave it;
                or a weight is after the last step.
        """
        end = min(self.step + n_steps, self.config.steps)
        if self.validation:
            end = min(end, self.step + self.validation.every - self.step % self.validation.every)
        steps = range(self.step, end)
        if not steps:
            return []
        batch_size = self.config.batch_size
        batches = self.dataset.batches(
            [
                self.order[i % len(self.order)]
                for i in range(steps.start * batch_size, steps.stop * batch_size)
            ],
            batch_size,
            self.engine.config.block_size,
        )
        rates = [self.learning_rate * self.config.rate_at(step) for step in steps]
        n_updates = self.engine.n_updates
        try:
            results = self._train_steps(batches, rates)
        finally:
            self.step += self.engine.n_updates - n_updates
        reports = [
            StepReport(step + 1, result.loss, rate, result.n_tokens, result.grad_norm)
            for step, rate, result in zip(steps, rates, results, strict=True)
        ]
        if end == self.config.steps:
            self._check_last_update(rates[-1])
        if self.validation and (end % self.validation.every == 0 or end == self.config.steps):
            reports[-1] = reports[-1]._replace(val_loss=self._validate(self.validation))
        return reports

    def _train_steps(self, batches: Batches, rates: Sequence[float]) -> list[StepResult]:
        engine, how = self.engine, (self.config.clip, self.config.weight_decay)
        if self.ranks is None:
            return engine.train_steps(batches, rates, *how)
        compute = partial(shared_loss_and_grads, engine, self.ranks)
        return engine.take_steps(compute, batches, rates, *how)

    def _check_last_update(self, rate: float) -> None:
        """Raise if the last weights, of which no loss will be taken, are not finite."""
        weights = self.engine.parameters.flat
        if not np.isfinite(weights).all():
            spoilt = float(weights[~np.isfinite(weights)][0])
            raise NonFiniteLossError(self.step, rate, spoilt, what="a weight")

    def _validate(self, validation: Validation) -> float:
        val_loss = evaluate(self.engine, validation.dataset, validation.order, self.ranks)
        if not math.isfinite(val_loss):
            rate = self.learning_rate * self.config.rate_at(self.step - 1)
            raise NonFiniteLossError(self.step, rate, val_loss, what="validation loss")
        if self.best is None or val_loss < self.best.val_loss:
            self.best = Best(val_loss, self.step, self.engine.parameters.flat.copy())
        return val_loss

    def use_best(self) -> None:
        """Put the best weights so far in the place of the current ones; training is over."""
        if self.best is not None:
            self.engine.parameters.flat[:] = self.best.weights
