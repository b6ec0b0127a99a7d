"""The page at `/`, and the static files of it and of `/docs`."""

from functools import cache
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["SECURITY_HEADERS", "page", "static"]

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
STATIC = {
    "docs.css": "text/css",
    "icon.svg": "image/svg+xml",
    "page.css": "text/css",
    "page.js": "text/javascript",
}


@cache
def _content(name: str) -> bytes:
    return (files("microgpt_serve.api") / "static" / name).read_bytes()


async def page(_: Request) -> Response:
    """Return the page."""
    return Response(_content("page.html"), headers=SECURITY_HEADERS, media_type="text/html")


async def static(request: Request) -> Response:
    """Return a static file."""
    name = request.path_params["name"]
    if name not in STATIC:
        raise HTTPException(404)
    return Response(_content(name), headers=SECURITY_HEADERS, media_type=STATIC[name])
