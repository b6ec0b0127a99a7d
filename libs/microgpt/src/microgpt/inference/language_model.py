"""The library from outside: one object that holds sizes, tokenizer and weights, and uses them."""

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from microgpt.checks import PathLike, check_integer, check_type, checked_texts
from microgpt.corpus.dataset import Dataset
from microgpt.data import ROLES, Message, Tokenizer, Unknown
from microgpt.engines import select
from microgpt.engines.decoding import SamplingConfig, StopSignal, generate_from_prompt, room_after
from microgpt.errors import ConfigError
from microgpt.inference.prompt import ChatPrompt, TooLong, build_prompt
from microgpt.inference.score import Score, score_dataset, summed_loss
from microgpt.inference.stream import FinishReason, TextStream, check_limits
from microgpt.model import ModelConfig
from microgpt.parameters import FloatArray, Parameters
from microgpt.storage.model_directory import Checkpoint, Format, read_checkpoint, write_checkpoint

__all__ = ["ChatReply", "LanguageModel", "load"]

MAX_SAMPLES = 1_000_000  # of one call: all are returned at once
SAMPLES_TOGETHER = 1024  # at most, since their draws are in memory
WORK_TOGETHER = 1_000_000_000  # multiplications of one call: some 0.1 s, before Ctrl-C is obeyed


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
        self.engine = select(engine, parameters, threads)

    def __reduce__(self) -> tuple[Callable[..., "LanguageModel"], tuple[Tokenizer, Parameters]]:
        """Let a model be pickled and copied: tokenizer and weights, and the engine's name."""
        make = partial(LanguageModel, engine=self.engine.name, threads=self.engine.threads)
        return make, (self.tokenizer, self.parameters)

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
        before_replacing: Callable[[], None] = lambda: None,
    ) -> None:
        """Write weights and `meta.json`, as one: both or, on failure, neither.

        Args:
            directory: made if it does not exist; a model that it holds is replaced.
            format: "json" for `weights.json`, which the Rust system reads too, or "safetensors" for
                `weights.safetensors`, smaller and faster to read.
            half: round weights to float16, three digits, to halve the latter; they are read back
                as float32.
            before_replacing: called when the new files lie on the disk, just before they take
                their places: for instance to remove what belongs to the model before. What it
                raises keeps that one.

        Raises:
            ConfigError: there is no such format, or `half` is asked of JSON.
            CheckpointError: a weight is not finite, or the directory cannot be written.
        """
        checkpoint = Checkpoint(self.tokenizer, self.parameters)
        write_checkpoint(
            directory, checkpoint, format, half=half, before_replacing=before_replacing
        )

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
            num_samples: how many, 0 to 1,000,000.
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
            >>> import microgpt
            >>> model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100)
            >>> model.generate(2, prompt="h", temperature=0)
            ['hannah', 'hannah']
        """
        check_integer("num_samples", num_samples, 0)
        if num_samples > MAX_SAMPLES:
            raise ConfigError(
                f"num_samples is {num_samples}, expected at most {MAX_SAMPLES:,}; "
                "ask for more in several calls, each with its own seed"
            )
        config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        check_limits(max_tokens, stop, seed)
        prompt_ids = [self.tokenizer.bos, *self.tokenizer.encode(prompt)]
        n_tokens = self._limit(prompt_ids, max_tokens)
        if rng is None:
            seeds = range(int(seed), int(seed) + num_samples)
            texts = self._sample_groups(prompt_ids, seeds, config, n_tokens, signal)
        else:
            check_type("rng", rng, random.Random)
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
            >>> import microgpt
            >>> model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100)
            >>> "|".join(model.stream("h", temperature=0))
            'a|n|n|a|h'
        """
        config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        check_limits(max_tokens, stop, seed)
        prompt_ids = [self.tokenizer.bos, *self.tokenizer.encode(prompt)]
        n_tokens = self._limit(prompt_ids, max_tokens)
        token_ids = generate_from_prompt(
            self.engine,
            prompt_ids,
            random.Random(int(seed)),
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
        check_limits(max_tokens, stop, seed)
        prompt = self._chat_prompt(messages, unknown, too_long)
        n_tokens = self._limit(prompt.token_ids, max_tokens)
        end = self.tokenizer.special_id("end_turn")
        (token_ids,) = self._sample(
            prompt.token_ids,
            [random.Random(int(seed))],
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
        check_limits(max_tokens, stop, seed)
        prompt = self._chat_prompt(messages, unknown, too_long)
        n_tokens = self._limit(prompt.token_ids, max_tokens)
        token_ids = generate_from_prompt(
            self.engine,
            prompt.token_ids,
            random.Random(int(seed)),
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
        if signal is not None:
            check_type("signal", signal, StopSignal)
        draws = [[rng.random() for _ in range(n_tokens)] for rng in generators]
        uniforms = np.array(draws, np.float64).reshape(-1, n_tokens)
        return self.engine.sample(
            prompt_ids, uniforms, config, stop=stop, forbidden=forbidden, signal=signal
        )

    def _sample_groups(
        self,
        prompt_ids: list[int],
        seeds: range,
        config: SamplingConfig,
        n_tokens: int,
        signal: StopSignal | None,
    ) -> list[list[int]]:
        """Return one text per seed, some in each call of the engine."""
        texts = []
        work = self.config.n_params * max(1, n_tokens)
        n_together = max(1, min(SAMPLES_TOGETHER, WORK_TOGETHER // work))
        for first in range(0, len(seeds), n_together):
            generators = map(random.Random, seeds[first : first + n_together])
            texts += self._sample(
                prompt_ids, generators, config, n_tokens, self.tokenizer.bos, signal=signal
            )
        return texts

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

        Args:
            documents: texts; an empty one is scored on its closing BOS alone.

        Raises:
            TokenError: a document holds a character that the model does not know.
            DataError: a document is no string.
        """
        texts = checked_texts(documents)
        documents_ids = (np.array(self.tokenizer.encode_document(text)) for text in texts)
        return [summed_loss(self.engine, [ids]) / (len(ids) - 1) for ids in documents_ids]

    def measure(self, dataset: Dataset) -> Score:
        """Return how well the model predicts a dataset; long documents as in `score`.

        Args:
            dataset: documents, or for a chat model conversations.

        Raises:
            TokenError: it holds a character that the model does not know.
            DataError: it holds documents and the model is for chat, or the other way round.

        Example:
            >>> import microgpt
            >>> model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100)
            >>> score = model.measure(microgpt.Dataset.from_documents(["anna", "otto"]))
            >>> score.n_tokens, round(score.nats_per_token, 1), round(score.perplexity, 1)
            (10, 0.3, 1.3)
        """
        check_type("dataset", dataset, Dataset)
        return score_dataset(self.engine, dataset.encoded_with(self.tokenizer))


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

    Returns:
        The model, ready to use.

    Raises:
        CheckpointError: the directory does not hold a sound model.
        ConfigError: there is no such dtype.
        EngineError: there is no such engine, or it cannot run here.
    """
    checkpoint = read_checkpoint(directory, dtype)
    return LanguageModel(
        checkpoint.tokenizer, checkpoint.parameters, engine=engine, threads=threads
    )
