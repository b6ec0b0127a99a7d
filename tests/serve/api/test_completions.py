"""`/v1/completions`: several prompts, echo, log-probabilities; the routes of the tokenizer."""

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import microgpt
import numpy as np
import pytest
from microgpt_serve.serving.batcher import Batcher
from serve.service import MakeClient, StartLog
from starlette.testclient import TestClient

BOS = "<|bos|>"


def complete(client: TestClient, **body: Any) -> Any:
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: TestClient, **body: Any) -> Any:
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 400, response.text
    return response.json()["error"]


def log_rows(model: microgpt.LanguageModel, ids: list[int]) -> Any:
    """Return the log-probabilities of the token after each of `ids`."""
    rows = model.logits(ids).astype(np.float64)
    return rows - np.log(np.exp(rows).sum(1, keepdims=True))


# ---------------------------------------------------------------- several prompts


def test_several_prompts_are_each_continued_as_alone(names: TestClient) -> None:
    prompts = ["an", "bo", "", "an"]
    answer = complete(names, prompt=prompts, n=2, seed=3, temperature=1)
    alone = [complete(names, prompt=each, n=2, seed=3, temperature=1) for each in prompts]
    assert [choice["index"] for choice in answer["choices"]] == list(range(8))
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [choice["text"] for each in alone for choice in each["choices"]]
    for name, n in answer["usage"].items():
        assert n == sum(each["usage"][name] for each in alone)


@pytest.mark.parametrize("bos", [[], [26]])
def test_token_ids_are_a_prompt_as_their_text(
    names: TestClient, names_dir: Path, bos: list[int]
) -> None:
    tokenizer = microgpt.load(names_dir).tokenizer
    assert tokenizer.bos == 26 or not bos
    ids = [[*([tokenizer.bos] if bos else []), *tokenizer.encode(text)] for text in ("an", "bo")]
    by_ids = complete(names, prompt=ids, seed=3)
    by_text = complete(names, prompt=["an", "bo"], seed=3)
    assert (by_ids["choices"], by_ids["usage"]) == (by_text["choices"], by_text["usage"])
    one = complete(names, prompt=ids[0], seed=3)
    assert one["choices"] == by_text["choices"][:1]


def test_no_tokens_are_an_empty_prompt(names: TestClient) -> None:
    empty = complete(names, prompt="", seed=3)["choices"]
    assert complete(names, prompt=[[]], seed=3)["choices"] == empty
    assert complete(names, prompt=[], seed=3)["choices"] == empty
    assert complete(names, seed=3)["choices"] == empty


def test_streams_of_several_prompts_carry_their_index(names: TestClient) -> None:
    body = {"prompt": ["an", "bo"], "n": 2, "seed": 3, "stream": True}
    lines = names.post("/v1/completions", json=body).text.split("\n\n")
    texts = [""] * 4
    for line in lines[:-2]:
        choice = json.loads(line.removeprefix("data: "))["choices"][0]
        texts[choice["index"]] += choice["text"]
    whole = complete(names, prompt=["an", "bo"], n=2, seed=3)
    assert texts == [choice["text"] for choice in whole["choices"]]


