import json
from collections import Counter
from pathlib import Path
from typing import Any

import microgpt
import pytest
from microgpt import DataError
from microgpt.corpus import conversations
from texts import TALK, assistant, user


def read(tmp_path: Path, *lines: Any) -> microgpt.Conversations:
    """Write lines of JSON (strings as they are) and read them as conversations."""
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return microgpt.read_conversations(path)


def test_conversations_are_arrays_or_objects_around_them(tmp_path: Path) -> None:
    found = read(tmp_path, TALK, "", "[]", {"messages": TALK, "id": 3}, '{"messages": []}')
    assert found == microgpt.Conversations([TALK, TALK], kinds=Counter(messages=2))


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


JSON = r"^invalid JSON on line 2 of \S+: "
LONE = JSON + r"\\u{} is half of a surrogate pair, which is no character; exp"
LINE = r"chat.jsonl, line 2: "


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[{", JSON + r".*; expected messages \(\{\"role\", \"content\"\}\), conv"),
        (r'[{"role": "user", "content": "\ud800 and"}]', LONE.format("d800")),
        (r'[{"role": "user", "content": "\udc00!"}]', LONE.format("dc00")),
        # where msgspec sees an end
        (r'[{"role": "user", "content": "\uD9ab"}]', LONE.format("d9ab")),
        (r'[{"role": "user\udfff", "content": ""}]', LONE.format("dfff")),
        (r'[{"role": "user", "content": "\ud800', JSON + "Input data was trunc"),
        (
            '[{"role": "user", "content": "", "more": ' + "[" * 100_000,
            JSON + "maximum recursion depth exceeded",
        ),
        ("{}", LINE + "found an object with no keys, expected messages "),
        ('{"text": "a"}', LINE + "found an object with the keys 'text', expected messages "),
        ('"hi"', LINE + "found 'hi', expected an object or an array: messages "),
        ("3", LINE + "found 3, expected an object or an array"),
        ('{"messages": 3}', LINE + '"messages" is 3, expected an array'),
        ('{"messages": [3]}', LINE + r'message 1: found 3, expected {"role", "content"}'),
        ('[{"role": "user"}]', LINE + "message 1: there is no content, expected a text"),
        ('[{"role": "user", "content": 3}]', LINE + "message 1: the content is 3, expected a text"),
        (
            '[{"role": "user", "content": [{"text": 3}]}]',
            LINE + r"message 1: the content is \[{'text': 3}\], expected a text",
        ),
        (
            '[{"role": "user", "content": ""}, {"role": "bot", "content": ""}]',
            LINE + """message 2: unknown role 'bot', expected "user", "assistant" or "system"$""",
        ),
        (f'[{{"role": "{"x" * 1000}", "content": ""}}]', LINE + "message 1: unknown role 'x{39}"),
        ('[{"role": ["user"], "content": ""}]', LINE + r"message 1: unknown role \['user'\]"),
        (
            '[{"role": "assistant", "content": "", "weight": 0.5}]',
            LINE + "message 1: weight is 0.5, expected 0 or 1",
        ),
        ('{"conversations": [{"from": "gpt"}]}', LINE + 'message 1: found .* expected {"from"'),
        (
            '{"conversations": [{"from": "me", "value": ""}]}',
            LINE + "message 1: from is 'me', expected one of human, user, gpt",
        ),
        ('{"instruction": 3, "output": ""}', LINE + '"instruction" is 3, expected a text'),
        ('{"instruction": "", "input": 3, "output": ""}', LINE + '"input" is 3, expected a text'),
        ('{"prompt": "", "completion": null}', LINE + '"completion" is None, expected a text'),
        ('{"question": ["a"], "answer": ""}', LINE + r'"question" is \[\'a\'\], expected a text'),
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


# ---------------------------------------------------------------- other forms


SYSTEM = {"role": "system", "content": "be brief"}
GREETING = [user("hi"), assistant("hello")]
PARTS = [{"type": "text", "text": "h"}, {"text": "i"}]
WEIGHTS = [GREETING[0], GREETING[1] | {"weight": 1}, user("a"), assistant("b") | {"weight": 0}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
OTHER_NAMES = [{"from": "user", "value": "hi"}, {"from": "bot", "value": "hello"}]
ALPACA = {"instruction": "a", "input": "b", "output": "c"}


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ({"messages": [SYSTEM, *GREETING], "id": 1}, "messages", [SYSTEM, *GREETING]),
        ([SYSTEM | {"role": "developer"}, *GREETING], "messages", [SYSTEM, *GREETING]),
        ([GREETING[0] | {"name": "ada"}, GREETING[1]], "messages", GREETING),
        ({"system": "be brief", "messages": GREETING}, "messages", [SYSTEM, *GREETING]),
        ([{"role": "user", "content": PARTS}, GREETING[1]], "messages", GREETING),
        (WEIGHTS, "messages", [*GREETING, user("a"), assistant("b") | {"weight": 0}]),
        ({"conversations": SHAREGPT}, "conversations", GREETING),
        (
            [{"from": "system", "value": "be brief"}, *OTHER_NAMES],
            "conversations",
            [SYSTEM, *GREETING],
        ),
        ({"instruction": "hi", "output": "hello"}, "instruction", GREETING),
        ({"instruction": "hi", "input": "", "output": "hello"}, "instruction", GREETING),
        (ALPACA, "instruction", [user("a\n\nb"), assistant("c")]),
        ({"prompt": "2 =", "completion": " 2"}, "prompt", [user("2 ="), assistant(" 2")]),
        ({"question": "hi", "answer": "hello", "task": "t"}, "question", GREETING),
    ],
)
def test_forms_are_told_apart_by_their_keys(
    tmp_path: Path, value: Any, kind: str, expected: list[Any]
) -> None:
    found = read(tmp_path, TALK, value)
    assert found.conversations == [TALK, expected]
    assert found.kinds == Counter({"messages": 1}) + Counter({kind: 1})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([user("a"), assistant("b") | {"tool_calls": [{"id": 1}]}], "calls of tools"),
        ([user("a"), {"role": "tool", "content": "b"}, assistant("c")], "calls of tools"),
        ([user("a"), {"role": "assistant", "content": None}], "a turn without content"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}, assistant("b")],
            "other content than text",
        ),
        ([*GREETING, SYSTEM, *GREETING], "a system turn that is not the first"),
        ({"conversations": [{"from": "observation", "value": ""}]}, "calls of tools"),
        ([user("a")], "no assistant turn"),
    ],
)
def test_what_cannot_be_learned_is_skipped_and_counted(
    tmp_path: Path, value: Any, reason: str
) -> None:
    found = read(tmp_path, value, TALK, value)
    assert found.conversations == [TALK]
    assert found.skipped == Counter({reason: 2})


