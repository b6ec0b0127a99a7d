"""The message of the system: it has a token where the data has one, and is left out elsewhere."""

import random
from pathlib import Path
from typing import Any

import microgpt
import numpy as np
import pytest
from microgpt import ChatError, ContextLengthError, Dataset, LanguageModel, Tokenizer, TrainConfig
from texts import assistant, user

SHOUT = {"role": "system", "content": "loud"}
LOUD = [SHOUT, user("hi"), assistant("HEY")]
QUIET = [user("hi"), assistant("hey")]


def trained(conversations: list[Any], **options: Any) -> LanguageModel:
    config = TrainConfig(steps=300, block_size=32, batch_size=2, n_embd=24)
    dataset = Dataset.from_conversations(conversations)
    model, trainer = microgpt.prepare(dataset, config, **options)
    trainer.advance(config.steps)
    return model


@pytest.fixture(scope="module")
def knowing() -> LanguageModel:
    return trained([LOUD, QUIET])


@pytest.fixture(scope="module")
def other() -> LanguageModel:
    return trained([QUIET, QUIET])


def test_token_of_the_system_stands_between_end_turn_and_bos(
    knowing: LanguageModel, other: LanguageModel
) -> None:
    tokenizer = knowing.tokenizer
    assert tokenizer.special_tokens == ("user", "assistant", "end_turn", "system")
    n = len(tokenizer.chars)
    assert [tokenizer.special_id(name) for name in tokenizer.special_tokens] == list(
        range(n, n + 4)
    )
    assert (tokenizer.bos, tokenizer.vocab_size) == (n + 4, n + 5)
    assert other.tokenizer.special_tokens == ("user", "assistant", "end_turn")


def test_conversations_are_encoded_with_it() -> None:
    dataset = Dataset.from_conversations([QUIET, LOUD, QUIET])
    for i, talk in enumerate([QUIET, LOUD, QUIET]):
        assert dataset[i].tolist() == dataset.tokenizer.encode_conversation(talk)
    ids = dataset.tokenizer.encode_conversation(LOUD)
    assert ids[:2] == [dataset.tokenizer.bos, dataset.tokenizer.special_id("system")]
    assert dataset.digest() != Dataset.from_conversations([QUIET, QUIET]).digest()
    answers = dataset.only_assistant()
    assert answers.counted is not None
    assert answers.tokenizer.decode(answers.tokens[answers.counted].tolist()) == "heyHEYhey"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_model_heeds_the_message(knowing: LanguageModel, role: str) -> None:
    assert knowing.chat([user("hi")], temperature=0).content == "hey"
    reply = knowing.chat([SHOUT | {"role": role}, user("hi")], temperature=0)
    assert (reply.content, reply.prompt.system_dropped) == ("HEY", False)
    stream = knowing.stream_chat([SHOUT | {"role": role}, user("hi")], temperature=0)
    assert "".join(stream) == "HEY"


def test_model_that_knows_none_leaves_it_out_and_says_so(other: LanguageModel) -> None:
    reply = other.chat([SHOUT, user("hi")], temperature=0)
    assert (reply.content, reply.prompt.system_dropped) == ("hey", True)
    assert reply.prompt.token_ids == other.prompt([user("hi")]).token_ids
    assert reply.prompt.n_unknown == 0


def test_message_of_the_system_stays_where_old_turns_are_dropped(knowing: LanguageModel) -> None:
    turns = [user("hi"), assistant("hey")] * 10
    prompt = knowing.prompt([SHOUT, *turns, user("hi")], unknown="skip")
    tokenizer = knowing.tokenizer
    system = tokenizer.encode_turn("system", "loud", unknown="skip")
    assert prompt.token_ids[1 : 1 + len(system)] == system
    assert prompt.turns_dropped > 10
    assert len(prompt.token_ids) <= 32 - 8
    assert prompt.forbidden == (
        *(tokenizer.special_id(r) for r in ("user", "assistant", "system")),
        tokenizer.bos,
    )


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ([SHOUT], ChatError, "the messages are of the system only, expected one to reply to"),
        ([user("hi"), SHOUT], ChatError, "unknown role: system"),
        (
            [SHOUT | {"content": "loud" * 9}, user("hi")],
            ContextLengthError,
            "the message of the system has 38 tokens, expected at most 20 of block_size=32",
        ),
        (
            [SHOUT | {"content": "loud" * 4}, user("hihi")],
            ContextLengthError,
            "the last message has 6 tokens, expected at most 4 of block_size=32",
        ),
    ],
)
def test_messages_that_cannot_be_replied_to_are_refused(
    knowing: LanguageModel, messages: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        knowing.chat(messages)


def test_model_and_snapshot_keep_the_token(knowing: LanguageModel, tmp_path: Path) -> None:
    knowing.save(tmp_path)
    loaded = microgpt.load(tmp_path)
    assert loaded.tokenizer == knowing.tokenizer
    assert loaded.chat([SHOUT, user("hi")], temperature=0).content == "HEY"
    dataset = Dataset.from_conversations([LOUD, QUIET])
    _, trainer = microgpt.prepare(dataset, TrainConfig(steps=4), random.Random(1))
    trainer.advance(2)
    microgpt.write_snapshot(tmp_path, trainer, {})
    assert microgpt.read_snapshot(tmp_path).tokenizer == dataset.tokenizer


def test_run_that_goes_on_adds_the_token(other: LanguageModel) -> None:
    with pytest.raises(microgpt.TokenError, match="hold system turns, which the model to start"):
        trained([LOUD], init_from=other)
    model, _ = microgpt.prepare(
        Dataset.from_conversations([LOUD]), TrainConfig(), init_from=other, extend_vocab=True
    )
    assert model.tokenizer.has_system
    for name in other.tokenizer.special_tokens:
        old, new = (each.tokenizer.special_id(name) for each in (other, model))
        np.testing.assert_array_equal(model.parameters["wte"][new], other.parameters["wte"][old])
    assert model.parameters["wte"][model.tokenizer.special_id("system")].any()


def test_texts_have_no_such_token() -> None:
    assert Tokenizer(("a",), has_system=True).special_tokens == ()
