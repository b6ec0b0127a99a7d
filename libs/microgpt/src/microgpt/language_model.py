"""The library from outside: one object that holds sizes, tokenizer and weights, and uses them."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from microgpt import engines
from microgpt.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from microgpt.data import Batch, Dataset, Long, PathLike, Tokenizer
from microgpt.errors import ConfigError
from microgpt.model import ModelConfig
from microgpt.parameters import FloatArray, IntArray, Parameters
from microgpt.sampling import SamplingConfig, room_after
from microgpt.train import ROWS_TOGETHER, Schedule, TrainConfig, Trainer, Validation

__all__ = ["LanguageModel", "Score", "fit", "load", "prepare"]


LossOn: TypeAlias = Literal["all", "assistant"]
LOSS_ON: tuple[LossOn, ...] = get_args(LossOn)


@dataclass(frozen=True)
class Score:
    """How well a model predicts something.

    Args:
        n_tokens: predicted tokens: every character, chat token and closing BOS.
        nats_per_token: mean loss; lower is better.
    """

    n_tokens: int
    nats_per_token: float

    @property
    def bits_per_token(self) -> float:
        """The mean loss in bits."""
        return self.nats_per_token / math.log(2)

    @property
    def perplexity(self) -> float:
        """Among how many equally likely tokens the model is undecided, in effect."""
        return math.exp(self.nats_per_token)


class LanguageModel:
    """A model ready to use; made by `fit`, `load` or `prepare`.

    Args:
        tokenizer: its characters.
        parameters: its sizes and weights.
        engine: name of the engine that runs it; see `ENGINES`.
        threads: cores to use; None for all.

    Raises:
        EngineError: there is no such engine.
        ConfigError: tokenizer and parameters have different vocabularies.

    Example:
        >>> import tempfile, microgpt
        >>> model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100)
        >>> model.generate(num_samples=3)
        ['hannah', 'anna', 'bob']
        >>> [round(nats, 1) for nats in model.score(["anna", "tttt"])]
        [0.3, 3.1]
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     model.save(directory)
        ...     microgpt.load(directory).generate(num_samples=3)
        ['hannah', 'anna', 'bob']
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        parameters: Parameters,
        *,
        engine: str = "auto",
        threads: int | None = None,
    ) -> None:
        if tokenizer.vocab_size != parameters.config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} token ids, expected "
                f"vocab_size={parameters.config.vocab_size}"
            )
        self.tokenizer = tokenizer
        self.engine = engines.select(engine, parameters, threads)

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model."""
        return self.engine.config

    @property
    def parameters(self) -> Parameters:
        """The weights."""
        return self.engine.parameters

    @property
    def dtype(self) -> str:
        """Type of the weights: float32 or float64."""
        return self.parameters.dtype

    def save(self, directory: PathLike) -> None:
        """Write `weights.json` and `meta.json`, as one: both or, on failure, neither.

        Raises:
            CheckpointError: a weight is not finite, or the directory cannot be written.
        """
        write_checkpoint(directory, Checkpoint(self.tokenizer, self.parameters))

    def generate(
        self,
        num_samples: int = 1,
        *,
        temperature: float = 0.5,
        top_k: int | None = None,
        top_p: float = 1.0,
        prompt: str = "",
        seed: int = 42,
        rng: random.Random | None = None,
    ) -> list[str]:
        """Return new documents.

        Args:
            num_samples: how many, at least 0.
            temperature: 0 for the most likely text; higher is more surprising.
            top_k: choose among the k most likely characters only.
            top_p: choose among the most likely characters that together reach this probability.
            prompt: how every document begins; it is part of what is returned.
            seed: sample i is drawn from `random.Random(seed + i)`, so it never depends on how many
                are asked for.
            rng: draw all samples from this generator, one after another, in place of `seed`.

        Raises:
            ConfigError: an argument is out of its domain.
            TokenError: the prompt holds a character that the model does not know.
            ContextLengthError: the prompt does not fit into block_size.
        SamplingError: the model's logits are not finite.

        Example:
            >>> model = fit(["anna", "bob", "hannah", "otto"], steps=100)
            >>> model.generate(2, prompt="h", temperature=0)
            ['hannah', 'hannah']
        """
        if num_samples < 0:
            raise ConfigError(f"num_samples is {num_samples}, expected at least 0")
        config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        prompt_ids = [self.tokenizer.bos, *self.tokenizer.encode(prompt)]
        if rng is None:
            generators = (random.Random(seed + i) for i in range(num_samples))
            texts = self._sample(prompt_ids, generators, config)
        else:
            texts = [self._sample_and_rewind(prompt_ids, rng, config) for _ in range(num_samples)]
        return [prompt + self.tokenizer.decode(token_ids) for token_ids in texts]

    def _sample(
        self, prompt_ids: list[int], generators: Iterable[random.Random], config: SamplingConfig
    ) -> list[list[int]]:
        """Return one text per generator, from which as much is drawn as the longest text takes."""
        room = room_after(prompt_ids, self.config.block_size)
        draws = [[rng.random() for _ in range(room)] for rng in generators]
        uniforms = np.array(draws, np.float64).reshape(-1, room)
        return self.engine.sample(prompt_ids, uniforms, config, stop=self.tokenizer.bos)

    def _sample_and_rewind(
        self, prompt_ids: list[int], rng: random.Random, config: SamplingConfig
    ) -> list[int]:
        """Return one text, and leave `rng` as if each token had been drawn when it was due."""
        before = rng.getstate()
        (token_ids,) = self._sample(prompt_ids, [rng], config)
        rng.setstate(before)
        if config.temperature > 0.0:
            room = room_after(prompt_ids, self.config.block_size)
            for _ in range(min(len(token_ids) + 1, room)):  # the stop token is drawn too
                rng.random()
        return token_ids

    def logits(self, token_ids: Sequence[int]) -> FloatArray:
        """Return what the model expects after each token, before softmax, shape (T, V).

        Args:
            token_ids: 1 to block_size ids; documents begin with `tokenizer.bos`.

        Raises:
            ShapeError: there are no tokens.
            TokenError: an id is not in the vocabulary.
            ContextLengthError: more than block_size tokens.
        """
        return self.engine.logits(token_ids)

    def score(self, documents: Iterable[str]) -> list[float]:
        """Return the mean loss of each document in nats per predicted token; lower is likelier.

        Every character and the closing BOS is predicted once. Documents longer than block_size
        are read in windows that overlap by half, so that each token keeps half a block of context.

        Raises:
            TokenError: a document holds a character that the model does not know.
        """
        documents_ids = (self.tokenizer.encode_document(text) for text in documents)
        return [self._loss([np.array(ids)]) / (len(ids) - 1) for ids in documents_ids]

    def measure(self, dataset: Dataset) -> Score:
        """Return how well the model predicts a dataset; long documents as in `score`.

        Args:
            dataset: documents, or for a chat model conversations.

        Raises:
            TokenError: it holds a character that the model does not know.
            DataError: it holds documents and the model is for chat, or the other way round.

        Example:
            >>> model = fit(["anna", "bob", "hannah", "otto"], steps=100)
            >>> score = model.measure(Dataset.from_documents(["anna", "otto"]))
            >>> score.n_tokens, round(score.nats_per_token, 1), round(score.perplexity, 1)
            (10, 0.3, 1.3)
        """
        dataset = dataset.encoded_with(self.tokenizer)
        n_together = max(1, ROWS_TOGETHER // int(dataset.lengths.max()))
        total = 0.0
        for first in range(0, len(dataset), n_together):
            last = min(first + n_together, len(dataset))
            total += self._loss([dataset[i] for i in range(first, last)])
        n_tokens = int(dataset.lengths.sum())
        return Score(n_tokens, total / n_tokens)

    def _loss(self, documents: Sequence[IntArray]) -> float:
        """Return the summed loss in nats of documents, each at least two ids."""
        inputs, targets = [], []
        for ids in documents:
            for start, seen, end in _windows(len(ids) - 1, self.config.block_size):
                inputs.append(ids[start:end])
                targets.append(ids[start + 1 : end + 1].astype(np.int32))
                targets[-1][: seen - start] = -1  # counted in the window before
        lengths = np.array([len(window) for window in inputs])
        loss, _ = self.engine.loss(Batch(np.concatenate(inputs), np.concatenate(targets), lengths))
        return loss


def _windows(n_targets: int, block_size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, seen, end): read positions start..end-1, count from `seen` on."""
    seen = 0
    while seen < n_targets:
        start = max(0, min(seen - block_size // 2, n_targets - block_size)) if seen else 0
        end = min(start + block_size, n_targets)
        yield start, seen, end
        seen = end


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

    Raises:
        ConfigError: a number is out of its domain, or leaves nothing to train or to measure on.
        DataError: every document is too long, and skipped; or only the assistant counts and there
            is none.
        TokenError: the documents to measure on hold a character that is not in the others.
        EngineError: there is no such engine.
    """
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
        others = val_dataset.encoded_with(dataset.tokenizer)
        others = _learnable(others, block_size, long, loss_on)
        validation = Validation(others, range(len(others)), eval_every)
    elif val_fraction:
        n_train = _n_train(len(order), val_fraction)
        validation = Validation(dataset, order[n_train:], eval_every)
        order = order[:n_train]
    parameters = Parameters.init(config, rng, dtype)
    model = LanguageModel(dataset.tokenizer, parameters, engine=engine, threads=threads)
    return model, Trainer(model.engine, dataset, order, train_config, validation)


def _learnable(dataset: Dataset, block_size: int, long: Long, loss_on: LossOn) -> Dataset:
    if loss_on not in LOSS_ON:
        raise ConfigError(f"loss_on is {loss_on!r}, expected one of {', '.join(LOSS_ON)}")
    dataset = dataset.fitted(block_size, long)
    return dataset.only_assistant() if loss_on == "assistant" else dataset


def _n_train(n_documents: int, val_fraction: float) -> int:
    """Return how many documents are left to train on."""
    n_val = round(n_documents * val_fraction) if 0.0 < val_fraction < 1.0 else 0
    if not 0 < n_val < n_documents:
        raise ConfigError(
            f"val_fraction is {val_fraction}, expected a share between 0 and 1 that leaves "
            f"documents on both sides; there are {n_documents}"
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
        DataError: there is no document.
        ConfigError: a number is out of its domain.
        EngineError: there is no such engine, or it cannot run here.
        NonFiniteLossError: training diverged.
    """
    _, trainer = model_and_trainer = prepare(
        Dataset.from_documents(documents),
        TrainConfig(
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            warmup_steps=warmup_steps,
            schedule=schedule,
        ),
        random.Random(seed),
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        block_size=block_size,
        shuffle=shuffle,
        dtype=dtype,
        engine=engine,
        threads=threads,
    )
    trainer.advance(steps)
    return model_and_trainer[0]


def load(
    directory: PathLike,
    *,
    engine: str = "auto",
    dtype: str | None = None,
    threads: int | None = None,
) -> LanguageModel:
    """Load a model from its directory.

    Args:
        directory: holds `meta.json` and the weights.
        engine: see `ENGINES`.
        dtype: float32 or float64; None for the one it was saved from.
        threads: cores to use; None for all.

    Raises:
        CheckpointError: the directory does not hold a sound model.
        ConfigError: there is no such dtype.
        EngineError: there is no such engine, or it cannot run here.
    """
    checkpoint = read_checkpoint(directory, dtype)
    return LanguageModel(
        checkpoint.tokenizer, checkpoint.parameters, engine=engine, threads=threads
    )