LONG_ARRAY = json.dumps([{"messages": TALK}, GREETING, {"question": "a", "answer": "b"}], indent=2)


@pytest.mark.parametrize(
    "content",
    [
        LONG_ARRAY,
        "\n\n  " + LONG_ARRAY + "\n",
        LONG_ARRAY.replace("\n", "\r\n"),
        json.dumps(json.loads(LONG_ARRAY)),
        "[" + ",\n".join(map(json.dumps, json.loads(LONG_ARRAY))) + "\n]\n",
    ],
    ids=["indented", "blanks around", "CRLF", "one line", "an entry per line"],
)
def test_one_array_over_any_number_of_lines_is_a_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(content.encode())
    found = microgpt.read_conversations(path)
    assert found.conversations == [TALK, GREETING, [user("a"), assistant("b")]]
    assert found.kinds == Counter(messages=2, question=1)


def test_one_object_over_many_lines_is_a_conversation(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps({"messages": TALK}, indent=1))
    assert microgpt.read_conversations(path).conversations == [TALK]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[\n  {"messages": []},\n  {"messages": 3}\n]',
            'line 3: "messages" is 3, expected an arr',
        ),
        ('[\n  {"messages": []},\n  {"mess', "invalid JSON on line 3 of .*: Unterminated string"),
        ('[\n  {"messages": []}\n', "invalid JSON on line 3 of .*: Expecting value"),
        ("[\n" + "[" * 100_000, "invalid JSON on line .* of .*: maximum recursion depth"),
        ('[\n {"messages": []}\n x]', "invalid JSON on line 3 of .*: Expecting value"),
    ],
)
def test_entry_of_an_array_is_named_by_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        microgpt.read_conversations(path)


def test_array_of_more_than_a_stated_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MAX_ARRAY", 100)
    path = tmp_path / "chat.json"
    path.write_text(LONG_ARRAY)
    with pytest.raises(DataError, match="is one JSON value of more than 100 characters") as caught:
        microgpt.read_conversations(path)
    assert caught.value.hint == "convert it, for instance with jq -c '.[]'"


def test_turns_of_weight_0_are_no_targets() -> None:
    talk = [user("hi"), assistant("no") | {"weight": 0}, user("so"), assistant("yes")]
    dataset = microgpt.Dataset.from_conversations([GREETING, talk, GREETING])
    assert dataset.counted is not None
    skipped = dataset.tokenizer.decode(dataset.tokens[~dataset.counted].tolist())
    assert skipped == "no"
    assert (~dataset.counted).sum() == len("no") + 1  # end_turn
    answers = dataset.only_assistant()
    assert answers.counted is not None
    learned = answers.tokenizer.decode(answers.tokens[answers.counted].tolist())
    assert learned == "helloyeshello"


@pytest.mark.parametrize(
    ("name", "kind", "n", "skipped"),
    [
        ("alpaca.json", "instruction", 2, {}),
        ("sharegpt.json", "conversations", 2, {}),
        ("prompt_completion.jsonl", "prompt", 2, {}),
        ("question_answer.jsonl", "question", 2, {}),
        ("content_parts.jsonl", "messages", 1, {}),
        ("openai_system.jsonl", "messages", 2, {}),
        ("openai_weight.jsonl", "messages", 1, {}),
        ("tool_turns.jsonl", "messages", 1, {"calls of tools": 1}),
    ],
)
def test_files_of_other_tools_are_read(
    shared: Path, name: str, kind: str, n: int, skipped: dict[str, int]
) -> None:
    found = microgpt.read_conversations(shared / "trials" / name)
    assert len(found.conversations) == n
    assert found.kinds == {kind: n}
    assert found.skipped == skipped
    dataset = microgpt.Dataset.from_conversations(found.conversations)
    assert dataset.tokenizer.has_system == (name in {"sharegpt.json", "openai_system.jsonl"})
    if name == "openai_weight.jsonl":
        answers = dataset.only_assistant()
        assert answers.counted is not None
        assert answers.tokenizer.decode(answers.tokens[answers.counted].tolist()) == "hello"
