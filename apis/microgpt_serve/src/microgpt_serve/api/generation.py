"""The one way from a request to its texts: prompts, sampling options, generation, usage."""

import asyncio
import logging
import math
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

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
from microgpt_serve.api.openai_schemas import OpenAITurn, SamplingRequest, Usage
from microgpt_serve.api.schemas import ChatRequest, GenerateRequest, Turn
from microgpt_serve.serving import metrics
from microgpt_serve.serving.batcher import Grown
from microgpt_serve.serving.errors import ApiError
from microgpt_serve.serving.log import log
from microgpt_serve.serving.middleware import DETAILS
from microgpt_serve.serving.models import ServedModel

__all__ = [
    "NOT_READ_HEADERS",
    "RANDOM_SEED",
    "Generation",
    "log_softmax",
    "read_prompt",
    "sampling_config",
    "served_model",
    "start_generation",
]

Turns: TypeAlias = Sequence[Turn | OpenAITurn]

INLINE_CHARACTERS = 10_000  # half a millisecond of encoding, four by subwords
CHARACTERS_PER_MESSAGE = 10  # encoding a message takes the time of so many characters more
RANDOM_SEED, SEED_BITS = -1, 32
MAX_NAMED = 50  # characters in a header
NOT_READ_HEADERS = ("X-Microgpt-System", "X-Microgpt-Tokens-Dropped", "X-Microgpt-Unknown")
OPTIONS = [option.name for option in fields(SamplingConfig)]


def sampling_config(
    body: GenerateRequest | ChatRequest | SamplingRequest, **defaults: Any
) -> SamplingConfig:
    """Return the sampling options of a request; those that it lacks have their defaults."""
    given = {name: value for name in OPTIONS if (value := getattr(body, name, None)) is not None}
    if "stop" in given:
        texts = [body.stop] if isinstance(body.stop, str) else body.stop or []
        given["stop"] = [text for text in texts if text]
    if given.get("top_k", 1) < 1:
        del given["top_k"]
    if given.get("top_p") == 0:
        given |= {"top_p": 1.0, "temperature": 0.0}
    given = defaults | given
    if given.get("seed") == RANDOM_SEED:
        given["seed"] = secrets.randbits(SEED_BITS)
    return SamplingConfig(**given)


def served_model(request: Request, name: str | None) -> ServedModel:
    """Return the model of a name, the default for None, and note its name for the log.

    Raises:
        UnavailableError: no model is loaded yet.
        ApiError: there is no such model (404).
    """
    served: ServedModel = request.app.state.models.get(name)
    request.scope.setdefault(DETAILS, {})["model"] = served.id
    return served


async def read_prompt(
    request: Request,
    model: LanguageModel,
    source: str | Turns,
    unknown: Literal["error", "skip"] = "error",
) -> Prompt:
    """Return the prompt of a text or of a conversation; a long one is encoded in a thread.

    Args:
        request: for the threads.
        model: of the prompt.
        source: the text or conversation.
        unknown: "error", or "skip" to leave out characters of a text that the model does not know,
            as those of a conversation are.

    Raises:
        ApiError: `source` is a conversation, and the model was not trained to chat.
        MicrogptError: see `LanguageModel.prompt`.
    """
    if isinstance(source, str):
        n_characters = len(source)
        encode = partial(model.prompt, source, unknown=unknown)
    else:
        if not model.tokenizer.is_chat:
            raise ApiError(400, _cannot_chat(request), param="messages")
        messages = [_as_message(i, turn) for i, turn in enumerate(source)]
        n_characters = sum(len(each["content"]) + CHARACTERS_PER_MESSAGE for each in messages)
        encode = partial(model.prompt, messages, unknown="skip")
    if n_characters <= INLINE_CHARACTERS:
        return encode()
    work = request.app.state.pool.run(lambda _: encode())
    return await cancel_on_disconnect(request, work)


def _cannot_chat(request: Request) -> str:
    chats = [repr(each.id) for each in request.app.state.models if each.model.tokenizer.is_chat]
    advice = f"request model {' or '.join(chats)}" if chats else "serve one trained with --chat"
    return f"this model was not trained with chat tokens; {advice}"


def _as_message(index: int, turn: Turn | OpenAITurn) -> Message:
    content = turn.content
    if content is None:
        if turn.role != "assistant":
            message = f"messages[{index}].content is null, expected a text"
            raise ApiError(400, message, param="messages")
        content = ""
    if not isinstance(content, str):
        content = "".join(part.text for part in content)
    return {"role": turn.role, "content": content}


