"""From a dataset to a model: `prepare` sets up a run, `fit` trains to the end."""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from msgspec.structs import replace

from microgpt.checks import check_type
from microgpt.corpus.conversations import Conversations
from microgpt.corpus.dataset import Dataset, Long
from microgpt.corpus.subwords import SubwordTokenizer
from microgpt.corpus.windows import divided, share_of_beginnings, window_entries
from microgpt.data import BaseTokenizer, Message
from microgpt.errors import ConfigError, DataError, TokenError
from microgpt.history import History, StepReport
from microgpt.inference.language_model import LanguageModel
from microgpt.parameters import Parameters
from microgpt.training.chat_options import chat_setup
from microgpt.training.continuation import (
    config_of_model,
    origin_of,
    starting_weights,
    with_tokens_of,
)
from microgpt.training.options import (
    DEFAULTS,
    Dtype,
    LossOn,
    OptimizerName,
    Schedule,
    TokenizerName,
    TrainConfig,
    resolved,
)
from microgpt.training.ranks import Ranks
from microgpt.training.trainer import Trainer
from microgpt.training.validation import Validation

__all__ = ["fit", "fit_chat", "prepare"]

WORK_TOGETHER = 1_000_000_000  # multiplications of one call: some 0.1 s, before Ctrl-C is obeyed
MIN_BOS_SHARE = 0.5  # of the windows: below it, prompts of the model have no BOS

Ordered: TypeAlias = tuple[Dataset, Sequence[int]]  # documents, and indices in their order


def prepare(
    dataset: Dataset,
    train_config: TrainConfig,
    rng: random.Random | None = None,
    *,
    val_dataset: Dataset | None = None,
    init_from: LanguageModel | None = None,
    extend_vocab: bool = False,
    threads: int | None = None,
    ranks: Ranks | None = None,
    **options: Any,
) -> tuple[LanguageModel, Trainer]:
    """Return a model with initial weights, and a trainer that will train it in place.

    Draws from `rng` in this order: the shuffle of the documents (unless `shuffle` is False), then
    the initial weights. Training draws nothing, so samples may continue with the same generator.

    With `long` "window", a document of L positions is ceil(L / block_size) times in the order, and
    the shuffle is that of all entries; with `val_fraction`, a shuffle of the documents comes before
    it. The last share of all positions in that order is for validation, a document at the border in
    part, and is cut into blocks that do not overlap. The places of windows are an integer hash of
    `train_config.seed`, step and row of the batch: see `corpus/windows.py`.

    Args:
        dataset: documents or conversations to learn from; with `tokenizer` "bpe" subwords are
            learned from them first, unless they are encoded by subwords already.
        train_config: options of the run.
        rng: the source of all randomness; None for `random.Random(train_config.seed)`.
        val_dataset: other documents to validate on, without a share of `dataset`.
        init_from: start from a copy of this model's weights, with its sizes and its tokenizer, and
            a fresh optimizer; initial weights are then not drawn.
        extend_vocab: add the characters that `init_from` lacks, with initial weights of their own.
        threads: cores to use; None for all.
        ranks: MPI processes that share every batch, each of which calls `prepare` with the same
            arguments; None for one process.
        **options: fields of `TrainConfig` that replace those of `train_config`.

    Raises:
        ConfigError: an option is out of its domain, no document is left for training or for
            validation, conversations are to be cut into windows, or the processes differ in
            arguments.
        DataError: `long` "skip" leaves no document, or there is no assistant turn.
        TokenError: a validation document holds a character that no training document has, or a
            document one that `init_from` lacks.
        EngineError: there is no such engine.
    """
    check_type("dataset", dataset, Dataset)
    check_type("train_config", train_config, TrainConfig)
    config = replace(train_config, **options)
    if init_from is not None:
        check_type("init_from", init_from, LanguageModel)
        config = config_of_model(config, init_from)
        dataset = with_tokens_of(init_from, dataset, extend_vocab=extend_vocab)
    if isinstance(dataset.tokenizer, SubwordTokenizer):
        n_tokens = dataset.tokenizer.vocab_size
        vocab_size = n_tokens if config.vocab_size is None else config.vocab_size
        config = replace(config, tokenizer="bpe", vocab_size=vocab_size)
        if vocab_size < n_tokens:
            raise ConfigError(
                f"vocab_size is {vocab_size}, expected at least {n_tokens}, that of the dataset"
            )
    config = resolved(config)
    if config.vocab_size and not isinstance(dataset.tokenizer, SubwordTokenizer):
        dataset = dataset.with_subwords(config.vocab_size)
    rng = random.Random(config.seed) if rng is None else rng
    check_type("rng", rng, random.Random)
    seed = config.seed if _is_fresh(rng, config.seed) else None
    draws_windows = config.long == "window"
    arranged = _windows if draws_windows else _documents
    val_fraction = config.val_fraction if val_dataset is None else 0.0
    dataset = _learnable(dataset, config)
    (dataset, order), val_documents = arranged(dataset, config, rng, val_fraction)
    tokenizer = dataset.tokenizer
    if val_dataset is not None:
        val_documents = _other_documents(val_dataset, tokenizer, config)
    validation = Validation(*val_documents, config.eval_every) if val_documents else None
    if init_from is None:
        parameters = Parameters.init(config.model_config(tokenizer.vocab_size), rng, config.dtype)
    else:
        parameters = starting_weights(init_from, tokenizer, config.dtype, config.seed)
    model = LanguageModel(
        tokenizer,
        parameters,
        engine=config.engine,
        threads=threads,
        windows=draws_windows and share_of_beginnings(dataset, config.block_size) < MIN_BOS_SHARE,
    )
    origin = origin_of(init_from) if init_from else None
    return model, Trainer(model.engine, dataset, order, config, validation, ranks, seed, origin)


