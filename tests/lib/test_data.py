from typing import Any

import pytest
from hypothesis import given
from microgpt import DataError, Message, TokenError, Tokenizer
from microgpt.checks import ROLES
from texts import conversations, documents


@given(documents)
def test_what_is_encoded_is_decoded(docs: list[str]) -> None:
    tokenizer = Tokenizer.from_texts(docs)
    for doc in docs:
        ids = tokenizer.encode_document(doc)
        assert ids[0] == ids[-1] == tokenizer.bos == tokenizer.vocab_size - 1
        assert tokenizer.decode(ids) == tokenizer.decode(ids[1:-1]) == doc
        assert tokenizer.encode(doc) == ids[1:-1]


@given(conversations)
def test_conversation_is_its_turns_between_bos(talks: list[list[Message]]) -> None:
    tokenizer = Tokenizer.from_texts((turn["content"] for t in talks for turn in t), is_chat=True)
    n = len(tokenizer.chars)
    for talk in talks:
        ids = tokenizer.encode_conversation(talk)
        assert ids[0] == ids[-1] == tokenizer.bos == n + 3
        rest = ids[1:-1]
        for turn in talk:
            end = rest.index(n + 2)
            assert rest[0] == n + ROLES.index(turn["role"])
            assert tokenizer.decode(rest[1:end]) == turn["content"]
            rest = rest[end + 1 :]
        assert rest == []
        assert tokenizer.decode(ids) == "".join(turn["content"] for turn in talk)


def test_ids_follow_the_code_points() -> None:
    tokenizer = Tokenizer.from_texts(["zaé", "😀b"])
    assert tokenizer.chars == ("a", "b", "z", "é", "😀")
    assert (tokenizer.bos, tokenizer.vocab_size, tokenizer.special_tokens) == (5, 6, ())


def test_chat_tokens_stand_between_characters_and_bos() -> None:
    tokenizer = Tokenizer(("a", "b"), is_chat=True)
    names = ("user", "assistant", "end_turn")
    assert tokenizer.special_tokens == names
    assert [tokenizer.special_id(name) for name in names] == [2, 3, 4]
    assert (tokenizer.bos, tokenizer.vocab_size) == (5, 6)


@pytest.mark.parametrize("name", ["system", "bos", ""])
def test_special_token_that_there_is_not_is_named(name: str) -> None:
    with pytest.raises(TokenError, match=rf"^no special token '{name}', expected one of \['user'"):
        Tokenizer(("a",), is_chat=True).special_id(name)
    with pytest.raises(TokenError, match=r"expected one of \[\]"):
        Tokenizer(("a",)).special_id("user")


@pytest.mark.parametrize("chars", [("ab",), ("",), (1,)])
def test_chars_must_be_single(chars: tuple[Any, ...]) -> None:
    with pytest.raises(DataError, match=r"^chars is .*, expected a tuple of single characters$"):
        Tokenizer(chars)


def test_chars_must_differ() -> None:
    with pytest.raises(DataError, match="holds a character twice"):
        Tokenizer(("a", "b", "a"))


def test_unknown_characters_are_named_each_once() -> None:
    tokenizer = Tokenizer(("a", "b"))
    with pytest.raises(TokenError, match=r"does not know: 'c', 'd'$") as caught:
        tokenizer.encode("adacad")
    assert caught.value.hint == "the model knows only characters of its training data"
    with pytest.raises(TokenError, match=r"'l', \.\.\.$"):
        tokenizer.encode("cdefghijklmno")
    assert tokenizer.encode("adbac", unknown="skip") == [0, 1, 0]


@pytest.mark.parametrize("token_id", [-1, 3])
def test_id_that_there_is_not_is_named(token_id: int) -> None:
    with pytest.raises(TokenError, match=f"^token id {token_id}, expected 0 to 2$"):
        Tokenizer(("a", "b")).decode([0, token_id])
