"""What every request passes: ids, the log, keys, rates."""

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from microgpt_serve.api.http import error_response
from microgpt_serve.serving.limits import Limits
from microgpt_serve.serving.middleware import DETAILS, Observer
from serve.service import MakeClient, StartLog
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

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
    names.get("/x%0A?mysecret=1")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "mysecret" not in "".join(lines).lower()
    if style == "json":
        first, second, third = map(json.loads, lines)
        seconds = first.pop("seconds")
        assert 0.0 < seconds < 10.0
        time = first.pop("time")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", time)
        assert abs(datetime.fromisoformat(time) - datetime.now(UTC)) < timedelta(minutes=1)
        assert first == {
            "level": "info",
            "event": "request",
            "request_id": "id-5",
            "method": "POST",
            "route": GENERATE,
            "status": 200,
            "client": "testclient",
            "model": "names",
            "prompt_tokens": 9,
            "completion_tokens": first["completion_tokens"],
        }
        assert first["completion_tokens"] > 0
        assert (second["status"], second["model"], second["reason"]) == (400, "names", "TokenError")
        assert "path" not in second
        assert (third["route"], third["status"]) == ("unmatched", 404)
        assert (third["path"], third["reason"]) == (r"/x\n", "Not Found")
    else:
        told = f"info    request request_id=id-5 method=POST route={GENERATE} status=200 seconds="
        assert told in lines[0]


def test_log_says_why_a_request_was_refused_and_quotes_nothing_of_it(
    make_client: MakeClient,
    names_dir: Path,
    capsys: pytest.CaptureFixture[str],
    start_log: StartLog,
) -> None:
    client = make_client(names_dir)
    start_log("json")
    text = "mysecret"
    reasons: dict[str, str] = {
        f'{{"temperature": "{text}"}}': "temperature: expected a number",
        f'{{"prompt": {{"{text}": 1}}}}': "prompt: expected a string",
        f'{{"stop": ["{text * 200}"]}}': "stop[0]: expected at most 1,000 characters",
        f'{{"prompt": "{text}" {text}}}': "the body is not JSON",
        f"{text}\xff": "the body is not UTF-8",
        f'{{"tools": ["{text}"]}}': "tools is not supported",
        f'{{"model": "{text}"}}': "model_not_found",
        f'{{"prompt": "{text}{text}s"}}': "ContextLengthError",
    }
    json_type = {"Content-Type": "application/json"}
    for body in reasons:
        client.post(GENERATE, content=body.encode("latin-1"), headers=json_type)
    expected = list(reasons.values())
    client.post("/v1/completions", json={"prompt": ["a", text.upper()]})
    expected.append("prompt[1]: TokenError")
    part = {"messages": [{"role": "user", "content": [{"type": text, "text": text}]}]}
    client.post("/v1/chat/completions", json=part)
    expected.append("messages[0].content[0].type: expected a value that is supported")
    client.post(GENERATE, content="{}", headers={"Content-Type": text})
    expected.append("Content-Type: expected application/json")
    client.post(GENERATE, content="{}", headers=json_type | {"Content-Encoding": text})
    expected.append("Content-Encoding: expected none")
    lines = capsys.readouterr().err
    assert "secret" not in lines.lower()
    assert [json.loads(line)["reason"] for line in lines.splitlines()] == expected


def request_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    lines = map(json.loads, capsys.readouterr().err.splitlines())
    return [line for line in lines if line["event"] == "request"]


def test_log_has_the_path_of_what_was_not_found(
    make_client: MakeClient,
    names_dir: Path,
    capsys: pytest.CaptureFixture[str],
    start_log: StartLog,
) -> None:
    client = make_client(names_dir, api_key="k", path_prefix="/gpt")
    start_log("json")
    headers = {"Authorization": "Bearer k"}
    for path in ("/v1/models/gpt-4", "/gpt/v2/x", "/" + "a" * 1000, "/v1/models"):
        client.get(path, headers=headers)
    client.get("/v2/without/key")
    seen = [(line["status"], line.get("path")) for line in request_lines(capsys)]
    assert seen == [
        (404, "/v1/models/gpt-4"),
        (404, "/gpt/v2/x"),
        (404, "/" + "a" * 199),
        (200, None),
        (401, "/v2/without/key"),
    ]


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "XXX-9:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_east")
def test_times_of_the_log_are_local_with_their_zone(
    names: TestClient, capsys: pytest.CaptureFixture[str], start_log: StartLog
) -> None:
    start_log("json")
    names.get("/livez")
    ((line),) = request_lines(capsys)
    assert str(line["time"]).endswith("+09:30")
    assert abs(datetime.fromisoformat(str(line["time"])) - datetime.now(UTC)) < timedelta(minutes=1)


