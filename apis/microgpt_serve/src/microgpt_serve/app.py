"""The ASGI application: which path answers what."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

__all__ = ["create_app"]


async def _health(_: Request) -> PlainTextResponse:
    """Answer 200 as long as the process serves."""
    return PlainTextResponse("ok")


def create_app() -> Starlette:
    """Return the application."""
    return Starlette(routes=[Route("/health", _health)])
