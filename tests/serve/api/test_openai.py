"""The routes under `/v1`: OpenAI's subset, its streams, its errors."""

import importlib
import json
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import microgpt
import pytest
from microgpt_serve.api.generation import log_softmax
from serve.service import MakeClient, running
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from openai import OpenAI

TURNS = [{"role": "user", "content": "hi"}]
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


def complete(client: TestClient, **body: Any) -> Any:
    response = client.post("/v1/chat/completions", json={"messages": HELLO, **body})
    assert response.status_code == 200, response.text
    return response.json()


def events(client: TestClient, path: str, **body: Any) -> list[Any]:
    """Return the data of each event of a stream, parsed; the last one is [DONE]."""
    with client.stream("POST", path, json={"stream": True, **body}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        parts = response.read().decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    data = (part.removeprefix("data: ") for part in parts)
    return [item if item == "[DONE]" else json.loads(item) for item in data]


# ---------------------------------------------------------------- whole answers


def test_chat_completion_has_the_documented_shape(chat: TestClient, chat_dir: Path) -> None:
    reply = microgpt.load(chat_dir).chat([{"role": "user", "content": "hello"}], seed=5)
    answer = complete(chat, seed=5, model="chat")
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_700_000_000
    n_prompt = len(reply.prompt.token_ids)
    assert answer == {
        "object": "chat.completion",
        "model": "chat",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": reply.content},
                "finish_reason": "length",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": n_prompt,
            "completion_tokens": reply.n_tokens,
            "total_tokens": n_prompt + reply.n_tokens,
        },
    }


def test_text_completion_has_the_documented_shape(names: TestClient, names_dir: Path) -> None:
    (text,) = microgpt.load(names_dir).generate(1, prompt="ha", seed=5)
    answer = names.post("/v1/completions", json={"prompt": "ha", "seed": 5}).json()
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_700_000_000
    choice = answer["choices"].pop()
    assert choice == {"index": 0, "text": text[2:], "finish_reason": "stop", "logprobs": None}
    n_generated = len(text) - len("ha")
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": n_generated,
        "total_tokens": 3 + n_generated,
    }
    assert answer["object"] == "text_completion"
    assert answer["model"] == "names"


def test_the_default_temperature_is_one_half(chat: TestClient) -> None:
    def texts(**options: Any) -> list[str]:
        answer = complete(chat, n=5, seed=1, **options)
        return [choice["message"]["content"] for choice in answer["choices"]]

    assert texts() == texts(temperature=0.5) == texts(temperature=None)
    assert texts() != texts(temperature=1.0)


def test_the_default_seed_is_random(chat: TestClient) -> None:
    def text(**options: Any) -> Any:
        return complete(chat, temperature=1.5, **options)["choices"][0]["message"]["content"]

    assert text() != text()
    assert text(seed=3) == text(seed=3)


def test_replies_differ_and_are_those_of_the_following_seeds(chat: TestClient) -> None:
    answer = complete(chat, n=3, seed=9, temperature=1.5)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    alone = [complete(chat, seed=9 + i, temperature=1.5)["choices"][0] for i in range(3)]
    assert texts == [choice["message"]["content"] for choice in alone]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_replies_are_cut_at_their_longest(chat: TestClient, name: str) -> None:
    answer = complete(chat, **{name: 4})
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("as_list", [False, True])
def test_stop_texts_end_a_reply_before_them(chat: TestClient, *, as_list: bool) -> None:
    whole = complete(chat, seed=1)["choices"][0]["message"]["content"]
    stop = whole[6]
    choice = complete(chat, seed=1, stop=[stop] if as_list else stop)["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_content_may_come_in_parts(chat: TestClient) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    answer = complete(chat, messages=[{"role": "user", "content": parts}], seed=1)
    assert answer["choices"] == complete(chat, seed=1)["choices"]


def test_null_counts_as_absent_and_harmless_fields_are_ignored(chat: TestClient) -> None:
    nothing = dict.fromkeys(
        [
            "model",
            "max_tokens",
            "max_completion_tokens",
            "temperature",
            "top_p",
            "n",
            "stop",
            "stream",
            "stream_options",
            "logprobs",
            "top_logprobs",
            "tools",
            "response_format",
            "frequency_penalty",
            "presence_penalty",
            "logit_bias",
            "tool_choice",
        ]
    )
    harmless = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "tools": [],
        "tool_choice": "none",
        "logit_bias": {},
        "response_format": {"type": "text"},
    }
    expected = complete(chat, seed=1)["choices"]
    assert complete(chat, seed=1, **nothing)["choices"] == expected
    assert complete(chat, seed=1, **harmless)["choices"] == expected


