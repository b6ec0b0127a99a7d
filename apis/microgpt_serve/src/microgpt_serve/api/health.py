"""The routes for load balancers and monitoring."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from microgpt_serve.serving import metrics

__all__ = ["live", "readiness", "show_metrics"]


async def live(_: Request) -> Response:
    """Answer 200 as long as the event loop runs."""
    return PlainTextResponse("ok")


async def readiness(request: Request) -> Response:
    """Answer 200 while requests are accepted, 503 with the reason while not."""
    state = request.app.state
    if state.is_draining:
        return PlainTextResponse("draining", 503)
    if not state.models.is_loaded:
        return PlainTextResponse("loading", 503)
    if not (state.pool.is_healthy and state.models.is_healthy):
        return PlainTextResponse("busy", 503)
    return PlainTextResponse("ok")


async def show_metrics(_: Request) -> Response:
    """Return the metrics in the text format of Prometheus."""
    return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE_LATEST)
