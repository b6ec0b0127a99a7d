"""Middleware of every request: id, log, metrics, path prefix, admission, API key, rate limit."""

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeAlias

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from microgpt_serve.serving import metrics
from microgpt_serve.serving.errors import CLIENT_CLOSED, ApiError, counted
from microgpt_serve.serving.log import log
from microgpt_serve.serving.validation import printable

__all__ = ["DETAILS", "Admission", "Entrance", "Guard", "Observer"]

DETAILS = "microgpt.details"  # in the scope of a request: a dict of more fields of its log line
BODY_LENGTHS = {b"content-length", b"transfer-encoding"}
NO_SNIFF = (b"x-content-type-options", b"nosniff")
NOT_FOUND = 404
UNMATCHED = "unmatched"  # the route of a path that no endpoint has
MAX_PATH = 200  # characters in the log

SAFE_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
SECONDS_PER_MINUTE = 60.0
ADMITTED_PER_ITERATION = 2  # of the event loop; about a millisecond of work

ErrorResponse: TypeAlias = Callable[[Request, Exception], Awaitable[Response]]


class Observer:
    """Gives each request an id; logs and counts its outcome, with the details in its scope.

    Args:
        app: the next application.
        paths: the path template of each endpoint, for the log and the metrics.
        error_response: returns the response for an exception.
    """

    def __init__(
        self, app: ASGIApp, paths: dict[object, str], error_response: ErrorResponse
    ) -> None:
        self._app = app
        self._paths = paths
        self._error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if SAFE_ID.fullmatch(given) else secrets.token_hex(8)
        scope[DETAILS] = {}
        path = scope["path"]
        status = CLIENT_CLOSED  # until a response starts
        is_read = BODY_LENGTHS.isdisjoint([name for name, _ in scope["headers"]])

        async def receive_body() -> Message:
            nonlocal is_read
            message = await receive()
            is_read |= not message.get("more_body", False)
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = {(b"x-request-id", request_id.encode()), NO_SNIFF}
                # Hypercorn ends a connection whose body nobody has read, and does not say so.
                if not is_read and scope["http_version"] != "2":
                    added.add((b"connection", b"close"))
                message["headers"] = [*message["headers"], *added.difference(message["headers"])]
            await send(message)

        try:
            await self._app(scope, receive_body, send_with_id)
        except Exception as error:
            log(logging.ERROR, "request failed", error, request_id=request_id)
            if status != CLIENT_CLOSED:  # a response has started: only the connection can be cut
                raise
            response = await self._error_response(Request(scope), error)
            await response(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - start
            self._report(scope, request_id, path, status, seconds)

    def _report(
        self, scope: Scope, request_id: str, path: str, status: int, seconds: float
    ) -> None:
        route = self._paths.get(scope.get("endpoint"), UNMATCHED)
        method = scope["method"] if scope.get("endpoint") else "other"
        metrics.REQUESTS.labels(route, method, status).inc()
        metrics.DURATION.labels(route).observe(seconds)
        details = {"request_id": request_id, "method": scope["method"][:16], "route": route}
        if route == UNMATCHED or status == NOT_FOUND:
            details["path"] = printable(path[:MAX_PATH])
        details |= {"status": status, "seconds": round(seconds, 6), "client": _client(scope)}
        log(logging.INFO, "request", **details | scope[DETAILS])


class Entrance:
    """Refuses requests that proxies may read otherwise; serves paths below a prefix as without.

    Args:
        app: the next application.
        path_prefix: such as "/gpt"; empty for none.
        paths: patterns of the paths of all routes, which are served as they are.
        error_response: returns the response for an exception.
    """

    def __init__(
        self,
        app: ASGIApp,
        path_prefix: str,
        paths: Sequence[re.Pattern[str]],
        error_response: ErrorResponse,
    ) -> None:
        self._app = app
        self._prefix = path_prefix
        self._paths = paths
        self._error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        response = None
        if scope["type"] == "http":
            if BODY_LENGTHS.issubset([name for name, _ in scope["headers"]]):
                response = await self._refusal(scope)
            elif self._prefix:
                response = self._enter(scope)
        await (response or self._app)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Response:
        """Return the response to a body whose end is ambiguous; unread, it ends the connection."""
        message = "expected Content-Length or Transfer-Encoding, not both"
        return await self._error_response(Request(scope), ApiError(400, message))

    def _enter(self, scope: Scope) -> Response | None:
        """Remove the prefix from the path; redirect from the prefix to the page below it."""
        path, prefix = scope["path"], self._prefix
        is_below = f"{path}/".startswith(f"{prefix}/")
        if not is_below or any(route.match(path) for route in self._paths):
            return None
        if path == prefix:
            return Response(status_code=307, headers={"Location": f"{prefix.rpartition('/')[2]}/"})
        scope["path"] = path.removeprefix(prefix)
        return None


class Admission:
    """Admits a few requests per iteration of the event loop, in the order of their arrival.

    However many requests arrive at once, a health check, which is always admitted, then waits for
    a few of them only.

    Args:
        app: the next application.
        probes: paths of health checks.
    """

    def __init__(self, app: ASGIApp, probes: Collection[str]) -> None:
        self._app = app
        self._probes = probes
        self._n_left = ADMITTED_PER_ITERATION  # in this iteration
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http" and scope["path"] not in self._probes:
            await self._wait()
        await self._app(scope, receive, send)

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        if self._n_left == ADMITTED_PER_ITERATION:
            loop.call_soon(self._next_iteration, loop)
        if self._n_left:
            self._n_left -= 1
            return
        admitted = loop.create_future()
        self._waiting.append(admitted)
        await admitted

    def _next_iteration(self, loop: asyncio.AbstractEventLoop) -> None:
        self._n_left = ADMITTED_PER_ITERATION
        while self._waiting and self._n_left:
            admitted = self._waiting.popleft()
            if not admitted.done():  # done: the request was cancelled while it waited
                admitted.set_result(None)
                self._n_left -= 1
        if self._n_left < ADMITTED_PER_ITERATION:
            loop.call_soon(self._next_iteration, loop)


class Guard:
    """Checks the API key and the rate limit.

    Args:
        app: the next application.
        api_key: the key that clients must send; empty for none.
        rate_limit: requests per minute and client; 0 for no limit.
        max_clients: clients whose request rates are remembered.
        probes: paths of health checks, which need no key and have no rate limit.
        open_paths: patterns of other paths that need no key.
        error_response: returns the response for an exception.
    """

    def __init__(
        self,
        app: ASGIApp,
        api_key: str,
        rate_limit: int,
        max_clients: int,
        probes: Collection[str],
        open_paths: Sequence[re.Pattern[str]],
        error_response: ErrorResponse,
    ) -> None:
        self._app = app
        self._api_key = api_key.encode()
        self._rate_limit = rate_limit
        self._max_clients = max_clients
        self._probes = probes
        self._open_paths = open_paths
        self._error_response = error_response
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http" and scope["path"] not in self._probes:
            try:
                self._check(scope)
            except ApiError as error:
                response = await self._error_response(Request(scope), error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        if self._api_key and not any(path.match(scope["path"]) for path in self._open_paths):
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(key.strip(" ").encode("latin-1"), self._api_key)
            if scheme.lower() != "bearer" or not is_right:
                metrics.REJECTED.labels("key").inc()
                raise ApiError(
                    401, "expected Authorization: Bearer and the API key", code="invalid_api_key"
                )
        if self._rate_limit and (wait := self._seconds_to_wait(_client(scope))):
            metrics.REJECTED.labels("rate").inc()
            raise ApiError(
                429,
                f"more than {counted(self._rate_limit, 'request')} per minute",
                code="rate_limit_exceeded",
                retry_after=int(wait) + 1,
            )

    def _seconds_to_wait(self, client: str) -> float:
        """Return 0 and count the request, or the time until the client may send the next one.

        Each client has a token bucket of `rate_limit` requests, refilled evenly over a minute.
        """
        now = time.monotonic()
        rate = self._rate_limit / SECONDS_PER_MINUTE
        left, since = self._buckets.pop(client, (float(self._rate_limit), now))
        left = min(left + (now - since) * rate, float(self._rate_limit))
        is_allowed = left >= 1.0
        self._buckets[client] = (left - is_allowed, now)
        if len(self._buckets) > self._max_clients:
            self._buckets.popitem(last=False)
        return 0.0 if is_allowed else (1.0 - left) / rate


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else "unknown"
