import json
import random
import re
from itertools import chain
from pathlib import Path
from time import process_time
from typing import Any

import microgpt
import numpy as np
import pytest
from biased import biased
from hypothesis import given
from hypothesis import strategies as st
from microgpt import (
    ChatError,
    ConfigError,
    ContextLengthError,
    LanguageModel,
    Message,
    TokenError,
    Tokenizer,
    Turns,
)
from microgpt import build_prompt as prompt_of
from microgpt.inference.prompt import text_prompt

TOKENIZER = Tokenizer(("a", "b", "c"), is_chat=True)
USER, ASSISTANT, END, BOS = 3, 4, 5, 6


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any) -> Message:
    return {"role": "assistant", "content": content}


messages = st.builds(
    lambda make, content: make(content),
    st.sampled_from([user, assistant]),
    st.text("abcx", max_size=9),
)


def turn(message: Message) -> list[int]:
    """Return a turn's tokens, spelled out."""
    role = {"user": USER, "assistant": ASSISTANT}[message["role"]]
    return [role, *("abc".index(char) for char in message["content"] if char in "abc"), END]


# ---------------------------------------------------------------- the prompt


def test_prompt_is_bos_then_turns_then_the_assistants_token() -> None:
    prompt = prompt_of([user("ab"), assistant("c"), user("a")], TOKENIZER, 64)
    assert prompt.token_ids == [BOS, USER, 0, 1, END, ASSISTANT, 2, END, USER, 0, END, ASSISTANT]
    assert (prompt.turns_dropped, prompt.tokens_dropped, prompt.n_unknown) == (0, 0, 0)


def test_whole_turns_are_dropped_the_oldest_first() -> None:
    talk = [user("aaaa"), user("bb"), user("c")]  # 6, 4 and 3 tokens
    prompt = prompt_of(talk, TOKENIZER, 16)  # 4 for the answer, 2 for BOS and assistant
    assert prompt.token_ids == [BOS, *turn(talk[1]), *turn(talk[2]), ASSISTANT]
    assert (prompt.turns_dropped, prompt.tokens_dropped) == (1, 6)


def test_answer_is_dropped_together_with_its_question() -> None:
    talk = [user("aaaa"), assistant("bb"), user("c")]  # without the question, the rest would fit
    prompt = prompt_of(talk, TOKENIZER, 16)
    assert prompt.token_ids == [BOS, *turn(talk[2]), ASSISTANT]
    assert (prompt.turns_dropped, prompt.tokens_dropped) == (2, 10)


def test_conversation_that_fits_may_begin_with_the_assistant() -> None:
    talk = [assistant("bb"), user("c")]
    assert prompt_of(talk, TOKENIZER, 16).token_ids == [BOS, *chain(*map(turn, talk)), ASSISTANT]


def test_turn_before_one_that_does_not_fit_is_dropped_though_it_would_fit() -> None:
    prompt = prompt_of([user("a"), assistant("b" * 9), user("c")], TOKENIZER, 16)
    assert prompt.token_ids == [BOS, *turn(user("c")), ASSISTANT]
    assert (prompt.turns_dropped, prompt.tokens_dropped) == (2, 14)


