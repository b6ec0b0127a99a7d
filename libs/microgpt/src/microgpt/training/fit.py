"""From a dataset to a model: one with initial weights and its trainer, or one that is trained."""

import random
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, get_args

from microgpt.checks import check_integer, check_type, is_number
from microgpt.corpus.dataset import Dataset, Long
from microgpt.errors import ConfigError, DataError, TokenError
from microgpt.inference.language_model import WORK_TOGETHER, LanguageModel
from microgpt.model import ModelConfig
from microgpt.parameters import Parameters
from microgpt.training.ranks import Ranks
from microgpt.training.trainer import Schedule, TrainConfig, Trainer, Validation

__all__ = ["fit", "prepare"]

LossOn: TypeAlias = Literal["all", "assistant"]
LOSS_ON: tuple[LossOn, ...] = get_args(LossOn)


def prepare(
    dataset: Dataset,
    train_config: TrainConfig,
    rng: random.Random,
    *,
    n_embd: int = 16,
    n_head: int = 4,
    n_layer: int = 1,
    block_size: int = 16,
    long: Long = "truncate",
    loss_on: LossOn = "all",
    shuffle: bool = True,
    val_fraction: float = 0.0,
    val_dataset: Dataset | None = None,
    eval_every: int = 100,
    dtype: str = "float32",
    engine: str = "auto",
    threads: int | None = None,
    ranks: Ranks | None = None,
) -> tuple[LanguageModel, Trainer]:
    """Return a model with initial weights, and a trainer that will train it in place.

    Draws from `rng` in this order: the shuffle of the documents (unless `shuffle` is False), then
    the initial weights. Training draws nothing, so samples may go on with the same generator.

    Args:
        dataset: what to learn from.
        train_config: how.
        rng: the source of all randomness.
        n_embd: width of the model.
        n_head: attention heads; must divide n_embd.
        n_layer: transformer blocks.
        block_size: the most tokens it can attend to.
        long: what becomes of documents that are longer than that; see `Dataset.fitted`.
        loss_on: "all", or for conversations "assistant": only what it says counts, trained on or
            measured; see `Dataset.only_assistant`.
        shuffle: take documents in an order drawn from `rng`, else as they come.
        val_fraction: share of the documents, the last ones of that order, that are not trained on
            but measure the model.
        val_dataset: other documents to measure it on.
        eval_every: steps between two measurements.
        dtype: float32, or float64 to agree with the original digit for digit.
        engine: see `ENGINES`.
        threads: cores to use; None for all.
        ranks: processes that call this alike, to share every batch with; None to train alone.

    Raises:
        ConfigError: a number is out of its domain, or leaves nothing to train or to measure on; or
            the processes are not set up alike.
        DataError: every document is too long, and skipped; or only the assistant counts and there
            is none.
        TokenError: the documents to measure on hold a character that is not in the others.
        EngineError: there is no such engine.
    """
    check_type("dataset", dataset, Dataset)
    check_type("train_config", train_config, TrainConfig)
    check_type("rng", rng, random.Random)
    config = ModelConfig(
        vocab_size=dataset.tokenizer.vocab_size,
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        block_size=block_size,
    )
    dataset = _learnable(dataset, block_size, long, loss_on)
    order: Sequence[int] = dataset.shuffled(rng) if shuffle else range(len(dataset))
    validation = None
    if val_dataset is not None:
        check_type("val_dataset", val_dataset, Dataset)
        try:
            others = val_dataset.encoded_with(dataset.tokenizer)
            others = _learnable(others, block_size, long, loss_on)
        except (DataError, TokenError) as error:
            message = f"the documents to measure on: {error}"
            raise type(error)(message, hint=error.hint) from error
        validation = Validation(others, range(len(others)), eval_every)
    elif val_fraction:
        n_train = _n_train(len(order), val_fraction)
        validation = Validation(dataset, order[n_train:], eval_every)
        order = order[:n_train]
    parameters = Parameters.init(config, rng, dtype)
    model = LanguageModel(dataset.tokenizer, parameters, engine=engine, threads=threads)
    return model, Trainer(model.engine, dataset, order, train_config, validation, ranks)


def _learnable(dataset: Dataset, block_size: int, long: Long, loss_on: LossOn) -> Dataset:
    if loss_on not in LOSS_ON:
        raise ConfigError(f"loss_on is {loss_on!r}, expected one of {', '.join(LOSS_ON)}")
    dataset = dataset.fitted(block_size, long)
    return dataset.only_assistant() if loss_on == "assistant" else dataset


def _n_train(n_documents: int, val_fraction: float) -> int:
    """Return how many documents are left to train on."""
    is_share = is_number(val_fraction) and 0.0 < val_fraction < 1.0
    n_val = round(n_documents * val_fraction) if is_share else 0
    if not 0 < n_val < n_documents:
        raise ConfigError(
            f"val_fraction is {val_fraction!r:.80}, expected a share between 0 and 1 that leaves "
            f"documents on both sides of {n_documents}"
        )
    return n_documents - n_val


def fit(
    documents: Iterable[str],
    *,
    steps: int = 1000,
    seed: int = 42,
    learning_rate: float | None = None,
    batch_size: int = 1,
    warmup_steps: int = 0,
    schedule: Schedule = "linear",
    n_embd: int = 16,
    n_head: int = 4,
    n_layer: int = 1,
    block_size: int = 16,
    shuffle: bool = True,
    dtype: str = "float32",
    engine: str = "auto",
    threads: int | None = None,
) -> LanguageModel:
    """Train a model on documents and return it.

    Args:
        documents: texts, for instance names; blank ones are left out.
        steps: number of updates.
        seed: of the generator behind shuffle and initial weights.
        learning_rate: the highest; None for 0.01 x 16 / n_embd.
        batch_size: documents per step.
        warmup_steps: over how many first steps the rate rises.
        schedule: how it falls then; see `TrainConfig`.
        n_embd: width of the model.
        n_head: attention heads; must divide n_embd.
        n_layer: transformer blocks.
        block_size: the most tokens it can attend to; longer documents are cut.
        shuffle: take documents in a random order.
        dtype: float32 or float64.
        engine: see `ENGINES`.
        threads: cores to use; None for all.

    Raises:
        DataError: there is no document, or one is no string or holds a lone surrogate.
        ConfigError: a number is out of its domain.
        EngineError: there is no such engine, or it cannot run here.
        NonFiniteLossError: training diverged.
    """
    check_integer("seed", seed)
    model, trainer = prepare(
        Dataset.from_documents(documents),
        TrainConfig(
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            warmup_steps=warmup_steps,
            schedule=schedule,
        ),
        random.Random(int(seed)),
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        block_size=block_size,
        shuffle=shuffle,
        dtype=dtype,
        engine=engine,
        threads=threads,
    )
    n_tokens = batch_size * float(trainer.dataset.lengths.mean())
    work = 3 * n_tokens * model.config.n_params  # of a step: forward, and twice as much backward
    while trainer.step < steps:
        trainer.advance(1 + int(WORK_TOGETHER / work))
    return model
