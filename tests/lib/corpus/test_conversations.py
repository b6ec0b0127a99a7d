import json
from pathlib import Path
from typing import Any

import microgpt
import pytest
from microgpt import DataError
from texts import TALK, assistant, user


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


LONE = (
    r"^invalid JSON on line 2 of \S+: \\u{} is half of a surrogate pair, which is no character; exp"
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[{", r"^invalid JSON on line 2 of \S+: .*; expected an array of \{\"role\""),
        ("{}", "^invalid JSON on line 2 of \\S+: .*missing required field `messages`"),
        ('"hi"', r"^invalid JSON on line 2 of \S+: Expected `object \| array`, got `str`"),
        ("[3]", "^invalid JSON on line 2 of \\S+: Expected `object`, got `int`"),
        (
            '[{"role": "user"}]',
            "^invalid JSON on line 2 of \\S+: .*missing required field `content`",
        ),
        ('[{"role": "user", "content": null}]', "^invalid JSON on line 2 of \\S+: .*got `null`"),
        (r'[{"role": "user", "content": "\ud800 and"}]', LONE.format("d800")),
        (r'[{"role": "user", "content": "\udc00!"}]', LONE.format("dc00")),
        (
            r'[{"role": "user", "content": "\uD9ab"}]',
            LONE.format("d9ab"),
        ),  # where msgspec sees an end
        (r'[{"role": "user\udfff", "content": ""}]', LONE.format("dfff")),
        (
            r'[{"role": "user", "content": "\ud800',
            "^invalid JSON on line 2 of \\S+: Input data was trunc",
        ),
        (
            '[{"role": "user", "content": "", "more": ' + "[" * 100_000,
            "^invalid JSON on line 2 of \\S+: maximum recursion depth exceeded",
        ),
        (
            '[{"role": "bot", "content": ""}]',
            r'chat.jsonl, line 2: unknown role "bot" \(expected "user" or "assistant"\)$',
        ),
        (
            f'[{{"role": "{"x" * 1000}", "content": ""}}]',
            'chat.jsonl, line 2: unknown role "x{80}"',
        ),
        (
            '[{"role": "system", "content": ""}]',
            "chat.jsonl, line 2: system turns cannot be trained on yet .*; take them out",
        ),
    ],
)
def test_line_that_is_no_conversation_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, TALK, line)


def test_several_files_are_read_in_their_order(tmp_path: Path) -> None:
    for name, content in (("b.jsonl", [TALK]), ("a.jsonl", [[user("?"), assistant("!")], TALK])):
        (tmp_path / name).write_text("\n".join(map(json.dumps, content)))
    paths = [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]
    expected = [TALK, [user("?"), assistant("!")], TALK]
    assert microgpt.read_conversations(paths).conversations == expected
    assert microgpt.read_conversations(tmp_path).conversations == [*expected[1:], TALK]
