"""Fields of a request that its type does not have."""

import json
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microgpt_serve.api.fields import MAX_LOGGED, WITHOUT_EFFECT, BodyDecoder, _is_within, _meant
from microgpt_serve.api.routes import ENDPOINTS
from microgpt_serve.serving.errors import ApiError
from serve.service import StartLog
from starlette.testclient import TestClient

GENERATE = "/microgpt/v1/generate"
CHAT = "/v1/chat/completions"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
BODIES = [endpoint for endpoint in ENDPOINTS if endpoint.body]
FIELDS = {endpoint.path: set(get_type_hints(endpoint.body)) for endpoint in BODIES}


def error_of(client: TestClient, path: str, **body: Any) -> tuple[str, str | None]:
    response = client.post(path, json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return (error["message"], error["param"]) if path.startswith("/v1/") else (error, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_p", 0.1),
        ("repetition_penalty", 1.1),
        ("stop_token_ids", [2]),
        ("guided_json", {}),
        ("mirostat", 2),
        ("ignore_eos", True),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
    ],
)
def test_field_that_would_change_the_response_is_refused_on_every_route(
    chat: TestClient, name: str, value: object
) -> None:
    for endpoint in BODIES:
        message, param = error_of(chat, endpoint.path, messages=HELLO, **{name: value})
        assert message == f"{name} is not supported"
        assert param == (name if endpoint.is_openai else None)


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (GENERATE, "n", 3),
        (GENERATE, "stream", True),
        ("/microgpt/v1/chat", "stream", True),
    ],
)
def test_field_of_another_route_that_would_change_the_response_is_refused(
    chat: TestClient, path: str, name: str, value: object
) -> None:
    source = {"messages": HELLO} if "chat" in path else {"prompt": "h"}
    assert error_of(chat, path, **source, **{name: value})[0] == f"{name} is not supported"


@pytest.mark.parametrize("value", ["1e999", '"\xff"', '{"a": [1e999]}'])
def test_value_that_cannot_be_read_counts_as_one_with_an_effect(
    names: TestClient, value: str
) -> None:
    body = f'{{"min_p": {value}}}'.encode("latin-1")
    response = names.post(GENERATE, content=body, headers={"Content-Type": "application/json"})
    assert response.json() == {"error": "min_p is not supported"}


def test_values_without_effect_are_accepted(chat: TestClient) -> None:
    values = {name: (*values, None)[0] for name, values in WITHOUT_EFFECT.items()}
    for body in (values, dict.fromkeys(values)):
        assert chat.post(GENERATE, json=body).status_code == 200
        assert chat.post(CHAT, json={"messages": HELLO, **body}).status_code == 200


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("temprature", "temperature"),
        ("temperatuer", "temperature"),
        ("tmprature", "temperature"),
        ("Temperature", "temperature"),
        ("maxTokens", "max_tokens"),
        ("max-tokens", "max_tokens"),
        ("topk", "top_k"),
        ("topP", "top_p"),
        ("sed", "seed"),
        ("nsamples", "num_samples"),
        ("stopp", "stop"),
        ("frequency_penality", "frequency_penalty"),
    ],
)
def test_misspelt_field_is_refused_with_the_known_one(
    names: TestClient, name: str, known: str
) -> None:
    expected = f"unknown field {name}; did you mean {known}?"
    assert error_of(names, GENERATE, **{name: 2})[0] == expected
    assert names.post(GENERATE, json={name: None}).status_code == 200


def test_misspelling_is_reported_before_the_field_that_is_missing(chat: TestClient) -> None:
    expected = ("unknown field message; did you mean messages?", "message")
    assert error_of(chat, CHAT, message=HELLO) == expected


