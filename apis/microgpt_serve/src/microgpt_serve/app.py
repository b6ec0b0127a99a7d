"""The ASGI application: its routes, and the middleware that every request passes."""

import os

from microgpt import MicrogptError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from microgpt_serve.api.docs import make_document
from microgpt_serve.api.endpoint import Endpoint
from microgpt_serve.api.generation import NOT_READ_HEADERS
from microgpt_serve.api.http import error_response
from microgpt_serve.api.routes import ENDPOINTS
from microgpt_serve.serving.batcher import Batcher
from microgpt_serve.serving.bodies import BodyReader
from microgpt_serve.serving.errors import ApiError
from microgpt_serve.serving.limits import DEFAULT_LIMITS, Limits
from microgpt_serve.serving.middleware import Admission, Entrance, Guard, Observer
from microgpt_serve.serving.models import ModelStore
from microgpt_serve.serving.pool import Pool
from microgpt_serve.serving.settings import DEFAULT_MODEL, Settings

__all__ = ["create_app"]

TEXTS_TOGETHER = 64  # grow at the same time, unless THREADS says otherwise
GZIP_LEVEL = 6  # half the time of 9, for a few per cent more bytes


def create_app(settings: Settings, limits: Limits = DEFAULT_LIMITS) -> Starlette:
    """Return the application.

    Its state holds `settings`, `models` (to be loaded before texts can be generated), `bodies`,
    `pool`, `is_draining` and `document`, the OpenAPI document.
    """
    endpoints = [
        endpoint
        for endpoint in ENDPOINTS
        if not endpoint.enabled_by or any(getattr(settings, name) for name in endpoint.enabled_by)
    ]
    routes = {endpoint: endpoint.route() for endpoint in endpoints}
    handled = (ApiError, MicrogptError, HTTPException, ClientDisconnect, Exception)
    app = Starlette(
        routes=list(routes.values()),
        middleware=_middleware(settings, limits, routes),
        exception_handlers=dict.fromkeys(handled, error_response),
    )
    app.router.redirect_slashes = False  # Starlette would name scheme and host of the request
    app.state.settings = settings
    n_cores = os.cpu_count() or 1
    queue, timeout = settings.max_queue, settings.request_timeout

    def make_batcher(name: str) -> Batcher:
        n_texts = settings.threads or TEXTS_TOGETHER
        return Batcher(n_texts, queue, timeout, settings.prefix_mb << 20, name)

    app.state.models = ModelStore(
        settings.model_dir,
        make_batcher,
        max(1, n_cores // settings.workers),
        settings.models_mb << 20,
        os.environ.get(DEFAULT_MODEL, ""),
    )
    app.state.bodies = BodyReader(limits.body_seconds)
    app.state.pool = Pool(min(settings.threads or n_cores, n_cores), queue, timeout)
    app.state.is_draining = False
    app.state.document = make_document(endpoints, has_key=bool(settings.api_key))
    return app


def _middleware(
    settings: Settings, limits: Limits, routes: dict[Endpoint, Route]
) -> list[Middleware]:
    """Return the middleware, the outermost first."""
    probes = frozenset(endpoint.path for endpoint in routes if endpoint.is_probe)
    open_paths = [route.path_regex for endpoint, route in routes.items() if endpoint.is_open]
    middleware = [
        Middleware(
            Observer,
            paths={route.endpoint: route.path for route in routes.values()},
            error_response=error_response,
        ),
        Middleware(
            Entrance,
            path_prefix=settings.path_prefix,
            paths=[route.path_regex for route in routes.values()],
            error_response=error_response,
        ),
        Middleware(Admission, probes=probes),
        Middleware(GZipMiddleware, minimum_size=500, compresslevel=GZIP_LEVEL),
        Middleware(
            Guard,
            api_key=settings.api_key,
            rate_limit=settings.rate_limit,
            max_clients=limits.max_clients,
            probes=probes,
            open_paths=open_paths,
            error_response=error_response,
        ),
    ]
    if settings.origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients add their own, OpenAI's a dozen; none gives a right
            expose_headers=["X-Request-ID", "Retry-After", *NOT_READ_HEADERS],
        )
        middleware.insert(2, cors)  # before the guard: a preflight request carries no key
    return middleware
