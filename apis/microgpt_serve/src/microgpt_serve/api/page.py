"""The page at `/`, and the static files of it and of `/docs`."""

from functools import cache
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["SECURITY_HEADERS", "page", "static"]

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'self'; form-action 'none'; "
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


async def page(request: Request) -> Response:
    """Return the page; its relative links begin at the prefix, with or without a slash at its end.

    A proxy that strips the prefix sends the same path for both.
    """
    content = _content("page.html")
    if prefix := request.app.state.settings.path_prefix:
        base = f'<head>\n<base href="{prefix}/">'
        content = content.replace(b"<head>", base.encode(), 1)
    return Response(content, headers=SECURITY_HEADERS, media_type="text/html")


async def static(request: Request) -> Response:
    """Return a static file."""
    name = request.path_params["name"]
    if name not in STATIC:
        raise HTTPException(404)
    return Response(_content(name), headers=SECURITY_HEADERS, media_type=STATIC[name])
