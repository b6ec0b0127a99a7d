"""The routes under `/v1`: the part of OpenAI's interface that its clients use for text and chat."""

import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from microgpt import (
    ChatReply,
    LanguageModel,
    Message,
    MicrogptError,
    StopSignal,
    TextStream,
)
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from microgpt_serve.api.http import as_api_error, cancel_on_disconnect, error_body
from microgpt_serve.api.microgpt import read_messages, read_prompt, require_chat, stop_texts
from microgpt_serve.api.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionRequest,
    Delta,
    Logprobs,
    Model,
    ModelList,
    OpenAITurn,
    SamplingRequest,
    TokenLogprob,
    TopLogprob,
    Turn,
    Usage,
)
from microgpt_serve.serving import metrics
from microgpt_serve.serving.errors import ApiError

__all__ = ["complete_chat", "complete_text", "list_models", "show_model"]

TEMPERATURE = 0.5  # where a request names none
SEED_BITS = 32  # of a fresh seed
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# Fields that we refuse, but for values that change nothing.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}

_encoder = msgspec.json.Encoder()

FinishReason = Literal["stop", "length"]


# ---------------------------------------------------------------- models


async def list_models(request: Request) -> ModelList:
    """Return the list of models: the one that is served."""
    store = request.app.state.models
    return ModelList([Model(store.id, store.created)])


async def show_model(request: Request) -> Model:
    """Return one model."""
    store = request.app.state.models
    _check_model(store.id, request.path_params["model"])
    return Model(store.id, store.created)


def _check_model(served: str, asked: str | None) -> None:
    if asked is not None and asked != served:
        raise ApiError(
            404,
            f"the model {asked!r:.200} does not exist, expected {served!r}",
            param="model",
            code="model_not_found",
        )


# ---------------------------------------------------------------- texts


@dataclass
class Piece:
    """Some characters of one of n texts, or its end."""

    index: int
    text: str = ""
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