def test_log_line_has_the_details_that_the_route_adds(
    capsys: pytest.CaptureFixture[str], start_log: StartLog
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope[DETAILS].update(model="names", prompt_tokens=3)
        await Response()(scope, receive, send)

    start_log("json")
    TestClient(Observer(app, {}, error_response)).get("/")
    ((line),) = request_lines(capsys)
    assert (line["model"], line["prompt_tokens"], line["status"]) == ("names", 3, 200)


def test_no_response_may_be_taken_for_another_type(
    make_client: MakeClient, names_dir: Path
) -> None:
    client = make_client(names_dir, path_prefix="/gpt", api_key="k", cors_origins="*")
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    answers = [
        *[client.get(path) for path in ("/", "/docs", "/livez", "/x", "/static/page.js")],
        client.post(GENERATE, json={}, headers={"Authorization": "Bearer k"}),
        client.get("/gpt", follow_redirects=False),
        client.options(GENERATE, headers=preflight),
        client.post(GENERATE, headers={"Content-Length": "1", "Transfer-Encoding": "chunked"}),
    ]
    assert [answer.status_code for answer in answers] == [
        200,
        401,
        200,
        401,
        200,
        200,
        307,
        200,
        400,
    ]
    assert [answer.headers.get_list("x-content-type-options") for answer in answers] == [
        ["nosniff"]
    ] * len(answers)


# ---------------------------------------------------------------- paths


def test_everything_works_below_the_prefix_and_without_it(
    make_client: MakeClient, names_dir: Path
) -> None:
    client = make_client(names_dir, path_prefix="/gpt", api_key="k")
    key = {"Authorization": "Bearer k"}
    for prefix in ("", "/gpt"):
        assert client.get(f"{prefix}/livez").text == "ok"
        assert '<base href="/gpt/">' in client.get(f"{prefix}/").text
        assert client.get(f"{prefix}/static/page.js").status_code == 200
        assert client.get(f"{prefix}/openapi.json", headers=key).status_code == 200
        assert client.post(f"{prefix}{GENERATE}", json={}, headers=key).status_code == 200
        error = client.get(f"{prefix}/v1/models").json()["error"]  # OpenAI's shape
        assert error["code"] == "invalid_api_key"
    for path in ("/gptx/livez", "/gpt/gpt/livez", "/x/gpt/livez"):
        assert client.get(path, headers=key).status_code == 404
    assert make_client(names_dir).get("/gpt/livez").status_code == 404


def test_prefix_without_slash_leads_to_the_page_and_to_no_other_host(
    make_client: MakeClient, names_dir: Path
) -> None:
    client = make_client(names_dir, path_prefix="/some/where")
    answer = client.get("/some/where", headers={"Host": "evil.example"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "where/")
    assert "<html" in client.get("/some/where").text


def test_prefix_that_begins_like_a_route_hides_none(
    make_client: MakeClient, names_dir: Path
) -> None:
    client = make_client(names_dir, path_prefix="/microgpt")
    for path in (GENERATE, f"/microgpt{GENERATE}"):
        assert client.post(path, json={}).status_code == 200
    assert client.get("/microgpt/v1/models").json()["object"] == "list"


@pytest.mark.parametrize("path", ["/livez/", "/v1/models/", "/docs/", "/static/"])
def test_slashes_too_many_are_not_found_instead_of_redirected(names: TestClient, path: str) -> None:
    answer = names.get(path, headers={"Host": "evil.example"}, follow_redirects=False)
    assert answer.status_code == 404
    assert "location" not in answer.headers


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
