"""`/microgpt/v1/trace`: what the library traces, within limits, in this process."""

import json
from pathlib import Path
from typing import Any

import microgpt
import pytest
from microgpt import LanguageModel
from starlette.testclient import TestClient

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def model(names_dir: Path) -> LanguageModel:
    return microgpt.load(names_dir)


def post(client: TestClient, body: object, status: int = 200) -> Any:
    response = client.post("/microgpt/v1/trace", json=body)
    assert response.status_code == status, response.text
    return response.json()


@pytest.mark.parametrize("options", [{}, {"top": 3}, {"top": 3, "attention": False}])
def test_a_text_is_traced_as_by_the_library(
    names: TestClient, model: LanguageModel, options: dict[str, Any]
) -> None:
    expected = {"attention": None, **json.loads(model.trace("hannah").to_json(**options))}
    assert post(names, {"prompt": "hannah", **options}) == expected
    assert bool(expected["attention"]) == options.get("attention", True)


def test_a_conversation_is_traced_and_what_was_not_read_is_told(
    chat: TestClient, chat_dir: Path
) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "bye Ω"}]
    expected = microgpt.load(chat_dir).trace(messages, unknown="skip")
    got = post(chat, {"messages": messages})
    assert got.pop("unknown") == "Ω"
    assert got == json.loads(expected.to_json())
    assert got["tokens"][-1]["text"] == "end_turn"
    long = [*HELLO, {"role": "assistant", "content": "hello" * 6}] * 3 + HELLO
    got = post(chat, {"messages": long, "attention": False})
    assert got["tokens_dropped"] > 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "an7"}, "'7'"),
        ({"prompt": "anna" * 4}, "got 17 tokens, expected at most block_size=16"),
        ({"messages": HELLO}, "not trained with chat tokens"),
        ({"top": 0}, "top"),
        ({"top": 101}, "top"),
    ],
)
def test_what_cannot_be_traced_is_refused(
    names: TestClient, body: dict[str, Any], message: str
) -> None:
    assert message in post(names, body, 400)["error"]


def test_a_trace_that_would_be_too_large_is_refused(
    names: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microgpt_serve.api.microgpt.MAX_FIGURES", 7_000)
    assert post(names, {"prompt": "a"})
    error = post(names, {"prompt": "annabella"}, 400)["error"]
    assert "a trace of 10 tokens by this model has" in error
    assert "expected at most 7,000; shorten the text" in error


def test_an_unknown_model_is_not_found(names: TestClient) -> None:
    assert "does not exist" in post(names, {"model": "other"}, 404)["error"]
