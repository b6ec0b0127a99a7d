"""The library from outside: one object that holds sizes, tokenizer and weights, and uses them."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from microgpt.checks import PathLike, check_vocabularies, checked_texts
from microgpt.corpus.dataset import Dataset
from microgpt.data import BaseTokenizer, Message, Unknown
from microgpt.engines import select
from microgpt.engines.decoding import SamplingConfig, StopSignal
from microgpt.history import History
from microgpt.inference.batch import TextBatch, stream_text
from microgpt.inference.prefixes import PrefixCache
from microgpt.inference.prompt import Prompt, TooLong, build_prompt, text_prompt
from microgpt.inference.samples import draw_reply, draw_samples, logits_of_reply
from microgpt.inference.score import IfUnknown, Score, score_all, score_each
from microgpt.inference.stream import Reply, TextStream
from microgpt.inference.summary import one_line, rows_of
from microgpt.inference.trace import Trace, Traceable, trace_text
from microgpt.model import ModelConfig
from microgpt.notebook import table
from microgpt.parameters import FloatArray, Parameters
from microgpt.storage.model_directory import StoredModel, TrainingRecord, write_model
from microgpt.storage.weights import Format

__all__ = ["LanguageModel"]


class LanguageModel:
    """A model ready to use; made by `fit`, `load` or `prepare`.

    Args:
        tokenizer: its characters or subwords.
        parameters: its sizes and weights.
        engine: name of the engine that runs it; see `ENGINES`.
        threads: cores to use; None for all.
        training: how the model was made, where that is known.
        windows: the model was trained on windows of long documents; a prompt then has no BOS.

    Attributes:
        history: the reports of the steps of `fit`; empty for a model from elsewhere.

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
        tokenizer: BaseTokenizer,
        parameters: Parameters,
        *,
        engine: str = "auto",
        threads: int | None = None,
        training: TrainingRecord | None = None,
        windows: bool = False,
    ) -> None:
        check_vocabularies(tokenizer.vocab_size, parameters.config.vocab_size)
        self.tokenizer = tokenizer
        self.training = training
        self.windows = windows
        self.history = History()
        self.engine = select(engine, parameters, threads)

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling and copying: tokenizer, weights, history, and the engine's name."""
        make = partial(
            LanguageModel,
            engine=self.engine.name,
            threads=self.engine.threads,
            training=self.training,
            windows=self.windows,
        )
        return make, (self.tokenizer, self.parameters), {"history": self.history}

    def __repr__(self) -> str:
        return f"<LanguageModel: {one_line(self.engine, self.tokenizer, self.training)}>"

    def _repr_html_(self) -> str:
        return table("LanguageModel", rows_of(self.engine, self.tokenizer, self.training))

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model."""
        return self.engine.config

    @property
    def parameters(self) -> Parameters:
        """The weights, each matrix under its name; writing into a matrix changes the model."""
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
            half: round weights to float16, three digits, to halve a safetensors file; they are
                read back as float32.
            before_replacing: called when the new files are on the disk, just before they replace
                the old files; an error that it raises keeps the old model.

        Raises:
            ConfigError: there is no such format, or `half` with JSON.
            CheckpointError: a weight is not finite, or the directory cannot be written.
        """
        model = StoredModel(self.tokenizer, self.parameters, self.training, self.windows)
        write_model(directory, model, format, half=half, before_replacing=before_replacing)

    def prompt(
        self,
        text: str | Sequence[Message],
        *,
        unknown: Unknown = "error",
        too_long: TooLong = "error",
    ) -> Prompt:
        """Return the prompt of a text or of messages, for `reply`, `stream` and `generate`.

        Args:
            text: beginning of a document, or messages to reply to; for a model of windows any text.
            unknown: "skip" leaves out characters that the model does not know, "error" refuses.
            too_long: see `build_prompt`; "truncate" keeps the end of a text.

        Raises:
            ChatError, TokenError, ConfigError, ContextLengthError: see `build_prompt`.
        """
        if isinstance(text, str):
            return self._as_prompt(text, unknown, too_long)
        return self._chat_prompt(text, unknown, too_long)

    def reply(
        self,
        prompt: Prompt,
        config: SamplingConfig | None = None,
        *,
        signal: StopSignal | None = None,
    ) -> Reply:
        """Return one text that continues a prompt.

        Args:
            prompt: made by `prompt`.
            config: temperature, filters, limits and seed; None for the defaults.
            signal: ends the text where it is, once it is set.

        Raises:
            ConfigError, ContextLengthError: `prompt` is no Prompt, or is longer than block_size.
            SamplingError: the model's logits are not finite.

        Example:
            >>> import microgpt
            >>> model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100)
            >>> config = microgpt.SamplingConfig(temperature=0, max_tokens=3)
            >>> reply = model.reply(model.prompt("h"), config)
            >>> reply.content, reply.finish_reason
            ('ann', 'length')
        """
        return draw_reply(self.engine, self.tokenizer, prompt, config or SamplingConfig(), signal)

    def generate(
        self,
        num_samples: int = 1,
        *,
        temperature: float = SamplingConfig.temperature,
        top_k: int | None = SamplingConfig.top_k,
        top_p: float = SamplingConfig.top_p,
        prompt: str | Prompt = "",
        max_tokens: int | None = SamplingConfig.max_tokens,
        stop: Sequence[str] = SamplingConfig.stop,
        seed: int = SamplingConfig.seed,
        rng: random.Random | None = None,
        signal: StopSignal | None = None,
    ) -> list[str]:
        """Return new documents.

        Args:
            num_samples: how many, 0 to 1,000,000.
            temperature: 0 for the most likely text; higher is more surprising.
            top_k: choose among the k most likely tokens only.
            top_p: choose among the most likely tokens that together reach this probability.
            prompt: beginning of every document, included in the result.
            max_tokens: limit after the prompt, may exceed the block; None for the rest of it.
            stop: stop texts; a document ends before the first.
            seed: sample i is drawn from `random.Random(seed + i)`, however many are asked for.
            rng: draw all samples from this generator, one after another; `seed` is not used.
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
        config = SamplingConfig(temperature, top_k, top_p, max_tokens, stop, seed)
        made = self._as_prompt(prompt)
        beginning = prompt if isinstance(prompt, str) else self.tokenizer.decode(made.token_ids)
        texts = draw_samples(self.engine, self.tokenizer, made, num_samples, config, rng, signal)
        return [beginning + text for text in texts]

    def stream(
        self,
        prompt: str | Prompt = "",
        config: SamplingConfig | None = None,
        *,
        temperature: float = SamplingConfig.temperature,
        top_k: int | None = SamplingConfig.top_k,
        top_p: float = SamplingConfig.top_p,
        max_tokens: int | None = SamplingConfig.max_tokens,
        stop: Sequence[str] = SamplingConfig.stop,
        seed: int = SamplingConfig.seed,
    ) -> TextStream:
        """Return a text that continues a prompt, piece by piece as the model chooses it.

        Args:
            prompt: a document's beginning, or a `Prompt`; not yielded.
            config: all options at once; without it, those that follow.
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
        config = config or SamplingConfig(temperature, top_k, top_p, max_tokens, stop, seed)
        return stream_text(self.engine, self.tokenizer, self._as_prompt(prompt), config)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = SamplingConfig.temperature,
        top_k: int | None = SamplingConfig.top_k,
        top_p: float = SamplingConfig.top_p,
        max_tokens: int | None = SamplingConfig.max_tokens,
        stop: Sequence[str] = SamplingConfig.stop,
        seed: int = SamplingConfig.seed,
        unknown: Unknown = "skip",
        too_long: TooLong = "error",
        signal: StopSignal | None = None,
    ) -> Reply:
        """Return the assistant's reply to messages.

        Args:
            messages: at least one, each with "role" (user or assistant) and "content"; the oldest
                are dropped where not all fit.
            temperature: 0 for the most likely reply; higher is more surprising.
            top_k: choose among the k most likely tokens only.
            top_p: choose among the most likely tokens that together reach this probability.
            max_tokens: see `generate`.
            stop: stop texts; the reply ends before the first.
            seed: of the draws.
            unknown: see `build_prompt`.
            too_long: see `build_prompt`.
            signal: ends the reply where it is, once it is set.

        Raises:
            ChatError: the model was not trained to chat, or a message is not as expected.
            ConfigError: an argument is out of its domain.
            TokenError, ContextLengthError: see `build_prompt`.
            SamplingError: the model's logits are not finite.
        """
        config = SamplingConfig(temperature, top_k, top_p, max_tokens, stop, seed)
        prompt = self._chat_prompt(messages, unknown, too_long)
        return self.reply(prompt, config, signal=signal)

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = SamplingConfig.temperature,
        top_k: int | None = SamplingConfig.top_k,
        top_p: float = SamplingConfig.top_p,
        max_tokens: int | None = SamplingConfig.max_tokens,
        stop: Sequence[str] = SamplingConfig.stop,
        seed: int = SamplingConfig.seed,
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
        config = SamplingConfig(temperature, top_k, top_p, max_tokens, stop, seed)
        return self.stream(self._chat_prompt(messages, unknown, too_long), config)

    def _chat_prompt(
        self, messages: Sequence[Message], unknown: Unknown, too_long: TooLong
    ) -> Prompt:
        size = self.config.block_size  # not `prompt`, where a string would begin a document
        return build_prompt(messages, self.tokenizer, size, unknown=unknown, too_long=too_long)

    def _as_prompt(
        self, text: str | Prompt, unknown: Unknown = "error", too_long: TooLong = "error"
    ) -> Prompt:
        if isinstance(text, Prompt):
            return text
        size = self.config.block_size
        return text_prompt(text, self.tokenizer, size, unknown, too_long, windows=self.windows)

    def batch(self, prefixes: PrefixCache | None = None) -> TextBatch:
        """Return a batch for texts that the model continues together.

        Args:
            prefixes: beginnings that were read before, and those to come; None to keep none.
        """
        return TextBatch(self.engine, self.tokenizer, prefixes)

    def logits(self, token_ids: Sequence[int]) -> FloatArray:
        """Return the logits after each token, before softmax, shape (T, V).

        Args:
            token_ids: 1 to block_size ids; documents begin with `tokenizer.bos`.

        Raises:
            ShapeError, ContextLengthError: there are no tokens, or more than block_size.
            TokenError: an id is not in the vocabulary.
        """
        return self.engine.logits(token_ids)

    def trace(
        self, text: Traceable, *, unknown: Unknown = "error", max_figures: int | None = None
    ) -> Trace:
        """Return the results of a forward pass over a text: attention, residual stream, logits.

        Args:
            text: as for `generate`; or messages, also with an answer at the end; or token ids.
            unknown: see `build_prompt`.
            max_figures: refuse a trace of more, of eight bytes each; None for no limit.

        Raises:
            ChatError, TokenError, ShapeError, ContextLengthError: see `prompt` and `logits`.
        """
        parts = self.parameters, self.tokenizer, self.windows
        return trace_text(*parts, text, unknown, max_figures)

    def reply_logits(self, reply: Reply) -> FloatArray:
        """Return the logits that each token of a reply was chosen from, shape (n_tokens, V).

        Args:
            reply: of this model; of a text that a stop text has cut, the tokens that are left.

        Raises:
            ConfigError: `reply` is no Reply.
        """
        return logits_of_reply(self.engine, reply)

    def score(self, documents: Iterable[str], *, unknown: IfUnknown = "error") -> list[float]:
        """Return the mean loss of each document in nats per predicted token; lower is likelier.

        Every token and the closing BOS is predicted once, also by a model of windows. Documents
        longer than block_size are read in parts that overlap by half: each has half a block before.

        Args:
            documents: texts; an empty one is scored on its closing BOS alone.
            unknown: "error", or "skip" to leave out characters that the model does not know, or
                "worst" to count each as a token that costs twice log V.

        Raises:
            TokenError: a document holds such a character and `unknown` is "error".
            DataError: a document is no string; its position is named.
        """
        return [score.nats_per_token for score in self.measure_each(documents, unknown=unknown)]

    def measure_each(
        self, documents: Iterable[str], *, unknown: IfUnknown = "error"
    ) -> Iterator[Score]:
        """Yield what `measure` returns for each text alone.

        Args:
            documents: see `score`.
            unknown: see `score`.

        Raises:
            TokenError, DataError: see `score`.
        """
        return score_each(self.engine, self.tokenizer, checked_texts(documents), unknown)

    def measure(self, dataset: Dataset | Iterable[str], *, unknown: IfUnknown = "error") -> Score:
        """Return how well the model predicts documents; long documents as in `score`.

        Args:
            dataset: texts, or a dataset of them, in which only targets that count are measured; for
                a chat model one of conversations.
            unknown: see `score`; "error" for a dataset.

        Raises:
            TokenError, DataError: see `score`; or there is no document, or no token counts.
            DataError: it holds documents and the model is for chat, or the other way round.

        Example:
            >>> import microgpt
            >>> model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100)
            >>> score = model.measure(["anna", "otto"])
            >>> score.n_tokens, round(score.nats_per_token, 1), round(score.perplexity, 1)
            (10, 0.3, 1.3)
        """
        return score_all(self.engine, self.tokenizer, dataset, unknown)
