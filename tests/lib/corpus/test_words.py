"""Words: where a text is cut, whole or in pieces, in Python and in JavaScript."""

import json
import shutil
import subprocess
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from microgpt.corpus import words
from microgpt.corpus.words import PATTERN, whole_words, words_of

# Texts in which cuts are likely to differ.
odd_texts = st.text(
    st.one_of(
        st.sampled_from(
            "  \n\n\r\t\v\f'''sdmtlreavoxAZ019-.,_@[`{~\0\x1c\x1f\x7f\x80\x85\xa0é\u2028\U0001d11e"
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello world", ["Hello", " world"]),
        ("it's they'll we've you're I'd I'm can't", None),
        ("'tis 'some o'er I'S", ["'", "tis", " '", "some", " o", "'", "er", " I", "'", "S"]),
        ("a1234567 89", ["a", "123", "456", "7", " 89"]),
        ("wait... (what?!)", ["wait", "...", " (", "what", "?!)"]),
        ("a  b   ", ["a", " ", " b", "   "]),
        ("a \n\n  b", ["a", " \n\n", " ", " b"]),
        ("a\r\nb\n\tc", ["a", "\r\n", "b", "\n", "\t", "c"]),
        ("naïve 中文、\u3000é\u0301 👍🏽", ["naïve", " 中文、\u3000é\u0301", " 👍🏽"]),
        ("a\x1cb\0\x7f\x80", ["a", "\x1c", "b", "\0\x7f", "\x80"]),
        ("", []),
    ],
)
def test_text_is_cut_into_words(text: str, words: list[str] | None) -> None:
    if words is None:
        words = ["it", "'s", " they", "'ll", " we", "'ve", " you", "'re", " I", "'d", " I", "'m"]
        words += [" can", "'t"]
    assert list(words_of(text)) == words


def test_every_character_of_unicode_is_part_of_a_word() -> None:
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    assert "".join(words_of(everything)) == everything


@given(odd_texts, st.lists(st.integers(0, 40)))
@example("a  b", [1, 2])
@example("x \n  \ny", [4])
@example("x 'lo", [4])
@example("'so", [2])
@example("  ", [1])
def test_pieces_give_the_words_of_the_whole_text(text: str, cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(at)]
    parts = list(whole_words(pieces))
    assert [word for part in parts for word in words_of(part)] == list(words_of(text))


def test_long_text_is_cut_in_parts(
    strange_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = strange_texts[::3]
    expected = [list(words_of(text)) for text in texts]
    for length in (1, 2, 7):
        monkeypatch.setattr(words, "PART", length)
        assert [list(words_of(text)) for text in texts] == expected


def test_words_leave_before_the_text_has_ended() -> None:
    assert list(whole_words(["one two", " three", "\nfour"])) == ["one", " two", " three", "\nfour"]


@pytest.mark.parametrize("unit", [" ", "\n", "a", "'", "1", "\n ", "é"])
def test_a_million_characters_of_one_kind_are_cut_in_no_time(unit: str) -> None:
    text = unit * 1_000_000
    assert sum(map(len, words_of(text))) == len(text)


CUTS = """
const {pattern, texts} = JSON.parse(require("fs").readFileSync(0, "utf8"));
const cut = flags => texts.map(text => text.match(new RegExp(pattern, flags)) ?? []);
console.log(JSON.stringify([cut("g"), cut("gu"), cut("gv")]));
"""


def test_pattern_means_the_same_in_javascript(strange_texts: list[str]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    given_texts = json.dumps({"pattern": PATTERN, "texts": strange_texts})
    done = subprocess.run(
        [node, "-e", CUTS], input=given_texts, capture_output=True, check=True, text=True
    )
    expected = [list(words_of(text)) for text in strange_texts]
    assert json.loads(done.stdout) == [expected] * 3
