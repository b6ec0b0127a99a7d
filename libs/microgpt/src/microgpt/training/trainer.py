"""The training loop over any engine, one report per step."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial

import msgspec
import numpy as np

from microgpt.checks import check_type
from microgpt.corpus.batches import Batch, Batches
from microgpt.corpus.dataset import Dataset
from microgpt.corpus.windows import drawn_windows
from microgpt.engines.base import Engine, StepResult
from microgpt.engines.muon import Muon, muon_matrices
from microgpt.errors import ConfigError, NonFiniteLossError, RankLostError
from microgpt.history import StepReport
from microgpt.storage.model_directory import Origin, TrainingRecord
from microgpt.training.options import TrainConfig, muon_of, resolved
from microgpt.training.ranks import Ranks
from microgpt.training.validation import Best, Validation, validation_loss
from microgpt.version import VERSION

__all__ = ["Trainer"]

ROWS_AHEAD = 16_384  # positions whose batches are prepared together where steps are taken singly


def shared_loss_and_grads(engine: Engine, ranks: Ranks, batch: Batch) -> tuple[float, int]:
    """Compute `Engine.loss_and_grads` of a batch that the processes share.

    Raises:
        RankLostError: another process no longer answers.
    """
    nll, n_tokens = ranks.add_up(*engine.loss_and_grads(ranks.share(batch)))
    ranks.add(engine.grads.flat)
    return nll, n_tokens


def shared_update(
    engine: Engine,
    ranks: Ranks,
    learning_rate: float,
    clip: float | None,
    weight_decay: float,
    muon: Muon | None,
) -> float | None:
    """Compute `Engine.update` with a share of Muon's matrices on each process.

    Raises:
        RankLostError: another process no longer answers; the engine is as before.
    """
    if muon is None:
        return engine.update(learning_rate, clip, weight_decay)
    state = engine.parameters.flat, engine.adam_m.flat, engine.adam_v.flat
    before = [array.copy() for array in state]
    share = replace(muon, first=ranks.rank, every=ranks.size)
    norm = engine.update(learning_rate, clip, weight_decay, share)
    names = muon_matrices(engine.parameters)
    shares = [names[rank :: ranks.size] for rank in range(ranks.size)]
    changed = engine.parameters, engine.adam_m
    try:
        ranks.exchange([[array[name] for name in names for array in changed] for names in shares])
    except RankLostError:
        for array, content in zip(state, before, strict=True):
            array[:] = content
        engine.n_updates -= 1
        raise
    return norm


class Trainer:
    """Trains an engine on a dataset, one report per step.

    Args:
        engine: holds the weights, which are changed in place.
        dataset: encoded documents.
        order: indices into `dataset`; taken from the start again after the last. With `long`
            "window", each time is another window of the document.
        config: options of the run; sizes, type and engine are those of `engine`.
        validation: documents to validate on; None for no validation.
        ranks: processes to share every batch with; None to train alone.
        seed: of the draws behind `order` and the initial weights, for `record`; None if unknown.
        origin: the model that the weights come from, for `record`; None for initial weights.

    Attributes:
        config: options of the run, with its learning rate and engine.
        step: steps taken so far.
        loss: of the last step, in nats per token; None before the first.
        best: the best model so far, with validation.

    Raises:
        ConfigError: `order` has less than one batch; or the processes are not set up alike, or
            there are more of them than documents in a batch; or windows of conversations.

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
        seed: int | None = None,
        origin: Origin | None = None,
    ) -> None:
        check_type("config", config, TrainConfig)
        self.engine = engine
        self._whole_dataset = dataset  # the digest is of the documents as given
        self._draws_windows = config.long == "window"
        self.dataset = dataset.fitted(
            engine.config.block_size, "window" if self._draws_windows else "truncate"
        )
        self.order = order
        self.config = _config_of(engine, config)
        self.validation = validation
        self.ranks = ranks
        self.seed = seed
        self.origin = origin
        self.step = 0
        self.best: Best | None = None
        self.loss: float | None = None
        if config.patience and validation is None:
            raise ConfigError(
                f"patience is {config.patience} without validation, expected val_fraction or "
                "validation documents too"
            )
        if len(order) < config.batch_size:
            raise ConfigError(
                f"the number of {'windows' if self._draws_windows else 'documents'} to train on "
                f"is {len(order)}, expected at least batch_size={config.batch_size}"
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
            ranks.check_same(self.digest, self.config, eval_every, weights)

    def __repr__(self) -> str:
        loss = "" if self.loss is None else f", loss {self.loss:.3f}"
        return f"<Trainer: step {self.step:,} of {self.config.steps:,}{loss}>"

    @property
    def learning_rate(self) -> float:
        """The highest learning rate."""
        assert self.config.learning_rate is not None, "resolved"
        return self.config.learning_rate

    @cached_property
    def positions_per_step(self) -> float:
        """Mean number of positions that a step reads."""
        lengths = np.minimum(self.dataset.lengths, self.engine.config.block_size)
        return self.config.batch_size * float(lengths.mean())

    @cached_property
    def digest(self) -> str:
        """A hash of the documents trained on and validated on, of their order and their windows."""
        digests = [
            self._whole_dataset.digest(),
            hashlib.sha256(np.asarray(self.order).data).hexdigest(),
        ]
        if self.validation:
            digests.append(self.validation.dataset.digest())
        if self._draws_windows:
            digests.append(f"windows of seed {self.config.seed}")
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def __iter__(self) -> Iterator[StepReport]:
        """Take the remaining steps one by one: after each report the weights are those of its step.

        Raises:
            NonFiniteLossError: see `advance`.
        """
        n_ahead = 1 + int(ROWS_AHEAD / self.positions_per_step)
        while steps := self._next_steps(n_ahead):
            yield from self._one_by_one(steps)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are taken, or `patience` has ended the run before."""
        return self.step >= self.config.steps or self.has_lost_patience

    @property
    def has_lost_patience(self) -> bool:
        """Whether the last `patience` validations were not better than one before."""
        if not (self.config.patience and self.validation and self.best):
            return False
        every = self.validation.every
        return self.step // every - self.best.step // every >= self.config.patience

    def advance(self, n_steps: int) -> list[StepReport]:
        """Take up to `n_steps` of the remaining steps in one call, and report each.

        Steps end early at the next validation, and with it where `patience` ends the run.

        Args:
            n_steps: the most to take.

        Returns:
            One report for each step that was taken; none after the last step.

        Raises:
            NonFiniteLossError: the loss of a step is not finite, and that step changed nothing;
                or a weight is not finite after the last step.
        """
        steps = self._next_steps(n_steps)
        if not steps:
            return []
        rates = self._rates(steps)
        n_updates = self.engine.n_updates
        try:
            results = self._train_steps(self._batches(steps), rates)
        finally:
            self.step += self.engine.n_updates - n_updates
        reports = [
            StepReport(step + 1, result.loss, rate, result.n_tokens, result.grad_norm)
            for step, rate, result in zip(steps, rates, results, strict=True)
        ]
        self.loss = reports[-1].loss
        reports[-1] = self._checked(reports[-1])
        return reports

    def _one_by_one(self, steps: range) -> Iterator[StepReport]:
        """Take steps whose batches are prepared together; end early where others train too."""
        engine, config, rates = self.engine, self.config, self._rates(steps)
        n_before = engine.n_updates - self.step  # as ever, but where others train the engine
        results = self._each_step(self._batches(steps), rates)
        for step, rate in zip(steps, rates, strict=True):
            if engine.n_updates - step != n_before or self.config is not config:
                return
            try:
                loss, n_tokens, grad_norm = next(results)
            finally:
                self.step = engine.n_updates - n_before
            self.loss = loss
            report = StepReport(step + 1, loss, rate, n_tokens, grad_norm)
            yield report if self.step < steps.stop else self._checked(report)

    def _next_steps(self, n_steps: int) -> range:
        """Return up to `n_steps` of the remaining steps, up to the next validation."""
        if self.is_finished:
            return range(0)
        end = min(self.step + n_steps, self.config.steps)
        if self.validation:
            end = min(end, self.step + self.validation.every - self.step % self.validation.every)
        return range(self.step, end)

    def _rates(self, steps: range) -> list[float]:
        return [self.learning_rate * self.config.rate_at(step) for step in steps]

    def _checked(self, report: StepReport) -> StepReport:
        """Validate where it is time, and check the last weights; return the report with both."""
        if self.step == self.config.steps:
            self._check_last_update(report.learning_rate)
        if self.validation and (
            self.step % self.validation.every == 0 or self.step == self.config.steps
        ):
            report = report._replace(val_loss=self._validate(self.validation))
        return report

    def _batches(self, steps: range) -> Batches:
        batch_size = self.config.batch_size
        entries = range(steps.start * batch_size, steps.stop * batch_size)
        indices = [self.order[i % len(self.order)] for i in entries]
        if not self._draws_windows:
            return self.dataset.batches(indices, batch_size)
        windows = drawn_windows(
            self.dataset, indices, self.config.block_size, self.config.seed, steps
        )
        return windows.batches(range(len(windows)), batch_size)

    def _train_steps(
        self, batches: Batches | Sequence[Batch], rates: Sequence[float]
    ) -> list[StepResult]:
        engine = self.engine
        if self.ranks is None:
            return engine.train_steps(batches, rates, *self._update_options())
        compute = partial(shared_loss_and_grads, engine, self.ranks)
        update = partial(shared_update, engine, self.ranks)
        return engine.take_steps(compute, update, batches, rates, *self._update_options())

    def _each_step(
        self, batches: Batches, rates: Sequence[float]
    ) -> Iterator[tuple[float, int, float | None]]:
        """Take each step when its result is asked for."""
        if self.ranks is None:
            return self.engine.each_step(batches, rates, *self._update_options())
        pairs = zip(batches, rates, strict=True)
        return (result for batch, rate in pairs for result in self._train_steps([batch], [rate]))

    def _update_options(self) -> tuple[float | None, float, Muon | None]:
        return self.config.clip, self.config.weight_decay, muon_of(self.config)

    def _check_last_update(self, rate: float) -> None:
        """Raise if the last weights, which no later step checks, are not finite."""
        weights = self.engine.parameters.flat
        if not np.isfinite(weights).all():
            number = float(weights[~np.isfinite(weights)][0])
            raise NonFiniteLossError(self.step, rate, number, what="a weight")

    def _validate(self, validation: Validation) -> float:
        val_loss = validation_loss(self.engine, validation, self.ranks)
        if not math.isfinite(val_loss):
            rate = self.learning_rate * self.config.rate_at(self.step - 1)
            raise NonFiniteLossError(self.step, rate, val_loss, what="validation loss")
        if self.best is None or val_loss < self.best.val_loss:
            self.best = Best(val_loss, self.step, self.engine.parameters.flat.copy())
        return val_loss

    def use_best(self) -> None:
        """Replace the weights by the best so far, where there is validation; ends training."""
        if self.best is not None:
            self.engine.parameters.flat[:] = self.best.weights

    def record(self) -> TrainingRecord:
        """Return how the model was made so far."""
        options = msgspec.to_builtins(self.config)
        del options["seed"]
        return TrainingRecord(
            options=options,
            seed=self.seed,
            data_digest=self.digest,
            steps=self.step,
            loss=self.loss,
            val_loss=self.best.val_loss if self.best else None,
            library_version=VERSION,
            init_from=self.origin,
        )


def _config_of(engine: Engine, config: TrainConfig) -> TrainConfig:
    """Return the options of a run on this engine, resolved."""
    sizes = engine.config
    return resolved(
        msgspec.structs.replace(
            config,
            n_embd=sizes.n_embd,
            n_head=sizes.n_head,
            n_layer=sizes.n_layer,
            block_size=sizes.block_size,
            dtype=engine.parameters.dtype,
            engine=engine.name,
        )
    )
