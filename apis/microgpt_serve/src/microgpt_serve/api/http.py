"""Decoding of request bodies; responses from results and from errors."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import msgspec
from microgpt import MicrogptError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Send

from microgpt_serve.api.fields import BodyDecoder
from microgpt_serve.api.openai_schemas import OpenAIErrorBody, OpenAIErrorDetail
from microgpt_serve.api.schemas import ErrorBody
from microgpt_serve.serving.bodies import MAX_BODY_BYTES, TOO_LARGE
from microgpt_serve.serving.errors import CLIENT_CLOSED, ApiError, explained
from microgpt_serve.serving.middleware import DETAILS
from microgpt_serve.serving.validation import MAX_SHOWN, body_error, printable, shown

__all__ = [
    "EventStream",
    "as_api_error",
    "cancel_on_disconnect",
    "decode_body",
    "error_body",
    "error_response",
    "is_openai",
    "json_response",
]

T = TypeVar("T")

UNAUTHORIZED, SERVER_ERROR = 401, 500

_encoder = msgspec.json.Encoder()


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `body` as JSON."""
    return Response(_encoder.encode(body), status, headers, "application/json")


async def decode_body(request: Request, decoder: BodyDecoder[T]) -> T:
    """Return the decoded body of a request.

    Raises:
        ApiError: the body is too large (413), late (408), not plain JSON (415) or invalid (400).
    """
    headers = dict(request.scope["headers"])  # a fifth of the time of `request.headers`
    content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if content_type != b"application/json":
        got = shown(content_type.decode("latin-1")) if content_type else "missing"
        message = f"Content-Type is {got}, expected application/json"
        raise ApiError(415, message, reason="Content-Type: expected application/json")
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding != b"identity":
        got = printable(encoding.decode("latin-1")[:MAX_SHOWN])
        message = f"the body has Content-Encoding: {got}; send it without compression"
        raise ApiError(415, message, reason="Content-Encoding: expected none")
    if int(headers.get(b"content-length", 0)) > MAX_BODY_BYTES:
        raise ApiError(413, TOO_LARGE)
    body = await request.app.state.bodies.read(request.receive)
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise body_error(error, body) from error


class EventStream(StreamingResponse):
    """A stream of events that is closed when the client leaves.

    Starlette leaves its generator to the garbage collector, which closes it at any time, also while
    it runs, and logs a traceback then.
    """

    async def stream_response(self, send: Send) -> None:
        """See Starlette."""
        try:
            await super().stream_response(send)
        finally:
            assert isinstance(self.body_iterator, AsyncGenerator), "of events"
            # A task of its own, because this task may be cancelled again.
            await asyncio.shield(asyncio.ensure_future(self.body_iterator.aclose()))


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; cancel it if the client disconnects.

    Raises:
        ClientDisconnect: the client has disconnected.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request.receive))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if disconnect.done():  # perhaps beside a result; the message comes only once
            raise ClientDisconnect
        return task.result()
    finally:
        is_unused = disconnect.done() or not task.done()
        disconnect.cancel()
        if is_unused:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# ---------------------------------------------------------------- errors


def is_openai(path: str) -> bool:
    """Return whether error bodies of a path have OpenAI's shape."""
    return path.startswith("/v1/")


def as_api_error(error: Exception) -> ApiError:
    """Return the error that the client is sent."""
    match error:
        case ApiError():
            return error
        case MicrogptError():
            status, kind = 400 if isinstance(error, ValueError) else 500, type(error).__name__
            return ApiError(status, explained(error), reason=kind)
        case _:
            return ApiError(500, "internal error")


def error_body(error: ApiError, *, openai: bool) -> ErrorBody | OpenAIErrorBody:
    """Return the body of an error response, in OpenAI's shape or ours."""
    if not openai:
        return ErrorBody(error.message)
    kind = "server_error" if error.status >= SERVER_ERROR else "invalid_request_error"
    return OpenAIErrorBody(OpenAIErrorDetail(error.message, kind, error.param, error.code))


def _routing_error(request: Request, error: HTTPException) -> ApiError:
    """Return the error of a path or method without a route; a route like the path is named."""
    path, status = request.url.path, error.status_code
    if allowed := (error.headers or {}).get("Allow"):
        message = f"{path} expects {allowed}, got {request.method[:16]}"
        return ApiError(status, message, reason=error.detail)
    bare = path.rstrip("/")
    near = (bare, f"/v1{bare}", f"/microgpt/v1{bare}", bare.removeprefix("/v1"))
    routes = {route.path for route in request.app.routes}
    meant = next((f"; did you mean {each}?" for each in near if each in routes), "")
    message = f"there is no {printable(path[:MAX_SHOWN])}{meant}"
    return ApiError(status, message, reason=error.detail)


async def error_response(request: Request, error: Exception) -> Response:
    """Return the response for an exception, and note its reason for the log."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED)
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers.update(error.headers or {})
        error = _routing_error(request, error)
    sent = as_api_error(error)
    request.scope.setdefault(DETAILS, {})["reason"] = sent.reason
    if sent.retry_after is not None:
        headers["Retry-After"] = str(sent.retry_after)
    if sent.status == UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(sent, openai=is_openai(request.url.path))
    return json_response(body, sent.status, headers)