def _is_fresh(rng: random.Random, seed: int) -> bool:
    """Return whether a generator will draw the numbers of this seed."""
    try:
        return bool(rng.getstate() == random.Random(seed).getstate())
    except NotImplementedError:  # of a generator without a state, such as SystemRandom
        return False


def _learnable(dataset: Dataset, config: TrainConfig) -> Dataset:
    dataset = dataset.fitted(config.block_size, config.long)
    return dataset.only_assistant() if config.loss_on == "assistant" else dataset


def _documents(
    dataset: Dataset, config: TrainConfig, rng: random.Random, val_fraction: float
) -> tuple[Ordered, Ordered | None]:
    """Return documents to train on, and for validation."""
    order = _order(dataset, config, rng)
    if not val_fraction:
        return (dataset, order), None
    n_train = _n_train(len(order), val_fraction, "documents")
    return (dataset, order[:n_train]), (dataset, order[n_train:])


def _windows(
    dataset: Dataset, config: TrainConfig, rng: random.Random, val_fraction: float
) -> tuple[Ordered, Ordered | None]:
    """Return documents to draw windows from, and blocks for validation."""
    val_documents = None
    if val_fraction:
        n_train = _n_train(int(dataset.lengths.sum(dtype=np.int64)), val_fraction, "tokens")
        dataset, val_dataset = divided(dataset, _order(dataset, config, rng), n_train)
        val_documents = _in_blocks(val_dataset, config)
    entries = window_entries(dataset, config.block_size)
    if config.shuffle:
        rng.shuffle(entries)
    return (dataset, entries), val_documents


def _order(dataset: Dataset, config: TrainConfig, rng: random.Random) -> Sequence[int]:
    return dataset.shuffled(rng) if config.shuffle else range(len(dataset))


def _in_blocks(dataset: Dataset, config: TrainConfig) -> Ordered:
    """Return documents for validation; long ones in blocks where training draws windows."""
    if config.long == "window":
        dataset = dataset.fitted(config.block_size, "split")
    return dataset, range(len(dataset))


def _other_documents(dataset: Dataset, tokenizer: BaseTokenizer, config: TrainConfig) -> Ordered:
    check_type("val_dataset", dataset, Dataset)
    try:
        return _in_blocks(_learnable(dataset.encoded_with(tokenizer), config), config)
    except (DataError, TokenError) as error:
        message = f"the validation documents: {error}"
        raise type(error)(message, hint=error.hint) from error


def _n_train(n: int, val_fraction: float, what: str) -> int:
    """Return the number of documents or tokens to train on."""
    n_val = round(n * val_fraction)
    if not 0 < n_val < n:
        raise ConfigError(
            f"val_fraction is {val_fraction!r}, expected a share between 0 and 1 that leaves "
            f"{what} on both sides of {n}",
            hint='long "window" (--long window) holds out the end of a single document',
        )
    return n - n_val


def _trained(
    model: LanguageModel, trainer: Trainer, on_step: Callable[[StepReport], object] | None
) -> LanguageModel:
    """Train to the end; return the model, with validation the best one, and how it was made."""
    work = 3 * trainer.positions_per_step * model.config.n_params  # backward is twice as much
    reports: list[StepReport] = []
    while not trainer.is_finished:
        taken = trainer.advance(1 + int(WORK_TOGETHER / work))
        reports += taken
        if on_step:
            for report in taken:
                on_step(report)
    trainer.use_best()
    model.training, model.history = trainer.record(), History(reports)
    return model


