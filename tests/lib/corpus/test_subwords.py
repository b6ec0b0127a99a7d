"""Subwords: those of plain byte-pair encoding, and of the `tokenizers` package."""

import copy
import json
import os
import pickle
import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from microgpt import ConfigError, DataError, TokenError
from microgpt.corpus import subwords
from microgpt.corpus.byte_pairs import BYTES, count_words, learn_merges
from microgpt.corpus.subwords import SubwordTokenizer
from microgpt.corpus.tokenizer_json import encode_tokenizer
from microgpt.corpus.words import PATTERN, words_of

texts = st.text(st.characters(exclude_categories=["Cs"]))
few_letters = st.text("ab ", max_size=60)  # many pairs, and tokens that several merges make

WHY_TOKENIZERS = "compares with the `tokenizers` package"
WOODCHUCK = (
    "How much wood would a woodchuck chuck if a woodchuck could chuck wood? "
    "Größe, façade, 中文 中文 中文, 👍👍👍, ---- 1000 2000 3000\r\n\r\n"
)


@cache
def trained() -> SubwordTokenizer:
    return SubwordTokenizer.from_texts([WOODCHUCK], 350)


# ---------------------------------------------------------------- plain byte-pair encoding


def replaced(tokens: Sequence[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """Return tokens with every occurrence of a pair merged, from the left."""
    merged: list[bytes] = []
    i = 0
    while i < len(tokens):
        step = 2 if tuple(tokens[i : i + 2]) == pair else 1
        merged.append(b"".join(tokens[i : i + step]))
        i += step
    return merged


def single_bytes(word: str) -> list[bytes]:
    return [bytes([byte]) for byte in word.encode()]


def plainly_learned(counts: dict[str, int], n_tokens: int) -> list[tuple[bytes, bytes]]:
    """Return merges by counting all pairs anew after each."""
    vocabulary = [bytes([byte]) for byte in BYTES]
    words = [(single_bytes(word), count) for word, count in counts.items()]
    merges = []
    while len(vocabulary) < n_tokens:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for tokens, count in words:
            for pair in pairwise(tokens):
                pairs[pair] += count
        if not pairs:
            break
        ids = {token: i for i, token in enumerate(vocabulary)}
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        merges.append(best)
        if (token := b"".join(best)) not in ids:
            vocabulary.append(token)
        words = [(replaced(tokens, best), count) for tokens, count in words]
    return merges


def plainly_encoded(tokenizer: SubwordTokenizer, text: str) -> list[int]:
    """Return ids by applying each merge to every word, in the order of the merges."""
    contents = tokenizer.subwords
    token_ids = []
    for word in words_of(text):
        tokens = single_bytes(word)
        for left, right in tokenizer.merges:
            tokens = replaced(tokens, (contents[left], contents[right]))
        token_ids += [contents.index(token) for token in tokens]
    return token_ids


@given(st.lists(few_letters, max_size=4), st.integers(256, 300))
@example(["aaaa"], 259)
@example(["aaaa aaa baaa", "aaab aaaaaaa"], 300)
def test_merges_are_those_of_plain_counting(documents: list[str], n_tokens: int) -> None:
    counts = count_words(documents)
    merges = learn_merges(counts, n_tokens)
    contents = SubwordTokenizer(tuple(merges)).subwords
    expected = plainly_learned(counts, n_tokens)
    assert [(contents[left], contents[right]) for left, right in merges] == expected


@pytest.mark.parametrize("short", [0, 1 << 30], ids=["heap", "search"])
def test_ids_are_those_of_merges_in_their_order(
    short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subwords, "SHORT", short)
    rng = random.Random(5)
    for _ in range(30):
        sample = "".join(rng.choices("aab b", k=80))
        tokenizer = SubwordTokenizer.from_texts([sample], rng.randint(257, 300))
        text = "".join(rng.choices("aaabc  ", k=200))
        assert tokenizer.encode(text) == plainly_encoded(tokenizer, text)


def test_token_that_two_merges_make_has_one_id() -> None:
    a = BYTES.index(ord("a"))
    tokenizer = SubwordTokenizer(((a, a), (256, a), (a, 256)))  # aa; aa + a; a + aa
    assert tokenizer.subwords[256:] == (b"aa", b"aaa")
    assert tokenizer.vocab_size == 259
    assert tokenizer.encode("aaa") == [257]


def test_of_equally_frequent_pairs_the_lowest_ids_are_merged() -> None:
    tokenizer = SubwordTokenizer.from_texts(["cd", "ab", "b!"], 258)
    assert tokenizer.subwords[256:] == (b"ab",)  # not the first met, nor "b!": "a" comes before


def test_counts_are_of_occurrences_not_of_distinct_words() -> None:
    assert SubwordTokenizer.from_texts(["xy", "xy", "xy", "ab", "abc"], 258).subwords[256] == b"xy"


def test_no_token_is_longer_than_128_bytes() -> None:
    tokenizer = SubwordTokenizer.from_texts(["a" * 1000, "a" * 1000], 1000)
    assert max(map(len, tokenizer.subwords)) == 128
    assert tokenizer.decode(tokenizer.encode("a" * 1000)) == "a" * 1000


def test_vocabulary_takes_as_many_pairs_as_the_texts_have() -> None:
    tokenizer = SubwordTokenizer.from_texts(["abc"], 1000)
    assert tokenizer.subwords[256:] == (b"ab", b"abc")
    assert tokenizer.vocab_size == 259
    assert SubwordTokenizer.from_texts([], 257).vocab_size == 257
    assert SubwordTokenizer.from_texts([WOODCHUCK], 300).vocab_size == 300


def test_texts_may_come_in_pieces() -> None:
    pieces = [WOODCHUCK[start : start + 3] for start in range(0, len(WOODCHUCK), 3)]
    assert SubwordTokenizer.from_texts([iter(pieces)], 350) == trained()


def test_word_of_many_characters_takes_no_quadratic_time() -> None:
    rng = random.Random(0)
    word = "".join(rng.choices("abcdefgh", k=200_000))
    tokenizer = SubwordTokenizer.from_texts([word], 300)
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode(word)) == word


# ---------------------------------------------------------------- text to ids and back


@given(texts)
def test_any_text_comes_back(text: str) -> None:
    assert trained().decode(trained().encode(text)) == text


def test_strange_texts_come_back(strange_texts: list[str]) -> None:
    for text in strange_texts:
        assert trained().decode(trained().encode(text)) == text


def test_special_ids_follow_the_subwords() -> None:
    merges = trained().merges[:4]
    plain = SubwordTokenizer(merges)
    chat = SubwordTokenizer(merges, is_chat=True)
    system = SubwordTokenizer(merges, is_chat=True, has_system=True)
    assert (plain.special_tokens, plain.bos, plain.vocab_size) == ((), 260, 261)
    names = ("user", "assistant", "end_turn")
    assert [chat.special_id(name) for name in names] == [260, 261, 262]
    assert (chat.bos, chat.vocab_size) == (263, 264)
    assert [system.special_id(name) for name in (*names, "system")] == [260, 261, 262, 263]
    assert (system.special_tokens, system.bos) == ((*names, "system"), 264)
    assert system.decode([263, BYTES.index(ord("a")), 264]) == "a"


def test_vocab_size_counts_special_tokens() -> None:
    chat = SubwordTokenizer.from_texts([WOODCHUCK], 300, is_chat=True, has_system=True)
    assert (chat.vocab_size, len(chat.subwords)) == (300, 295)


@pytest.mark.parametrize("name", ["system", "bos", "<bos>"])
def test_special_token_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(TokenError, match=rf"no special token '{name}', expected one of \['user'"):
        SubwordTokenizer((), is_chat=True).special_id(name)


def test_names_of_special_tokens_are_text() -> None:
    for text in ("<bos>", "<|bos|>", "<|end_turn|>"):
        chat = SubwordTokenizer((), is_chat=True)
        assert max(chat.encode(text)) < 256
        assert chat.decode(chat.encode(text)) == text


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    tokenizer = SubwordTokenizer(())
    half, letter = tokenizer.encode("é")[0], tokenizer.encode("a")[0]
    assert tokenizer.decode([half, letter, half]) == "\ufffda\ufffd"


def test_token_text_shows_bytes_and_special_tokens() -> None:
    tokenizer = SubwordTokenizer.from_texts(["the the"], 262, is_chat=True)
    shown = [tokenizer.token_text(token_id) for token_id in (*tokenizer.encode("the é"), 258, 261)]
    assert shown == ["the", " ", r"\xc3", r"\xa9", "user", "bos"]


def test_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subwords, "MAX_CACHED_WORDS", 10)
    monkeypatch.setattr(subwords, "MAX_CACHED_LENGTH", 3)
    tokenizer = SubwordTokenizer(())
    for i in range(500):
        text = f"{i}, abcd"
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer._words) <= 10
    assert " abcd" not in tokenizer._words
    assert "," in tokenizer._words


