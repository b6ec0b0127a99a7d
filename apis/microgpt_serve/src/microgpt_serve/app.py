"""The ASGI application: which path answers what."""

import os

from microgpt import MicrogptError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from microgpt_serve.api import docs, openai, page
from microgpt_serve.api.http import error_response
from microgpt_serve.api.microgpt import chat, generate, model_info, next_tokens
from microgpt_serve.serving import metrics
from microgpt_serve.serving.bodies import BodyReader
from microgpt_serve.serving.errors import ApiError
from microgpt_serve.serving.middleware import Guard, Observer, Turns
from microgpt_serve.serving.models import ModelStore
from microgpt_serve.serving.pool import Pool
from microgpt_serve.serving.settings import Settings

__all__ = ["create_app"]

GZIP_LEVEL = 6  # half the time of 9, for a few per cent more bytes


async def _livez(_: Request) -> Response:
    """Answer 200 as long as the event loop runs."""
    return PlainTextResponse("ok")


async def _health(_: Request) -> Response:
    """Answer 200 as long as the process serves."""
    return PlainTextResponse("ok")


async def _readyz(request: Request) -> Response:
    """Answer 200 while requests are welcome."""
    state = request.app.state
    if state.is_draining:
        return PlainTextResponse("draining", 503)
    if not state.models.is_loaded:
        return PlainTextResponse("loading", 503)
    if not state.pool.is_healthy:
        return PlainTextResponse("busy", 503)
    return PlainTextResponse("ok")


async def _metrics(_: Request) -> Response:
    """Return the metrics."""
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE_LATEST)


def create_app(settings: Settings) -> Starlette:
    """Return the application.

    Its state holds `settings`, `models` (to be loaded before texts can be had), `bodies`, `pool`
    and `is_draining`.
    """
    routes = [
        Route("/livez", _livez),
        Route("/readyz", _readyz),
        Route("/health", _health),
        Route("/microgpt/v1/generate", generate, methods=["POST"]),
        Route("/microgpt/v1/chat", chat, methods=["POST"]),
        Route("/microgpt/v1/next", next_tokens, methods=["POST"]),
        Route("/microgpt/v1/model", model_info),
        Route("/v1/models", openai.models),
        Route("/v1/models/{model}", openai.model),
        Route("/v1/chat/completions", openai.chat_completions, methods=["POST"]),
        Route("/v1/completions", openai.completions, methods=["POST"]),
    ]
    if settings.metrics:
        routes.append(Route("/metrics", _metrics))
    if settings.docs:
        routes += [Route("/openapi.json", docs.openapi), Route("/docs", docs.docs)]
    if settings.page:
        routes.append(Route("/", page.page))
    if settings.docs or settings.page:
        routes.append(Route("/static/{name}", page.static))
    middleware = [
        Middleware(
            Observer,
            routes={route.endpoint: route.path for route in routes},
            error_response=error_response,
        ),
        Middleware(Turns),
        Middleware(GZipMiddleware, minimum_size=500, compresslevel=GZIP_LEVEL),
        Middleware(
            Guard,
            api_key=settings.api_key,
            rate_limit=settings.rate_limit,
            error_response=error_response,
        ),
    ]
    if settings.origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients add their own, OpenAI's a dozen; none gives a right
            expose_headers=["X-Request-ID", "Retry-After"],
        )
        middleware.insert(1, cors)  # before the guard: a preflight request carries no key
    handled = (ApiError, MicrogptError, HTTPException, ClientDisconnect, Exception)
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers=dict.fromkeys(handled, error_response),
    )
    n_threads = settings.threads or os.cpu_count() or 1
    app.state.settings = settings
    app.state.models = ModelStore(settings.model_dir)
    app.state.bodies = BodyReader()
    app.state.pool = Pool(n_threads, settings.max_queue, settings.request_timeout)
    app.state.is_draining = False
    return app