@dataclass
class Answer:
    """The n texts that a request asks for.

    Args:
        model_id: what the answer says it is from.
        prompt_ids: what the model reads before.
        n: how many texts.
        open_stream: returns text i, piece by piece.
        reply: returns it whole, in one call of the engine, which lets other threads compute.
        logprobs: returns those of the last so many characters of a text.
        is_chat: which of the two kinds it is.
    """

    model_id: str
    prompt_ids: list[int]
    n: int
    open_stream: Callable[[int], TextStream]
    reply: Callable[[int, StopSignal], ChatReply] | None
    logprobs: Callable[[str, int], Logprobs] | None
    is_chat: bool
    id: str = field(init=False)
    created: int = field(init=False)
    n_tokens: int = field(init=False, default=0)  # generated so far

    def __post_init__(self) -> None:
        prefix = "chatcmpl-" if self.is_chat else "cmpl-"
        self.id, self.created = prefix + secrets.token_hex(12), int(time.time())
        metrics.PROMPT_TOKENS.inc(len(self.prompt_ids))

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        n_prompt = len(self.prompt_ids)
        return Usage(n_prompt, self.n_tokens, n_prompt + self.n_tokens)

    def pieces(self) -> Iterator[Piece]:
        """Generate: yield the pieces of all texts, one text after the other."""
        for index in range(self.n):
            stream, text = self.open_stream(index), ""
            for characters in stream:
                text += characters
                logprobs = self.logprobs(text, len(characters)) if self.logprobs else None
                yield Piece(index, characters, logprobs)
            self.n_tokens += stream.n_tokens
            metrics.COMPLETION_TOKENS.inc(stream.n_tokens)
            yield Piece(index, finish_reason=stream.finish_reason)

    def whole(self, signal: StopSignal) -> list[Piece]:
        """Generate: return each text as one piece."""
        if self.reply:
            return [self._whole_reply(self.reply(i, signal), i) for i in range(self.n)]
        texts = [Piece(index) for index in range(self.n)]
        for piece in self.pieces():
            if signal.is_set:
                break
            text = texts[piece.index]
            text.text += piece.text
            text.finish_reason = piece.finish_reason
        return texts

    def _whole_reply(self, reply: ChatReply, index: int) -> Piece:
        self.n_tokens += reply.n_tokens
        metrics.COMPLETION_TOKENS.inc(reply.n_tokens)
        text, logprobs = reply.content, Logprobs([])
        if self.logprobs and text:
            logprobs = self.logprobs(text, len(text))
        return Piece(index, text, logprobs, reply.finish_reason)

    def response(self, texts: list[Piece]) -> Any:
        """Return all texts in one body."""
        if not self.is_chat:
            choices = [CompletionChoice(t.index, t.text, t.finish_reason) for t in texts]
            return Completion(
                self.id, self.created, self.model_id, choices, "text_completion", self.usage
            )
        replies = [
            ChatChoice(
                text.index,
                AssistantMessage(text.text),
                text.finish_reason or "stop",
                text.logprobs if self.logprobs else None,
            )
            for text in texts
        ]
        return ChatCompletion(self.id, self.created, self.model_id, replies, self.usage)

    def chunk(self, piece: Piece | None, *, role: bool = False) -> bytes:
        """Return an event of a stream: a piece, or at the end how many tokens it took."""
        usage = None if piece else self.usage
        body: ChatCompletionChunk | Completion
        if self.is_chat:
            choices = []
            if piece:
                delta = Delta(
                    "assistant" if role else None, piece.text if role or piece.text else None
                )
                choices = [ChunkChoice(piece.index, delta, piece.finish_reason, piece.logprobs)]
            body = ChatCompletionChunk(
                self.id, self.created, self.model_id, choices, "chat.completion.chunk", usage
            )
        else:
            texts = []
            if piece:
                texts = [CompletionChoice(piece.index, piece.text, piece.finish_reason)]
            body = Completion(self.id, self.created, self.model_id, texts, "text_completion", usage)
        return _event(body)


def _event(body: Any) -> bytes:
    return b"data: " + _encoder.encode(body) + b"\n\n"


async def _send(request: Request, answer: Answer, asked: SamplingRequest) -> Any:
    """Return the response for an answer, whole or streamed."""
    pool = request.app.state.pool
    if not asked.stream:
        return answer.response(await cancel_on_disconnect(request, pool.run(answer.whole)))
    start = time.perf_counter()
    pieces = pool.stream(answer.pieces)
    # The first one is awaited here, so that what fails before it has a status of its own.
    first = await cancel_on_disconnect(request, anext(pieces))
    metrics.FIRST_TOKEN.observe(time.perf_counter() - start)
    options = asked.stream_options
    with_usage = bool(options and options.include_usage)
    return StreamingResponse(
        _events(answer, first, pieces, with_usage=with_usage),
        headers=STREAM_HEADERS,
        media_type="text/event-stream",
    )


async def _events(
    answer: Answer, first: Piece, pieces: AsyncIterator[Piece], *, with_usage: bool
) -> AsyncIterator[bytes]:
    async with aclosing(pieces):  # type: ignore[type-var] # an async generator
        try:
            if answer.is_chat:
                yield answer.chunk(Piece(0), role=True)
            yield answer.chunk(first)
            index = 0
            async for piece in pieces:
                if piece.index != index and answer.is_chat:
                    yield answer.chunk(Piece(piece.index), role=True)
                index = piece.index
                yield answer.chunk(piece)
        except (ApiError, MicrogptError) as error:
            yield _event(error_body(as_api_error(error), openai=True))
            return
        if with_usage:
            yield answer.chunk(None)
        yield b"data: [DONE]\n\n"


# ---------------------------------------------------------------- requests


def _check_fields(asked: SamplingRequest) -> None:
    """Raise if the request asks for something that we do not have."""
    for name, without_effect in WITHOUT_EFFECT.items():
        value = getattr(asked, name, None)
        if value is not None and value not in without_effect:
            raise ApiError(400, f"{name} is not supported", param=name)