def test_logprobs_are_those_of_the_model(chat: TestClient, chat_dir: Path) -> None:
    answer = complete(chat, seed=1, max_tokens=6, logprobs=True, top_logprobs=2)
    choice = answer["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(item["token"] for item in content) == choice["message"]["content"]
    assert all(item["bytes"] == list(item["token"].encode()) for item in content)
    greedy = complete(chat, temperature=0, max_tokens=6, logprobs=True, top_logprobs=2)
    for item in greedy["choices"][0]["logprobs"]["content"]:
        assert item["token"] == item["top_logprobs"][0]["token"]
        assert item["logprob"] == item["top_logprobs"][0]["logprob"] < 0
        assert len(item["top_logprobs"]) == 2
    model = microgpt.load(chat_dir)
    prompt = microgpt.build_prompt(
        [{"role": "user", "content": "hello"}], model.tokenizer, model.config.block_size
    )
    row = model.logits(prompt.token_ids)[-1].astype(float)
    token_id = model.tokenizer.encode(content[0]["token"])[0]
    expected = row[token_id] - math.log(sum(map(math.exp, row)))
    assert content[0]["logprob"] == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------- streams


def test_a_streamed_reply_equals_the_whole_reply(chat: TestClient) -> None:
    *chunks, done = events(chat, "/v1/chat/completions", messages=HELLO, seed=5)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    first, *middle, last = [chunk["choices"][0] for chunk in chunks]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert (last["delta"], last["finish_reason"]) == ({}, "length")
    assert all(list(choice["delta"]) == ["content"] for choice in middle)
    assert len(middle) > 1
    whole = complete(chat, seed=5)["choices"][0]["message"]["content"]
    assert "".join(choice["delta"]["content"] for choice in middle) == whole


def test_a_streamed_text_equals_the_whole_text(names: TestClient) -> None:
    *chunks, done = events(names, "/v1/completions", prompt="h", seed=5)
    assert done == "[DONE]"
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    whole = names.post("/v1/completions", json={"prompt": "h", "seed": 5}).json()
    assert text == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


def test_pieces_of_several_replies_carry_their_index(chat: TestClient) -> None:
    *chunks, _ = events(chat, "/v1/chat/completions", messages=HELLO, seed=5, n=2, temperature=1.5)
    texts = ["", ""]
    for chunk in chunks:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    whole = complete(chat, seed=5, n=2, temperature=1.5)["choices"]
    assert texts == [choice["message"]["content"] for choice in whole]


def test_the_last_chunk_reports_the_usage_on_request(chat: TestClient) -> None:
    body = {"messages": HELLO, "seed": 5}
    *_, last, _ = events(
        chat, "/v1/chat/completions", **body, stream_options={"include_usage": True}
    )
    assert last["choices"] == []
    assert last["usage"] == complete(chat, seed=5)["usage"]
    assert not any("usage" in chunk for chunk in events(chat, "/v1/chat/completions", **body)[:-1])


def test_streamed_logprobs_are_those_of_the_whole_reply(chat: TestClient) -> None:
    options = {"seed": 5, "max_tokens": 6, "logprobs": True, "top_logprobs": 1}
    *chunks, _ = events(chat, "/v1/chat/completions", messages=HELLO, **options)
    streamed = [
        item
        for chunk in chunks
        if chunk["choices"][0]["logprobs"]
        for item in chunk["choices"][0]["logprobs"]["content"]
    ]
    whole = complete(chat, **options)["choices"][0]["logprobs"]["content"]
    assert [item["token"] for item in streamed] == [item["token"] for item in whole]
    for one, other in zip(streamed, whole, strict=True):
        assert one["bytes"] == other["bytes"]
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-6)  # float32 weights
        assert one["top_logprobs"][0]["token"] == other["top_logprobs"][0]["token"]