def test_tokenizer_is_copied_and_compared() -> None:
    for each in (pickle.loads(pickle.dumps(trained())), copy.deepcopy(trained())):  # noqa: S301
        assert each == trained()
        assert hash(each) == hash(trained())
        assert each.encode(WOODCHUCK) == trained().encode(WOODCHUCK)
    assert trained() != SubwordTokenizer(trained().merges, is_chat=True)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "least"),
    [({}, 257), ({"is_chat": True}, 260), ({"is_chat": True, "has_system": True}, 261)],
)
def test_vocabulary_without_room_for_bytes_is_refused(options: dict[str, bool], least: int) -> None:
    assert SubwordTokenizer.from_texts(["abc"], least, **options).vocab_size == least
    n_special = least - 256
    expected = f"expected at least {least}: 256 bytes and {n_special} special token"
    with pytest.raises(ConfigError, match=f"vocab_size is {least - 1}, {expected}"):
        SubwordTokenizer.from_texts(["abc"], least - 1, **options)


def test_vocab_size_that_is_no_integer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size is 300\.5, expected an integer"):
        SubwordTokenizer.from_texts(["abc"], 300.5)  # type: ignore[arg-type]


def test_lone_surrogate_is_refused() -> None:
    half = r"the text holds '\\ud800', half of a character, expected Unicode text"
    with pytest.raises(TokenError, match=half):
        trained().encode("anna \ud800 bob")
    with pytest.raises(DataError, match=half):
        SubwordTokenizer.from_texts(["anna", "bob \ud800"], 300)
    skipped = trained().encode("anna\ud800 bob", unknown="skip")
    assert trained().decode(skipped) == "anna bob"