def _options(asked: SamplingRequest) -> dict[str, Any]:
    """Return what `LanguageModel` calls the settings of a request, but for the seed."""
    return {
        "temperature": TEMPERATURE if asked.temperature is None else asked.temperature,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "max_tokens": asked.max_tokens,
        "stop": stop_texts(asked.stop),
    }


def _seed(asked: SamplingRequest) -> int:
    return secrets.randbits(SEED_BITS) if asked.seed is None else asked.seed


async def complete_text(request: Request, body: CompletionRequest) -> Completion | Response:
    """Continue a text."""
    store = request.app.state.models
    served: LanguageModel = store.model
    _check_model(store.id, body.model)
    _check_fields(body)
    if body.logprobs not in (None, False):
        raise ApiError(400, "logprobs is not supported", param="logprobs")
    prompt = body.prompt or ""
    options, seed = _options(body), _seed(body)

    def open_stream(index: int) -> TextStream:
        return served.stream(prompt, seed=seed + index, **options)

    prompt_ids = await read_prompt(request, served, prompt)
    answer = Answer(store.id, prompt_ids, body.n or 1, open_stream, None, None, is_chat=False)
    completion: Completion | Response = await _send(request, answer, body)
    return completion


async def complete_chat(request: Request, body: ChatCompletionRequest) -> ChatCompletion | Response:
    """Reply to messages."""
    store = request.app.state.models
    served: LanguageModel = store.model
    _check_model(store.id, body.model)
    _check_fields(body)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    messages: list[Message] = require_chat(served, list(map(_as_turn, body.messages)))
    options, seed = _options(body), _seed(body)
    if body.max_completion_tokens is not None:
        options["max_tokens"] = body.max_completion_tokens

    def open_stream(index: int) -> TextStream:
        return served.stream_chat(messages, seed=seed + index, **options)

    def reply(index: int, signal: StopSignal) -> ChatReply:
        return served.chat(messages, seed=seed + index, signal=signal, **options)

    prompt_ids = await read_messages(request, served, messages)

    def logprobs(text: str, n_last: int) -> Logprobs:
        return _logprobs(served, prompt_ids, text, n_last, body.top_logprobs or 0)

    answer = Answer(
        store.id,
        prompt_ids,
        body.n or 1,
        open_stream,
        reply,
        logprobs if body.logprobs else None,
        is_chat=True,
    )
    completion: ChatCompletion | Response = await _send(request, answer, body)
    return completion


def _as_turn(turn: OpenAITurn) -> Turn:
    if isinstance(turn.content, str):
        return Turn(turn.role, turn.content)
    return Turn(turn.role, "".join(part.text for part in turn.content))


def _logprobs(
    served: LanguageModel, prompt_ids: list[int], text: str, n_last: int, n_top: int
) -> Logprobs:
    """Return the log-probabilities of the last characters of a text, before temperature."""
    tokenizer = served.tokenizer
    ids = tokenizer.encode(text)
    rows = served.logits([*prompt_ids, *ids[:-1]])[-n_last:].tolist()
    names = [*tokenizer.chars, *(f"<|{name}|>" for name in (*tokenizer.special_tokens, "bos"))]
    content = []
    for token_id, row in zip(ids[-n_last:], rows, strict=True):
        largest = max(row)
        total = largest + math.log(sum(math.exp(z - largest) for z in row))
        likeliest = sorted(range(len(row)), key=lambda i: -row[i])[:n_top]
        top = [TopLogprob(names[i], row[i] - total, _utf8(names[i])) for i in likeliest]
        name = names[token_id]
        content.append(TokenLogprob(name, row[token_id] - total, _utf8(name), top))
    return Logprobs(content)


def _utf8(text: str) -> list[int]:
    return list(text.encode("utf-8", "surrogatepass"))
