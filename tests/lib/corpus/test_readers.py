import json
from pathlib import Path
from typing import Any

import microgpt
import pytest
from microgpt import DataError
from texts import TALK, assistant, user

# ---------------------------------------------------------------- text files


@pytest.mark.parametrize(
    "content",
    [
        b"anna\nbo b\n\xc3\xa9lo\n",
        b"anna\r\nbo b\r\n\xc3\xa9lo\r\n",
        b"\xef\xbb\xbfanna\nbo b\n\xc3\xa9lo",
        b"\n\n  anna\t\n \nbo b \n\xc3\xa9lo\n\n",
    ],
    ids=["LF", "CRLF", "byte order mark, no final newline", "blank lines and spaces"],
)
def test_documents_are_lines_stripped(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    assert list(microgpt.read_documents(path)) == ["anna", "bo b", "élo"]
    assert list(microgpt.read_documents(str(path))) == ["anna", "bo b", "élo"]


def test_byte_order_mark_counts_as_a_character_except_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\ufeffa\n\ufeffb\n")
    assert list(microgpt.read_documents(path)) == ["a", "\ufeffb"]


def test_only_newlines_end_a_document(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("a\u2028b\x0bc\rd\x85e\n".encode())
    assert list(microgpt.read_documents(path)) == ["a\u2028b\x0bc\rd\x85e"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"anna\nb\xffb\n", r"invalid UTF-8 on line 2 \(byte offset 6\): invalid start byte"),
        (b"\xef\xbb\xbf\xff\n", r"invalid UTF-8 on line 1 \(byte offset 3\)"),
        (b"\n\nab\xc3", r"invalid UTF-8 on line 3 \(byte offset 4\): unexpected end of data"),
        (b"\xed\xa0\x80\n", r"invalid UTF-8 on line 1 \(byte offset 0\)"),
        (b"anna\nbo\0b\n", r"NUL byte on line 2 \(byte offset 7\), expected UTF-8 text"),
        ("anna".encode("utf-16"), r"NUL byte on line 1 .*; convert UTF-16 or binary files first"),
    ],
    ids=["byte", "after a byte order mark", "cut short", "surrogate", "NUL", "UTF-16"],
)
def test_what_is_no_text_is_named_by_line_and_byte(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^failed to read {path}: {message}"):
        list(microgpt.read_documents(path))


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("missing", "No such file or directory"),
        (".", "Is a directory"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_file_that_cannot_be_opened_is_named(tmp_path: Path, name: str, cause: str) -> None:
    with pytest.raises(DataError, match=rf"failed to read .*: {cause}; expected a UTF-8 text"):
        list(microgpt.read_documents(tmp_path / name))


# ---------------------------------------------------------------- conversations


def read(tmp_path: Path, *lines: Any) -> microgpt.Conversations:
    """Write lines of JSON (strings as they are) and read them as conversations."""
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return microgpt.read_conversations(path)


def test_conversations_are_arrays_or_objects_around_them(tmp_path: Path) -> None:
    found = read(tmp_path, TALK, "", "[]", {"messages": TALK, "id": 3}, '{"messages": []}')
    assert found == microgpt.Conversations([TALK, TALK])


def test_other_keys_and_blanks_inside_a_turn_make_no_difference(tmp_path: Path) -> None:
    turns = [{"content": " hi\n", "role": "user", "lang": "en"}, assistant("")]
    assert read(tmp_path, turns).conversations == [[user(" hi\n"), assistant("")]]


def test_nothing_said_and_nul_are_content_like_other(tmp_path: Path) -> None:
    line = r'[{"role": "user", "content": ""}, {"role": "assistant", "content": "\u0000"}]'
    (talk,) = read(tmp_path, line).conversations
    assert talk == [user(""), assistant("\0")]
    dataset = microgpt.Dataset.from_conversations([talk])
    assert dataset.tokenizer.chars == ("\0",)
    assert dataset[0].tolist() == dataset.tokenizer.encode_conversation(talk)


def test_conversation_of_hundred_thousand_messages_is_one_document(tmp_path: Path) -> None:
    found = read(tmp_path, TALK * 50_000)
    dataset = microgpt.Dataset.from_conversations(found.conversations)
    n_tokens = sum(len(message["content"]) + 2 for message in TALK)
    assert dataset.lengths.tolist() == [50_000 * n_tokens + 1]


def test_turns_that_nobody_answers_are_trimmed_and_counted(tmp_path: Path) -> None:
    found = read(tmp_path, [*TALK, user("?"), user("??")], TALK, [assistant("a"), user("b")])
    assert found.conversations == [TALK, TALK, [assistant("a")]]
    assert (found.n_trimmed, found.n_skipped) == (2, 0)


def test_conversations_without_an_assistant_are_skipped_and_counted(tmp_path: Path) -> None:
    found = read(tmp_path, [user("hello?")], TALK, [user("a"), user("b")])
    assert found.conversations == [TALK]
    assert (found.n_trimmed, found.n_skipped) == (0, 2)


LONE = r"^invalid JSON on line 2: \\u{} is half of a surrogate pair, which is no character; exp"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[{", r"^invalid JSON on line 2: .*; expected an array of \{\"role\""),
        ("{}", "^invalid JSON on line 2: .*missing required field `messages`"),
        ('"hi"', r"^invalid JSON on line 2: Expected `object \| array`, got `str`"),
        ("[3]", "^invalid JSON on line 2: Expected `object`, got `int`"),
        ('[{"role": "user"}]', "^invalid JSON on line 2: .*missing required field `content`"),
        ('[{"role": "user", "content": null}]', "^invalid JSON on line 2: .*got `null`"),
        (r'[{"role": "user", "content": "\ud800 and"}]', LONE.format("d800")),
        (r'[{"role": "user", "content": "\udc00!"}]', LONE.format("dc00")),
        (
            r'[{"role": "user", "content": "\uD9ab"}]',
            LONE.format("d9ab"),
        ),  # where msgspec sees an end
        (r'[{"role": "user\udfff", "content": ""}]', LONE.format("dfff")),
        (r'[{"role": "user", "content": "\ud800', "^invalid JSON on line 2: Input data was trunc"),
        (
            '[{"role": "user", "content": "", "more": ' + "[" * 100_000,
            "^invalid JSON on line 2: maximum recursion depth exceeded",
        ),
        (
            '[{"role": "bot", "content": ""}]',
            r'^line 2: unknown role "bot" \(expected "user" or "assistant"\)$',
        ),
        (f'[{{"role": "{"x" * 1000}", "content": ""}}]', '^line 2: unknown role "x{80}"'),
        (
            '[{"role": "system", "content": ""}]',
            "^line 2: system turns cannot be trained on yet .*; take them out of the file$",
        ),
    ],
)
def test_line_that_is_no_conversation_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, TALK, line)
