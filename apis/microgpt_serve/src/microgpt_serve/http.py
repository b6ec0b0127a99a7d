"""From bytes to checked requests, and from results and errors to responses."""

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from microgpt import MicrogptError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

from microgpt_serve.errors import ApiError, counted
from microgpt_serve.schemas import ErrorBody, OpenAIErrorBody, OpenAIErrorDetail

__all__ = [
    "BodyReader",
    "decode_body",
    "error_body",
    "error_response",
    "json_response",
    "unless_gone",
]

T = TypeVar("T")

MAX_BODY_BYTES = 1 << 20
TOO_LARGE = f"the body has more than {MAX_BODY_BYTES} bytes"
BODY_SECONDS = 8.0  # that a body may take to arrive
LOOK_SECONDS = 0.5  # between looks for late ones
UNAUTHORIZED, SERVER_ERROR = 401, 500
CLIENT_CLOSED = 499  # as nginx logs it; nobody reads the response

_encoder = msgspec.json.Encoder()


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `body` as JSON."""
    return Response(_encoder.encode(body), status, headers, "application/json")


class BodyReader:
    """Reads bodies, and ends those that come too slowly.

    It looks for late ones now and then: a timer for each would cost as much as a name.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ends: dict[asyncio.Task[Any], float] = {}  # when each is late; never, once it is

    async def read(self, receive: Receive) -> bytearray:
        """Return a body.

        Raises:
            ApiError: it is too large (413) or late (408).
            ClientDisconnect: it does not come any more.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task, "an application runs in one"
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(LOOK_SECONDS, self._look, loop)
        self._ends[task] = loop.time() + BODY_SECONDS
        try:
            return await _read(receive)
        except asyncio.CancelledError:
            is_late = self._ends[task] == math.inf
            if not is_late or task.uncancel() > 0:  # cancelled by somebody else, too
                raise
            seconds = counted(BODY_SECONDS, "second")
            raise ApiError(408, f"the body took longer than {seconds}") from None
        finally:
            del self._ends[task]

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        for task, end in self._ends.items():
            if end <= loop.time():
                self._ends[task] = math.inf
                task.cancel()
        loop.call_later(LOOK_SECONDS, self._look, loop)


async def _read(receive: Receive) -> bytearray:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, TOO_LARGE)
        if not message.get("more_body", False):
            return body


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
    is_openai = request.url.path.startswith("/v1/")
    return json_response(error_body(told, openai=is_openai), told.status, headers)
