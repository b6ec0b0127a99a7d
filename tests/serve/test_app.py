"""Routes that tell about the service; what every request passes; the page and the documentation."""

import json
import logging
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import microgpt
import pytest
from microgpt_serve.api import docs as docs_module
from microgpt_serve.app import create_app
from microgpt_serve.serving import log as log_module
from microgpt_serve.serving.errors import DeadlineError
from microgpt_serve.serving.settings import Settings
from openapi_spec_validator import validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from serve.service import MakeClient, running
from starlette.testclient import TestClient

GENERATE = "/microgpt/v1/generate"
OPEN = ("/livez", "/readyz", "/health")


# ---------------------------------------------------------------- health


def test_health_routes_answer_ok(names: TestClient) -> None:
    for path in OPEN:
        response = names.get(path)
        assert (response.status_code, response.text) == (200, "ok")


def test_nothing_is_ready_before_the_model_is_loaded(names_dir: Path) -> None:
    client = TestClient(create_app(Settings(model_dir=str(names_dir))))
    assert [client.get(path).status_code for path in OPEN] == [200, 503, 200]
    assert client.get("/readyz").text == "loading"
    response = client.post(GENERATE, json={})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json() == {"error": "the model is still loading"}


def test_nothing_is_ready_while_draining_or_with_a_pool_that_ended(names: TestClient) -> None:
    names.app.state.is_draining = True  # type: ignore[attr-defined]
    assert (names.get("/readyz").status_code, names.get("/readyz").text) == (503, "draining")
    names.app.state.is_draining = False  # type: ignore[attr-defined]
    names.app.state.pool.end_all()  # type: ignore[attr-defined]
    assert (names.get("/readyz").status_code, names.get("/readyz").text) == (503, "busy")
    assert [names.get(path).status_code for path in ("/livez", "/health")] == [200, 200]
    for n in (1, 50):
        response = names.post(GENERATE, json={"num_samples": n})
        assert response.json() == {"error": "the service is shutting down"}
        assert response.status_code == 503


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


def test_clients_above_their_rate_wait(
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
    make_client: MakeClient, names_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microgpt_serve.serving.middleware.MAX_CLIENTS", 2)
    client = make_client(names_dir, rate_limit=1)
    for host in ("a", "b", "c", "a"):  # "a" is the oldest when "c" comes
        asking = TestClient(client.app, client=(host, 1))
        assert asking.get("/v1/models").status_code == 200
    assert TestClient(client.app, client=("a", 1)).get("/v1/models").status_code == 429


# ---------------------------------------------------------------- ids, logs, failures


@pytest.fixture
def start_log() -> Iterator[Callable[[str], None]]:
    """Log to the stderr of this test, in a style."""
    loggers = [logging.getLogger(name) for name in ("microgpt_serve", "hypercorn.error", "asyncio")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield lambda style: log_module.configure_logging("info", style)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_every_answer_has_an_id(names: TestClient) -> None:
    given = names.get("/livez", headers={"X-Request-ID": "from-proxy.7"})
    assert given.headers["x-request-id"] == "from-proxy.7"
    for bad in ("", "a b", "x" * 65, "a\u00e9"):
        response = names.get("/livez", headers={b"X-Request-ID": bad.encode()})
        assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])


@pytest.mark.parametrize("style", ["json", "text"])
def test_log_lines_tell_of_requests_and_never_what_they_say(
    names: TestClient,
    capsys: pytest.CaptureFixture[str],
    start_log: Callable[[str], None],
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


def test_log_lines_cannot_be_forged() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "event", None, None)
    record.details = {"name": "a\nb c"}
    assert log_module._Lines(as_json=False).format(record).endswith(r"name='a\nb c'")
    assert "\n" not in log_module._Lines(as_json=True).format(record)


