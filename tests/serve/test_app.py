"""The application as a whole: health, other origins, compression, metrics, switches."""

import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import microgpt
import pytest
from microgpt_serve.app import create_app
from microgpt_serve.serving.errors import DeadlineError
from microgpt_serve.serving.settings import Settings
from serve.service import MakeClient, running
from starlette.testclient import TestClient

GENERATE = "/microgpt/v1/generate"
OPEN = ("/livez", "/readyz", "/health")
HELLO = [{"role": "user", "content": "hello"}]


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


def test_nothing_is_ready_while_draining_or_after_an_abort(names: TestClient) -> None:
    names.app.state.is_draining = True  # type: ignore[attr-defined]
    assert (names.get("/readyz").status_code, names.get("/readyz").text) == (503, "draining")
    names.app.state.is_draining = False  # type: ignore[attr-defined]
    names.app.state.pool.abort_all()  # type: ignore[attr-defined]
    assert (names.get("/readyz").status_code, names.get("/readyz").text) == (503, "busy")
    assert [names.get(path).status_code for path in ("/livez", "/health")] == [200, 200]
    for n in (1, 50):
        response = names.post(GENERATE, json={"num_samples": n})
        assert response.json() == {"error": "the service is shutting down"}
        assert response.status_code == 503


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
    assert len(stream.content) > 500  # from here on, whole answers are compressed
    assert "content-encoding" not in stream.headers


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/models/", "there is no /v1/models/; did you mean /v1/models?"),
        ("/chat/completions", "there is no /chat/completions; did you mean /v1/chat/completions?"),
        ("/v1/v1/models", "there is no /v1/v1/models; did you mean /v1/models?"),
        ("/generate", "there is no /generate; did you mean /microgpt/v1/generate?"),
        ("/%07" + "x" * 999, "there is no /\\x07" + "x" * 78),
        ("/v1/completions", "/v1/completions expects POST, got GET"),
    ],
)
def test_a_path_without_a_route_is_named(chat: TestClient, path: str, error: str) -> None:
    answer = chat.get(path).json()["error"]
    assert (answer if isinstance(answer, str) else answer["message"]) == error


# ---------------------------------------------------------------- metrics


def metric(client: TestClient, line: str) -> float:
    found = re.search(rf"^{re.escape(line)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def test_metrics_count_requests_and_tokens(chat: TestClient) -> None:
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
    before = {line: metric(chat, line) for line in counted}
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 7}
    assert chat.post("/microgpt/v1/chat", json=body).status_code == 200
    assert chat.post("/microgpt/v1/chat", json={}).status_code == 400
    assert chat.get("/x").status_code == 404
    chat.post("/v1/chat/completions", json=body | {"stream": True, "max_tokens": 3})
    assert {line: metric(chat, line) - before[line] for line in counted} == counted


def tokens_counted(client: TestClient, path: str, body: dict[str, Any]) -> list[float]:
    """Return how many tokens of prompt and text a request adds to the metrics."""
    names = ("microgpt_prompt_tokens_total", "microgpt_completion_tokens_total")
    before = [metric(client, name) for name in names]
    options = {"temperature": 0, "max_tokens": 5, "stream_options": {"include_usage": True}}
    response = client.post(path, json={**body, **options})
    after = [metric(client, name) for name in names]
    counted = [after[i] - before[i] for i in range(2)]
    if path.startswith("/v1/"):
        usage = json.loads(re.findall(r'"usage":({.*?})', response.text)[-1])
        assert [usage["prompt_tokens"], usage["completion_tokens"]] == counted
    return counted


@pytest.mark.parametrize(
    ("path", "body", "n_prompt", "n_generated"),
    [
        (GENERATE, {"prompt": "hel", "num_samples": 2}, 4, 2 * 5),
        (GENERATE, {"num_samples": 20}, 1, 20 * 5),
        ("/microgpt/v1/chat", {"messages": HELLO}, 9, 5),
        ("/v1/completions", {"prompt": "hel", "n": 2}, 4, 2 * 5),
        ("/v1/completions", {"prompt": "hel", "n": 2, "stream": True}, 4, 2 * 5),
        ("/v1/chat/completions", {"messages": HELLO, "n": 2}, 9, 2 * 5),
        ("/v1/chat/completions", {"messages": HELLO, "n": 2, "stream": True}, 9, 2 * 5),
    ],
)
def test_every_route_counts_the_prompt_once_and_each_generated_token(
    chat: TestClient, path: str, body: dict[str, Any], n_prompt: int, n_generated: int
) -> None:
    assert tokens_counted(chat, path, body) == [n_prompt, n_generated]


@pytest.mark.parametrize("path", [GENERATE, "/v1/completions"])
def test_prompt_for_a_model_of_windows_is_counted_without_bos(
    make_client: MakeClient, tmp_path: Path, path: str
) -> None:
    microgpt.fit(["abcabc" * 9], steps=30, long="window", block_size=6).save(tmp_path)
    assert tokens_counted(make_client(tmp_path), path, {"prompt": "ab"}) == [2, 5]


# ---------------------------------------------------------------- messages


def test_one_of_something_is_in_the_singular(make_client: MakeClient, names_dir: Path) -> None:
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
        ("/microgpt/v1/trace", {"prompt": text}),
        ("/microgpt/v1/chat", {"messages": messages}),
        (GENERATE, {"prompt": text}),
    ]:
        n_before = len(threads)
        assert chat.post(path, json=body).status_code in {200, 400}
        assert len(threads) > n_before
    assert all(name.startswith("work") for name in threads), set(threads)
