"""The data of `data`: a whole poem; right answers of chats, and no word of them in questions."""

import gzip
import json
import random
import re
import runpy
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import microgpt
import pytest

PHRASINGS: dict[str, Callable[..., str]] = {  # pattern of a question: its answer
    r"what is (\d+) plus (\d+)\?": lambda a, b: str(int(a) + int(b)),
    r"spell ([a-z]+)": "-".join,
    r"reverse ([a-z]+)": lambda word: word[::-1],
    r"count the letters in ([a-z]+)": lambda word: str(len(word)),
    r"my name is ([a-z]+)": lambda name: f"nice to meet you, {name}!",
    r"hello": lambda: "hi there!",
    r"what is the capital of peru\?": lambda: "lima",
}


def test_the_poem_is_whole_and_holds_nothing_else() -> None:
    packed = files("microgpt_cli") / "sample_data/poem.txt.gz"
    poem = gzip.decompress(packed.read_bytes()).decode()
    lines = poem.splitlines()
    assert len(poem) > 300_000
    assert len([line for line in lines if re.fullmatch("Book [IVX]+", line)]) == 12
    assert (lines[0], lines[-1]) == ("Book I", "Through Eden took their solitary way.")
    assert poem == "\n".join(line.rstrip() for line in lines) + "\n"
    assert "Gutenberg" not in poem


def test_faq_holds_forty_questions_in_five_phrasings() -> None:
    packed = files("microgpt_cli") / "sample_data/faq.jsonl"
    pairs = list(map(json.loads, packed.read_text(encoding="utf-8").splitlines()))
    assert len({pair["question"] for pair in pairs}) == len(pairs) == 200
    answers = [pair["answer"] for pair in pairs]
    assert len({*answers}) == 40
    assert answers == answers[:40] * 5


def text_of(name: str) -> str:
    return gzip.decompress((files("microgpt_cli") / "sample_data" / name).read_bytes()).decode()


def read(name: str) -> list[Any]:
    return [json.loads(line) for line in text_of(name).splitlines()]


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "tools/make_chat.py"))


@pytest.fixture(scope="module")
def conversations() -> list[list[dict[str, str]]]:
    return read("chat.jsonl.gz")


@pytest.fixture(scope="module")
def questions() -> list[dict[str, Any]]:
    return read("questions.jsonl.gz")


def exchanges(messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [
        (asked["content"], answered["content"])
        for asked, answered in zip(messages[::2], messages[1::2], strict=True)
    ]


def test_there_are_many_short_conversations(conversations: list[list[dict[str, str]]]) -> None:
    assert len(conversations) >= 20_000
    assert {len(messages) // 2 for messages in conversations} == {1, 2, 3, 4}
    n_chars = [sum(len(message["content"]) for message in messages) for messages in conversations]
    assert sum(n < 200 for n in n_chars) > 0.95 * len(n_chars)
    for messages in conversations:
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_sample_data_is_made_by_its_generator(generator: dict[str, Any]) -> None:
    seed = generator["SEED"]
    talks = generator["json_lines"](generator["conversations"](random.Random(seed)))
    asked = generator["json_lines"](generator["questions"](random.Random(seed + 1), talks))
    assert talks.splitlines() == text_of("chat.jsonl.gz").splitlines()
    assert asked.splitlines() == text_of("questions.jsonl.gz").splitlines()


def test_every_answer_to_a_fixed_phrasing_is_right(
    conversations: list[list[dict[str, str]]],
) -> None:
    seen: Counter[str] = Counter()
    for messages in conversations:
        for question, answer in exchanges(messages):
            for pattern, expected in PHRASINGS.items():
                if found := re.fullmatch(pattern, question):
                    seen[pattern] += 1
                    assert answer == expected(*found.groups()), question
    assert seen.keys() == PHRASINGS.keys()
    assert min(seen.values()) >= 10


def test_a_name_is_recalled_as_it_was_given(conversations: list[list[dict[str, str]]]) -> None:
    n_between: Counter[int] = Counter()
    for messages in conversations:
        turns = exchanges(messages)
        asked = [i for i, (text, _) in enumerate(turns) if text == "what is my name?"]
        given = [i for i, (_, said) in enumerate(turns) if said.startswith("nice to meet you, ")]
        if asked:
            ((at,), (then,)) = given, asked
            assert re.fullmatch(r"nice to meet you, [a-z]{3,7}!", turns[at][1])
            name = turns[at][1].removeprefix("nice to meet you, ")[:-1]
            assert turns[then][1] == f"your name is {name}"
            n_between[then - at - 1] += 1
    assert n_between.keys() == {0, 1, 2}
    assert min(n_between.values()) > 500


def words_and_pairs(text: str) -> set[str]:
    """Return the subjects of a question: its last word, or its two numbers in order."""
    numbers = re.findall(r"\d+", text)
    if len(numbers) == 2:
        return {"+".join(sorted(numbers, key=int))}
    patterns = (
        r"(?:spell|reverse|turn|in|long is|what is) ([a-z]{3,7})\b(?! (?:the|my))",
        r"(?:letters are in|my name is|i am|call me) ([a-z]{3,7})",
    )
    return {word for pattern in patterns for word in re.findall(pattern, text)} - {"the", "what"}


def test_questions_ask_nothing_that_conversations_hold(
    conversations: list[list[dict[str, str]]], questions: list[dict[str, Any]]
) -> None:
    known = {
        item
        for messages in conversations
        for question, answer in exchanges(messages)
        for item in words_and_pairs(question) | set(re.findall(r"[a-z]+", f"{question} {answer}"))
    }
    for question in questions:
        if question["task"] not in {"capitals", "greetings"}:
            asked = [m["content"] for m in question["messages"] if m["role"] == "user"]
            given = [text for text in asked if re.match(r"my name is|i am|call me", text)]
            subjects = words_and_pairs(given[0] if question["task"] == "recall" else asked[-1])
            assert subjects, question
            assert not subjects & known, question
    tasks = Counter(question["task"] for question in questions)
    assert min(tasks.values()) >= 200
    assert len(tasks) == 7


def test_fresh_questions_ask_everything_at_every_place(generator: dict[str, Any]) -> None:
    fresh = list(generator["fresh_questions"](2, random.Random(7)))
    sums = [q["messages"][0]["content"] for q in fresh if q["task"] == "all sums"]
    assert len(set(sums)) == len(sums) == 31 * 31
    places: Counter[str] = Counter()
    for question in fresh[len(sums) :]:
        *_, asked = question["messages"]
        task, place = question["task"].split()
        assert len(question["messages"]) == 2 * int(place) - 1
        places[task] += 1
        if task == "recall":
            given = [m["content"] for m in question["messages"] if m["content"][:7] == "my name"]
            assert asked["content"] == "what is my name?"
            assert question["answer"] == given[0].replace("my name is", "your name is")
        for pattern, expected in PHRASINGS.items():
            if found := re.fullmatch(pattern, asked["content"]):
                assert question["answer"] == expected(*found.groups())
    tasks = ("sums", "reversing", "counting", "spelling", "capitals", "greetings", "telling")
    assert places == dict.fromkeys(tasks, 2 * 4) | {"recall": 2 * 3}


def test_all_fit_into_the_block_of_the_recipe(
    conversations: list[list[dict[str, str]]],
) -> None:
    demo = runpy.run_path(str(Path(__file__).parents[2] / "tools/demo.py"))
    (block_size,) = re.findall(r"--block-size (\d+)", " ".join(demo["CHAT"]))
    dataset = microgpt.Dataset.from_conversations(conversations)
    assert dataset.lengths.max() <= int(block_size)
