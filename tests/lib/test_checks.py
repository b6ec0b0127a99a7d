"""Arguments of wrong types: each is an error of ours that names what was got and expected."""

import math
import random
from collections.abc import Callable
from typing import Any

import microgpt
import pytest
from biased import biased
from microgpt import (
    ChatError,
    ConfigError,
    Conversations,
    DataError,
    Dataset,
    LanguageModel,
    ModelConfig,
    SamplingConfig,
    TokenError,
    Tokenizer,
    TrainConfig,
)

WRONG_NUMBERS = ["x", None, True, math.nan, [1], 1.5]
DOCUMENTS = Dataset.from_documents(["ab"])
RUN = TrainConfig(steps=1)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return biased("anb", {"a": 1.0})


@pytest.mark.parametrize("make", [Dataset.from_documents, microgpt.fit, Tokenizer.from_texts])
@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("anna", "^the documents are 'anna', expected a list of strings; put a single one in"),
        (None, "^the documents are None, expected a list of strings"),
        (5, "^the documents are 5, expected a list of strings"),
        (["anna", 1], r"^documents\[1\] is 1, expected a string$"),
        ([b"anna"], r"^documents\[0\] is b'anna', expected a string$"),
        (["a\ud800"], r"^the text holds '\\ud800', half of a character, expected Unicode text"),
    ],
    ids=["text", "None", "number", "numbers", "bytes", "surrogate"],
)
def test_documents_are_a_list_of_unicode_texts(
    make: Callable[[Any], object], documents: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make(documents)


@pytest.mark.parametrize("documents", ["anna", None, [1]])
def test_scored_documents_are_a_list_of_texts(model: LanguageModel, documents: Any) -> None:
    with pytest.raises(DataError, match=r"expected a (list of strings|string)"):
        model.score(documents)


def test_conversations_hold_unicode_texts() -> None:
    with pytest.raises(DataError, match="half of a character"):
        Dataset.from_conversations([[{"role": "user", "content": "\udc00"}]])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "^messages is 'hi', expected a list of messages"),
        (5, "^messages is 5, expected a list of messages"),
        ({"role": "user", "content": "a"}, "^messages is {.*}, expected a list"),
        (iter([]), "^messages is <.*>, expected a list"),
        (["hi"], "^a message is 'hi', expected {"),
        ([{"role": "user"}], "^a message is {'role': 'user'}, expected {"),
        ([{"role": [], "content": "a"}], r"^unknown role: \[\]"),
        ([{"role": "user", "content": 5}], "^the content of a message is 5, expected a string"),
    ],
    ids=["text", "number", "message", "iterator", "texts", "no content", "role", "content"],
)
def test_messages_are_a_list_of_turns(model: LanguageModel, messages: Any, message: str) -> None:
    for reply in (model.chat, model.stream_chat):
        with pytest.raises(ChatError, match=message):
            reply(messages)
    if isinstance(messages, list):
        with pytest.raises(ChatError, match=message):
            Dataset.from_conversations([messages])
        with pytest.raises(ChatError, match=message):
            model.tokenizer.encode_conversation(messages)
        with pytest.raises(ChatError, match=message):
            Conversations().add(messages)


@pytest.mark.parametrize("conversation", ["hi", 5, None, {"role": "user", "content": "a"}])
def test_conversation_is_a_list(conversation: Any) -> None:
    encode = Tokenizer(("a",), is_chat=True).encode_conversation
    for use in (encode, from_one_conversation, Conversations().add):
        with pytest.raises(ChatError, match=r"^a conversation is .*, expected a list of messages"):
            use(conversation)


def from_one_conversation(conversation: Any) -> Dataset:
    return Dataset.from_conversations([conversation])


@pytest.mark.parametrize("conversations", ["hi", 5, None, {"role": "user", "content": "a"}])
def test_conversations_are_a_list_of_lists(conversations: Any) -> None:
    with pytest.raises(ChatError, match=r"^the conversations are .*, expected a list of lists"):
        Dataset.from_conversations(conversations)


@pytest.mark.parametrize("token_ids", [5, None])
def test_token_ids_are_a_list(token_ids: Any) -> None:
    with pytest.raises(TokenError, match=r"^token ids are .*, expected a list of integers$"):
        Tokenizer(("a",)).decode(token_ids)


@pytest.mark.parametrize("ranks", [2, 0, "world", [1]])
def test_ranks_are_processes(ranks: Any) -> None:
    with pytest.raises(ConfigError, match=r"^ranks is .*, expected a Ranks$"):
        microgpt.prepare(DOCUMENTS, RUN, random.Random(1), ranks=ranks)