@dataclass
class Generation:
    """The texts that a request asks for: n for each prompt; text j of each has seed + j.

    Args:
        served: the model that generates the texts, its name and batch.
        prompts: the tokens that the texts continue.
        config: sampling options.
        n: number of texts for each prompt.
        n_prompt: number of tokens of all prompts.
        details: receives the numbers of tokens, for the log.
    """

    served: ServedModel
    prompts: Sequence[Prompt]
    config: SamplingConfig
    n: int
    n_prompt: int
    details: dict[str, Any]
    _since: float = field(init=False, default_factory=lambda: asyncio.get_running_loop().time())
    _n_generated: dict[int, int] = field(init=False, default_factory=dict)  # by text

    def __post_init__(self) -> None:
        metrics.PROMPT_TOKENS.inc(self.n_prompt)
        self.details.update(prompt_tokens=self.n_prompt, completion_tokens=0)

    @property
    def model(self) -> LanguageModel:
        """The model that generates the texts."""
        return self.served.model

    @property
    def usage(self) -> Usage:
        """Numbers of tokens so far."""
        n_generated = sum(self._n_generated.values())
        return Usage(self.n_prompt, n_generated, self.n_prompt + n_generated)

    @property
    def configs(self) -> list[SamplingConfig]:
        """The sampling options of the texts of each prompt."""
        seed = self.config.seed
        return [replace(self.config, seed=seed + i) for i in range(self.n)]

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that say what the model did not read."""
        n_dropped = sum(prompt.tokens_dropped for prompt in self.prompts)
        unknown = "".join(dict.fromkeys("".join(prompt.unknown for prompt in self.prompts)))
        values = (
            "dropped" if any(prompt.system_dropped for prompt in self.prompts) else "",
            str(n_dropped or ""),
            quote(unknown[:MAX_NAMED], "", errors="replace"),
        )
        named = zip(NOT_READ_HEADERS, values, strict=True)
        return {name: value for name, value in named if value}

    def documents(self, signal: StopSignal) -> list[str]:
        """Generate and return all texts of the only prompt, which they include."""
        (prompt,) = self.prompts
        tokenizer = self.model.tokenizer
        beginning = tokenizer.decode(prompt.token_ids)  # without BOS, if there is one
        # One text takes less so; encoded again, a text of subwords may have another length.
        if self.n == 1 or not tokenizer.chars:
            replies = [self.model.reply(prompt, each, signal=signal) for each in self.configs]
            self._count(sum(reply.n_tokens for reply in replies))
            return [beginning + reply.content for reply in replies]
        options = vars(self.config)  # `asdict` takes a third of the time of a short text
        documents = self.model.generate(self.n, prompt=prompt, signal=signal, **options)
        self._count(sum(map(len, documents)) - len(beginning) * len(documents))
        return documents

    def _count(self, n_tokens: int) -> None:
        metrics.COMPLETION_TOKENS.inc(n_tokens)
        self.details["completion_tokens"] = n_tokens

    async def grown(
        self, *, pieces: bool = False, of_token: Callable[[ChosenToken], Any] | None = None
    ) -> AsyncGenerator[Grown]:
        """Yield what `Batcher.generate` yields for all texts; `usage` counts with it."""
        texts = self.served.batcher.generate(
            self.model,
            self.prompts,
            self.configs,
            pieces=pieces,
            of_token=of_token,
            since=self._since,
        )
        try:
            async with aclosing(texts):
                async for grown in texts:
                    self._n_generated[grown.index] = grown.n_tokens
                    yield grown
        finally:
            self.details["completion_tokens"] = sum(self._n_generated.values())


def start_generation(
    request: Request,
    served: ServedModel,
    prompts: Sequence[Prompt],
    config: SamplingConfig,
    n: int = 1,
    n_prompt: int | None = None,
) -> Generation:
    """Return the generation of `n` texts for each prompt.

    Args:
        request: for its settings and its log line.
        served: the model.
        prompts: the tokens that the texts continue.
        config: sampling options.
        n: number of texts for each prompt.
        n_prompt: number of tokens that were sent, if the model reads fewer.
    """
    max_tokens = request.app.state.settings.max_tokens
    if config.max_tokens is not None and config.max_tokens > max_tokens:
        config = replace(config, max_tokens=max_tokens)
    if any(prompt.system_dropped for prompt in prompts):
        log(logging.INFO, "message of the system left out: the model knows none")
    details = request.scope.setdefault(DETAILS, {})
    if n_prompt is None:
        n_prompt = sum(len(prompt.token_ids) for prompt in prompts)
    return Generation(served, prompts, config, n, n_prompt, details)


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Return the log-probabilities of logits, shape (V,)."""
    largest = max(logits)
    total = largest + math.log(sum(math.exp(z - largest) for z in logits))
    return [z - total for z in logits]