def fit(  # noqa: D417 - TrainConfig describes its fields
    documents: Iterable[str],
    *,
    init_from: LanguageModel | None = None,
    extend_vocab: bool = False,
    threads: int | None = None,
    on_step: Callable[[StepReport], object] | None = None,
    steps: int = DEFAULTS.steps,
    learning_rate: float | None = DEFAULTS.learning_rate,
    batch_size: int = DEFAULTS.batch_size,
    warmup_steps: int = DEFAULTS.warmup_steps,
    schedule: Schedule = DEFAULTS.schedule,
    clip: float | None = DEFAULTS.clip,
    weight_decay: float = DEFAULTS.weight_decay,
    optimizer: OptimizerName = DEFAULTS.optimizer,
    muon_learning_rate: float | None = DEFAULTS.muon_learning_rate,
    muon_momentum: float | None = DEFAULTS.muon_momentum,
    muon_iterations: int | None = DEFAULTS.muon_iterations,
    tokenizer: TokenizerName = DEFAULTS.tokenizer,
    vocab_size: int | None = DEFAULTS.vocab_size,
    n_embd: int = DEFAULTS.n_embd,
    n_head: int = DEFAULTS.n_head,
    n_layer: int = DEFAULTS.n_layer,
    block_size: int = DEFAULTS.block_size,
    long: Long = DEFAULTS.long,
    loss_on: LossOn = DEFAULTS.loss_on,
    shuffle: bool = DEFAULTS.shuffle,
    val_fraction: float = DEFAULTS.val_fraction,
    eval_every: int = DEFAULTS.eval_every,
    patience: int | None = DEFAULTS.patience,
    seed: int = DEFAULTS.seed,
    dtype: Dtype = DEFAULTS.dtype,
    engine: str = DEFAULTS.engine,
) -> LanguageModel:
    """Train a model on documents and return it; with validation, the best one.

    Every other keyword is a field of `TrainConfig`, which describes it.

    Args:
        documents: texts, for instance names; blank ones are left out.
        init_from: see `prepare`.
        extend_vocab: see `prepare`.
        threads: cores to use; None for all.
        on_step: called with the report of each step, within a tenth of a second; an error that it
            raises ends training.

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
        optimizer=optimizer,
        muon_learning_rate=muon_learning_rate,
        muon_momentum=muon_momentum,
        muon_iterations=muon_iterations,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        block_size=block_size,
        long=long,
        loss_on=loss_on,
        shuffle=shuffle,
        val_fraction=val_fraction,
        eval_every=eval_every,
        patience=patience,
        seed=seed,
        dtype=dtype,
        engine=engine,
    )
    model, trainer = prepare(
        Dataset.from_documents(documents),
        config,
        init_from=init_from,
        extend_vocab=extend_vocab,
        threads=threads,
    )
    return _trained(model, trainer, on_step)


def fit_chat(
    conversations: Conversations | Iterable[Sequence[Message]],
    *,
    init_from: LanguageModel | None = None,
    extend_vocab: bool = False,
    threads: int | None = None,
    on_step: Callable[[StepReport], object] | None = None,
    **options: Any,
) -> LanguageModel:
    """Train a chat model on conversations and return it; with validation, the best one.

    Args:
        conversations: each a list of messages with "role" and "content" that ends with the
            assistant; or the result of `read_conversations`, which reads files of them.
        init_from: see `prepare`.
        extend_vocab: see `prepare`.
        threads: cores to use; None for all.
        on_step: see `fit`.
        **options: fields of `TrainConfig`; `chat_setup` chooses those that are not given.

    Raises:
        DataError: there is no conversation, or one holds a lone surrogate.
        ChatError: the conversations, one of them or a message are not as expected.
        ConfigError: a number is out of its domain.
        EngineError: there is no such engine, or it cannot run here.
        NonFiniteLossError: training diverged.

    Example:
        >>> talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
        >>> fit_chat([talk], steps=100).chat(talk[:1], temperature=0).content
        'hello'
    """
    dataset = Dataset.from_conversations(conversations)
    config, dataset = chat_setup(dataset, init_from=init_from, **options)
    model, trainer = prepare(
        dataset, config, init_from=init_from, extend_vocab=extend_vocab, threads=threads
    )
    return _trained(model, trainer, on_step)
