"""The library from outside: one object that holds sizes, tokenizer and weights, and uses them."""

import math
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from microgpt import engines
from microgpt.chat import ChatPrompt, TooLong, build_prompt
from microgpt.checkpoint import Checkpoint, Format, read_checkpoint, write_checkpoint
from microgpt.data import ROLES, Batch, Dataset, Long, Message, PathLike, Tokenizer, Unknown
from microgpt.errors import ConfigError
from microgpt.model import ModelConfig
from microgpt.parameters import FloatArray, IntArray, Parameters
from microgpt.ranks import Ranks
from microgpt.sampling import SamplingConfig, StopSignal, generate_from_prompt, room_after
from microgpt.streaming import FinishReason, TextStream, check_limits
from microgpt.train import ROWS_TOGETHER, Schedule, TrainConfig, Trainer, Validation

__all__ = ["ChatReply", "LanguageModel", "Score", "fit", "load", "prepare"]


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


@dataclass(frozen=True)
class ChatReply:
    """What a chat model answered.

    Args:
        content: the text.
        finish_reason: "stop" if the model ended it or a stop string did, "length" if it was cut at
            `max_tokens` or the model's block.
        n_tokens: tokens of the reply.
        prompt: what the model read before, and what had to be left out of it.
    """

    content: str
    finish_reason: FinishReason
    n_tokens: int
    prompt: ChatPrompt

    @property
    def tokens_dropped(self) -> int:
        """Tokens of the messages that did not fit into the block."""
        return self.prompt.tokens_dropped


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

    def save(
        self,
        directory: PathLike,
        *,
        format: Format = "json",  # noqa: A002 - as everywhere
        half: bool = False,
    ) -> None:
        """Write weights and `meta.json`, as one: both or, on failure, neither.

        Args:
            directory: made if it does not exist; a model that it holds is replaced.
            format: "json" for `weights.json`, which the Rust system reads too, or "safetensors" for
                `weights.safetensors`, smaller and faster to read.
            half: round weights to float16, three digits, to halve the latter; they are read back
                as float32.

        Raises:
            ConfigError: there is no such format, or `half` is asked of JSON.
            CheckpointError: a weight is not finite, or the directory cannot be written.
        """
        write_checkpoint(directory, Checkpoint(self.tokenizer, self.parameters), format, half=half)

    def generate(
        self,
        num_samples: int = 1,
        *,
        temperature: float = 0.5,
        top_k: int | None = None,
        top_p: float = 1.0,
        prompt: str = "",
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        seed: int = 42,
        rng: random.Random | None = None,
        signal: StopSignal | None = None,
    ) -> list[str]:
        """Return new documents.

        Args:
            num_samples: how many, at least 0.
            temperature: 0 for the most likely text; higher is more surprising.
            top_k: choose among the k most likely characters only.
            top_p: choose among the most likely characters that together reach this probability.
            prompt: how every document begins; it is part of what is returned.
            max_tokens: the most characters after the prompt; None for what the block leaves.
            stop: strings before which a document is cut.
            seed: sample i is drawn from `random.Random(seed + i)`, so it never depends on how many
                are asked for.
            rng: draw all samples from this generator, one after another, in place of `seed`.
            signal: ends all documents where they are, once it is set.

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
        check_limits(max_tokens, stop)
        prompt_ids = [self.tokenizer.bos, *self.tokenizer.encode(prompt)]
        n_tokens = self._limit(prompt_ids, max_tokens)
        if rng is None:
            generators = (random.Random(seed + i) for i in range(num_samples))
            texts = self._sample(
                prompt_ids, generators, config, n_tokens, self.tokenizer.bos, signal=signal
            )
        else:
            texts = [
                self._sample_and_rewind(prompt_ids, rng, config, n_tokens, signal)
                for _ in range(num_samples)
            ]
        if not stop:
            return [prompt + self.tokenizer.decode(token_ids) for token_ids in texts]
        streams = (TextStream(iter(ids), self.tokenizer, n_tokens, stop) for ids in texts)
        return [prompt + "".join(stream) for stream in streams]

    def stream(
        self,
        prompt: str = "",
        *,
        temperature: float = 0.5,
        top_k: int | None = None,
        top_p: float = 1.0,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        seed: int = 42,
    ) -> TextStream:
        """Return what `generate` adds to the prompt of one document, piece by piece.

        Args:
            prompt: how the document begins; not part of what is yielded.
            temperature: see `generate`.
            top_k: see `generate`.
            top_p: see `generate`.
            max_tokens: see `generate`.
            stop: see `generate`.
            seed: see `generate`.

        Raises:
            ConfigError, TokenError, ContextLengthError, SamplingError: see `generate`.

        Example:
            >>> model = fit(["anna", "bob", "hannah", "otto"], steps=100)
            >>> "|".join(model.stream("h", temperature=0))
            'a|n|n|a|h'
        """
        config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        check_limits(max_tokens, stop)
        prompt_ids = [self.tokenizer.bos, *self.tokenizer.encode(prompt)]
        n_tokens = self._limit(prompt_ids, max_tokens)
        token_ids = generate_from_prompt(
            self.engine,
            prompt_ids,
            random.Random(seed),
            config,
            stop=self.tokenizer.bos,
            max_tokens=n_tokens,
        )
        return TextStream(token_ids, self.tokenizer, n_tokens, stop)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = 0.5,
        top_k: int | None = None,
        top_p: float = 1.0,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        seed: int = 42,
        unknown: Unknown = "skip",
        too_long: TooLong = "error",
        signal: StopSignal | None = None,
    ) -> ChatReply:
        """Return the assistant's reply to messages.

        Args:
            messages: at least one, each with "role" (user or assistant) and "content"; the oldest
                are dropped where not all fit.
            temperature: 0 for the most likely reply; higher is more surprising.
            top_k: choose among the k most likely characters only.
            top_p: choose among the most likely characters that together reach this probability.
            max_tokens: the most characters; None for what the block leaves.
            stop: strings before which the reply is cut.
            seed: of the draws.
            unknown: what to do about characters that the model does not know.
            too_long: what to do if the last message alone does not fit; see `build_prompt`.
            signal: ends the reply where it is, once it is set.

        Raises:
            ChatError: the model was not trained to chat, or a message is not as expected.
            ConfigError: an argument is out of its domain.
            TokenError, ContextLengthError: see `build_prompt`.
            SamplingError: the model's logits are not finite.

        Example:
            >>> import microgpt
            >>> talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hey"}]
            >>> dataset = microgpt.Dataset.from_conversations([talk])
            >>> config = microgpt.TrainConfig(steps=100)
            >>> model, trainer = microgpt.prepare(dataset, config, random.Random(42))
            >>> losses = [report.loss for report in trainer]
            >>> model.chat([{"role": "user", "content": "hi"}], temperature=0).content
            'hey'
        """
        config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        check_limits(max_tokens, stop)
        prompt = self._chat_prompt(messages, unknown, too_long)
        n_tokens = self._limit(prompt.token_ids, max_tokens)
        end = self.tokenizer.special_id("end_turn")
        (token_ids,) = self._sample(
            prompt.token_ids,
            [random.Random(seed)],
            config,
            n_tokens,
            end,
            forbidden=self._not_said,
            signal=signal,
        )
        stream = TextStream(iter(token_ids), self.tokenizer, n_tokens, stop, prompt)
        text = "".join(stream)
        assert stream.finish_reason, "a text that was read to its end"
        return ChatReply(text, stream.finish_reason, stream.n_tokens, prompt)

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = 0.5,
        top_k: int | None = None,
        top_p: float = 1.0,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        seed: int = 42,
        unknown: Unknown = "skip",
        too_long: TooLong = "error",
    ) -> TextStream:
        """Return the reply that `chat` would give, piece by piece as the model chooses it.

        Args:
            messages: see `chat`.
            temperature: see `chat`.
            top_k: see `chat`.
            top_p: see `chat`.
            max_tokens: see `chat`.
            stop: see `chat`.
            seed: see `chat`.
            unknown: see `chat`.
            too_long: see `chat`.

        Raises:
            ChatError, ConfigError, TokenError, ContextLengthError, SamplingError: see `chat`.
        """
        config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        check_limits(max_tokens, stop)
        prompt = self._chat_prompt(messages, unknown, too_long)
        n_tokens = self._limit(prompt.token_ids, max_tokens)
        token_ids = generate_from_prompt(
            self.engine,
            prompt.token_ids,
            random.Random(seed),
            config,
            stop=self.tokenizer.special_id("end_turn"),
            forbidden=self._not_said,
            max_tokens=n_tokens,
        )
        return TextStream(token_ids, self.tokenizer, n_tokens, stop, prompt)

    def _chat_prompt(
        self, messages: Sequence[Message], unknown: Unknown, too_long: TooLong
    ) -> ChatPrompt:
        return build_prompt(
            messages,
            self.tokenizer,
            self.config.block_size,
            unknown=unknown,
            too_long=too_long,
        )

    @property
    def _not_said(self) -> list[int]:
        """Tokens that cannot be part of a reply."""
        return [*map(self.tokenizer.special_id, ROLES), self.tokenizer.bos]

    def _limit(self, prompt_ids: Sequence[int], max_tokens: int | None) -> int:
        """Return the most tokens that may follow a prompt."""
        room = room_after(prompt_ids, self.config.block_size)
        return room if max_tokens is None else min(max_tokens, room)

    def _sample(
        self,
        prompt_ids: list[int],
        generators: Iterable[random.Random],
        config: SamplingConfig,
        n_tokens: int,
        stop: int,
        *,
        forbidden: Collection[int] = (),
        signal: StopSignal | None = None,
    ) -> list[list[int]]:
        """Return one text per generator, from which as much is drawn as the longest text takes."""
        draws = [[rng.random() for _ in range(n_tokens)] for rng in generators]
        uniforms = np.array(draws, np.float64).reshape(-1, n_tokens)
        return self.engine.sample(
            prompt_ids, uniforms, config, stop=stop, forbidden=forbidden, signal=signal
        )

    def _sample_and_rewind(
        self,
        prompt_ids: list[int],
        rng: random.Random,
        config: SamplingConfig,
        n_tokens: int,
        signal: StopSignal | None,
    ) -> list[int]:
        """Return one text, and leave `rng` as if each token had been drawn when it was due."""
        before = rng.getstate()
        (token_ids,) = self._sample(
            prompt_ids, [rng], config, n_tokens, self.tokenizer.bos, signal=signal
        )
        rng.setstate(before)
        if config.temperature > 0.0:
            for _ in range(min(len(token_ids) + 1, n_tokens)):  # the stop token is drawn too
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
    return model, Trainer(model.engine, dataset, order, train_config, validation, ranks)


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
