"""The documentation: `/openapi.json` from the table of routes, `/docs` from `/openapi.json`."""

import html
import json
import re
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from microgpt_serve.api import openai_schemas, schemas
from microgpt_serve.api.endpoint import Endpoint
from microgpt_serve.api.http import json_response
from microgpt_serve.api.page import SECURITY_HEADERS

__all__ = ["docs", "make_document", "openapi"]

REF = "#/components/schemas/{name}"
REASONS = {
    400: "the request is invalid",
    401: "the API key is missing or wrong",
    404: "the model does not exist",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is not JSON",
    429: "the client exceeds its rate limit",
    500: "internal error",
    503: "the queue is full, or the service is loading its model or shutting down",
}
ALWAYS = (401, 429, 500)
WITH_BODY = (400, 408, 413, 415, 503)
WITH_RETRY = (429, 503)  # their responses carry Retry-After
TEXT = {"text/plain": {"schema": {"type": "string"}}}


def make_document(endpoints: Sequence[Endpoint], *, has_key: bool) -> dict[str, Any]:
    """Return the OpenAPI document of the endpoints that have a summary."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        if endpoint.summary:
            paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    kinds = [
        kind
        for name, kind in (vars(schemas) | vars(openai_schemas)).items()
        if isinstance(kind, type(msgspec.Struct)) and not name.startswith("_")
    ]
    _, components = msgspec.json.schema_components(kinds, ref_template=REF)
    _describe_fields(components)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "microgpt-serve",
            "version": version("microgpt-serve"),
            "description": "Texts and chat from a small GPT.",
        },
        "servers": [{"url": "."}],  # the directory of the document: right below a prefix too
        "paths": paths,
        "components": {"schemas": components},
    }
    if has_key:
        bearer = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"bearer": bearer}
        document["security"] = [{"bearer": []}]
    return document


def _describe_fields(components: dict[str, Any]) -> None:
    """Give each field the description that one of its types has, such as that beside null."""
    for component in components.values():
        for field in component.get("properties", {}).values():
            for kind in field.get("anyOf", ()):
                if description := kind.pop("description", None):
                    field.setdefault("description", description)


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": endpoint.summary.lower().replace(" ", "_"),
        "responses": {"200": _success(endpoint), **_errors(endpoint)},
    }
    in_path = dict.fromkeys(re.findall(r"{(\w+)}", endpoint.path), "path")
    if places := in_path | dict.fromkeys(endpoint.query, "query"):
        operation["parameters"] = [
            {"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}}
            for name, place in places.items()
        ]
    if endpoint.body:
        content = _json(endpoint.body)
        if endpoint.example is not None:
            content["application/json"]["example"] = endpoint.example
        operation["requestBody"] = {"required": True, "content": content}
    if endpoint.is_probe:
        operation["security"] = []
    return operation


def _success(endpoint: Endpoint) -> dict[str, Any]:
    content = _json(endpoint.response) if endpoint.response else TEXT
    if endpoint.stream:
        events = (
            f"events; the data of each is a {endpoint.stream.__name__}, of the last event [DONE]"
        )
        content = content | {"text/event-stream": {"schema": {"description": events}}}
    return {"description": "success", "content": content}


def _errors(endpoint: Endpoint) -> dict[str, Any]:
    """Return the error responses by status; a probe's are plain text."""
    statuses = {*endpoint.errors, *(WITH_BODY if endpoint.body else ())}
    if endpoint.is_probe:
        content = TEXT
    else:
        statuses.update(ALWAYS)
        content = _json(openai_schemas.OpenAIErrorBody if endpoint.is_openai else schemas.ErrorBody)
    responses: dict[str, Any] = {}
    for status in sorted(statuses):
        responses[str(status)] = {"description": REASONS[status], "content": content}
        if status in WITH_RETRY and not endpoint.is_probe:
            seconds = {"description": "seconds until the next try", "schema": {"type": "string"}}
            responses[str(status)]["headers"] = {"Retry-After": seconds}
    return responses


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REF.format(name=kind.__name__)}}}


async def openapi(request: Request) -> Response:
    """Return the OpenAPI document."""
    return json_response(request.app.state.document)


async def docs(request: Request) -> Response:
    """Return the OpenAPI document as a page."""
    return HTMLResponse(_page(request.app.state.document), headers=SECURITY_HEADERS)


# ---------------------------------------------------------------- the page


def _page(document: dict[str, Any]) -> str:
    known = document["components"]["schemas"]
    has_key = "security" in document
    parts = [
        _operation_html(*item, known, _curl(*item, has_key=has_key))
        for item in _operations(document)
    ]
    key = ", <code>$KEY</code> the API key" if has_key else ""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>microgpt-serve {html.escape(document["info"]["version"])}</title>
<link rel="icon" href="static/icon.svg">
<link rel="stylesheet" href="static/docs.css">
<h1>microgpt-serve {html.escape(document["info"]["version"])}</h1>
<p>{html.escape(document["info"]["description"])}
For programs: <a href="openapi.json">openapi.json</a>.
In the examples, <code>$URL</code> is the address of this page without <code>/docs</code>{key}.</p>
{"".join(parts)}
</html>"""


def _operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def _curl(method: str, path: str, operation: dict[str, Any], *, has_key: bool) -> str:
    """Return the command that sends the example of an operation; empty if there is none."""
    content = operation.get("requestBody", {}).get("content", {})
    if (example := content.get("application/json", {}).get("example")) is None:
        return ""
    parts = [f'curl -X {method} "$URL{path}"', "-H 'Content-Type: application/json'"]
    if has_key:
        parts.append('-H "Authorization: Bearer $KEY"')
    return " \\\n  ".join([*parts, f"-d {shlex.quote(json.dumps(example))}"])


def _operation_html(
    method: str, path: str, operation: dict[str, Any], known: dict[str, Any], example: str
) -> str:
    rows = "".join(
        f"<tr><td>{status}<td>{html.escape(response['description'])}"
        f"<td>{_content_html(response['content'], known)}"
        for status, response in operation["responses"].items()
    )
    body = operation.get("requestBody")
    request = f"<h3>Request</h3>{_content_html(body['content'], known)}" if body else ""
    command = f"<pre><code>{html.escape(example, quote=False)}</code></pre>" if example else ""
    return (
        f"<section><h2><code>{method} {html.escape(path)}</code></h2>"
        f"<p>{html.escape(operation['summary'])}</p>{command}{request}"
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
    description = html.escape(known[name].get("description", ""))
    return f"<details><summary>{name}</summary><p>{description}</p><table>{rows}</table></details>"


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
