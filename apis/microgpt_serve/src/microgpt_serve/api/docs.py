"""`/openapi.json`, made from the types of requests and responses, and `/docs`, made from that."""

import html
from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from microgpt_serve.api import schemas
from microgpt_serve.api.http import json_response
from microgpt_serve.api.page import SECURITY_HEADERS

__all__ = ["docs", "openapi"]

REF = "#/components/schemas/{name}"
REASONS = {
    400: "the request is not as expected",
    401: "the API key is missing or wrong",
    404: "there is no such model",
    408: "the body took too long",
    413: "the body is too large",
    415: "the body is not JSON",
    429: "too many requests of this client",
    500: "a fault of the service",
    503: "too many requests are waiting, or the service is starting or ending",
}
ALWAYS = (401, 429, 500)
WITH_BODY = (400, 408, 413, 415, 503)
TEXT = {"text/plain": {"schema": {"type": "string"}}}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REF.format(name=kind.__name__)}}}


def _operation(
    summary: str,
    answer: type | None,
    *,
    body: type | None = None,
    stream: type | None = None,
    errors: tuple[int, ...] = (),
    is_open: bool = False,
    is_openai: bool = False,
) -> dict[str, Any]:
    """Return one operation; its name is made of its summary."""
    content = _json(answer) if answer else TEXT
    if stream:
        events = f"events; the data of each is a {stream.__name__}, of the last one [DONE]"
        content = content | {"text/event-stream": {"schema": {"description": events}}}
    responses: dict[str, Any] = {"200": {"description": "done", "content": content}}
    error_body = _json(schemas.OpenAIErrorBody if is_openai else schemas.ErrorBody)
    for status in sorted({*errors, *(() if is_open else ALWAYS), *(WITH_BODY if body else ())}):
        responses[str(status)] = {"description": REASONS[status], "content": error_body}
        if status in {429, 503}:
            seconds = {"description": "seconds to wait", "schema": {"type": "string"}}
            responses[str(status)]["headers"] = {"Retry-After": seconds}
    operation: dict[str, Any] = {
        "summary": summary,
        "operationId": summary.lower().replace(" ", "_"),
        "responses": responses,
    }
    if body:
        operation["requestBody"] = {"required": True, "content": _json(body)}
    if is_open:
        operation["security"] = []
    return operation


@cache
def _document(*, has_key: bool, has_metrics: bool) -> dict[str, Any]:
    """Return the OpenAPI document."""
    ready = _operation("Show readiness", None, is_open=True)
    ready["responses"]["503"] = {"description": "not now", "content": TEXT}
    model = _operation("Show a model", schemas.Model, errors=(404,), is_openai=True)
    model["parameters"] = [
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
    paths = {
        "/livez": {"get": _operation("Show life", None, is_open=True)},
        "/readyz": {"get": ready},
        "/health": {"get": _operation("Show health", None, is_open=True)},
        "/microgpt/v1/generate": {
            "post": _operation(
                "Generate documents", schemas.GenerateResponse, body=schemas.GenerateRequest
            )
        },
        "/microgpt/v1/chat": {
            "post": _operation("Chat", schemas.ChatReplyBody, body=schemas.ChatRequest)
        },
        "/microgpt/v1/next": {
            "post": _operation("Show next tokens", schemas.NextResponse, body=schemas.NextRequest)
        },
        "/microgpt/v1/model": {
            "get": _operation("Describe the model", schemas.ModelInfo, errors=(503,))
        },
        "/v1/models": {"get": _operation("List models", schemas.ModelList, is_openai=True)},
        "/v1/models/{model}": {"get": model},
        "/v1/chat/completions": {
            "post": _operation(
                "Complete a chat",
                schemas.ChatCompletion,
                body=schemas.ChatCompletionRequest,
                stream=schemas.ChatCompletionChunk,
                errors=(404,),
                is_openai=True,
            )
        },
        "/v1/completions": {
            "post": _operation(
                "Complete a text",
                schemas.Completion,
                body=schemas.CompletionRequest,
                stream=schemas.Completion,
                errors=(404,),
                is_openai=True,
            )
        },
    }
    if has_metrics:
        paths["/metrics"] = {"get": _operation("Show metrics", None)}
    kinds = [getattr(schemas, name) for name in schemas.__all__ if name != "MAX_SAMPLES"]
    _, components = msgspec.json.schema_components(kinds, ref_template=REF)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "microgpt-serve",
            "version": version("microgpt-serve"),
            "description": "Texts and chat from a small GPT.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if has_key:
        bearer = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"bearer": bearer}
        document["security"] = [{"bearer": []}]
    return document


def _document_of(request: Request) -> dict[str, Any]:
    settings = request.app.state.settings
    return _document(has_key=bool(settings.api_key), has_metrics=settings.metrics)


async def openapi(request: Request) -> Response:
    """Return the OpenAPI document."""
    return json_response(_document_of(request))


async def docs(request: Request) -> Response:
    """Return the same as a page."""
    return HTMLResponse(_page(_document_of(request)), headers=SECURITY_HEADERS)


# ---------------------------------------------------------------- the page


def _page(document: dict[str, Any]) -> str:
    known = document["components"]["schemas"]
    parts = [_operation_html(*item, known) for item in _operations(document)]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>microgpt-serve {html.escape(document["info"]["version"])}</title>
<link rel="icon" href="/static/icon.svg">
<link rel="stylesheet" href="/static/docs.css">
<h1>microgpt-serve {html.escape(document["info"]["version"])}</h1>
<p>{html.escape(document["info"]["description"])}
The same for programs: <a href="/openapi.json">/openapi.json</a>.</p>
{"".join(parts)}
</html>"""


def _operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def _operation_html(
    method: str, path: str, operation: dict[str, Any], known: dict[str, Any]
) -> str:
    rows = "".join(
        f"<tr><td>{status}<td>{html.escape(response['description'])}"
        f"<td>{_content_html(response['content'], known)}"
        for status, response in operation["responses"].items()
    )
    body = operation.get("requestBody")
    asked = f"<h3>Request</h3>{_content_html(body['content'], known)}" if body else ""
    return (
        f"<section><h2><code>{method} {html.escape(path)}</code></h2>"
        f"<p>{html.escape(operation['summary'])}</p>{asked}"
        f"<h3>Responses</h3><table>{rows}</table></section>"
    )


def _content_html(content: dict[str, Any], known: dict[str, Any]) -> str:
    kind, described = next(iter(content.items()))
    name = described["schema"].get("$ref", "").rpartition("/")[2]
    if name not in known:
        return html.escape(", ".join(content))
    if "properties" not in known[name] or name.endswith("ErrorBody"):
        return f"{html.escape(kind)}: {name}"
    required = known[name].get("required", [])
    rows = "".join(
        f"<tr><td><code>{field}</code>{'' if field not in required else ' (required)'}"
        f"<td>{html.escape(_type_of(schema))}<td>{html.escape(schema.get('description', ''))}"
        for field, schema in known[name]["properties"].items()
    )
    return f"<details><summary>{name}</summary><table>{rows}</table></details>"


def _type_of(schema: dict[str, Any]) -> str:
    """Return a type in words, such as "integer or null"."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(map(_type_of, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type_of(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))
