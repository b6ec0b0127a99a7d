"""The one way from a request to its texts: prompt, sampling options, generation, usage."""

import logging
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeAlias

from microgpt import (
    ChosenToken,
    LanguageModel,
    Message,
    Prompt,
    SamplingConfig,
    StopSignal,
)
from starlette.requests import Request

from microgpt_serve.api.http import cancel_on_disconnect
from microgpt_serve.api.schemas import (
    ChatRequest,
    GenerateRequest,
    OpenAITurn,
    SamplingRequest,
    Turn,
    Usage,
)
from microgpt_serve.serving import metrics
from microgpt_serve.serving.batcher import Batcher, Grown
from microgpt_serve.serving.errors import ApiError
from microgpt_serve.serving.log import log

__all__ = ["Generation", "log_softmax", "read_prompt", "sampling_config", "start_generation"]

Turns: TypeAlias = Sequence[Turn] | Sequence[OpenAITurn]

INLINE_CHARACTERS = 10_000  # half a millisecond of encoding, four by subwords
CHARACTERS_PER_MESSAGE = 10  # encoding a message takes the time of so many characters more
OPTIONS = [option.name for option in fields(SamplingConfig)]


def sampling_config(
    body: GenerateRequest | ChatRequest | SamplingRequest, **defaults: Any
) -> SamplingConfig:
    """Return the sampling options of a request; those that it lacks have their defaults."""
    given = {name: value for name in OPTIONS if (value := getattr(body, name, None)) is not None}
    if isinstance(body.stop, str):
        given["stop"] = [body.stop]
    return SamplingConfig(**(defaults | given))


async def read_prompt(request: Request, model: LanguageModel, source: str | Turns) -> Prompt:
    """Return the prompt of a text or of a conversation; a long one is encoded in a thread.

    Raises:
        ApiError: `source` is a conversation, and the model was not trained to chat.
        MicrogptError: see `LanguageModel.prompt`.
    """
    if isinstance(source, str):
        n_characters = len(source)
        encode = partial(model.prompt, source)
    else:
        if not model.tokenizer.is_chat:
            raise ApiError(400, "model was not trained with chat tokens", param="messages")
        messages = [_as_message(turn) for turn in source]
        n_characters = sum(len(each["content"]) + CHARACTERS_PER_MESSAGE for each in messages)
        encode = partial(model.prompt, messages, unknown="skip")
    if n_characters <= INLINE_CHARACTERS:
        return encode()
    work = request.app.state.pool.run(lambda _: encode())
    return await cancel_on_disconnect(request, work)


def _as_message(turn: Turn | OpenAITurn) -> Message:
    content = turn.content
    if not isinstance(content, str):
        content = "".join(part.text for part in content)
    return {"role": turn.role, "content": content}


@dataclass
class Generation:
    """The n texts that a request asks for; text i continues the prompt with seed + i.

    Args:
        model: generates the texts.
        prompt: the tokens that every text continues.
        config: sampling options.
        n: number of texts.
    """

    model: LanguageModel
    prompt: Prompt
    config: SamplingConfig
    n: int = 1
    _n_generated: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        metrics.PROMPT_TOKENS.inc(len(self.prompt.token_ids))

    @property
    def usage(self) -> Usage:
        """Numbers of tokens so far."""
        n_prompt = len(self.prompt.token_ids)
        return Usage(n_prompt, self._n_generated, n_prompt + self._n_generated)

    @property
    def configs(self) -> list[SamplingConfig]:
        """The sampling options of each text."""
        seed = self.config.seed
        return [replace(self.config, seed=seed + i) for i in range(self.n)]

    def documents(self, signal: StopSignal) -> list[str]:
        """Generate and return all texts, the prompt included, many per call of the engine."""
        tokenizer = self.model.tokenizer
        beginning = tokenizer.decode(self.prompt.token_ids)  # without BOS, if there is one
        # One text takes less so; encoded again, a text of subwords may have another length.
        if self.n == 1 or not tokenizer.chars:
            replies = [self.model.reply(self.prompt, each, signal=signal) for each in self.configs]
            self._count(sum(reply.n_tokens for reply in replies))
            return [beginning + reply.content for reply in replies]
        options = vars(self.config)  # `asdict` takes a third of the time of a short text
        documents = self.model.generate(self.n, prompt=self.prompt, signal=signal, **options)
        self._count(sum(map(len, documents)) - len(beginning) * len(documents))
        return documents

    def grown(
        self,
        batcher: Batcher,
        *,
        pieces: bool = False,
        of_token: Callable[[ChosenToken], Any] | None = None,
    ) -> AsyncGenerator[Grown]:
        """Return what `Batcher.generate` yields for all texts; `usage` counts with it."""
        return self._counted(
            batcher.generate(
                self.model, self.prompt, self.configs, pieces=pieces, of_token=of_token
            )
        )

    async def _counted(self, texts: AsyncGenerator[Grown]) -> AsyncGenerator[Grown]:
        async with aclosing(texts):
            async for grown in texts:
                if grown.finish_reason:
                    self._n_generated += grown.n_tokens
                yield grown

    def _count(self, n_tokens: int) -> None:
        self._n_generated += n_tokens
        metrics.COMPLETION_TOKENS.inc(n_tokens)


async def start_generation(
    request: Request, source: str | Turns, config: SamplingConfig, n: int = 1
) -> Generation:
    """Return the generation of `n` texts that continue a text or a conversation.

    Raises:
        ApiError: see `read_prompt`, or no model is loaded yet.
    """
    state = request.app.state
    model: LanguageModel = state.models.model
    if config.max_tokens is not None and config.max_tokens > state.settings.max_tokens:
        config = replace(config, max_tokens=state.settings.max_tokens)
    prompt = await read_prompt(request, model, source)
    if prompt.system_dropped:
        log(logging.INFO, "message of the system left out: the model knows none")
    return Generation(model, prompt, config, n)


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Return the log-probabilities of logits, shape (V,)."""
    largest = max(logits)
    total = largest + math.log(sum(math.exp(z - largest) for z in logits))
    return [z - total for z in logits]