def test_other_requests_come_between_the_prompts_of_one(
    names: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    encode = microgpt.LanguageModel.prompt

    def prompt(self: microgpt.LanguageModel, text: str, **options: Any) -> microgpt.Prompt:
        events.append("prompt")
        asyncio.get_running_loop().call_soon(events.append, "other")
        return encode(self, text, **options)

    monkeypatch.setattr(microgpt.LanguageModel, "prompt", prompt)
    complete(names, prompt=["an", "bo", "an"], max_tokens=1)
    assert events == ["prompt", "other"] * 3


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (["a", 1], "prompt mixes kinds, expected texts, token ids, or lists of token ids"),
        ([99], "token id 99, expected 0 to "),
        ([[0], [-1]], "prompt[1]: token id -1, expected 0 to "),
        (["a", "?"], "prompt[1]: the text holds characters that the model does not know: '?'"),
        (["a", "b" * 16], "prompt[1]: the prompt has 17 tokens, BOS included"),
        ("?", "the text holds characters that the model does not know: '?'"),
        ("a" * 16, "the prompt has 17 tokens, BOS included, expected at most 16 of block_size=16"),
        (["a"] * 2049, "the request asks for 2,049 texts, 1 for each of 2,049 prompts"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(
    names: TestClient, prompt: Any, message: str
) -> None:
    assert refused(names, prompt=prompt)["message"].startswith(message)


# ---------------------------------------------------------------- echo and log-probabilities


def test_echo_begins_the_text_with_the_prompt(names: TestClient) -> None:
    plain = complete(names, prompt=["an", "bo"], seed=3, n=2)["choices"]
    echoed = complete(names, prompt=["an", "bo"], seed=3, n=2, echo=True)["choices"]
    assert [each["text"] for each in echoed] == [
        prompt + each["text"] for prompt, each in zip(["an", "an", "bo", "bo"], plain, strict=True)
    ]


def test_a_full_queue_is_told_before_an_echo_is_streamed(
    names: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batcher, "is_healthy", False)
    response = names.post("/v1/completions", json={"prompt": "an", "echo": True, "stream": True})
    assert response.status_code == 503
    assert "retry-after" in response.headers


def test_an_echo_that_lists_too_much_is_refused(names: TestClient) -> None:
    body = {"prompt": ["hannahhannahhan"] * 700, "echo": True, "max_tokens": 0}
    assert len(complete(names, **body, logprobs=1)["choices"]) == 700
    error = refused(names, **body, logprobs=20)
    assert "the echo lists 235,200 log-probabilities" in error["message"]


def test_nothing_is_generated_for_zero_tokens(
    names: TestClient, capsys: pytest.CaptureFixture[str], start_log: StartLog
) -> None:
    start_log("text")
    answer = complete(names, prompt="an", max_tokens=0, echo=True, logprobs=1)
    assert capsys.readouterr().err.endswith(" prompt_tokens=3 completion_tokens=0\n")
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("an", "length")
    assert choice["logprobs"]["tokens"] == ["a", "n"]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    (choice,) = complete(names, prompt="an", max_tokens=0)["choices"]
    assert (choice["text"], choice["logprobs"]) == ("", None)
    for prompt in ("a" * 16, [0] * 16):  # and BOS: one token too many, as if a text were to follow
        error = refused(names, prompt=prompt, max_tokens=0)
        assert "expected at most 16 of block_size=16" in error["message"]


def test_log_probabilities_are_those_of_the_model(names: TestClient, names_dir: Path) -> None:
    model = microgpt.load(names_dir)
    tokenizer = model.tokenizer
    options = {"prompt": "hann", "temperature": 0, "logprobs": 2}
    echoed = complete(names, **options, echo=True)["choices"][0]
    logprobs = echoed["logprobs"]
    ids = tokenizer.encode(echoed["text"])
    assert logprobs["tokens"] == [*echoed["text"], BOS]
    assert logprobs["text_offset"] == list(range(len(ids) + 1))
    rows = log_rows(model, [tokenizer.bos, *ids])
    expected = [rows[i, each] for i, each in enumerate([*ids, tokenizer.bos])]
    assert logprobs["token_logprobs"] == pytest.approx(expected, abs=1e-5)
    for i, top in enumerate(logprobs["top_logprobs"]):
        likeliest = sorted(range(len(rows[i])), key=lambda j: -rows[i, j])[:2]
        names_of = [BOS if j == tokenizer.bos else tokenizer.decode([j]) for j in likeliest]
        assert set(top) == {*names_of, logprobs["tokens"][i]}
        assert top[logprobs["tokens"][i]] == logprobs["token_logprobs"][i]  # to the bit
        assert max(top.values()) == top[names_of[0]]
    plain = complete(names, **options)["choices"][0]["logprobs"]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert plain[name] == pytest.approx(logprobs[name][4:], abs=1e-5)


def test_the_tokens_sent_are_the_tokens_listed(names: TestClient, names_dir: Path) -> None:
    """A harness counts on it, and on one entry for the token that was generated."""
    model = microgpt.load(names_dir)
    bos, ids = model.tokenizer.bos, model.tokenizer.encode("hannah")
    body = {"max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    for prompt, n_unscored in [([bos, *ids], 1), (ids, 0)]:
        logprobs = complete(names, prompt=[prompt], **body)["choices"][0]["logprobs"]
        assert len(logprobs["tokens"]) == len(prompt) + 1
        assert logprobs["token_logprobs"][:n_unscored] == [None] * n_unscored
        assert logprobs["top_logprobs"][:n_unscored] == [None] * n_unscored
        total = sum(logprobs["token_logprobs"][n_unscored:-1])
        rows = log_rows(model, [bos, *ids])
        assert total == pytest.approx(sum(rows[i, each] for i, each in enumerate(ids)), abs=1e-5)
    text = BOS + "hannah"
    (choice,) = complete(names, prompt=text, **body)["choices"]
    assert choice["text"].startswith(text)
    assert choice["logprobs"]["tokens"][:2] == [BOS, "h"]
    assert choice["logprobs"]["text_offset"][:3] == [0, len(BOS), len(BOS) + 1]


def test_the_deadline_of_a_text_counts_from_before_its_prompt_was_scored(
    names: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = []
    logits, grow = microgpt.LanguageModel.logits, Batcher.generate

    def scored(self: microgpt.LanguageModel, ids: list[int]) -> Any:
        times.append(time.monotonic())  # the clock of the event loop
        return logits(self, ids)

    def grown(self: Batcher, *texts: Any, since: float, **options: Any) -> Any:
        times.append(since)
        return grow(self, *texts, since=since, **options)

    monkeypatch.setattr(microgpt.LanguageModel, "logits", scored)
    monkeypatch.setattr(Batcher, "generate", grown)
    complete(names, prompt="an", echo=True, logprobs=1, max_tokens=1)
    at_scoring, since = times
    assert since < at_scoring


@pytest.mark.parametrize("n_letters", [15, 16])
def test_a_text_that_fills_the_block_is_scored(
    names: TestClient, names_dir: Path, n_letters: int
) -> None:
    model = microgpt.load(names_dir)
    text = "hannahannahannah"[:n_letters]
    ids = model.tokenizer.encode(text)
    body = {"max_tokens": 1, "echo": True, "logprobs": 1}
    for prompt in (text, ids):
        answer = complete(names, prompt=prompt, **body)
        assert answer["usage"]["prompt_tokens"] == n_letters + 1  # with BOS
        logprobs = answer["choices"][0]["logprobs"]
        assert len(logprobs["tokens"]) == n_letters + 1
        rows = log_rows(model, [model.tokenizer.bos, *ids[:-1]])
        expected = [rows[i, each] for i, each in enumerate(ids)]
        assert logprobs["token_logprobs"][:-1] == pytest.approx(expected, abs=1e-5)
    error = refused(names, prompt="a" * 17, **body)
    assert "the prompt has 18 tokens, BOS included, expected at most 17" in error["message"]


def test_streamed_log_probabilities_are_those_of_the_whole(names: TestClient) -> None:
    body = {"prompt": ["an", "bo"], "seed": 3, "logprobs": 1, "echo": True}
    lines = names.post("/v1/completions", json={**body, "stream": True}).text.split("\n\n")
    lists: list[dict[str, list[Any]]] = [{}, {}]
    for line in lines[:-2]:
        choice = json.loads(line.removeprefix("data: "))["choices"][0]
        for name, items in (choice["logprobs"] or {}).items():
            lists[choice["index"]].setdefault(name, []).extend(items)
    whole = complete(names, **body)["choices"]
    for streamed, choice in zip(lists, whole, strict=True):
        assert streamed == choice["logprobs"]


def test_half_characters_and_windows_are_listed(make_client: MakeClient, tmp_path: Path) -> None:
    """A model of subwords that was trained on windows reads no BOS."""
    text = "\U0001f600 é " * 40
    model = microgpt.fit(
        [text], steps=2, tokenizer="bpe", vocab_size=257, block_size=16, long="window"
    )
    model.save(tmp_path / "bytes")
    client = make_client(tmp_path / "bytes")
    body = {"prompt": "é\U0001f600", "max_tokens": 0, "echo": True, "logprobs": 0}
    logprobs = complete(client, **body)["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [0, 0, 1, 1, 1, 1]
    assert logprobs["token_logprobs"][0] is None
    ids = model.tokenizer.encode("é\U0001f600")
    rows = log_rows(model, ids)
    expected = [rows[i, each] for i, each in enumerate(ids[1:])]
    assert logprobs["token_logprobs"][1:] == pytest.approx(expected, abs=1e-5)
    assert all(
        not math.isnan(each) for top in logprobs["top_logprobs"][1:] for each in top.values()
    )


def test_ids_that_spell_the_name_of_bos_are_letters(
    make_client: MakeClient, tmp_path: Path
) -> None:
    model = microgpt.fit([BOS], steps=1)
    model.save(tmp_path / "letters")
    client = make_client(tmp_path / "letters")
    ids, bos = model.tokenizer.encode(BOS), model.tokenizer.bos
    for prompt, offsets in [(ids, [0, 1, 2]), ([bos, *ids], [0, 0, 1]), (BOS * 2, [0, 7, 8])]:
        body = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0}
        logprobs = complete(client, **body)["choices"][0]["logprobs"]
        assert logprobs["text_offset"][:3] == offsets


# ---------------------------------------------------------------- options


def test_options_that_clients_send_mean_what_they_mean_elsewhere(names: TestClient) -> None:
    def texts(**options: Any) -> list[str]:
        choices = complete(names, prompt="", n=4, **options)["choices"]
        return [choice["text"] for choice in choices]

    greedy = texts(temperature=0)
    assert texts(temperature=2, top_p=0) == texts(temperature=2, top_k=1) == greedy
    assert texts(seed=5, top_k=-1) == texts(seed=5, top_k=0) == texts(seed=5)
    assert texts(seed=5, stop="") == texts(seed=5, stop=["", ""]) == texts(seed=5)
    fresh = [texts(seed=-1, temperature=2) for _ in range(3)]
    assert len({*map(tuple, fresh)}) > 1


def test_options_mean_the_same_on_our_own_routes(names: TestClient) -> None:
    def samples(**options: Any) -> Any:
        body = {"num_samples": 4, **options}
        response = names.post("/microgpt/v1/generate", json=body)
        assert response.status_code == 200, response.text
        return response.json()["samples"]

    assert samples(temperature=2, top_p=0) == samples(temperature=0)
    assert samples(top_k=-1, stop="") == samples()
    assert len({tuple(samples(seed=-1, temperature=2)) for _ in range(3)}) > 1


# ---------------------------------------------------------------- the tokenizer


def test_texts_become_tokens_and_texts_again(names: TestClient, names_dir: Path) -> None:
    tokenizer = microgpt.load(names_dir).tokenizer
    answer = names.post("/tokenize", json={"prompt": "anna"}).json()
    ids = [tokenizer.bos, *tokenizer.encode("anna")]
    assert answer == {"tokens": ids, "count": 5, "max_model_len": 16}
    body = {"prompt": "anna", "add_special_tokens": False}
    assert names.post("/tokenize", json=body).json()["tokens"] == ids[1:]
    back = names.post("/detokenize", json={"tokens": ids}).json()
    assert back == {"prompt": BOS + "anna"}


def test_unknown_characters_are_named_not_counted(names: TestClient) -> None:
    body = {"prompt": "A?nn?a", "add_special_tokens": False}
    answer = names.post("/tokenize", json=body).json()
    assert (answer["count"], answer["unknown"]) == (3, "A?")


def test_special_tokens_have_names(chat: TestClient, chat_dir: Path) -> None:
    tokenizer = microgpt.load(chat_dir).tokenizer
    info = chat.get("/tokenizer_info").json()
    assert (info["eos_token"], info["bos_token"]) == (BOS, BOS)
    for name in (*tokenizer.special_tokens, "bos"):
        token_id = tokenizer.bos if name == "bos" else tokenizer.special_id(name)
        body = {"prompt": f"<|{name}|>", "add_special_tokens": False}
        assert chat.post("/tokenize", json=body).json()["tokens"] == [token_id]
        assert chat.post("/detokenize", json={"tokens": [token_id]}).json() == {
            "prompt": f"<|{name}|>"
        }


def test_ids_that_are_no_tokens_are_refused(names: TestClient) -> None:
    for token_id in (-1, 99, 2**62):
        response = names.post("/detokenize", json={"tokens": [0, token_id]})
        assert response.status_code == 400
        assert "token id" in response.json()["error"]


# ---------------------------------------------------------------- chat


def test_unknown_characters_of_messages_are_named(chat: TestClient) -> None:
    messages = [{"role": "user", "content": "привет hi п"}]
    response = chat.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2})
    assert unquote(response.headers["x-microgpt-unknown"]) == "привет"
    body = {"messages": messages, "max_tokens": 2}
    assert chat.post("/microgpt/v1/chat", json=body).json()["unknown"] == "привет"
    answer = chat.post("/microgpt/v1/next", json={"messages": messages}).json()
    assert answer["unknown"] == "привет"
    known = chat.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]}
    )
    assert "x-microgpt-unknown" not in known.headers