@pytest.mark.parametrize("bad", [None, 5, b"abc", ["a"]])
def test_only_strings_are_encoded(bad: object) -> None:
    with pytest.raises(TokenError, match="expected a string"):
        trained().encode(bad)  # type: ignore[arg-type]


def test_unknown_is_one_of_two() -> None:
    with pytest.raises(ConfigError, match="unknown is 'drop', expected one of error, skip"):
        trained().encode("a", unknown="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["one text", 5, [5], [["a", 5]]])
def test_only_texts_are_learned_from(bad: object) -> None:
    with pytest.raises(DataError, match=r"expected a (list of )?string"):
        SubwordTokenizer.from_texts(bad, 300)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [-1, trained().vocab_size, 1.0, "a", True, None])
def test_id_outside_the_vocabulary_is_refused(bad: object) -> None:
    expected = f"expected 0 to {trained().vocab_size - 1}"
    for use in (trained().token_text, trained().token_bytes):
        with pytest.raises(TokenError, match=expected):
            use(bad)  # type: ignore[arg-type]
    with pytest.raises(TokenError, match=expected):
        trained().decode([0, bad])  # type: ignore[list-item]


def test_ids_must_be_a_list() -> None:
    with pytest.raises(TokenError, match="token ids are 5, expected a list of integers"):
        trained().decode(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("merges", "problem"),
    [
        (((64, 256),), "merge 0 is of (64, 256), expected two ids from 0 to 255"),
        (((64, 64), (257, 1)), "merge 1 is of (257, 1), expected two ids from 0 to 256"),
        (((-1, 64),), "merge 0 is of (-1, 64)"),
        (((64, 64, 64),), "merge 0 is of (64, 64, 64)"),
        (([64, 64],), "merge 0 is of [64, 64]"),
        (((64, "a"),), "merge 0 is of (64, 'a')"),
        ([(64, 64)], "merges is [(64, 64)], expected a tuple of pairs of ids"),
        (None, "merges is None, expected a tuple"),
        (((64, 64), (64, 65), (64, 64)), "merge 2 is that of 0, expected each pair once"),
        (
            ((64, 64), *((i, i) for i in range(256, 263))),
            "merge 7 makes a token of 256 bytes, expected at most 128",
        ),
    ],
)
def test_merges_must_be_of_tokens_before(merges: Any, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        SubwordTokenizer(merges)
    assert problem in str(caught.value)


def test_system_token_is_for_chat_only() -> None:
    with pytest.raises(ConfigError, match="has_system is True with is_chat False"):
        SubwordTokenizer((), has_system=True)


# ---------------------------------------------------------------- the `tokenizers` package


@pytest.mark.parametrize("n_texts", [2000, pytest.param(10_000, marks=pytest.mark.long)])
def test_ids_equal_those_of_the_package(strange_texts: list[str], n_texts: int) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason=WHY_TOKENIZERS)
    texts = strange_texts[:n_texts]
    tokenizer = SubwordTokenizer.from_texts([WOODCHUCK, *texts[:2000]], 2000)
    theirs = tokenizers.Tokenizer.from_str(encode_tokenizer(tokenizer).decode())
    for text in (*texts, WOODCHUCK, "".join(texts)):
        assert tokenizer.encode(text) == theirs.encode(text).ids, text


