"""What nobody should send: every field of every request, with every hostile value."""

from typing import Any

import msgspec
import pytest
from microgpt_serve.api import openai_schemas, schemas
from starlette.testclient import TestClient

HELLO = '[{"role": "user", "content": "hello"}]'
ROUTES: dict[str, tuple[type[msgspec.Struct], str]] = {
    "/microgpt/v1/generate": (schemas.GenerateRequest, "{}"),
    "/microgpt/v1/chat": (schemas.ChatRequest, f'{{"messages": {HELLO}}}'),
    "/microgpt/v1/next": (schemas.NextRequest, "{}"),
    "/microgpt/v1/trace": (schemas.TraceRequest, "{}"),
    "/v1/chat/completions": (openai_schemas.ChatCompletionRequest, f'{{"messages": {HELLO}}}'),
    "/v1/completions": (openai_schemas.CompletionRequest, "{}"),
}
FIELDS = [(route, name) for route, (kind, _) in ROUTES.items() for name in kind.__struct_fields__]
TOO_DEEP = "[" * 100_000 + "]" * 100_000
VALUES = {
    "null": "null",
    "true": "true",
    "minus one": "-1",
    "one half": "0.5",
    "1e308": "1e308",
    "1e999": "1e999",
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "10**300": "1" + "0" * 300,
    "number of 1 MB": "1" * 1_000_000,
    "string": '"x"',
    "empty string": '""',
    "string of 1 MB": '"' + "a" * 1_000_000 + '"',
    "lone surrogate": r'"\ud800"',
    "NUL": r'"\u0000"',
    "raw NUL": '"\0"',
    "list": "[]",
    "list of lists": "[[[]]]",
    "object": "{}",
    "turn with numbers": '[{"role": 1, "content": 2}]',
    "turn without content": '[{"role": "user"}]',
    "turn with a surrogate": r'[{"role": "user", "content": "\ud800"}]',
    "turn with a surrogate as role": r'[{"role": "\ud800", "content": "a"}]',
    "turn with NUL": r'[{"role": "user", "content": "\u0000"}]',
    "10,000 turns": "[" + ",".join(['{"role": "user", "content": "a"}'] * 10_000) + "]",
    "10,000 strings": "[" + ",".join(['"a"'] * 10_000) + "]",
    "too deep": TOO_DEEP,
    "too deep object": '{"a":' * 100_000 + "1" + "}" * 100_000,
}


def send(client: TestClient, route: str, body: bytes) -> int:
    response = client.post(route, content=body, headers={"Content-Type": "application/json"})
    is_stream = response.headers["content-type"].startswith("text/event-stream")
    assert is_stream or response.headers["content-type"] == "application/json", body[:100]
    if response.status_code >= 400:
        error = response.json()["error"]
        message = error["message"] if route.startswith("/v1/") else error
        assert message
        assert len(message) < 1000
    return response.status_code


def accepts(kind: Any, value: str) -> bool:
    """Whether a field's type takes a value: msgspec is asked for that field alone."""
    try:
        msgspec.json.decode(value.encode(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


@pytest.mark.parametrize(("route", "name"), FIELDS, ids=lambda part: str(part).strip("/"))
def test_hostile_values_of_a_field_are_the_clients_fault(
    chat: TestClient, route: str, name: str
) -> None:
    kind, body = ROUTES[route]
    (field,) = (item for item in msgspec.structs.fields(kind) if item.name == name)
    others = msgspec.json.decode(body)
    others.pop(name, None)
    n_refused = 0
    for value in VALUES.values():
        given = ", ".join(
            [f'"{name}": {value}', *(f'"{k}": {HELLO}' for k in others if k == "messages")]
        )
        status = send(chat, route, f"{{{given}}}".encode())
        assert status in {200, 400, 404, 413}, (name, value[:50], status)
        if not accepts(field.type, value):
            assert 400 <= status < 500, (name, value[:50], status)
            n_refused += 1
    assert n_refused >= (4 if field.type is Any else 15), "the table has lost its teeth"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"5",
        b"\xff\xfe{}",
        b'{"temperature": \xff}',
        b'{"prompt": "\xff"}',
        b"{}" * 10,
        TOO_DEEP.encode(),
        b'{"a":' * 100_000 + b"}" * 100_000,
        b'{"unknown": ' + TOO_DEEP.encode() + b"}",
    ],
)
@pytest.mark.parametrize("route", ROUTES)
def test_bodies_that_are_not_objects_are_refused(chat: TestClient, route: str, body: bytes) -> None:
    assert send(chat, route, body) == 400


def test_bodies_of_another_type_are_refused(chat: TestClient) -> None:
    for content_type, shown in (
        ("text/plain; charset=utf-8", "'text/plain'"),
        ("application/x-www-form-urlencoded", "'application/x-www-form-urlencoded'"),
        ("a" * 999, f"'{'a' * 80}'..."),
        ("a\tb", r"'a\tb'"),
        ("", "missing"),
    ):
        response = chat.post(
            "/microgpt/v1/generate", content=b"{}", headers={"Content-Type": content_type}
        )
        assert response.status_code == 415
        expected = f"Content-Type is {shown}, expected application/json"
        assert response.json()["error"] == expected
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert chat.post("/microgpt/v1/generate", content=b"{}", headers=headers).status_code == 200


def test_compressed_bodies_are_refused_by_name(chat: TestClient) -> None:
    for encoding, status in (
        ("gzip", 415),
        ("br", 415),
        ("a\tb" + "c" * 999, 415),
        ("Identity", 200),
    ):
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        response = chat.post("/microgpt/v1/generate", content=b"{}", headers=headers)
        assert response.status_code == status
        if encoding == "gzip":
            expected = "the body has Content-Encoding: gzip; send it without compression"
            assert response.json()["error"] == expected
        assert len(response.text) < 500


def test_repeated_fields_do_no_harm(chat: TestClient) -> None:
    assert send(chat, "/microgpt/v1/generate", b'{"seed": 1, "seed": -2}') == 400