def test_streamed_logprobs_take_no_pass_of_the_model_besides_the_texts_own(
    chat: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("another pass")

    monkeypatch.setattr(microgpt.LanguageModel, "logits", fail)
    *_, done = events(chat, "/v1/chat/completions", messages=HELLO, logprobs=True)
    assert done == "[DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_computed_beside_the_event_loop(
    chat: TestClient, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    """A large vocabulary holds no other request up, and its logits wait for no slow reader."""
    threads = []

    def counted(logits: Sequence[float]) -> list[float]:
        threads.append(threading.current_thread().name)
        return log_softmax(logits)

    monkeypatch.setattr("microgpt_serve.api.answers.log_softmax", counted)
    body = {"messages": HELLO, "logprobs": True, "max_tokens": 6, "stream": stream}
    assert chat.post("/v1/chat/completions", json=body).status_code == 200
    assert {name.partition("_")[0] for name in threads} == {"generate"}


def test_an_error_before_the_first_piece_has_a_status(chat: TestClient) -> None:
    long = [{"role": "user", "content": "a" * 100}]
    response = chat.post("/v1/chat/completions", json={"messages": long, "stream": True})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_an_error_in_the_middle_of_a_stream_is_an_event(
    make_client: MakeClient, slow_dir: Path
) -> None:
    client = make_client(slow_dir, request_timeout=0.8)  # a whole reply takes seconds
    *pieces, last = events(client, "/v1/chat/completions", messages=HELLO)
    assert len(pieces) > 1
    assert last["error"]["type"] == "server_error"
    assert last["error"]["code"] == "deadline"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -0.5),
    ],
)
def test_unsupported_fields_of_a_chat_are_refused(
    chat: TestClient, field: str, value: object
) -> None:
    response = chat.post("/v1/chat/completions", json={"messages": HELLO, field: value})
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": f"{field} is not supported",
        "type": "invalid_request_error",
        "param": field,
        "code": None,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [("suffix", "x"), ("best_of", 2), ("logprobs", 21), ("logit_bias", {"1": 1})],
)
def test_unsupported_fields_of_a_text_are_refused(
    names: TestClient, field: str, value: object
) -> None:
    response = names.post("/v1/completions", json={"prompt": "a", field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


def test_an_unknown_model_is_not_found(chat: TestClient) -> None:
    for response in (
        chat.get("/v1/models/gpt-4"),
        chat.post("/v1/chat/completions", json={"messages": HELLO, "model": "gpt-4"}),
        chat.post("/v1/completions", json={"prompt": "a", "model": "gpt-4"}),
    ):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert response.json()["error"]["param"] == "model"


def test_the_invalid_field_is_named(chat: TestClient) -> None:
    bad_turn = [{"role": "user", "content": 5}]
    for body, param in (
        ({"messages": HELLO, "temperature": -1}, "temperature"),
        ({"messages": bad_turn}, "messages"),
        ({"messages": HELLO, "top_logprobs": 2}, "top_logprobs"),
        ({"messages": HELLO, "n": 51}, "n"),
        ({"messages": HELLO, "stop": ["a"] * 17}, "stop"),
    ):
        response = chat.post("/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param


def test_routes_of_this_family_that_do_not_exist_answer_in_its_shape(chat: TestClient) -> None:
    assert chat.get("/v1/files").json()["error"]["type"] == "invalid_request_error"
    response = chat.get("/v1/completions")
    assert response.status_code == 405
    message = "/v1/completions expects POST, got GET"
    assert response.json()["error"]["message"] == message


# ---------------------------------------------------------------- the unmodified client


@pytest.fixture(scope="module")
def openai() -> Any:
    """The client, loaded where it is used: that takes a second."""
    return importlib.import_module("openai")


@pytest.fixture(scope="module")
def served(openai: Any, chat_dir: Path) -> Any:
    with running(chat_dir) as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="-")


def test_the_client_lists_models(openai: Any, served: "OpenAI") -> None:
    (model,) = served.models.list().data
    assert (model.id, model.owned_by) == ("chat", "microgpt")
    assert served.models.retrieve("chat") == model
    with pytest.raises(openai.NotFoundError, match="does not exist") as info:
        served.models.retrieve("other")
    assert info.value.code == "model_not_found"


def test_the_client_chats(served: "OpenAI", chat_dir: Path) -> None:
    messages: Any = HELLO
    answer = served.chat.completions.create(
        model="chat", messages=messages, seed=3, n=2, logprobs=True, top_logprobs=3
    )
    expected = microgpt.load(chat_dir).chat([{"role": "user", "content": "hello"}], seed=3)
    assert answer.choices[0].message.content == expected.content
    assert answer.choices[0].logprobs
    assert answer.choices[0].logprobs.content
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 3
    stream = served.chat.completions.create(
        model="chat",
        messages=messages,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == expected.content
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == expected.n_tokens


def test_the_client_completes_texts(served: "OpenAI") -> None:
    whole = served.completions.create(model="chat", prompt="he", seed=3, max_tokens=9)
    stream = served.completions.create(model="chat", prompt="he", seed=3, max_tokens=9, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    assert whole.usage
    assert whole.usage.completion_tokens == 9


def test_the_client_raises_for_an_unsupported_field(openai: Any, served: "OpenAI") -> None:
    messages: Any = HELLO
    with pytest.raises(openai.BadRequestError, match="tools is not supported") as info:
        served.chat.completions.create(
            model="chat", messages=messages, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert info.value.param == "tools"


def test_logprobs_of_a_reply_beyond_the_block_are_those_of_its_stream(chat: TestClient) -> None:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 90,
        "temperature": 3.0,
        "logprobs": True,
        "top_logprobs": 1,
    }
    longest = max(
        (chat.post("/v1/chat/completions", json=body | {"seed": seed}).json() for seed in range(9)),
        key=lambda answer: answer["usage"]["completion_tokens"],
    )
    (choice,) = longest["choices"]
    assert len(choice["message"]["content"]) > 60
    assert [each["token"] for each in choice["logprobs"]["content"]] == [
        *choice["message"]["content"]
    ]


# ---------------------------------------------------------------- the message of the system


@pytest.mark.parametrize("role", ["system", "developer"])
def test_message_of_the_system_is_left_out_and_said_where_the_model_knows_none(
    chat: TestClient, role: str
) -> None:
    hello = [{"role": "user", "content": "hello"}]
    body = {"messages": [{"role": role, "content": "be brief"}, *hello], "seed": 3}
    answer = chat.post("/v1/chat/completions", json=body)
    plain = chat.post("/v1/chat/completions", json=body | {"messages": hello})
    assert answer.status_code == 200
    assert answer.json()["choices"] == plain.json()["choices"]
    assert answer.headers["x-microgpt-system"] == "dropped"
    assert "x-microgpt-system" not in plain.headers
    with chat.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as stream:
        assert stream.headers["x-microgpt-system"] == "dropped"
    own = chat.post("/microgpt/v1/chat", json=body).json()
    assert own["system_dropped"] is True
    assert "system_dropped" not in chat.post("/microgpt/v1/chat", json={"messages": hello}).json()


@pytest.mark.parametrize("tokens", [{}, {"tokenizer": "bpe", "vocab_size": 264}])
def test_openai_client_instructs_a_model_that_knows_the_system(
    openai: Any, tmp_path: Path, tokens: dict[str, Any]
) -> None:
    loud = [{"role": "system", "content": "loud"}, *TURNS, {"role": "assistant", "content": "HEY"}]
    quiet = [*TURNS, {"role": "assistant", "content": "hey"}]
    dataset = microgpt.Dataset.from_conversations([loud, quiet])
    config = microgpt.TrainConfig(steps=300, block_size=32, batch_size=2, n_embd=24)
    model, trainer = microgpt.prepare(dataset, config, **tokens)
    trainer.advance(config.steps)
    model.save(tmp_path)
    with running(tmp_path) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-")
        for messages, expected in ((loud[:2], "HEY"), (TURNS, "hey")):
            chosen: Any = messages
            answer = client.chat.completions.create(
                model=tmp_path.name, messages=chosen, temperature=0, logprobs=True
            )
            (choice,) = answer.choices
            assert choice.message.content == expected
            assert choice.logprobs
            assert choice.logprobs.content
            assert "".join(each.token for each in choice.logprobs.content) == expected


def test_all_fields_that_are_refused_are_named(chat: TestClient) -> None:
    """Clients that want tools send two fields, of which they explain only one to their users."""
    body = {"messages": HELLO, "tools": [{"type": "function"}], "tool_choice": "required"}
    error = chat.post("/v1/chat/completions", json=body).json()["error"]
    assert error["message"] == "tool_choice and tools are not supported"


def test_a_role_that_is_not_expected_is_told_which_are(chat: TestClient) -> None:
    messages = [*HELLO, {"role": "system", "content": "a"}, *HELLO]
    error = chat.post("/v1/chat/completions", json={"messages": messages}).json()["error"]
    assert error["message"] == (
        'unknown role: system; expected "user" or "assistant", or "system" for the first message'
    )
