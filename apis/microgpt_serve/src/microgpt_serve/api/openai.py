"""The routes under `/v1`: the subset of OpenAI's interface for texts and chat."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from heapq import nlargest
from typing import Any, Generic, Literal, TypeVar

import msgspec
from microgpt import ChosenToken, MicrogptError
from starlette.requests import Request
from starlette.responses import Response

from microgpt_serve.api.generation import (
    Generation,
    log_softmax,
    sampling_config,
    start_generation,
)
from microgpt_serve.api.http import (
    EventStream,
    as_api_error,
    cancel_on_disconnect,
    error_body,
    json_response,
)
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
)
from microgpt_serve.serving import metrics
from microgpt_serve.serving.batcher import Batcher
from microgpt_serve.serving.errors import ApiError

__all__ = ["complete_chat", "complete_text", "list_models", "show_model"]

SEED_BITS = 32  # of a random seed
TEXT, CHUNK = "text_completion", "chat.completion.chunk"  # the field `object`
SYSTEM_DROPPED = {"X-Microgpt-System": "dropped"}  # the model knows no message of the system
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

T = TypeVar("T", bound=msgspec.Struct)

_encoder = msgspec.json.Encoder()


# ---------------------------------------------------------------- models


async def list_models(request: Request) -> ModelList:
    """Return the list of models, of length one."""
    store = request.app.state.models
    return ModelList([Model(store.id, store.created)])


async def show_model(request: Request) -> Model:
    """Return one model."""
    store = request.app.state.models
    _check_model(store.id, request.path_params["model"])
    return Model(store.id, store.created)


def _check_model(served: str, requested: str | None) -> None:
    if requested is not None and requested != served:
        raise ApiError(
            404,
            f"the model {requested!r:.200} does not exist, expected {served!r}",
            param="model",
            code="model_not_found",
        )


# ---------------------------------------------------------------- responses


class Piece(msgspec.Struct):
    """A piece of one of n texts, or its end."""

    index: int
    text: str = ""
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class _Answer(ABC, Generic[T]):
    """The response to one request, whole or streamed.

    Args:
        model_id: name of the model.
        generation: generates the texts.
        n_top: number of most likely tokens per token with log-probabilities; None for none at all.
    """

    id_prefix: str

    def __init__(self, model_id: str, generation: Generation, n_top: int | None = None) -> None:
        answer_id = self.id_prefix + secrets.token_hex(12)
        self.generation = generation
        self.head = (answer_id, int(time.time()), model_id)  # the first fields of every response
        self._n_top = n_top

    async def whole(self, batcher: Batcher) -> list[Piece]:
        """Generate: return each text as one piece."""
        texts = [Piece(i) for i in range(self.generation.n)]
        async with aclosing(self.pieces(batcher, whole=True)) as pieces:
            async for piece in pieces:
                text = texts[piece.index]
                text.text += piece.text
                text.finish_reason = piece.finish_reason
                if text.logprobs and piece.logprobs:
                    text.logprobs.content.extend(piece.logprobs.content)
                else:
                    text.logprobs = text.logprobs or piece.logprobs
        return texts

    async def pieces(self, batcher: Batcher, *, whole: bool = False) -> AsyncGenerator[Piece]:
        """Generate: yield pieces of all texts as they grow, or each text as a whole."""
        of_token = None if self._n_top is None else self._logprob
        texts = self.generation.grown(batcher, pieces=not whole, of_token=of_token)
        async with aclosing(texts):
            async for grown in texts:
                if grown.piece or whole:
                    logprobs = Logprobs(list(grown.tokens)) if of_token else None
                    yield Piece(grown.index, grown.piece, logprobs)
                if grown.finish_reason:
                    yield Piece(grown.index, finish_reason=grown.finish_reason)

    @abstractmethod
    def response(self, texts: list[Piece]) -> T:
        """Return the body of a whole response."""

    @abstractmethod
    def chunks(self, piece: Piece, *, is_first: bool) -> list[Any]:
        """Return the bodies of the events for a piece, the first of its text or a later one."""

    @abstractmethod
    def usage_chunk(self) -> Any:
        """Return the body of the event that reports the usage."""

    def _logprob(self, token: ChosenToken) -> TokenLogprob:
        """Return log-probabilities, before temperature: of a token, and of the likeliest tokens."""
        row = log_softmax(token.logits)
        likeliest = nlargest(self._n_top or 0, range(len(row)), key=row.__getitem__)
        top = [TopLogprob(*self._named(i, row)) for i in likeliest]
        return TokenLogprob(*self._named(token.token_id, row), top)

    def _named(self, token_id: int, row: list[float]) -> tuple[str, float, list[int]]:
        tokenizer = self.generation.model.tokenizer
        text, content = tokenizer.token_text(token_id), tokenizer.token_bytes(token_id)
        if not content:
            text = f"<|{text}|>"
        return text, row[token_id], list(content or text.encode())


class _ChatAnswer(_Answer[ChatCompletion]):
    id_prefix = "chatcmpl-"

    def response(self, texts: list[Piece]) -> ChatCompletion:
        """See `_Answer`."""
        choices = [
            ChatChoice(
                text.index,
                AssistantMessage(text.text),
                text.finish_reason or "stop",
                text.logprobs,
            )
            for text in texts
        ]
        return ChatCompletion(*self.head, choices, self.generation.usage)

    def chunks(self, piece: Piece, *, is_first: bool) -> list[ChatCompletionChunk]:
        """See `_Answer`."""
        delta = Delta(content=piece.text or None)
        choices = [ChunkChoice(piece.index, delta, piece.finish_reason, piece.logprobs)]
        if is_first:
            choices.insert(0, ChunkChoice(piece.index, Delta("assistant", "")))
        return [ChatCompletionChunk(*self.head, [choice], CHUNK) for choice in choices]

    def usage_chunk(self) -> ChatCompletionChunk:
        """See `_Answer`."""
        return ChatCompletionChunk(*self.head, [], CHUNK, self.generation.usage)


class _TextAnswer(_Answer[Completion]):
    id_prefix = "cmpl-"

    def response(self, texts: list[Piece]) -> Completion:
        """See `_Answer`."""
        choices = [CompletionChoice(text.index, text.text, text.finish_reason) for text in texts]
        return Completion(*self.head, choices, TEXT, self.generation.usage)

    def chunks(self, piece: Piece, *, is_first: bool) -> list[Completion]:  # noqa: ARG002
        """See `_Answer`."""
        choice = CompletionChoice(piece.index, piece.text, piece.finish_reason)
        return [Completion(*self.head, [choice], TEXT)]

    def usage_chunk(self) -> Completion:
        """See `_Answer`."""
        return Completion(*self.head, [], TEXT, self.generation.usage)


async def _send(request: Request, answer: _Answer[T], body: SamplingRequest) -> T | Response:
    """Return a whole response, or start a stream."""
    batcher = request.app.state.batcher
    headers = SYSTEM_DROPPED if answer.generation.prompt.system_dropped else {}
    if not body.stream:
        whole = answer.response(await cancel_on_disconnect(request, answer.whole(batcher)))
        return json_response(whole, headers=headers) if headers else whole
    start = time.perf_counter()
    pieces = answer.pieces(batcher)
    # Awaited before the response starts, so that an error until here has a status of its own.
    first = await cancel_on_disconnect(request, anext(pieces))
    metrics.FIRST_TOKEN.observe(time.perf_counter() - start)
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    return EventStream(
        _events(answer, first, pieces, with_usage=with_usage),
        headers=STREAM_HEADERS | headers,
        media_type="text/event-stream",
    )


async def _events(
    answer: _Answer[Any], first: Piece, pieces: AsyncGenerator[Piece], *, with_usage: bool
) -> AsyncIterator[bytes]:
    async with aclosing(pieces):
        piece: Piece | None = first
        begun = set[int]()
        try:
            while piece:
                for chunk in answer.chunks(piece, is_first=piece.index not in begun):
                    yield _event(chunk)
                begun.add(piece.index)
                piece = await anext(pieces, None)
        except (ApiError, MicrogptError) as error:
            yield _event(error_body(as_api_error(error), openai=True))
            return
        if with_usage:
            yield _event(answer.usage_chunk())
        yield b"data: [DONE]\n\n"


def _event(body: Any) -> bytes:
    return b"data: " + _encoder.encode(body) + b"\n\n"


# ---------------------------------------------------------------- requests


async def complete_text(request: Request, body: CompletionRequest) -> Completion | Response:
    """Continue a text."""
    if body.logprobs not in (None, False):
        raise ApiError(400, "logprobs is not supported", param="logprobs")
    generation = await _generation(request, body, body.prompt or "")
    answer = _TextAnswer(request.app.state.models.id, generation)
    return await _send(request, answer, body)


async def complete_chat(request: Request, body: ChatCompletionRequest) -> ChatCompletion | Response:
    """Reply to messages."""
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.max_completion_tokens is not None:
        body.max_tokens = body.max_completion_tokens
    generation = await _generation(request, body, body.messages)
    n_top = (body.top_logprobs or 0) if body.logprobs else None
    answer = _ChatAnswer(request.app.state.models.id, generation, n_top)
    return await _send(request, answer, body)


async def _generation(
    request: Request, body: SamplingRequest, source: str | list[OpenAITurn]
) -> Generation:
    """Return the generation of n texts of the named model, by default with a random seed."""
    _check_model(request.app.state.models.id, body.model)
    config = sampling_config(body, seed=secrets.randbits(SEED_BITS))
    return await start_generation(request, source, config, body.n or 1)