def test_texts_equal_those_of_the_package() -> None:
    tokenizers = pytest.importorskip("tokenizers", reason=WHY_TOKENIZERS)
    theirs = tokenizers.Tokenizer.from_str(encode_tokenizer(trained()).decode())
    rng = random.Random(3)
    for _ in range(2000):
        token_ids = rng.choices(range(len(trained().subwords)), k=rng.randint(0, 12))
        assert trained().decode(token_ids) == theirs.decode(token_ids)


def shared_documents() -> list[str]:
    shared = Path(os.environ.get("MICROGPT_SHARED", "shared")) / "data"
    if not shared.exists():
        pytest.skip(f"no texts in {shared}; set MICROGPT_SHARED to where they are")
    lines = (shared / "oasst1_chat.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    turns = [message["content"] for line in lines for message in json.loads(line)]
    return [(shared / "tinyshakespeare.txt").read_text(encoding="utf-8")[:300_000], *turns]


@pytest.mark.parametrize("source", ["strange", "real"])
def test_learned_file_equals_that_of_the_package(source: str, strange_texts: list[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason=WHY_TOKENIZERS)
    documents = strange_texts[:1000] if source == "strange" else shared_documents()
    steps = tokenizers.pre_tokenizers
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = steps.Sequence(
        [
            steps.Split(tokenizers.Regex(PATTERN), "isolated"),
            steps.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    theirs.decoder = tokenizers.decoders.ByteLevel()
    alphabet = steps.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator(documents, trainer)
    ours = SubwordTokenizer.from_texts(documents, 1501)  # BOS among them
    assert encode_tokenizer(ours).decode() == theirs.to_str(pretty=True)