def test_our_own_faults_are_500_with_an_id_and_one_traceback(
    names: TestClient,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    start_log: Callable[[str], None],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    start_log("text")
    monkeypatch.setattr("microgpt.LanguageModel.generate", fail)
    response = names.post(GENERATE, json={}, headers={"X-Request-ID": "id-7"})
    assert (response.status_code, response.json()) == (500, {"error": "internal error"})
    assert response.headers["x-request-id"] == "id-7"
    log = capsys.readouterr().err
    assert "failed request_id=id-7" in log
    assert log.count("ZeroDivisionError: a bug") == 1
    assert "status=500" in log


# ---------------------------------------------------------------- other origins, compression


def test_pages_of_named_origins_may_ask(make_client: MakeClient, names_dir: Path) -> None:
    client = make_client(
        names_dir, cors_origins="https://a.example, https://b.example", api_key="k"
    )
    for origin, allowed in (("https://b.example", True), ("https://c.example", False)):
        preflight = client.options(
            GENERATE,
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "Authorization, Content-Type, X-Stainless-OS",
            },
        )
        assert (preflight.status_code == 200) == allowed
        headers = {"Origin": origin, "Authorization": "Bearer k"}
        answer = client.post(GENERATE, json={}, headers=headers)
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
    refused = client.post(GENERATE, json={}, headers={"Origin": "https://b.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://b.example"


def test_no_other_page_may_ask_by_default(names: TestClient) -> None:
    answer = names.post(GENERATE, json={}, headers={"Origin": "https://a.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_large_answers_are_compressed_if_asked_and_streams_never(
    names: TestClient, chat: TestClient
) -> None:
    asked = {"Accept-Encoding": "gzip"}
    compressed = names.get("/openapi.json", headers=asked)
    assert compressed.headers["content-encoding"] == "gzip"
    plain = names.get("/openapi.json", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == compressed.json()
    assert "content-encoding" not in names.post(GENERATE, json={}, headers=asked).headers
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    stream = chat.post("/v1/chat/completions", json=body, headers=asked)
    assert len(stream.content) > 5000
    assert "content-encoding" not in stream.headers


# ---------------------------------------------------------------- metrics


def test_metrics_count_what_happened(chat: TestClient) -> None:
    def value(line: str) -> float:
        found = re.search(rf"^{re.escape(line)} (\S+)$", chat.get("/metrics").text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    route = 'route="/microgpt/v1/chat"'
    counted = {
        f'microgpt_requests_total{{method="POST",{route},status="200"}}': 1,
        f'microgpt_requests_total{{method="POST",{route},status="400"}}': 1,
        'microgpt_requests_total{method="other",route="unmatched",status="404"}': 1,
        f"microgpt_request_seconds_count{{{route}}}": 2,
        "microgpt_queue_wait_seconds_count": 2,
        "microgpt_time_to_first_token_seconds_count": 1,
        "microgpt_prompt_tokens_total": 6 + 6,
        "microgpt_completion_tokens_total": 7 + 3,
        "microgpt_in_flight": 0,
        "microgpt_queued": 0,
    }
    before = {line: value(line) for line in counted}
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 7}
    assert chat.post("/microgpt/v1/chat", json=body).status_code == 200
    assert chat.post("/microgpt/v1/chat", json={}).status_code == 400
    assert chat.get("/x").status_code == 404
    chat.post("/v1/chat/completions", json=body | {"stream": True, "max_tokens": 3})
    assert {line: value(line) - before[line] for line in counted} == counted


# ---------------------------------------------------------------- the page and the documentation


def test_the_page_and_its_parts_are_served_with_a_strict_policy(names: TestClient) -> None:
    page = names.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(parts) == ["/static/icon.svg", "/static/page.css", "/static/page.js"]
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
    for method, path, operation in docs_module._operations(document):
        assert f"<code>{method} {path}</code>" in text
        assert operation["summary"] in text
    for field in document["components"]["schemas"]["GenerateRequest"]["properties"]:
        assert f"<code>{field}</code>" in text


@pytest.mark.parametrize(
    ("switch", "gone", "there"),
    [
        ("docs", ["/docs", "/openapi.json"], ["/", "/metrics", "/static/page.css"]),
        ("metrics", ["/metrics"], ["/", "/docs"]),
        ("page", ["/"], ["/docs", "/metrics", "/static/docs.css"]),
    ],
)
def test_parts_can_be_switched_off(
    make_client: MakeClient, names_dir: Path, switch: str, gone: list[str], there: list[str]
) -> None:
    client = make_client(names_dir, **{switch: False})
    assert {client.get(path).status_code for path in gone} == {404}
    assert {client.get(path).status_code for path in there} == {200}
    if switch == "metrics":
        assert "/metrics" not in client.get("/openapi.json").json()["paths"]


# ---------------------------------------------------------------- messages


def test_one_is_told_in_the_singular(make_client: MakeClient, names_dir: Path) -> None:
    assert DeadlineError(1).message == "the request took longer than 1 second"
    assert DeadlineError(2.5).message == "the request took longer than 2.5 seconds"
    for limit, expected in ((1, "more than 1 request per minute"), (2, "more than 2 requests")):
        client = make_client(names_dir, rate_limit=limit)
        answers = [client.post(GENERATE, json={}) for _ in range(limit + 1)]
        assert expected in answers[-1].json()["error"]


# ---------------------------------------------------------------- the seed's README


@pytest.mark.parametrize("route", ["generate", "chat"])
def test_the_commands_of_the_seed_work_as_typed(
    shared: Path, names_dir: Path, chat_dir: Path, route: str
) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    text = (shared / "seed/README.md").read_text(encoding="utf-8")
    [typed] = re.findall(rf"^curl -X POST http://\S+/{route} (?:.*\\\n)*.*$", text, re.MULTILINE)
    with running(names_dir if route == "generate" else chat_dir) as server:
        command = typed.replace("8080", str(server.port)).replace("curl ", "curl --silent --fail ")
        done = subprocess.run(command, shell=True, capture_output=True, check=True)  # noqa: S602 - as users do
    answer = json.loads(done.stdout)
    if route == "generate":
        assert answer == {"samples": microgpt.load(names_dir).generate(5, seed=42)}
    else:
        reply = microgpt.load(chat_dir).chat([{"role": "user", "content": "hello"}])
        assert (answer["role"], answer["content"]) == ("assistant", reply.content)


# ---------------------------------------------------------------- long texts


def test_long_texts_are_read_in_the_pool(chat: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    encode = microgpt.Tokenizer.encode

    def spy(self: microgpt.Tokenizer, text: str, **options: Any) -> list[int]:
        threads.append(threading.current_thread().name)
        return encode(self, text, **options)

    monkeypatch.setattr(microgpt.Tokenizer, "encode", spy)
    text = "a" * 500_000
    messages = [{"role": "user", "content": text}]
    many = [{"role": "user", "content": ""}] * 2000
    for path, body in [
        ("/v1/completions", {"prompt": text}),
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/chat/completions", {"messages": many, "max_tokens": 1}),
        ("/microgpt/v1/next", {"prompt": text}),
        ("/microgpt/v1/next", {"messages": messages}),
        ("/microgpt/v1/chat", {"messages": messages}),
        (GENERATE, {"prompt": text}),
    ]:
        n_before = len(threads)
        assert chat.post(path, json=body).status_code in {200, 400}
        assert len(threads) > n_before
    assert all(name.startswith("generate") for name in threads), set(threads)
