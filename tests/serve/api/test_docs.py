"""The page, its files and the documentation."""

import html
import json
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from openapi_spec_validator import validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from serve.service import MakeClient
from starlette.testclient import TestClient


def test_the_page_and_its_parts_are_served_with_a_strict_policy(names: TestClient) -> None:
    page = names.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(parts) == ["static/icon.svg", "static/page.css", "static/page.js"]
    for path in ("/", "/docs", *parts, "/static/docs.css"):
        response = names.get(path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "://" not in response.text.replace("http://www.w3.org/2000/svg", "")
    assert "innerHTML" not in names.get("/static/page.js").text
    for path in ("/static/page.html", "/static/..%2fapp.py", "/static/none"):
        assert names.get(path).status_code == 404


def test_the_openapi_document_is_valid_and_names_every_route(
    make_client: MakeClient, names_dir: Path
) -> None:
    client = make_client(names_dir, api_key="k")
    document = client.get("/openapi.json", headers={"Authorization": "Bearer k"}).json()
    validate(document)
    served = {getattr(route, "path", "") for route in client.app.routes}  # type: ignore[attr-defined]
    assert set(document["paths"]) == served - {"/", "/docs", "/openapi.json", "/static/{name}"}
    assert document["security"] == [{"bearer": []}]
    assert document["paths"]["/livez"]["get"]["security"] == []
    with pytest.raises(OpenAPIValidationError, match="'x' was unexpected"):
        validate({**document, "paths": {"x": {}}})


def test_the_documentation_shows_every_operation_and_field(names: TestClient) -> None:
    text = names.get("/docs").text
    document = names.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert f"<code>{method.upper()} {path}</code>" in text
            assert operation["summary"] in text
    schemas = document["components"]["schemas"]
    requests = {name for name in schemas if name.endswith("Request")} - {"SamplingRequest"}
    for name in (*requests, "Turn", "OpenAITurn", "TextPart", "StreamOptions"):
        for field, schema in schemas[name]["properties"].items():
            assert schema.get("description"), (name, field)
            if name in requests:
                assert f"<code>{field}</code>" in text
                assert f"<td>{html.escape(schema['description'])}" in text


@pytest.mark.parametrize("key", ["", "sesame"])
def test_the_example_of_every_post_route_works_as_shown(
    make_client: MakeClient, chat_dir: Path, key: str
) -> None:
    client = make_client(chat_dir, api_key=key)
    headers = {"Authorization": f"Bearer {key}"}
    paths = client.get("/openapi.json", headers=headers).json()["paths"]
    posts = [path for path, operations in paths.items() if "post" in operations]
    text = client.get("/docs", headers=headers).text
    commands = [
        html.unescape(found) for found in re.findall("<pre><code>(.*?)</code>", text, re.DOTALL)
    ]
    assert len(commands) == len(posts) >= 5
    for path, command in zip(posts, commands, strict=True):
        curl, _, method, url, *options = shlex.split(
            command.replace("$KEY", key).replace("\\\n", "")
        )
        assert (curl, method, url) == ("curl", "POST", f"$URL{path}")
        sent = dict(option.split(": ", 1) for option in options[1:-1:2])
        assert options[-2] == "-d"
        response = client.post(path, content=options[-1], headers=sent)
        assert response.status_code == 200, response.text
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert json.loads(options[-1]) == content["example"]


def test_the_documentation_begins_with_generate_and_chat_and_ends_with_metrics(
    names: TestClient,
) -> None:
    paths = list(names.get("/openapi.json").json()["paths"])
    assert paths[:2] == ["/microgpt/v1/generate", "/microgpt/v1/chat"]
    assert paths[-4:] == ["/livez", "/readyz", "/health", "/metrics"]


@pytest.mark.parametrize("path", ["/gpt/", "/gpt/docs"])
def test_pages_below_a_prefix_that_a_proxy_strips_name_only_urls_below_it(
    names: TestClient, path: str
) -> None:
    page = names.get(path.removeprefix("/gpt")).text
    links = [urljoin(path, link) for link in re.findall(r'(?:src|href)="([^"]+)"', page)]
    assert len(links) == 3
    for link in links:
        assert link.startswith("/gpt/")
        assert names.get(link.removeprefix("/gpt")).status_code == 200


def test_the_server_of_the_openapi_document_is_its_directory(names: TestClient) -> None:
    (server,) = names.get("/openapi.json").json()["servers"]
    assert urljoin("/gpt/openapi.json", server["url"]) == "/gpt/"


@pytest.mark.parametrize(
    ("switch", "gone", "there"),
    [
        ("docs", ["/docs", "/openapi.json"], ["/", "/metrics", "/static/page.css"]),
        ("metrics", ["/metrics"], ["/", "/docs"]),
        ("page", ["/"], ["/docs", "/metrics", "/static/docs.css"]),
    ],
)
def test_routes_can_be_disabled(
    make_client: MakeClient, names_dir: Path, switch: str, gone: list[str], there: list[str]
) -> None:
    disabled: dict[str, Any] = {switch: False}
    client = make_client(names_dir, **disabled)
    assert {client.get(path).status_code for path in gone} == {404}
    assert {client.get(path).status_code for path in there} == {200}
    if switch == "metrics":
        assert "/metrics" not in client.get("/openapi.json").json()["paths"]
