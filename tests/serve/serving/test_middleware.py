"""What every request passes: ids, the log, keys, rates."""

import json
import re
from pathlib import Path

import pytest
from microgpt_serve.serving.limits import Limits
from serve.service import MakeClient, StartLog
from starlette.testclient import TestClient

GENERATE = "/microgpt/v1/generate"
OPEN = ("/livez", "/readyz", "/health")


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic s\u00e9same",
        "s\u00e9same",
        "Bearer s\u00e9sam",
    ],
)
def test_without_the_key_only_health_routes_and_the_page_answer(
    make_client: MakeClient, names_dir: Path, authorization: str
) -> None:
    client = make_client(names_dir, api_key="s\u00e9same")
    headers = {b"Authorization": authorization.encode()} if authorization else {}
    for path in ("/docs", "/openapi.json", "/metrics", "/v1/models", "/static", "/x"):
        response = client.get(path, headers=headers)
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"
        assert "x-request-id" in response.headers
    assert client.post(GENERATE, json={}, headers=headers).status_code == 401
    page = ("/", "/static/page.js", "/static/page.css")  # which asks for the key
    assert {client.get(path).status_code for path in (*OPEN, *page)} == {200}


def test_with_the_key_everything_answers(make_client: MakeClient, names_dir: Path) -> None:
    for key in ("s\u00e9same", "voil\u00e0"):  # whose last byte alone would be a space
        client = make_client(names_dir, api_key=key)
        for scheme in ("Bearer", "bearer"):
            headers = {b"Authorization": f"{scheme} {key}".encode()}
            assert client.post(GENERATE, json={}, headers=headers).status_code == 200
            assert client.get("/", headers=headers).status_code == 200


# ---------------------------------------------------------------- rates


def test_clients_above_their_rate_limit_are_refused(
    make_client: MakeClient, names_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("microgpt_serve.serving.middleware.time.monotonic", lambda: now)
    client = make_client(names_dir, rate_limit=3)
    assert [client.post(GENERATE, json={}).status_code for _ in range(4)] == [200, 200, 200, 429]
    response = client.get("/v1/models")
    assert response.headers["retry-after"] == "21"  # a third of a minute, rounded up
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert client.get("/livez").status_code == 200
    other = TestClient(client.app, client=("203.0.113.9", 1))
    assert other.post(GENERATE, json={}).status_code == 200
    now += 20.1
    assert [client.post(GENERATE, json={}).status_code for _ in range(2)] == [200, 429]


def test_clients_that_are_forgotten_do_not_fill_memory(
    make_client: MakeClient, names_dir: Path
) -> None:
    client = make_client(names_dir, Limits(max_clients=2), rate_limit=1)
    for host in ("a", "b", "c", "a"):  # "a" is the oldest when "c" comes
        asking = TestClient(client.app, client=(host, 1))
        assert asking.get("/v1/models").status_code == 200
    assert TestClient(client.app, client=("a", 1)).get("/v1/models").status_code == 429


# ---------------------------------------------------------------- ids, logs, failures


def test_every_answer_has_an_id(names: TestClient) -> None:
    given = names.get("/livez", headers={"X-Request-ID": "from-proxy.7"})
    assert given.headers["x-request-id"] == "from-proxy.7"
    for bad in ("", "a b", "x" * 65, "a\u00e9"):
        response = names.get("/livez", headers={b"X-Request-ID": bad.encode()})
        assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])


@pytest.mark.parametrize("style", ["json", "text"])
def test_log_lines_describe_requests_without_their_content(
    names: TestClient,
    capsys: pytest.CaptureFixture[str],
    start_log: StartLog,
    style: str,
) -> None:
    start_log(style)
    headers = {"X-Request-ID": "id-5"}
    names.post(GENERATE, json={"prompt": "mysecret"}, headers=headers)
    names.post(GENERATE, json={"prompt": "MYSECRET!"})
    names.get("/mysecret?mysecret=1")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "mysecret" not in "".join(lines).lower()
    if style == "json":
        first, second, third = map(json.loads, lines)
        seconds = first.pop("seconds")
        assert 0.0 < seconds < 10.0
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}", first.pop("time"))
        assert first == {
            "level": "info",
            "event": "request",
            "request_id": "id-5",
            "method": "POST",
            "route": GENERATE,
            "status": 200,
            "client": "testclient",
        }
        assert second["status"] == 400
        assert (third["route"], third["status"]) == ("unmatched", 404)
    else:
        told = f"info    request request_id=id-5 method=POST route={GENERATE} status=200 seconds="
        assert told in lines[0]


def test_internal_errors_are_500_with_an_id_and_one_traceback(
    names: TestClient,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    start_log: StartLog,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    start_log("text")
    monkeypatch.setattr("microgpt.LanguageModel.reply", fail)
    response = names.post(GENERATE, json={}, headers={"X-Request-ID": "id-7"})
    assert (response.status_code, response.json()) == (500, {"error": "internal error"})
    assert response.headers["x-request-id"] == "id-7"
    log = capsys.readouterr().err
    assert "request failed request_id=id-7" in log
    assert log.count("ZeroDivisionError: a bug") == 1
    assert "status=500" in log
