"""The response to a request under `/v1`, whole or as a stream of events."""

import math
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
from microgpt import ChosenToken, MicrogptError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from microgpt_serve.api.generation import Generation, log_softmax
from microgpt_serve.api.http import (
    EventStream,
    as_api_error,
    cancel_on_disconnect,
    error_body,
    json_response,
)
from microgpt_serve.api.openai_schemas import (
    SamplingRequest,
    TokenLogprob,
    TopLogprob,
)
from microgpt_serve.api.tokens import name_of
from microgpt_serve.serving import metrics
from microgpt_serve.serving.errors import ApiError

__all__ = ["Answer", "ListedToken", "Piece", "send"]

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

T = TypeVar("T", bound=msgspec.Struct)

_encoder = msgspec.json.Encoder()


class ListedToken(NamedTuple):
    """A token with log-probabilities, and the bytes that it adds to the text."""

    token: TokenLogprob
    content: bytes


@dataclass(frozen=True)
class Piece:
    """A piece of one of the texts, or its end."""

    index: int
    text: str = ""
    tokens: Sequence[ListedToken] = ()
    finish_reason: Literal["stop", "length"] | None = None


class Answer(ABC, Generic[T]):
    """The response to one request.

    Args:
        generation: generates the texts.
        n_top: number of most likely tokens per token with log-probabilities; None for none at all.

    Attributes:
        head: the first fields of every response: id, time, name of the model.
    """

    id_prefix: str

    def __init__(self, generation: Generation, n_top: int | None = None) -> None:
        answer_id = self.id_prefix + secrets.token_hex(12)
        self.generation = generation
        self.head = (answer_id, int(time.time()), generation.served.id)
        self.n_top = n_top

    async def whole(self) -> list[Piece]:
        """Generate: return each text as one piece."""
        parts: dict[int, list[Piece]] = {}
        async with aclosing(self.pieces(whole=True)) as pieces:
            async for piece in pieces:
                parts.setdefault(piece.index, []).append(piece)
        return [
            Piece(
                index,
                "".join(piece.text for piece in parts[index]),
                [token for piece in parts[index] for token in piece.tokens],
                parts[index][-1].finish_reason,
            )
            for index in sorted(parts)
        ]

    async def pieces(self, *, whole: bool = False) -> AsyncGenerator[Piece]:
        """Generate: yield pieces of all texts as they grow, or each text as a whole."""
        of_token = None if self.n_top is None else self.listed
        async with aclosing(self.generation.grown(pieces=not whole, of_token=of_token)) as texts:
            async for grown in texts:
                tokens = [token for token in grown.tokens if token]
                if grown.piece or tokens or whole:
                    yield Piece(grown.index, grown.piece, tokens)
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

    def listed(self, token: ChosenToken) -> ListedToken | None:
        """Return log-probabilities, before temperature: of a token, and of the likeliest tokens.

        Args:
            token: without logits if nothing precedes it.
        """
        row = log_softmax(token.logits) if token.logits else []
        likeliest = nlargest(self.n_top or 0, range(len(row)), key=row.__getitem__)
        top = [TopLogprob(*self._described(i, row)) for i in likeliest]
        content = self.generation.model.tokenizer.token_bytes(token.token_id)
        return ListedToken(TokenLogprob(*self._described(token.token_id, row), top), content)

    def _described(self, token_id: int, row: list[float]) -> tuple[str, float, list[int]]:
        tokenizer = self.generation.model.tokenizer
        name = name_of(token_id, tokenizer)
        content = tokenizer.token_bytes(token_id) or name.encode()
        return name, row[token_id] if row else math.nan, list(content)


async def send(request: Request, answer: Answer[T], body: SamplingRequest) -> T | Response:
    """Return a whole response, or start a stream."""
    headers = answer.generation.headers
    if not body.stream:
        whole = answer.response(await cancel_on_disconnect(request, answer.whole()))
        return json_response(whole, headers=headers) if headers else whole
    start = time.perf_counter()
    pieces = answer.pieces()
    # Awaited before the response starts, so that an error until here has a status of its own.
    try:
        first = await cancel_on_disconnect(request, anext(pieces))
    except ClientDisconnect:
        await pieces.aclose()
        raise
    metrics.FIRST_TOKEN.observe(time.perf_counter() - start)
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    return EventStream(
        _events(answer, first, pieces, with_usage=with_usage),
        headers=STREAM_HEADERS | headers,
        media_type="text/event-stream",
    )


async def _events(
    answer: Answer[Any], first: Piece, pieces: AsyncGenerator[Piece], *, with_usage: bool
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
            sent = as_api_error(error)
            answer.generation.details["reason"] = sent.reason
            yield _event(error_body(sent, openai=True))
            return
        if with_usage:
            yield _event(answer.usage_chunk())
        yield b"data: [DONE]\n\n"


def _event(body: Any) -> bytes:
    return b"data: " + _encoder.encode(body) + b"\n\n"