@given(st.lists(messages, min_size=1, max_size=8), st.integers(5, 80))
def test_prompt_is_the_longest_tail_that_fits_and_begins_with_a_question(
    talk: list[Message], block_size: int
) -> None:
    turns = [turn(message) for message in talk]
    limit = block_size - max(1, block_size // 4)
    tails = [[BOS, *chain(*turns[n:]), ASSISTANT] for n in range(len(turns))]
    n_dropped = next((n for n, tail in enumerate(tails) if len(tail) <= limit), None)
    if n_dropped is None:
        with pytest.raises(ContextLengthError, match="the last message has"):
            prompt_of(talk, TOKENIZER, block_size)
        return
    if n_dropped:
        rest = [message["role"] for message in talk[n_dropped:]]
        n_dropped += rest.index("user") if "user" in rest else len(rest) - 1  # the last one stays
    prompt = prompt_of(talk, TOKENIZER, block_size)
    assert prompt.token_ids == tails[n_dropped]
    assert prompt.turns_dropped == n_dropped
    assert prompt.tokens_dropped == sum(map(len, turns[:n_dropped]))
    assert prompt.n_unknown == sum(message["content"].count("x") for message in talk)


@pytest.mark.parametrize(("block_size", "longest"), [(5, 0), (6, 1), (7, 2), (8, 2), (64, 44)])
def test_a_quarter_of_the_block_but_at_least_one_token_is_left_for_the_answer(
    block_size: int, longest: int
) -> None:
    prompt = prompt_of([user("a" * longest)], TOKENIZER, block_size)
    assert len(prompt.token_ids) == block_size - max(1, block_size // 4)
    with pytest.raises(ContextLengthError, match=f"expected at most {longest + 2} of block_size="):
        prompt_of([user("a" * (longest + 1))], TOKENIZER, block_size)


@pytest.mark.parametrize("too_long", ["error", "truncate"])
@pytest.mark.parametrize("block_size", [1, 2, 3, 4])
def test_block_too_small_for_a_question_and_an_answer_is_an_error(
    block_size: int, too_long: Any
) -> None:
    with pytest.raises(ContextLengthError, match=f"^block_size={block_size} cannot hold a quest"):
        prompt_of([user("")], TOKENIZER, block_size, too_long=too_long)


@pytest.mark.parametrize("block_size", [None, "16", 16.5, True])
def test_block_size_is_an_integer(block_size: Any) -> None:
    with pytest.raises(ConfigError, match=r"^block_size is .*, expected an integer$"):
        prompt_of([user("a")], TOKENIZER, block_size)


def test_turns_need_a_tokenizer_and_are_short_where_they_are_printed() -> None:
    with pytest.raises(ConfigError, match="tokenizer is 5, expected a BaseTokenizer"):
        Turns(5)  # type: ignore[arg-type]
    turns = Turns(microgpt.Tokenizer.from_texts(["hi"], is_chat=True))
    assert repr(turns) == "<Turns: 0 messages, 0 tokens>"
    turns.add("user", "hi")
    assert repr(turns) == "<Turns: 1 message, 4 tokens>"


def test_turn_that_is_too_long_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(
        ContextLengthError,
        match=r"^the last message has 22 tokens, expected at most 10 of block_size=16; shorten it "
        r"or use a model with a larger block_size$",
    ):
        prompt_of([user("a"), user("b" * 20)], TOKENIZER, 16)


def test_turn_that_is_too_long_keeps_its_end_by_choice() -> None:
    prompt = prompt_of([user("a"), user("abc" * 9)], TOKENIZER, 16, too_long="truncate")
    assert prompt.token_ids == [BOS, *turn(user("bcabcabc")), ASSISTANT]
    assert (prompt.turns_dropped, prompt.tokens_dropped) == (1, 3 + 19)


def test_unknown_characters_are_counted_or_an_error_by_choice() -> None:
    talk = [user("a\N{SNOWMAN}b"), assistant("\0"), user("\ud800xa")]
    prompt = prompt_of(talk, TOKENIZER, 64)
    assert prompt.token_ids == [BOS, USER, 0, 1, END, ASSISTANT, END, USER, 0, END, ASSISTANT]
    assert prompt.n_unknown == 4
    with pytest.raises(TokenError, match="characters that the model does not know: '\N{SNOWMAN}'"):
        prompt_of(talk, TOKENIZER, 64, unknown="error")


def test_nul_is_a_character_like_others_to_a_model_that_knows_it() -> None:
    tokenizer = Tokenizer(("\0", "a"), is_chat=True)
    prompt = prompt_of([user("a\0")], tokenizer, 64, unknown="error")
    assert prompt.token_ids == [5, 2, 1, 0, 4, 3]


def seconds_of_prompt(n_messages: int) -> float:
    """Return how long a prompt that keeps all of so many messages takes at best."""
    talk = [user("a"), assistant("b")] * (n_messages // 2)
    seconds = []
    for _ in range(3):
        start = process_time()
        prompt = prompt_of(talk, TOKENIZER, 10 * n_messages)
        seconds.append(process_time() - start)
        assert prompt.turns_dropped == 0
    return min(seconds)


def test_ten_times_the_messages_take_ten_times_as_long() -> None:
    # In quadratic time it would be a hundred times; 3 is for memory that no cache holds any more.
    assert seconds_of_prompt(30_000) < 30 * seconds_of_prompt(3_000)


def test_hundred_thousand_messages_keep_the_latest() -> None:
    prompt = prompt_of([user("abc"), assistant("b")] * 50_000, TOKENIZER, 16)
    assert prompt.token_ids == [BOS, *turn(user("abc")), *turn(assistant("b")), ASSISTANT]
    assert (prompt.turns_dropped, prompt.tokens_dropped) == (99_998, 49_999 * 8)


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ([], "^messages must not be empty$"),
        ([{"role": "bot", "content": "a"}], "^unknown role: bot$"),
        ([{"role": "system", "content": "a"}], "^the messages are of the system only, expected"),
        ([user("a"), {"role": "system", "content": "a"}], "^unknown role: system$"),
        ([{"role": None, "content": "a"}], "^unknown role: None$"),
        ([{"role": "x" * 1000, "content": "a"}], "^unknown role: x{80}$"),
        ([{"role": np.zeros(2), "content": "a"}], r"^unknown role: \[0\. 0\.\]$"),
        ([{"role": ["user"], "content": "a"}], r"^unknown role: \['user'\]$"),
        ([user("a"), user(None)], "^the content of a message is None, expected a string$"),
        ([user(["a"])], r"^the content of a message is \['a'\], expected a string$"),
        ([user(b"a")], "^the content of a message is b'a', expected a string$"),
        ([{"role": "user"}], "^a message is {'role': 'user'}, expected {\"role\": ..., "),
        (["hello"], '^a message is \'hello\', expected {"role": ..., "content": ...}$'),
        ([None], "^a message is None, expected"),
    ],
)
def test_what_is_no_message_is_an_error(talk: Any, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        prompt_of(talk, TOKENIZER, 64)


def test_model_without_chat_tokens_says_how_to_get_them() -> None:
    model = microgpt.fit(["anna", "bob"], steps=1)
    for ask in (model.chat, model.stream_chat):
        with pytest.raises(ChatError, match="not trained with chat tokens") as caught:
            ask([user("a")])
        assert caught.value.hint == "retrain with --chat to enable chat support"


# ---------------------------------------------------------------- replies


TALK = [user("hi"), assistant("hello there"), user("bye"), assistant("good bye")]


@pytest.fixture(scope="module")
def chat_model() -> LanguageModel:
    """A model that says little but knows how; enough steps that it ends its replies."""
    dataset = microgpt.Dataset.from_conversations([TALK])
    config = microgpt.TrainConfig(steps=30)
    model, trainer = microgpt.prepare(dataset, config, random.Random(42), block_size=32)
    trainer.advance(30)
    return model


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 2.0, "top_k": 3},
    {"temperature": 2.0, "top_p": 0.5},
    {"max_tokens": 3},
    {"stop": ["e", "oo"]},
    {"seed": 7, "unknown": "error"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("engine", microgpt.ENGINES)
def test_streamed_reply_is_the_reply(
    chat_model: LanguageModel, engine: str, options: dict[str, Any]
) -> None:
    model = LanguageModel(chat_model.tokenizer, chat_model.parameters, engine=engine)
    for n_turns in (1, 3):
        reply = model.chat(TALK[:n_turns], **options)
        stream = model.stream_chat(TALK[:n_turns], **options)
        assert "".join(stream) == reply.content
        assert stream.finish_reason == reply.finish_reason
        assert stream.n_tokens == reply.n_tokens
        assert stream.prompt == reply.prompt


def test_learned_reply_is_given_and_ends_by_itself() -> None:
    dataset = microgpt.Dataset.from_conversations([TALK])
    config = microgpt.TrainConfig(steps=200)
    model, trainer = microgpt.prepare(dataset, config, random.Random(42), block_size=32)
    trainer.advance(200)
    reply = model.chat(TALK[:1], temperature=0)
    assert (reply.content, reply.finish_reason, reply.n_tokens) == ("hello there", "stop", 11)
    reply = model.chat(TALK[:1], temperature=0, max_tokens=5)
    assert (reply.content, reply.finish_reason, reply.n_tokens) == ("hello", "length", 5)
    reply = model.chat(TALK[:1], temperature=0, stop=[" th"])
    assert (reply.content, reply.finish_reason) == ("hello", "stop")


def test_reply_may_fill_what_the_block_leaves_and_ends_there() -> None:
    reply = biased("hi", {"h": 100.0}, block_size=32).chat([user("hi")])
    assert reply.content == "h" * (32 - 6 + 1)  # the last one need not be read again
    assert (reply.n_tokens, reply.finish_reason) == (27, "length")


@pytest.mark.parametrize("name", ["user", "assistant", "BOS"])
def test_tokens_that_nobody_says_are_never_sampled(name: str) -> None:
    model = biased("hi", {name: 1000.0, "h": 500.0})
    assert set(model.chat(TALK[:1], temperature=0).content) == {"h"}
    for seed in range(5):
        assert set(model.chat(TALK[:1], temperature=1, seed=seed).content) == {"h"}
        assert set(model.stream_chat(TALK[:1], temperature=1, top_p=0.9, seed=seed)) == {"h"}


def test_end_of_turn_ends_the_reply_and_is_not_part_of_it() -> None:
    reply = biased("hi", {"end_turn": 100.0}).chat(TALK[:1])
    assert (reply.content, reply.n_tokens, reply.finish_reason) == ("", 0, "stop")


def test_tokens_dropped_are_those_of_the_prompt(chat_model: LanguageModel) -> None:
    reply = chat_model.chat([*TALK, user("hi")])  # 4, 13, 5 and 10 tokens, then 4; 22 fit
    assert reply.prompt.turns_dropped == 2
    assert reply.tokens_dropped == 4 + 13


# ---------------------------------------------------------------- real conversations


def test_real_conversations_are_counted_and_trained_on(shared: Path) -> None:
    path = shared / "data" / "oasst1_chat.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answered = [
        (talk, max((n for n, m in enumerate(talk, 1) if m["role"] == "assistant"), default=0))
        for talk in lines
    ]
    kept = [talk[:n] for talk, n in answered if n]
    found = microgpt.read_conversations(path)
    assert found.conversations == kept
    assert found.n_trimmed == sum(0 < n < len(talk) for talk, n in answered) > 0
    assert found.n_skipped == sum(n == 0 for _, n in answered)

    dataset = microgpt.Dataset.from_conversations(found.conversations)
    n_long = sum(sum(len(m["content"]) + 2 for m in talk) + 1 > 256 for talk in kept)
    assert int((dataset.lengths > 256).sum()) == n_long > 0
    text_of = ["".join(m["content"] for m in talk) for talk in kept]
    not_ascii = [i for i, text in enumerate(text_of) if not text.isascii()]
    assert len(not_ascii) > 100
    assert all(dataset.tokenizer.decode(dataset[i].tolist()) == text_of[i] for i in not_ascii)
    assert dataset.tokenizer.chars == tuple(sorted(set("".join(text_of))))

    config = microgpt.TrainConfig(steps=20, batch_size=4)
    _, trainer = microgpt.prepare(dataset, config, random.Random(42), block_size=64)
    losses = [report.loss for report in trainer]
    assert np.mean(losses[-5:]) < losses[0] - 0.1


# ---------------------------------------------------------------- the prompt of a text


def test_prompt_of_a_text_is_bos_and_its_characters() -> None:
    tokenizer = Tokenizer.from_texts(["ab"])
    prompt = text_prompt("ba", tokenizer, 16)
    assert prompt.token_ids == [2, 1, 0]
    assert (prompt.stop_token, prompt.forbidden, prompt.n_unknown) == (2, (), 0)
    assert (prompt.turns_dropped, prompt.tokens_dropped) == (0, 0)


def test_unknown_characters_of_a_text_are_refused_or_left_out_and_counted() -> None:
    tokenizer = Tokenizer.from_texts(["ab"])
    with pytest.raises(TokenError, match="does not know: 'x', 'y'"):
        text_prompt("xay", tokenizer, 16)
    prompt = text_prompt("xay", tokenizer, 16, unknown="skip")
    assert (prompt.token_ids, prompt.n_unknown) == ([2, 0], 2)


def test_prompt_for_a_model_of_windows_has_bos_only_where_there_is_nothing_else() -> None:
    tokenizer = Tokenizer.from_texts(["ab"])
    prompt = text_prompt("xba", tokenizer, 16, unknown="skip", windows=True)
    assert (prompt.token_ids, prompt.n_unknown, prompt.stop_token) == ([1, 0], 1, 2)
    assert text_prompt("", tokenizer, 16, windows=True).token_ids == [2]
    nothing_known = text_prompt("xy", tokenizer, 16, unknown="skip", windows=True)
    assert (nothing_known.token_ids, nothing_known.n_unknown) == ([2], 2)


@pytest.mark.parametrize(
    ("windows", "kept", "n_dropped"), [(False, [3, 2, 0], 5), (True, [1, 2, 0], 4)]
)
def test_text_longer_than_the_block_keeps_its_end(
    kept: list[int], n_dropped: int, *, windows: bool
) -> None:
    tokenizer = Tokenizer.from_texts(["abc"])
    prompt = text_prompt("abcabca", tokenizer, 6, too_long="truncate", windows=windows)
    assert (prompt.token_ids, prompt.tokens_dropped) == (kept, n_dropped)
    for fitting in (
        text_prompt("abcab", tokenizer, 6, too_long="truncate", windows=windows),
        text_prompt("abcabca", tokenizer, 6, windows=windows),  # refused when it is continued
    ):
        assert fitting.tokens_dropped == 0
    with pytest.raises(ConfigError, match="too_long is 'cut', expected one of error, truncate"):
        text_prompt("a", tokenizer, 6, too_long="cut")  # type: ignore[arg-type]


def test_prompt_of_messages_ends_at_end_turn_and_forbids_roles_and_bos() -> None:
    tokenizer = Tokenizer.from_texts(["ab"], is_chat=True)
    prompt = prompt_of([{"role": "user", "content": "a"}], tokenizer, 16)
    assert prompt.stop_token == tokenizer.special_id("end_turn")
    assert prompt.forbidden == (2, 3, tokenizer.bos)


# ---------------------------------------------------------------- a growing conversation

changes = st.one_of(
    messages, st.sampled_from(["pop", "clear"]), st.text("abx", max_size=4).map(list)
)


@given(st.lists(changes, max_size=20), st.integers(8, 40), st.sampled_from([True, False]))
def test_turns_have_the_prompt_of_their_messages(
    done: list[Any], block_size: int, has_system: Any
) -> None:
    tokenizer = Tokenizer(("a", "b", "c"), is_chat=True, has_system=has_system)
    turns, system, talk = Turns(tokenizer), list[Message](), list[Message]()
    for change in done:
        if isinstance(change, dict):
            turns.add(change["role"], change["content"])
            talk.append(change)
        elif isinstance(change, list):
            text = "".join(change)
            turns.instruct(text or None)
            system = [{"role": "system", "content": text}] if text else []
        elif change == "clear":
            turns.clear()
            talk.clear()
        elif talk:
            turns.pop()
            talk.pop()
        try:
            expected = prompt_of(system + talk, tokenizer, block_size, too_long="truncate")
        except (ChatError, ContextLengthError) as error:
            with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
                turns.prompt(block_size, "truncate")
        else:
            assert turns.prompt(block_size, "truncate") == expected


def test_prompt_of_turns_takes_the_same_time_however_many_there_are() -> None:
    seconds = {}
    for n_turns in (100, 100_000):
        turns = Turns(TOKENIZER)
        for _ in range(n_turns):
            turns.add("user", "ab")
        start = process_time()
        for _ in range(200):
            assert turns.prompt(64).turns_dropped == n_turns - 11
        seconds[n_turns] = process_time() - start
    # To look at each turn would take hundreds of times as long; 5 is for other work meanwhile.
    assert seconds[100_000] < 5 * seconds[100]


def test_turns_refuse_what_is_no_turn() -> None:
    turns = Turns(TOKENIZER, unknown="error")
    with pytest.raises(ChatError, match=r"^there is no message to remove$"):
        turns.pop()
    with pytest.raises(ChatError, match=r"^messages must not be empty$"):
        turns.prompt(64)
    for role in ("system", "end_turn", None):
        with pytest.raises(ChatError, match=f"^unknown role: {role}$"):
            turns.add(role, "a")  # type: ignore[arg-type]
    with pytest.raises(TokenError, match="does not know: 'x'"):
        turns.add("user", "ax")
    turns.instruct("a")
    assert turns.system_dropped
    with pytest.raises(ChatError, match=r"^the messages are of the system only"):
        turns.prompt(64)
    turns.add("user", "a")
    assert turns.prompt(64).token_ids == [BOS, USER, 0, END, ASSISTANT]  # of the others, nothing
    with pytest.raises(ChatError, match="not trained with chat tokens"):
        Turns(Tokenizer(("a",)))


def test_message_of_the_system_that_is_refused_leaves_the_one_before() -> None:
    turns = Turns(Tokenizer(("a",), is_chat=True, has_system=True), "error")
    turns.instruct("a")
    turns.add("user", "a")
    before = turns.prompt(64)
    with pytest.raises(TokenError):
        turns.instruct("?")
    assert turns.prompt(64) == before
