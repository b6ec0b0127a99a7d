"""One row of the table of routes; the router and the documentation are made from such rows."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from microgpt_serve.api.fields import BodyDecoder
from microgpt_serve.api.http import decode_body, is_openai, json_response

__all__ = ["Endpoint"]


@dataclass(frozen=True)
class Endpoint:
    """A path, the function that answers, and their documentation.

    Args:
        method: HTTP method.
        path: as the router takes it; `{name}` is a parameter.
        handler: called with the request and, if there is one, its decoded body; returns a
            response, or an object to encode as JSON.
        summary: one line for the documentation; empty for pages, which are not documented.
        body: type of the request's JSON body; None for no body.
        example: a request body for the documentation, valid for every model or for chat models.
        query: names of optional query parameters.
        response: type of the response's JSON body; None for plain text.
        stream: type of the data of each server-sent event, if the response can be streamed.
        errors: statuses besides those that all endpoints can have.
        is_probe: a health check, without API key, rate limit and admission.
        is_open: a page or file that needs no API key.
        enabled_by: settings, one of which must be on; empty for always on.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: Callable[..., Awaitable[Any]]
    summary: str = ""
    body: type | None = None
    example: dict[str, Any] | None = field(default=None, hash=False)
    query: tuple[str, ...] = ()
    response: type | None = None
    stream: type | None = None
    errors: tuple[int, ...] = ()
    is_probe: bool = False
    is_open: bool = False
    enabled_by: tuple[str, ...] = ()

    @property
    def is_openai(self) -> bool:
        """Whether error bodies have OpenAI's shape."""
        return is_openai(self.path)

    def route(self) -> Route:
        """Return the row for the router."""
        decoder = BodyDecoder[Any](self.body, self.path) if self.body else None

        async def endpoint(request: Request) -> Response:
            if decoder:
                answer = await self.handler(request, await decode_body(request, decoder))
            else:
                answer = await self.handler(request)
            return answer if isinstance(answer, Response) else json_response(answer)

        return Route(self.path, endpoint, methods=[self.method])