@pytest.mark.parametrize("path", FIELDS)
def test_fields_of_other_routes_and_of_other_services_count_as_no_misspellings(path: str) -> None:
    known = frozenset(FIELDS[path])
    ours = set().union(*FIELDS.values())
    others = """id user store metadata service_tier safety_identifier prompt_cache_key
        parallel_tool_calls reasoning_effort verbosity audio prediction web_search_options
        add_generation_prompt skip_special_tokens add_special_tokens truncate_prompt_tokens
        priority request_id stream stream_options top_logprobs n n_predict cache_prompt mode
        models character preset keep_alive options template raw system format context
        max_new_tokens do_sample chat_template transforms provider usage timeout"""
    for name in {*ours, *others.split()} - known - set(WITHOUT_EFFECT):
        assert _meant(name, (*sorted(known), *WITHOUT_EFFECT)) is None, name


@pytest.mark.parametrize("path", ["/microgpt/v1/chat", "/microgpt/v1/next", CHAT])
def test_misspelt_field_of_a_message_is_refused_with_its_place(chat: TestClient, path: str) -> None:
    said: dict[str, Any] = {
        "role": "assistant",
        "content": "hi",
        "context": {},
        "contnet": None,
        "name": "me",
    }
    turns = [*HELLO, said]
    assert chat.post(path, json={"messages": [*turns, *HELLO]}).status_code == 200
    for turn, name, known in (
        ({"role": "user", "contnet": "a"}, "contnet", "content"),
        ({"role": "assistant", "Content": "a"}, "Content", "content"),
        ({"content": "a", "rloe": "user"}, "rloe", "role"),
    ):
        expected = f"unknown field messages[2].{name}; did you mean {known}?"
        param = "messages" if path == CHAT else None
        assert error_of(chat, path, messages=[*turns, turn, *HELLO]) == (expected, param)


def test_message_of_the_assistant_may_lack_its_content(chat: TestClient) -> None:
    others = "name tool_calls tool_call_id refusal audio annotations function_call id type weight"
    others += " reasoning_content reasoning cache_control prefix partial thinking images created"
    said = {"role": "assistant", **dict.fromkeys(others.split(), "x")}
    assert chat.post(CHAT, json={"messages": [*HELLO, said, *HELLO]}).status_code == 200


def test_other_fields_are_ignored_and_logged_once(
    names: TestClient, capsys: pytest.CaptureFixture[str], start_log: StartLog
) -> None:
    start_log("json")
    long = "x\n" * 200
    expected = names.post(GENERATE, json={}).json()
    for _ in range(2):
        assert names.post(GENERATE, json={"user": "me", "id": 1, long: 1}).json() == expected
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    ignored = [line for line in lines if line["event"] == "field ignored"]
    assert [line["field"] for line in ignored] == ["user", "id", "x\\n" * 32]
    assert {line["route"] for line in ignored} == {GENERATE}


def test_names_that_are_remembered_do_not_fill_memory() -> None:
    decoder = BodyDecoder(dict, GENERATE)
    for i in range(2 * MAX_LOGGED):
        decoder.decode(json.dumps({f"{i:032}": 1}).encode())
    assert len(decoder._logged) == MAX_LOGGED


def test_refused_field_is_found_behind_a_thousand_others() -> None:
    body = {f"{i:032}": 1 for i in range(1000)} | {"tools": [1]}
    with pytest.raises(ApiError, match="tools is not supported"):
        BodyDecoder(dict, GENERATE).decode(json.dumps(body).encode())


def n_edits(a: str, b: str) -> int:
    """Return the distance of two words, by the table of every textbook."""
    rows = [list(range(len(b) + 1))]
    for i in range(1, len(a) + 1):
        row = [i]
        for j in range(1, len(b) + 1):
            best = min(
                rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            )
            if i > 1 and j > 1 and a[i - 2 : i] == b[j - 2 : j][::-1]:
                best = min(best, rows[i - 2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


@given(st.text("ab_", max_size=7), st.text("ab_", max_size=7), st.integers(0, 3))
def test_distance_is_that_of_the_textbook(a: str, b: str, most: int) -> None:
    assert _is_within(a, b, most) == (n_edits(a, b) <= most)
