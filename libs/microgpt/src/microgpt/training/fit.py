"""From a dataset to a model: `prepare` sets up a run, `fit` trains to the end."""

import random
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from microgpt.checks import check_type
from microgpt.corpus.dataset import Dataset, Long
from microgpt.errors import ConfigError, DataError, TokenError
from microgpt.inference.language_model import LanguageModel
from microgpt.inference.samples import WORK_TOGETHER
from microgpt.parameters import Parameters
from microgpt.training.options import DEFAULTS, Dtype, LossOn, Schedule, TrainConfig, resolved
from microgpt.training.ranks import Ranks
from microgpt.training.trainer import Trainer
from microgpt.training.validation import Validation

__all__ = ["fit", "prepare"]


def prepare(
    dataset: Dataset,
    train_config: TrainConfig,
    rng: random.Random | None = None,
    *,
    val_dataset: Dataset | None = None,
    threads: int | None = None,
    ranks: Ranks | None = None,
    **options: Any,
) -> tuple[LanguageModel, Trainer]:
    """Return a model with initial weights, and a trainer that will train it in place.

    Draws from `rng` in this order: the shuffle of the documents (unless `shuffle` is False), then
    the initial weights. Training draws nothing, so samples may continue with the same generator.

    Args:
        dataset: documents or conversations to learn from.
        train_config: options of the run.
        rng: the source of all randomness; None for `random.Random(train_config.seed)`.
        val_dataset: other documents to validate on, without a share of `dataset`.
        threads: cores to use; None for all.
        ranks: MPI processes that share every batch, each of which calls `prepare` with the same
            arguments; None for one process.
        **options: fields of `TrainConfig` that replace those of `train_config`.

    Raises:
        ConfigError: an option is out of its domain, no document is left for training or for
            validation, or the processes differ in arguments.
        DataError: `long` "skip" leaves no document, or there is no assistant turn.
        TokenError: a validation document holds a character that no training document has.
        EngineError: there is no such engine.
    """
    check_type("dataset", dataset, Dataset)
    check_type("train_config", train_config, TrainConfig)
    config = resolved(replace(train_config, **options))
    rng = random.Random(config.seed) if rng is None else rng
    check_type("rng", rng, random.Random)
    seed = config.seed if _is_fresh(rng, config.seed) else None
    dataset = _learnable(dataset, config)
    order: Sequence[int] = dataset.shuffled(rng) if config.shuffle else range(len(dataset))
    validation = None
    if val_dataset is not None:
        check_type("val_dataset", val_dataset, Dataset)
        try:
            others = _learnable(val_dataset.encoded_with(dataset.tokenizer), config)
        except (DataError, TokenError) as error:
            message = f"the validation documents: {error}"
            raise type(error)(message, hint=error.hint) from error
        validation = Validation(others, range(len(others)), config.eval_every)
    elif config.val_fraction:
        n_train = _n_train(len(order), config.val_fraction)
        validation = Validation(dataset, order[n_train:], config.eval_every)
        order = order[:n_train]
    sizes = config.model_config(dataset.tokenizer.vocab_size)
    parameters = Parameters.init(sizes, rng, config.dtype)
    model = LanguageModel(dataset.tokenizer, parameters, engine=config.engine, threads=threads)
    return model, Trainer(model.engine, dataset, order, config, validation, ranks, seed)


def _is_fresh(rng: random.Random, seed: int) -> bool:
    """Return whether a generator will draw the numbers of this seed."""
    try:
        return bool(rng.getstate() == random.Random(seed).getstate())
    except NotImplementedError:  # of a generator without a state, such as SystemRandom
        return False


def _learnable(dataset: Dataset, config: TrainConfig) -> Dataset:
    dataset = dataset.fitted(config.block_size, config.long)
    return dataset.only_assistant() if config.loss_on == "assistant" else dataset


def _n_train(n_documents: int, val_fraction: float) -> int:
    """Return the number of documents to train on."""
    n_val = round(n_documents * val_fraction)
    if not 0 < n_val < n_documents:
        raise ConfigError(
            f"val_fraction is {val_fraction!r}, expected a share between 0 and 1 that leaves "
            f"documents on both sides of {n_documents}"
        )
    return n_documents - n_val


def fit(  # noqa: D417 - TrainConfig describes its fields
    documents: Iterable[str],
    *,
    threads: int | None = None,
    steps: int = DEFAULTS.steps,
    learning_rate: float | None = DEFAULTS.learning_rate,
    batch_size: int = DEFAULTS.batch_size,
    warmup_steps: int = DEFAULTS.warmup_steps,
    schedule: Schedule = DEFAULTS.schedule,
    clip: float | None = DEFAULTS.clip,
    weight_decay: float = DEFAULTS.weight_decay,
    n_embd: int = DEFAULTS.n_embd,
    n_head: int = DEFAULTS.n_head,
    n_layer: int = DEFAULTS.n_layer,
    block_size: int = DEFAULTS.block_size,
    long: Long = DEFAULTS.long,
    loss_on: LossOn = DEFAULTS.loss_on,
    shuffle: bool = DEFAULTS.shuffle,
    val_fraction: float = DEFAULTS.val_fraction,
    eval_every: int = DEFAULTS.eval_every,
    seed: int = DEFAULTS.seed,
    dtype: Dtype = DEFAULTS.dtype,
    engine: str = DEFAULTS.engine,
) -> LanguageModel:
    """Train a model on documents and return it; with validation, the best one.

    Every keyword but `threads` is a field of `TrainConfig`, which describes it.

    Args:
        documents: texts, for instance names; blank ones are left out.
        threads: cores to use; None for all.

    Raises:
        DataError: there is no document, or one is no string or holds a lone surrogate.
        ConfigError: a number is out of its domain.
        EngineError: there is no such engine, or it cannot run here.
        NonFiniteLossError: training diverged.
    """
    config = TrainConfig(
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        warmup_steps=warmup_steps,
        schedule=schedule,
        clip=clip,
        weight_decay=weight_decay,
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        block_size=block_size,
        long=long,
        loss_on=loss_on,
        shuffle=shuffle,
        val_fraction=val_fraction,
        eval_every=eval_every,
        seed=seed,
        dtype=dtype,
        engine=engine,
    )
    model, trainer = prepare(Dataset.from_documents(documents), config, threads=threads)
    n_tokens = config.batch_size * float(trainer.dataset.lengths.mean())
    work = 3 * n_tokens * model.config.n_params  # of a step: forward, and twice as much backward
    while trainer.step < config.steps:
        trainer.advance(1 + int(WORK_TOGETHER / work))
    trainer.use_best()
    model.training = trainer.record()
    return model
