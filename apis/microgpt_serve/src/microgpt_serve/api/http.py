"""From bytes to checked requests, and from results and errors to responses."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from microgpt import MicrogptError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from microgpt_serve.api.schemas import ErrorBody, OpenAIErrorBody, OpenAIErrorDetail
from microgpt_serve.serving.bodies import MAX_BODY_BYTES, TOO_LARGE
from microgpt_serve.serving.errors import CLIENT_CLOSED, ApiError

__all__ = [
    "decode_body",
    "error_body",
    "error_response",
    "is_openai",
    "json_response",
    "unless_gone",
]

T = TypeVar("T")

UNAUTHORIZED, SERVER_ERROR = 401, 500

_encoder = msgspec.json.Encoder()


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `body` as JSON."""
    return Response(_encoder.encode(body), status, headers, "application/json")


async def decode_body(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the body of a request.

    Raises:
        ApiError: it is too large (413), late (408), of another type (415) or not as expected (400).
    """
    headers = dict(request.scope["headers"])  # a fifth of the time of `request.headers`
    content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise ApiError(415, "expected a body with Content-Type: application/json")
    if int(headers.get(b"content-length", 0)) > MAX_BODY_BYTES:
        raise ApiError(413, TOO_LARGE)
    body = await request.app.state.bodies.read(request.receive)
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        message, _, path = str(error).rpartition(" - at `$.")
        param = path.rstrip("`").partition(".")[0].partition("[")[0] if message else None
        raise ApiError(400, f"invalid request: {error}", param=param) from error


async def unless_gone(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Return what `answer` returns; cancel it when the client leaves."""
    task = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def is_openai(path: str) -> bool:
    """Return whether the errors of a path have the shape of OpenAI's."""
    return path.startswith("/v1/")


def error_body(error: ApiError, *, openai: bool) -> ErrorBody | OpenAIErrorBody:
    """Return an error in the shape of one of our two families of routes."""
    if not openai:
        return ErrorBody(error.message)
    kind = "server_error" if error.status >= SERVER_ERROR else "invalid_request_error"
    return OpenAIErrorBody(OpenAIErrorDetail(error.message, kind, error.param, error.code))


async def error_response(request: Request, error: Exception) -> Response:
    """Return the response that tells an error."""
    headers: dict[str, str] = {}
    match error:
        case ApiError():
            told = error
        case MicrogptError() if isinstance(error, ValueError):
            told = ApiError(400, str(error))
        case HTTPException():
            told = ApiError(error.status_code, error.detail)
            headers |= error.headers or {}
        case ClientDisconnect():
            return Response(status_code=CLIENT_CLOSED)
        case _:
            told = ApiError(500, "internal error")
    if told.retry_after is not None:
        headers["Retry-After"] = str(told.retry_after)
    if told.status == UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(told, openai=is_openai(request.url.path))
    return json_response(body, told.status, headers)
