"""The routes under `/microgpt/v1`."""

import math
from collections.abc import Callable
from typing import TypeVar

from microgpt import ChatReply, LanguageModel, Message, StopSignal, build_prompt
from starlette.requests import Request

from microgpt_serve.api.http import cancel_on_disconnect
from microgpt_serve.api.schemas import (
    MAX_SAMPLES,
    ChatReplyBody,
    ChatRequest,
    GenerateRequest,
    GenerateResponse,
    ModelInfo,
    NextRequest,
    NextResponse,
    NextToken,
    Turn,
)
from microgpt_serve.serving import metrics
from microgpt_serve.serving.errors import ApiError

__all__ = [
    "chat",
    "describe_model",
    "generate",
    "read_messages",
    "read_prompt",
    "require_chat",
    "show_next_tokens",
    "stop_texts",
]

T = TypeVar("T")

# Multiply-adds: a quarter of a millisecond at most. What takes no longer is done sooner than
# handed over: a thread that returns from the engine waits for the event loop to let go of the
# interpreter, and the loop for the thread, which halves the requests answered per second.
SMALL_WORK = 250_000
SHORT_TEXT = 10_000  # characters: half a millisecond
TURN_CHARACTERS = 10  # whose time a message takes beside that of its text


def stop_texts(stop: str | list[str] | None) -> list[str]:
    """Return the stop texts of a request as a list."""
    return [stop] if isinstance(stop, str) else stop or []


def require_chat(model: LanguageModel, messages: list[Turn]) -> list[Message]:
    """Return the messages of a request as the library takes them.

    Raises:
        ApiError: the model was not trained to chat.
    """
    if not model.tokenizer.is_chat:
        raise ApiError(400, "model was not trained with chat tokens", param="messages")
    return [{"role": turn.role, "content": turn.content} for turn in messages]


async def _in_time(request: Request, n_characters: int, read: Callable[[], T]) -> T:
    """Return what `read` makes of a text; in a thread if others would wait for a long one."""
    if n_characters <= SHORT_TEXT:
        return read()
    pool = request.app.state.pool
    return await cancel_on_disconnect(request, pool.run(lambda _: read()))


async def read_prompt(request: Request, model: LanguageModel, prompt: str) -> list[int]:
    """Return the token ids of how a document begins."""
    tokenizer = model.tokenizer
    return await _in_time(request, len(prompt), lambda: [tokenizer.bos, *tokenizer.encode(prompt)])


async def read_messages(
    request: Request, model: LanguageModel, messages: list[Message]
) -> list[int]:
    """Return the token ids of what a model reads of a conversation."""
    n_characters = sum(len(message["content"]) + TURN_CHARACTERS for message in messages)
    return await _in_time(
        request,
        n_characters,
        lambda: build_prompt(messages, model.tokenizer, model.config.block_size).token_ids,
    )


def _is_small(model: LanguageModel, n_samples: int, prompt: str) -> bool:
    """Whether texts take so little time that the event loop can wait for them."""
    config = model.config
    n_multiplications = config.n_params * config.block_size * n_samples
    return (
        model.engine.name == "native"
        and n_multiplications <= SMALL_WORK
        and len(prompt) <= config.block_size  # what is longer is refused, but read before
    )


async def generate(request: Request, body: GenerateRequest) -> GenerateResponse:
    """Return new documents."""
    state = request.app.state
    model: LanguageModel = state.models.model
    n_samples = min(body.num_samples, MAX_SAMPLES)

    def work(signal: StopSignal) -> list[str]:
        return model.generate(
            n_samples,
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            prompt=body.prompt,
            max_tokens=body.max_tokens,
            stop=stop_texts(body.stop),
            seed=body.seed,
            signal=signal,
        )

    if _is_small(model, n_samples, body.prompt):
        samples = state.pool.run_inline(work)
    else:
        samples = await cancel_on_disconnect(request, state.pool.run(work))
    metrics.PROMPT_TOKENS.inc((1 + len(body.prompt)) * n_samples)
    metrics.COMPLETION_TOKENS.inc(sum(map(len, samples)) - len(body.prompt) * n_samples)
    capped = MAX_SAMPLES if body.num_samples > MAX_SAMPLES else None
    return GenerateResponse(samples, capped)


async def chat(request: Request, body: ChatRequest) -> ChatReplyBody:
    """Return the assistant's next turn."""
    state = request.app.state
    model: LanguageModel = state.models.model
    messages = require_chat(model, body.messages)

    def work(signal: StopSignal) -> ChatReply:
        return model.chat(
            messages,
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            max_tokens=body.max_tokens,
            stop=stop_texts(body.stop),
            seed=body.seed,
            signal=signal,
        )

    reply = await cancel_on_disconnect(request, state.pool.run(work))
    metrics.PROMPT_TOKENS.inc(len(reply.prompt.token_ids))
    metrics.COMPLETION_TOKENS.inc(reply.n_tokens)
    return ChatReplyBody("assistant", reply.content, reply.finish_reason, reply.tokens_dropped)


async def show_next_tokens(request: Request, body: NextRequest) -> NextResponse:
    """Return the probability of every token that may come next."""
    state = request.app.state
    model: LanguageModel = state.models.model
    tokenizer = model.tokenizer
    if body.messages is None:
        token_ids = await read_prompt(request, model, body.prompt)
    else:
        messages = require_chat(model, body.messages)
        token_ids = await read_messages(request, model, messages)

    logits = await cancel_on_disconnect(
        request, state.pool.run(lambda _: model.logits(token_ids)[-1])
    )
    largest = float(logits.max())
    weights = [math.exp(z - largest) for z in logits.tolist()]
    total = sum(weights)
    names = [*tokenizer.chars, *tokenizer.special_tokens, "bos"]
    n_chars = len(tokenizer.chars)
    tokens = [
        NextToken(name, weight / total, is_special=i >= n_chars)
        for i, (name, weight) in enumerate(zip(names, weights, strict=True))
    ]
    tokens.sort(key=lambda token: -token.probability)
    return NextResponse(tokens)


async def describe_model(request: Request) -> ModelInfo:
    """Return what is served."""
    models = request.app.state.models
    model: LanguageModel = models.model
    config = model.config
    return ModelInfo(
        id=models.id,
        is_chat=model.tokenizer.is_chat,
        vocab_size=config.vocab_size,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_layer=config.n_layer,
        block_size=config.block_size,
        n_params=config.n_params,
        chars="".join(model.tokenizer.chars),
    )
