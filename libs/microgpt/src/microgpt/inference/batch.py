"""Texts that grow together: each may begin and end at any time, and is what it would be alone."""

import random
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

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
from microgpt.errors import SamplingError
from microgpt.inference.prefixes import PrefixCache
from microgpt.inference.prompt import Prompt
from microgpt.inference.stream import FinishReason, Pieces, Reply

__all__ = ["GrowingText", "LiveText", "TextBatch", "grown_tokens", "max_tokens_after"]

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
        part: the tokens that come next, for `Engine.advance`.
        max_tokens: the most tokens of the text.
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
        self.is_finished = False
        self._engine, self._prompt, self._rng, self._config = engine, prompt, rng, config
        self._signal, self._keeps_logits, self._prefixes = signal, keep_logits, prefixes
        self._n_taken = 0  # of the tokens of `part`
        self._n_tokens = 0
        self._context = list(prompt.token_ids)
        self.part = self._begin()

    def _begin(self) -> Text:
        """Return a text of the engine that continues the context."""
        engine, context = self._engine, self._context
        room = room_after(context, engine.config.block_size)
        n_draws = min(self.max_tokens - self._n_tokens, room)
        cache = (
            engine.new_cache()
            if self._prefixes is None
            else self._prefixes.cache_for(engine, context)
        )
        return engine.begin(
            context[cache.length :],
            cache,
            np.array([self._rng.random() for _ in range(n_draws)]),
            self._config,
            stop=self._prompt.stop_token,
            forbidden=self._prompt.forbidden,
            signal=self._signal,
            keep_logits=self._keeps_logits,
        )

    def collect(self) -> list[ChosenToken]:
        """Return the tokens since the last call; begin the next part where one is full."""
        part, first = self.part, self._n_taken
        ids = part.tokens[first : part.n_tokens].tolist()
        self._n_taken = part.n_tokens
        self._n_tokens += len(ids)
        self._context += ids
        tokens = (
            list(map(ChosenToken, ids))
            if part.chosen_from is None
            else list(map(ChosenToken, ids, part.chosen_from[first : part.n_tokens].tolist()))
        )
        if part.is_finished:
            is_full = part.n_tokens == len(part.draws) and not part.signal.is_set
            self.close()
            if is_full and self._n_tokens < self.max_tokens:
                self.is_finished = False
                self._context = slid(
                    self._context, self._engine.config.block_size, self._prompt.first
                )
                self.part, self._n_taken = self._begin(), 0
        return tokens

    def close(self) -> None:
        """End the text; what was read of it may be the beginning of another one's prompt."""
        if self._prefixes is not None and not self.is_finished and not self.part.has_failed:
            self._prefixes.keep(self._context, self.part.cache)
        self.is_finished = True

    def check(self) -> None:
        """Raise SamplingError if logits that are not finite have ended the text."""
        if self.part.has_failed:
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


class LiveText:
    """A text of a `TextBatch`, which makes it and lets it grow.

    Attributes:
        piece: what the latest steps have added to the text; may be empty.
        tokens: those that begin in `piece`, each with its logits if they are kept.
        token_ids: all tokens of the text so far.
        prompt: the tokens before.
    """

    def __init__(self, growing: GrowingText, pieces: Pieces, prompt: Prompt) -> None:
        self.prompt = prompt
        self.piece = ""
        self.tokens: list[ChosenToken] = []
        self.token_ids: list[int] = []
        self._growing, self._pieces = growing, pieces
        self._content: list[str] = []

    @property
    def n_tokens(self) -> int:
        """Tokens so far."""
        return self._pieces.n_tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        """See `TextStream.finish_reason`."""
        return self._pieces.finish_reason

    @property
    def is_finished(self) -> bool:
        """Whether nothing follows: see `finish_reason`, and `reply` for errors."""
        return self.finish_reason is not None

    @property
    def part(self) -> Text:
        """What `Engine.advance` takes."""
        return self._growing.part

    def collect(self) -> None:
        """Take the tokens that were chosen since the last call."""
        pieces = self._pieces
        self.piece, self.tokens = "", []
        for token in self._growing.collect():
            self._add(pieces.push(token))
            if pieces.finish_reason:
                self._growing.close()
                return
        if self._growing.is_finished:
            self._add(pieces.finish())

    def _add(self, piece: str) -> None:
        if piece:
            self.piece += piece
            self.tokens += self._pieces.tokens
            self.token_ids += [token.token_id for token in self._pieces.tokens]
            self._content.append(piece)

    def close(self) -> None:
        """End the text where it is."""
        self._growing.close()

    def reply(self) -> Reply:
        """Return the text as a whole, once it is finished.

        Raises:
            SamplingError: the model's logits were not finite.
        """
        self._growing.check()
        assert self.finish_reason, "a finished text"
        content = "".join(self._content)
        return Reply(content, self.finish_reason, self.n_tokens, self.prompt, self.token_ids)


class TextBatch:
    """Texts that a model continues together; made by `LanguageModel.batch`.

    Texts may join and leave between two steps. Each is the text that the model gives alone, and
    many take little longer than a few: the weights are read once for all of them. A batch is for
    one thread at a time.

    Args:
        engine: of the model.
        tokenizer: of the model.
        prefixes: beginnings that were read before; None to read every prompt anew.
    """

    def __init__(
        self, engine: Engine, tokenizer: BaseTokenizer, prefixes: PrefixCache | None = None
    ) -> None:
        self._engine, self._tokenizer, self.prefixes = engine, tokenizer, prefixes
        self._texts: list[LiveText] = []

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
        """Read a prompt; its text grows with the next steps.

        Args:
            prompt: made by `LanguageModel.prompt`.
            config: temperature, filters, limits and seed; None for the defaults.
            signal: ends the text where it is, once it is set.
            keep_logits: keep the logits that each token was chosen from.

        Raises:
            ContextLengthError: the prompt does not fit into block_size.
        """
        config = config or SamplingConfig()
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
        """End a text where it is; one that is finished has left already."""
        if text in self._texts:
            self._texts.remove(text)
            text.close()

    def advance(self, n_tokens: int = 1) -> list[LiveText]:
        """Let all texts grow by up to `n_tokens` tokens each; return those that did, or ended."""
        self._engine.advance([text.part for text in self._texts], n_tokens)
        for text in self._texts:
            text.collect()
        changed = [text for text in self._texts if text.piece or text.is_finished]
        self._texts = [text for text in self._texts if not text.is_finished]
        return changed

    def replies(
        self, prompts: Iterable[Prompt], configs: Iterable[SamplingConfig], n_together: int
    ) -> Iterator[Reply]:
        """Yield the replies to prompts in their order, `n_together` of them at a time."""
        waiting = zip(prompts, configs, strict=False)
        texts: deque[LiveText] = deque()
        while True:
            for prompt, config in islice(waiting, n_together - len(self)):
                texts.append(self.add(prompt, config))
            if not texts:
                return
            self.advance(STEPS_TOGETHER)
            while texts and texts[0].is_finished:
                yield texts.popleft().reply()
