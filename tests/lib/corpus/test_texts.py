"""Encodings and line ends, also where they lie on the border of two chunks."""

import io
from pathlib import Path

import microgpt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from microgpt import DataError
from microgpt.corpus import sources


def lines(content: bytes) -> list[str]:
    return list(microgpt.read_documents(io.BytesIO(content)))


@pytest.fixture(params=[4, 5, 7, 1 << 20], autouse=True)
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK", request.param)


@pytest.mark.parametrize(
    "content",
    [
        b"anna\nbo b\n\xc3\xa9lo\n",
        b"anna\r\nbo b\r\n\xc3\xa9lo\r\n",
        b"anna\rbo b\r\xc3\xa9lo",
        b"anna\r\n\rbo b\n\r\xc3\xa9lo",
        b"\xef\xbb\xbfanna\nbo b\n\xc3\xa9lo",
        b"\n\n  anna\t\n \nbo b \n\xc3\xa9lo\n\n",
    ],
    ids=["LF", "CRLF", "CR", "mixed", "byte order mark, no final newline", "blanks"],
)
def test_documents_are_the_lines_that_a_person_sees(content: bytes) -> None:
    assert lines(content) == ["anna", "bo b", "élo"]


def test_byte_order_mark_counts_as_a_character_except_at_the_start() -> None:
    assert lines("\ufeffa\n\ufeffb\n".encode()) == ["a", "\ufeffb"]


def test_other_separators_are_characters() -> None:
    assert lines("a\u2028b\x0bc\x85e\n".encode()) == ["a\u2028b\x0bc\x85e"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf_16_and_32_are_read_if_they_begin_with_their_mark(encoding: str) -> None:
    assert lines("\ufeffé\r\n𝄞\n".encode(encoding)) == ["é", "𝄞"]


INVALID = [
    (b"anna\nb\xffb\n", r"invalid UTF-8 on line 2 \(byte offset 6\): invalid start byte"),
    (b"a\r\rb\r\n\xff", r"invalid UTF-8 on line 4 \(byte offset 6\)"),
    (b"\n\nab\xc3", r"invalid UTF-8 on line 3 \(byte offset 4\): unexpected end of data"),
    (b"\xed\xa0\x80\n", r"invalid UTF-8 on line 1 \(byte offset 0\)"),
    (b"anna\nb\xc3\xa9\0b\n", r"NUL byte on line 2 \(byte offset 8\); expected UTF-8 text"),
    ("anna".encode("utf-16-le"), r"NUL byte on line 1 \(byte offset 1\); expected UTF-8 text"),
]


@pytest.mark.parametrize(
    ("content", "message"),
    INVALID,
    ids=["byte", "after CR", "cut short", "surrogate", "NUL", "UTF-16 without its mark"],
)
def test_what_is_no_text_is_named_by_line_and_byte(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"^failed to read stream: {message}") as caught:
        lines(content)
    assert "iconv -f " in str(caught.value.hint)


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "WINDOWS-1252"])
def test_hint_names_the_encoding_that_a_text_is_most_likely_in(encoding: str) -> None:
    for text in ("anna\n", "é, élan\n"):
        with pytest.raises(DataError) as caught:
            lines((text + "ñ").encode(encoding))
        assert f"iconv -f {encoding} " in str(caught.value.hint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbf\xff\n", r"invalid UTF-8 on line 1 \(byte offset 3\)"),
        (b"\xff\xfea\0\n\0\0\xd8b\0", r"invalid UTF-16-LE on line 2 \(byte offset 6\)"),
        (b"\xff\xfea", r"invalid UTF-16-LE on line 1 \(byte offset 2\): truncated data"),
    ],
    ids=["after a byte order mark", "half a pair", "cut short"],
)
def test_error_after_a_mark_counts_the_mark(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        lines(content)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")))
def test_whole_files_keep_every_character_but_the_line_ends(text: str) -> None:
    found = list(microgpt.read_documents(io.BytesIO(text.encode()), split="file"))
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    assert found == ([expected] if expected.strip() else [])


@pytest.mark.parametrize(
    ("content", "is_unusual"),
    [(b"a\nb\n", False), (b"a\r\nb\r\n", False), (b"a\rb", True), (b"a\rb\r\nc\n", True)],
    ids=["LF", "CRLF", "CR", "mixed"],
)
def test_unusual_line_ends_are_noted(content: bytes, *, is_unusual: bool) -> None:
    documents = microgpt.read_documents(io.BytesIO(content))
    assert len(documents) >= 2
    assert documents.notes.newlines == ["stream"] * is_unusual


@pytest.mark.parametrize("name", ["cr_only.txt", "mixed_newlines.txt"])
def test_files_of_other_systems_have_the_lines_that_a_person_sees(shared: Path, name: str) -> None:
    documents = microgpt.read_documents(shared / "trials" / name)
    assert not any("\n" in text or "\r" in text for text in documents)
    assert len(documents) >= 3
    assert documents.notes.newlines == [str(shared / "trials" / name)]


def test_file_of_a_windows_editor_is_read(shared: Path) -> None:
    assert list(microgpt.read_documents(shared / "trials/utf16.txt"))
