from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microgpt import ConfigError, LanguageModel, Tokenizer, fit
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
