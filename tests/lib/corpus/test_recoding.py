"""Documents that are encoded by another tokenizer: subwords learned from them, and back."""

from typing import Any

import microgpt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from microgpt import ConfigError, DataError, Dataset, SubwordTokenizer, TokenError, Tokenizer
from microgpt.corpus import recoding
from texts import assistant, user

# Of one kind: an emoji and a combining mark have several bytes, so that subwords can be parts.
WORDS = ["anna", "banana", "ananas", "größe", "cafés\u0301", "👍🏽 ok", "a b", "\r\n x", "中文"]
documents = st.lists(st.sampled_from(WORDS) | st.text("abn ", min_size=1), min_size=1, max_size=6)
SHOUT = {"role": "system", "content": "be loud, be loud"}
TALKS = [
    [SHOUT, user("banana"), assistant("BANANA")],
    [user("banana"), assistant("banana"), user(""), assistant("ananas")],
]


def texts(dataset: Dataset) -> list[str]:
    return [dataset.tokenizer.decode(dataset[i].tolist()) for i in range(len(dataset))]


def same(one: Dataset, other: Dataset) -> bool:
    arrays = zip(
        (one.tokens, one.starts, one.lengths),
        (other.tokens, other.starts, other.lengths),
        strict=True,
    )
    return one.tokenizer == other.tokenizer and all(np.array_equal(a, b) for a, b in arrays)


@given(documents, st.integers(257, 270))
def test_documents_are_those_that_encoding_each_gives(texts: list[str], vocab_size: int) -> None:
    texts = [text.strip() for text in texts if text.strip()] or ["x"]
    dataset = Dataset.from_documents(texts)
    subwords = dataset.with_subwords(vocab_size)
    assert subwords.tokenizer == SubwordTokenizer.from_texts(texts, vocab_size)
    for i, text in enumerate(texts):
        assert subwords[i].tolist() == subwords.tokenizer.encode_document(text)
    # Neighbours share the BOS between them, as in the dataset of characters.
    assert len(subwords.tokens) == int(subwords.lengths.sum()) + 1
    back = subwords.encoded_with(dataset.tokenizer)
    assert same(back, dataset)
    assert back.digest() == dataset.digest() != subwords.digest()


def test_conversations_keep_their_turns() -> None:
    subwords = Dataset.from_conversations(TALKS).with_subwords(270)
    tokenizer = subwords.tokenizer
    assert tokenizer.special_tokens == ("user", "assistant", "end_turn", "system")
    for i, talk in enumerate(TALKS):
        assert subwords[i].tolist() == tokenizer.encode_conversation(talk)
    assert subwords.counted is None


def test_turns_that_do_not_count_are_those_of_before() -> None:
    talk: list[Any] = [
        user("banana"),
        assistant("banana") | {"weight": 0},
        user("ananas"),
        assistant("yes"),
    ]
    answers = Dataset.from_conversations([talk, talk]).with_subwords(262).only_assistant()
    assert answers.counted is not None
    assert answers.tokenizer.decode(answers.tokens[answers.counted].tolist()) == "yesyes"
    n_ends = int(
        (answers.tokens[answers.counted] == answers.tokenizer.special_id("end_turn")).sum()
    )
    assert n_ends == 2


def test_turns_that_do_not_count_are_those_of_before_by_other_subwords() -> None:
    talk: list[Any] = [user("banana") | {"weight": 0}, assistant(""), user("ananas")]
    dataset = Dataset.from_conversations([talk, talk])
    back = dataset.with_subwords(264).encoded_with(dataset.tokenizer)
    assert same(back, dataset)
    assert back.counted is not None
    assert dataset.counted is not None
    assert back.counted.tolist() == dataset.counted.tolist()


@pytest.mark.parametrize("long", ["truncate", "split"])
def test_cut_documents_stay_cut(long: Any) -> None:
    dataset = Dataset.from_documents(["abcdefg", "hi", "klmnopqrst"]).fitted(4, long)
    subwords = dataset.with_subwords(257)
    assert subwords.lengths.tolist() == dataset.lengths.tolist()
    assert texts(subwords) == texts(dataset)


def test_long_document_is_encoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "how much wood would a woodchuck chuck, größer als 中文 " * 20 + "x" * 300
    whole = Dataset.from_documents([text]).with_subwords(300)
    monkeypatch.setattr(recoding, "PIECE", 64)
    assert same(Dataset.from_documents([text]).with_subwords(300), whole)
    assert whole[0].tolist() == whole.tokenizer.encode_document(text.strip())


def test_windows_are_drawn_from_subwords() -> None:
    text = "how much wood would a woodchuck chuck if a woodchuck could chuck wood? " * 30
    options = {"long": "window", "block_size": 16, "steps": 20, "val_fraction": 0.2}
    _, trainer = microgpt.prepare(
        Dataset.from_documents([text]),
        microgpt.TrainConfig(tokenizer="bpe", vocab_size=280, **options),  # type: ignore[arg-type]
    )
    assert trainer.dataset.tokenizer.vocab_size == 280
    trainer.advance(20)
    assert trainer.best


def test_same_tokenizer_changes_nothing() -> None:
    dataset = Dataset.from_documents(WORDS).with_subwords(300)
    assert dataset.encoded_with(SubwordTokenizer(dataset.tokenizer.merges)) is dataset  # type: ignore[attr-defined]


def test_vocabulary_larger_than_the_data_can_fill_takes_what_there_is() -> None:
    assert Dataset.from_documents(["ab"]).with_subwords(1000).tokenizer.vocab_size == 258


def test_vocabulary_of_65537_ids_takes_four_bytes() -> None:
    tokenizer = Tokenizer(tuple(map(chr, range(0x10000, 0x20000))))
    text = chr(0x1FFFF)
    dataset = Dataset.from_documents([text]).with_subwords(257).encoded_with(tokenizer)
    assert dataset[0].tolist() == [65536, 65535, 65536]


def test_what_cannot_be_encoded_is_refused() -> None:
    subwords = Dataset.from_documents(["abc"]).with_subwords(258)
    with pytest.raises(TokenError, match="'c'"):
        subwords.encoded_with(Tokenizer(("a", "b")))
    with pytest.raises(DataError, match="expected both of one kind"):
        subwords.encoded_with(SubwordTokenizer((), is_chat=True))
    with pytest.raises(TokenError, match="no special token 'system'"):
        Dataset.from_conversations(TALKS).encoded_with(SubwordTokenizer((), is_chat=True))
    with pytest.raises(
        ConfigError, match="vocab_size is 260, expected at least 261: 256 bytes and 5"
    ):
        Dataset.from_conversations(TALKS).with_subwords(260)
