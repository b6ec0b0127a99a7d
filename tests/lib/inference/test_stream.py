from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from microgpt import ConfigError, LanguageModel, SubwordTokenizer, Tokenizer, fit
from microgpt.inference.stream import TextStream

TOKENIZER = Tokenizer(tuple("abcd"))


def stream_of(text: str, stop: list[str], max_tokens: int = 100) -> TextStream:
    """Return a stream of one token per character; the model itself ends it after the last."""
    return TextStream(iter(TOKENIZER.encode(text)), TOKENIZER, max_tokens, stop)


def test_every_character_comes_as_soon_as_it_is_chosen() -> None:
    chosen: list[int] = []

    def token_ids() -> Any:
        for token_id in (0, 1, 2):
            chosen.append(token_id)
            yield token_id

    stream = TextStream(token_ids(), TOKENIZER, 10)
    for n, char in enumerate("abc", 1):
        assert stream.finish_reason is None
        assert next(stream) == char
        assert len(chosen) == stream.n_tokens == n
    assert list(stream) == []
    assert stream.finish_reason == "stop"


@pytest.mark.parametrize(
    ("text", "stop", "pieces", "n_tokens"),
    [
        ("abcd", ["bc"], ["a"], 3),  # what may become a stop string is held back
        ("abad", ["bc"], ["a", "ba", "d"], 4),
        ("abab", ["abc"], ["ab", "ab"], 4),  # held back until the end
        ("aab", ["aab"], [], 3),
        ("aaab", ["aab"], ["a"], 4),  # begins again inside what is held back
        ("abcd", ["d", "bcd"], ["a"], 4),  # both end at once: the longer one begins first
        ("abcd", ["bcda", "c"], ["a", "b"], 3),  # the one that is completed
        ("abcd", ["x"], ["a", "b", "c", "d"], 4),
    ],
)
def test_text_ends_before_a_stop_string(
    text: str, stop: list[str], pieces: list[str], n_tokens: int
) -> None:
    stream = stream_of(text, stop)
    assert list(stream) == pieces
    assert (stream.n_tokens, stream.finish_reason) == (n_tokens, "stop")


@given(
    st.text("abcd", max_size=20),
    st.lists(st.text("abcd", min_size=1, max_size=4), max_size=3),
)
def test_streamed_text_is_what_stands_before_the_first_stop_string(
    text: str, stop: list[str]
) -> None:
    expected = text
    for end in range(len(text) + 1):  # the first moment at which a stop string is there
        if found := [string for string in stop if text[:end].endswith(string)]:
            expected = text[: end - max(map(len, found))]
            break
    assert "".join(stream_of(text, stop)) == expected


@pytest.mark.parametrize(
    ("text", "max_tokens", "stop", "reason"),
    [
        ("abc", 3, [], "length"),
        ("abc", 4, [], "stop"),
        ("abc", 3, ["c"], "stop"),  # complete with the last token
        ("abc", 3, ["cd"], "length"),
        ("", 3, [], "stop"),
    ],
)
def test_finish_reason_says_whether_the_text_was_cut(
    text: str, max_tokens: int, stop: list[str], reason: str
) -> None:
    stream = stream_of(text, stop, max_tokens)
    assert stream.finish_reason is None
    list(stream)
    assert stream.finish_reason == reason


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return fit(["anna", "bob", "hannah", "otto"], steps=100)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_tokens": 0}, "^max_tokens is 0, expected an integer of at least 1$"),
        ({"max_tokens": -3}, "^max_tokens is -3, expected an integer of at least 1$"),
        ({"stop": "ab"}, "^stop is 'ab', expected a list of strings that are not empty$"),
        ({"stop": ["a", ""]}, r"^stop is \['a', ''\], expected a list of strings"),
        ({"stop": [3]}, r"^stop is \[3\], expected a list of strings"),
    ],
)
def test_limits_out_of_their_domain_are_errors(
    model: LanguageModel, limits: dict[str, Any], message: str
) -> None:
    for make in (model.stream, model.generate):
        with pytest.raises(ConfigError, match=message):
            make(**limits)


def test_stream_is_what_generate_adds_to_the_prompt(model: LanguageModel) -> None:
    for seed in range(5):
        (text,) = model.generate(1, prompt="h", stop=["nn"], seed=seed, temperature=1.0)
        stream = model.stream("h", stop=["nn"], seed=seed, temperature=1.0)
        assert "h" + "".join(stream) == text


def test_stream_that_is_closed_gives_nothing_more(model: LanguageModel) -> None:
    stream = model.stream(max_tokens=5, temperature=5.0)
    next(stream)
    del stream  # ends the generators under it; an error in that would fail this test


# ---------------------------------------------------------------- subwords

WOODCHUCK = "how much wood would a woodchuck chuck? Größe, cafés, 中文 中文, 👍👍🏽"
SUBWORDS = SubwordTokenizer.from_texts([WOODCHUCK], 300)


@given(st.lists(st.integers(0, SUBWORDS.vocab_size - 1), max_size=40), st.data())
def test_stream_of_subwords_is_the_text_without_half_characters(
    token_ids: list[int], data: st.DataObject
) -> None:
    text = SUBWORDS.decode(token_ids)
    assert "".join(TextStream(iter(token_ids), SUBWORDS, 100)) == text
    start = data.draw(st.integers(0, len(text)))
    stop = text[start : start + data.draw(st.integers(1, 5))]
    assume("\ufffd" not in stop)  # stands for half a character, which may come at the very end
    stream = TextStream(iter(token_ids), SUBWORDS, 100, [stop] if stop else [])
    assert "".join(stream) == (text[: text.find(stop)] if stop else text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_stream_of_any_text_gives_whole_characters(text: str) -> None:
    stream = TextStream(iter(SUBWORDS.encode(text)), SUBWORDS, 10_000)
    pieces = list(stream)
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_piece_has_the_tokens_that_begin_in_it() -> None:
    token_ids = SubwordTokenizer(()).encode("a👍b")
    stream = TextStream(iter(token_ids), SubwordTokenizer(()), 100)
    given_ids = [(piece, [token.token_id for token in stream.tokens]) for piece in stream]
    assert given_ids == [("a", token_ids[:1]), ("👍", token_ids[1:5]), ("b", token_ids[5:])]


def test_stop_text_that_spans_tokens_and_cuts_one() -> None:
    tokenizer = SubwordTokenizer.from_texts(["abc abc abc"], 260)
    (*_, abc) = tokenizer.encode("abc abc")  # " abc" is one token
    stream = TextStream(iter([*tokenizer.encode("abc"), abc, abc]), tokenizer, 100, ["c a"])
    assert [(piece, len(stream.tokens)) for piece in stream] == [("ab", 1)]
    assert stream.finish_reason == "stop"


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    (half, *_) = SubwordTokenizer(()).encode("é")
    assert list(TextStream(iter([half]), SubwordTokenizer(()), 1)) == ["\ufffd"]