@pytest.mark.parametrize("path", [5, None, b"out", ["out"]])
def test_path_is_a_string_or_path(model: LanguageModel, path: Any) -> None:
    uses: list[Callable[[Any], object]] = [
        *(microgpt.load, model.save, microgpt.holds_model, microgpt.holds_snapshot),
        *(microgpt.read_documents, microgpt.read_conversations, microgpt.read_snapshot),
    ]
    for use in uses if path != ["out"] else uses[:4]:  # readers take several paths
        with pytest.raises(ConfigError, match=r"^the path is .*, expected a string or a Path$"):
            use(path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("num_samples", [*WRONG_NUMBERS, -1]),
        ("temperature", ["x", None, True, math.nan, [1]]),
        ("top_k", ["x", True, math.nan, [1], 1.5, 0]),
        ("top_p", ["x", None, True, math.nan, [1], 1.5]),
        ("max_tokens", ["x", True, math.nan, [1], 1.5, 0]),
        ("seed", WRONG_NUMBERS),
        ("stop", ["x", None, True, 5, [5], [""]]),
        ("rng", ["x", 5]),
        ("signal", ["x", 5]),
    ],
)
def test_options_of_generate_have_a_type(
    model: LanguageModel, name: str, values: list[Any]
) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"^{name} is .*, expected"):
            model.generate(**{name: value})


def test_more_samples_than_one_call_returns_are_refused_at_once(model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match=r"^num_samples is 10{15}, expected at most 1,000,000;"):
        model.generate(10**15)


def test_samples_do_not_depend_on_how_many_are_drawn_together(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.generate(7)
    monkeypatch.setattr("microgpt.inference.samples.SAMPLES_TOGETHER", 3)
    assert model.generate(7) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("prompt", [5, None, True, b"a"])
def test_prompt_is_a_string(model: LanguageModel, prompt: Any) -> None:
    with pytest.raises(TokenError, match=r"^the text is .*, expected a string$"):
        model.generate(prompt=prompt)


@pytest.mark.parametrize("token_ids", ["a", [1.0], [None], [[0]], [True], [-1]])
def test_decoded_ids_are_integers(model: LanguageModel, token_ids: Any) -> None:
    with pytest.raises(TokenError, match=r"^token id .*, expected 0 to 6$"):
        model.tokenizer.decode(token_ids)


@pytest.mark.parametrize("option", ["unknown", "too_long"])
@pytest.mark.parametrize("value", ["x", True, None, [1]])
def test_choices_are_among_those_there_are(model: LanguageModel, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{option} is .*, expected one of error, "):
        model.chat([{"role": "user", "content": "a"}], **{option: value})


@pytest.mark.parametrize(
    ("call", "values"),
    [
        (lambda value: ModelConfig(vocab_size=5, n_embd=value), WRONG_NUMBERS),
        (lambda value: TrainConfig(steps=value), WRONG_NUMBERS),
        (lambda value: TrainConfig(warmup_steps=value), WRONG_NUMBERS),
        (lambda value: TrainConfig(learning_rate=value), ["x", True, math.nan, [1], math.inf]),
        (lambda value: TrainConfig(clip=value), ["x", True, math.nan, [1]]),
        (lambda value: TrainConfig(weight_decay=value), ["x", None, True, math.nan, [1]]),
        (lambda value: SamplingConfig(top_k=value), ["x", True, 1.5]),
        (lambda value: microgpt.fit(["ab"], steps=1, seed=value), WRONG_NUMBERS),
        (lambda value: microgpt.fit(["ab"], steps=1, threads=value), ["x", True, 1.5, 0]),
        (lambda value: microgpt.prepare(value, RUN, random.Random(42)), ["x", None]),
        (lambda value: microgpt.prepare(DOCUMENTS, value, random.Random(42)), ["x", None]),
        (lambda value: microgpt.prepare(DOCUMENTS, RUN, value), ["x", 42]),
        (DOCUMENTS.fitted, WRONG_NUMBERS),
    ],
)
def test_what_else_has_a_type_says_so(call: Callable[[Any], object], values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match="expected"):
            call(value)


@pytest.mark.parametrize("chars", ["ab", ["a"], None, 5, ("ab",), (1,)])
def test_characters_of_a_tokenizer_are_a_tuple(chars: Any) -> None:
    with pytest.raises(DataError, match=r"^chars is .*, expected a tuple of single characters$"):
        Tokenizer(chars)