def test_pages_of_other_origins_may_read_what_was_dropped(
    make_client: MakeClient, chat_dir: Path
) -> None:
    client = make_client(chat_dir, cors_origins="https://a.example")
    body = {"messages": [{"role": "user", "content": "hi?\u0416"}], "max_tokens": 1}
    headers = {"Origin": "https://a.example"}
    response = client.post("/v1/chat/completions", json=body, headers=headers)
    exposed = response.headers["access-control-expose-headers"].lower().split(", ")
    assert "x-microgpt-unknown" in response.headers
    assert {name for name in response.headers if name.startswith("x-")} <= {
        *exposed,
        "x-content-type-options",
    }


def test_dropped_tokens_are_told(chat: TestClient) -> None:
    turns = [{"role": "user", "content": "a" * 20}, {"role": "assistant", "content": "b" * 20}] * 2
    messages = [*turns, {"role": "user", "content": "hi"}]
    body = {"messages": messages, "max_tokens": 2}
    n_dropped = chat.post("/microgpt/v1/chat", json=body).json()["tokens_dropped"]
    response = chat.post("/v1/chat/completions", json=body)
    assert int(response.headers["x-microgpt-tokens-dropped"]) == n_dropped > 0


def test_an_assistant_without_content_said_nothing(chat: TestClient) -> None:
    def reply(content: Any, role: str = "assistant") -> Any:
        turn = {"role": role, "content": content} if content != "absent" else {"role": role}
        messages = [{"role": "user", "content": "hi"}, turn, {"role": "user", "content": "hi"}]
        return chat.post("/v1/chat/completions", json={"messages": messages, "seed": 1})

    expected = reply("").json()["choices"]
    assert reply(None).json()["choices"] == reply("absent").json()["choices"] == expected
    refusal = reply(None, "user")
    assert refusal.status_code == 400
    assert refusal.json()["error"]["message"] == "messages[1].content is null, expected a text"


def test_top_k_of_one_makes_equal_replies(chat: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "top_k": 1, "n": 3, "temperature": 2}
    choices = chat.post("/v1/chat/completions", json=body).json()["choices"]
    assert len({choice["message"]["content"] for choice in choices}) == 1
