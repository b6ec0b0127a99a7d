"""Texts that grow together: each may begin and end at any time, and is what it would be alone."""

import random
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from microgpt.checks import check_type, checked_integer
from microgpt.data import BaseTokenizer
from microgpt.engines.base import Engine
from microgpt.engines.decoding import (
    NOT_FINITE_LOGITS,
    ChosenToken,
    SamplingConfig,
    StopSignal,
    room_after,
    slid,
)
from microgpt.engines.texts import Text
from microgpt.errors import ConfigError, SamplingError
from microgpt.inference.prefixes import PrefixCache
from microgpt.inference.prompt import Prompt
from microgpt.inference.stream import FinishReason, Pieces, Reply, TextStream

__all__ = [
    "GrowingText",
    "LiveText",
    "TextBatch",
    "grown_tokens",
    "max_tokens_after",
    "stream_text",
]

STEPS_TOGETHER = 8  # of replies, before others take the places of those that have ended


def max_tokens_after(prompt: Prompt, config: SamplingConfig, block_size: int) -> int:
    """Return the most tokens of a text that continues `prompt`."""
    room = room_after(prompt.token_ids, block_size)
    return room if config.max_tokens is None else config.max_tokens


class GrowingText:
    """A text of any length: `Text`s of an engine, one after another, each within the block.

    Args:
        engine: of the model.
        prompt: the tokens before.
        rng: one draw per token, taken ahead.
        config: temperature, filters and `max_tokens`.
        signal: ends the text where it is, once it is set.
        keep_logits: keep the logits that each token was chosen from.
        prefixes: beginnings that were read before.

    Attributes:
        part: the tokens that come next, for `Engine.advance`, until the text is finished.
        max_tokens: the most tokens of the text.
        end: the token that ended the text, by the model's choice, with its logits; None before,
            for a text that ended otherwise, and without `keep_logits`.
        is_finished: whether no token follows; see `collect`.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Prompt,
        rng: random.Random,
        config: SamplingConfig,
        signal: StopSignal | None = None,
        *,
        keep_logits: bool = False,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self.max_tokens = max_tokens_after(prompt, config, engine.config.block_size)
        self.end: ChosenToken | None = None
        self.is_finished = self._has_failed = False
        self._engine, self._prompt, self._rng, self._config = engine, prompt, rng, config
        self._signal, self._keeps_logits, self._prefixes = signal, keep_logits, prefixes
        self._n_taken, self._n_left = 0, self.max_tokens  # tokens of `part`; tokens to come
        self._draws: list[float] = []  # of a part that is not begun yet
        self._context = list(prompt.token_ids)
        self.part = self._begin(self._context, self._n_left)

    def _begin(self, context: list[int], n_left: int) -> Text:
        """Return a text of the engine that continues a context; after an error, try again."""
        engine = self._engine
        room = room_after(context, engine.config.block_size)
        cache = (
            engine.new_cache()
            if self._prefixes is None
            else self._prefixes.cache_for(engine, context)
        )
        n_draws = min(n_left, room)
        self._draws += [self._rng.random() for _ in range(n_draws - len(self._draws))]
        text = engine.begin(
            context[cache.length :],
            cache,
            np.array(self._draws),
            self._config,
            stop=self._prompt.stop_token,
            forbidden=self._prompt.forbidden,
            signal=self._signal,
            keep_logits=self._keeps_logits,
        )
        self._draws = []
        return text

    def collect(self) -> list[ChosenToken]:
        """Return the tokens since the last call; begin the next part where one is full.

        An error, such as a lack of memory, changes nothing: the next call tries again.
        """
        if self.is_finished:
            return []
        part, first, n_taken = self.part, self._n_taken, self.part.n_tokens
        ids = part.tokens[first:n_taken].tolist()
        tokens = (
            list(map(ChosenToken, ids))
            if part.chosen_from is None
            else list(map(ChosenToken, ids, part.chosen_from[first:n_taken].tolist()))
        )
        context, n_left = [*self._context, *ids], self._n_left - len(ids)
        if n_left and n_taken == len(part.draws):
            self._keep(context)
            context = slid(context, self._engine.config.block_size, self._prompt.first)
            self.part, n_taken = self._begin(context, n_left), 0
        self._context, self._n_left, self._n_taken = context, n_left, n_taken
        if self.part.is_finished:
            self.close()
        return tokens

    def _keep(self, context: list[int]) -> None:
        if self._prefixes is not None and not self.part.has_failed:
            self._prefixes.keep(context, self.part.cache)

    def close(self) -> None:
        """End the text, and free the memory of its part."""
        if not self.is_finished:
            self._keep(self._context)
            if self._keeps_logits and self.part.has_chosen_stop:
                self.end = ChosenToken(self.part.stop, list(map(float, self.part.logits)))
            self.is_finished, self._has_failed = True, self.part.has_failed
            del self.part

    def check(self) -> None:
        """Raise SamplingError if logits that are not finite have ended the text."""
        if self._has_failed:
            raise SamplingError(NOT_FINITE_LOGITS)


def grown_tokens(growing: GrowingText, engine: Engine) -> Iterator[ChosenToken]:
    """Yield the tokens of a text alone, each as soon as it is chosen.

    Raises:
        SamplingError: the model's logits are not finite.
    """
    while not growing.is_finished:
        engine.advance([growing.part], 1)
        yield from growing.collect()
    growing.check()


def stream_text(
    engine: Engine, tokenizer: BaseTokenizer, prompt: Prompt, config: SamplingConfig
) -> TextStream:
    """Return a text alone that continues a prompt, drawn from the seed of `config`."""
    rng = random.Random(int(config.seed))
    growing = GrowingText(engine, prompt, rng, config, keep_logits=True)
    tokens = grown_tokens(growing, engine)
    return TextStream(tokens, tokenizer, growing.max_tokens, config.stop, prompt)


class LiveText:
    """A text of a `TextBatch`, which `TextBatch.add` returns and `TextBatch.advance` continues.

    Args:
        growing: its tokens.
        pieces: from tokens to text.
        prompt: the tokens before the text.

    Attributes:
        piece: the end of the text that the latest call of `advance` added; may be empty.
        tokens: the tokens that begin in `piece`, with their logits if `add` was to keep them.
    """

    def __init__(self, growing: GrowingText, pieces: Pieces, prompt: Prompt) -> None:
        self.prompt = prompt
        self.piece = ""
        self.tokens: list[ChosenToken] = []
        self._growing, self._pieces = growing, pieces
        self._content: list[str] = []

    def __repr__(self) -> str:
        tokens = f"{self.n_tokens} token{'s' * (self.n_tokens != 1)}"
        content = "".join(self._content)
        return f"<LiveText: {content!r:.80}, {tokens}, {self.finish_reason or 'unfinished'}>"

    @property
    def token_ids(self) -> list[int]:
        """Tokens of all pieces so far."""
        return self._pieces.token_ids

    @property
    def n_tokens(self) -> int:
        """Number of tokens chosen so far."""
        return self._pieces.n_tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        """Reason for the end, None before it; see `TextStream.finish_reason`."""
        return self._pieces.finish_reason

    @property
    def end(self) -> ChosenToken | None:
        """Token that the model chose to end the text, with its logits if `add` was to keep them.

        None before, and for a text that ended otherwise.
        """
        return self._growing.end

    @property
    def is_finished(self) -> bool:
        """Whether the text has ended; `reply` raises the error that has ended it, if any."""
        return self.finish_reason is not None

    @property
    def part(self) -> Text:
        """Text of the engine, for `TextBatch`."""
        return self._growing.part

    def collect(self) -> None:
        """Take the tokens chosen since the last call; for `TextBatch`."""
        self.piece, self.tokens = "", []
        if self.is_finished:
            return
        self._add(self._pieces.push(self._growing.collect()))
        if self.is_finished:
            self._growing.close()
        elif self._growing.is_finished:
            self._add(self._pieces.finish())

    def _add(self, piece: str) -> None:
        self.piece += piece
        self.tokens += self._pieces.tokens
        self._content.append(piece)

    def close(self) -> None:
        """End the text where it is; for `TextBatch`, see its `remove`."""
        if not self.is_finished:
            self._growing.close()
            self.collect()

    def reply(self) -> Reply:
        """Return the whole finished text.

        Raises:
            SamplingError: the model's logits were not finite, or the text is not finished.
        """
        self._growing.check()
        if self.finish_reason is None:
            raise SamplingError(
                "the text is not finished; call `advance` or `remove` of its batch first"
            )
        content = "".join(self._content)
        return Reply(content, self.finish_reason, self.n_tokens, self.prompt, self.token_ids)


class TextBatch:
    """Texts that a model continues together; made by `LanguageModel.batch`.

    Texts may join and leave between two steps. Each text equals the `LanguageModel.reply` to its
    prompt. Many texts take little longer than a few, because a step reads the weights once for all
    of them. Only one thread at a time may use a batch.

    Args:
        engine: of the model.
        tokenizer: of the model.
        prefixes: beginnings of earlier prompts; None to read each prompt from its beginning.

    Example:
        >>> import microgpt
        >>> model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100)
        >>> batch = model.batch()
        >>> first, second = (batch.add(model.prompt(text)) for text in ("h", "b"))
        >>> while len(batch):
        ...     _ = batch.advance(2)
        >>> first, second
        (<LiveText: 'annah', 5 tokens, stop>, <LiveText: 'ob', 2 tokens, stop>)
    """

    def __init__(
        self, engine: Engine, tokenizer: BaseTokenizer, prefixes: PrefixCache | None = None
    ) -> None:
        if prefixes is not None:
            check_type("prefixes", prefixes, PrefixCache)
        self._engine, self._tokenizer, self.prefixes = engine, tokenizer, prefixes
        self._texts: list[LiveText] = []

    def __repr__(self) -> str:
        return f"<TextBatch: {len(self)} unfinished text{'s' * (len(self) != 1)}>"

    def __len__(self) -> int:
        """Return the number of texts that are not finished."""
        return len(self._texts)

    def add(
        self,
        prompt: Prompt,
        config: SamplingConfig | None = None,
        *,
        signal: StopSignal | None = None,
        keep_logits: bool = False,
    ) -> LiveText:
        """Read a prompt, and return the text that the next steps add to it.

        Args:
            prompt: made by `LanguageModel.prompt`.
            config: temperature, filters, limits and seed; None for the defaults.
            signal: ends the text where it is, once it is set.
            keep_logits: keep the logits that each token was chosen from.

        Raises:
            ConfigError: an argument is of another type.
            ContextLengthError: the prompt does not fit into block_size.
        """
        config = SamplingConfig() if config is None else config
        check_type("prompt", prompt, Prompt)
        check_type("config", config, SamplingConfig)
        if signal is not None:
            check_type("signal", signal, StopSignal)
        growing = GrowingText(
            self._engine,
            prompt,
            random.Random(int(config.seed)),
            config,
            signal,
            keep_logits=keep_logits,
            prefixes=self.prefixes,
        )
        pieces = Pieces(self._tokenizer, growing.max_tokens, config.stop)
        self._texts.append(LiveText(growing, pieces, prompt))
        return self._texts[-1]

    def remove(self, text: LiveText) -> None:
        """End a text where it is; a finished text stays as it is.

        Args:
            text: from `add` of this batch.
        """
        if text in self._texts:
            self._texts.remove(text)
            text.close()

    def advance(self, n_tokens: int = 1) -> list[LiveText]:
        """Continue all texts; return those that grew or ended.

        Args:
            n_tokens: most tokens to add to each text; a text at the end of its block gets fewer.

        Raises:
            ConfigError: `n_tokens` is below 1.
        """
        n_steps = min(checked_integer("n_tokens", n_tokens, 1), self._engine.config.block_size)
        self._engine.advance([text.part for text in self._texts if not text.is_finished], n_steps)
        for text in self._texts:
            text.collect()
        changed = [text for text in self._texts if text.piece or text.is_finished]
        self._texts = [text for text in self._texts if not text.is_finished]
        return changed

    def replies(
        self, prompts: Iterable[Prompt], configs: Iterable[SamplingConfig], n_together: int
    ) -> Iterator[Reply]:
        """Yield the replies to prompts in their order.

        Args:
            prompts: read as room becomes free.
            configs: one for each prompt; further configs are not used.
            n_together: most prompts that are continued at a time.

        Raises:
            ConfigError: `n_together` is below 1, or there are fewer configs than prompts.
            ContextLengthError: a prompt does not fit into block_size.
            SamplingError: the model's logits are not finite.
        """
        checked_integer("n_together", n_together, 1)
        waiting, options = iter(prompts), iter(configs)
        texts: deque[LiveText] = deque()
        try:
            while True:
                n_live = sum(not text.is_finished for text in texts)
                for prompt in islice(waiting, n_together - n_live):
                    if (config := next(options, None)) is None:
                        raise ConfigError("there are fewer configs than prompts, expected as many")
                    texts.append(self.add(prompt, config))
                if not texts:
                    return
                self.advance(STEPS_TOGETHER)
                while texts and texts[0].is_finished:
                    yield texts.popleft().reply()
        finally:
            for text in texts:
                self.remove(text)
