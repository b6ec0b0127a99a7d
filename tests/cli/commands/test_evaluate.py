import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import microgpt
import numpy as np
import pytest
from biased import biased

if TYPE_CHECKING:
    from cli.conftest import Cli


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with as many h as the block leaves room for."""
    directory = tmp_path_factory.mktemp("models") / "echo"
    biased("hi ", {"h": 100.0}, block_size=8).save(directory)
    return directory


def write(path: Path, *questions: Any) -> Path:
    """Write lines of JSON, bytes and nothing as they are."""
    lines = [
        q
        if isinstance(q, bytes)
        else json.dumps(q, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if q
        else b""
        for q in questions
    ]
    path.write_bytes(b"\n".join(lines))
    return path


def question(text: str, answer: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "answer": answer, **fields}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write(
        tmp_path / "questions.jsonl",
        question("h", "hhhh", task="letters"),  # five tokens, after which four may follow
        question("hi", "hhh", task="words"),
        question("h", "hhhhh", task="letters"),
        question("", "hhhhh", task="words"),
        "",
        question("i", "hhhh", task="letters"),
    )


def test_pairs_to_train_on_can_be_asked(cli: "Cli", echo: Path, tmp_path: Path) -> None:
    pairs = [{"question": "h", "answer": "hhhh"}, {"question": "h", "answer": "no"}]
    result = cli("evaluate", echo, "--questions", write(tmp_path / "faq.jsonl", *pairs))
    assert (result.status, result.err) == (0, "")
    assert result.lines[-1] == "all           1 of    2    50.0%"


def test_exact_answers_are_counted_per_task(cli: "Cli", echo: Path, questions: Path) -> None:
    result = cli("evaluate", echo, "--questions", questions)
    assert (result.status, result.err) == (0, "")
    assert result.lines == [
        "letters     2 of    3    66.7%",
        "words       2 of    2   100.0%",
        "all         4 of    5    80.0%",
    ]


def test_figures_for_programs(cli: "Cli", echo: Path, questions: Path) -> None:
    result = cli("evaluate", echo, "--questions", questions, "--json", "--show-wrong")
    assert json.loads(result.out) == {
        "tasks": {"letters": {"asked": 3, "right": 2}, "words": {"asked": 2, "right": 2}},
        "asked": 5,
        "right": 4,
    }
    assert (result.status, result.err) == (0, "'h': 'hhhh', expected 'hhhhh'\n")


def test_wrong_answers_are_shown_by_choice(cli: "Cli", echo: Path, questions: Path) -> None:
    result = cli("evaluate", echo, "--questions", questions, "--show-wrong")
    assert result.lines[0] == "'h': 'hhhh', expected 'hhhhh'"
    assert len(result.lines) == 4
    assert result.err == ""


def test_answers_are_the_likeliest_ones_whatever_the_seed(cli: "Cli", tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hey"}]
    config = microgpt.TrainConfig(steps=100)
    dataset = microgpt.Dataset.from_conversations([talk])
    model, trainer = microgpt.prepare(dataset, config, random.Random(42))
    trainer.advance(100)
    model.save(tmp_path / "model")
    asked = write(tmp_path / "questions", *[question("hi", "hey")] * 20)
    result = cli("evaluate", tmp_path / "model", "--questions", asked)
    assert result.lines == ["questions    20 of   20   100.0%", "all          20 of   20   100.0%"]


def test_questions_asked_together_have_the_answers_of_each_alone(
    cli: "Cli", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = biased("abcdef", {"end_turn": 1.0}, block_size=48)
    model.parameters.flat[:] += np.random.default_rng(1).normal(size=model.parameters.flat.size)
    model.save(tmp_path)
    rng, config, asked = random.Random(1), microgpt.SamplingConfig(temperature=0), []
    for _ in range(300):
        text = "".join(rng.choices("abcdef", k=rng.randint(0, 40)))  # some do not fit
        try:
            answer = model.reply(model.prompt([{"role": "user", "content": text}]), config).content
        except microgpt.ContextLengthError:
            answer = "none"
        asked.append(question(text, answer, task="short" if answer != "none" else "long"))
    n_short = sum(each["task"] == "short" for each in asked)
    assert len({len(each["answer"]) for each in asked}) > 10
    advance, n_together = type(model.engine).advance, list[int]()

    def count(engine: Any, texts: Any, n_steps: int) -> None:
        n_together.append(len(texts))
        advance(engine, texts, n_steps)

    monkeypatch.setattr(type(model.engine), "advance", count)
    result = cli("evaluate", tmp_path, "--questions", write(tmp_path / "asked", *asked), "--json")
    assert json.loads(result.out)["tasks"] == {
        "short": {"asked": n_short, "right": n_short},
        "long": {"asked": 300 - n_short, "right": 0},
    }
    assert max(n_together) == 64


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"{", "{JSON}: Input data was truncated; expected {{"),
        (
            b"hello",
            "{JSON}: JSON is malformed: invalid character (byte 0)",
        ),
        (b"[]", "{JSON}: Expected `object`, got `array`; expected {{"),
        (b"7", "{JSON}: Expected `object`, got `int`; expected {{"),
        (
            {"answer": "a"},
            "line 3: no question; expected",
        ),
        (
            {"messages": []},
            "{JSON}: Object missing required field `answer`",
        ),
        (
            {"messages": "h", "answer": ""},
            "{JSON}: Expected `array | null`, got `str`",
        ),
        (
            {"messages": ["h"], "answer": ""},
            "{JSON}: Expected `object`, got `str`",
        ),
        (
            question("h", "h", task=1),
            "{JSON}: Expected `str`, got `int` - at",
        ),
        (
            question("h", "h") | {"answer": 3},
            "{JSON}: Expected `str`, got `int`",
        ),
        (
            {"messages": [{"role": "user", "content": None}], "answer": ""},
            "{JSON}: Expected `str`, got `null` - at `$.messages[0].content`",
        ),
        (
            {"messages": [{"content": "h"}], "answer": ""},
            "{JSON}: Object missing required field `role` - at `$.messages[0]`",
        ),
        (
            rb'{"messages": [], "answer": "\ud800"}',
            r"{JSON}: \ud800 is half of a surrogate pair, which is no character",
        ),
        (question("\ud800", "h"), "failed to read {path}: invalid UTF-8 on line 3 (byte offset "),
        (b'{"messages": [], "answer": "\0"}', "failed to read {path}: NUL byte on line 3 (byte "),
        (random.Random(1).randbytes(9000), "failed to read {path}: "),
        ({"messages": [], "answer": "a"}, "line 3: messages must not be empty"),
        (
            {"messages": [{"role": "bo\n\x1bt", "content": "h"}], "answer": "a"},
            r"line 3: unknown role: bo\n\x1bt",
        ),
        (
            {"messages": [{"role": "assistant", "content": "h"}], "answer": "a"},
            "line 3: the last message is the assistant's, expected the user's question",
        ),
        (
            b'{"x": ' + b"[" * 100_000,
            "{JSON}: maximum recursion depth exceeded",
        ),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_question_that_cannot_be_asked_is_named(
    cli: "Cli", echo: Path, tmp_path: Path, line: Any, error: str
) -> None:
    path = write(tmp_path / "questions.jsonl", question("h", "h"), "", line)
    result = cli("evaluate", echo, "--questions", path)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(
        "error: " + error.format(JSON=f"invalid JSON on line 3 of {path}", path=path)
    )
    assert "\n" not in result.err.partition("\nhint: ")[0].rstrip("\n")


def test_bad_question_is_an_error_before_any_is_asked(
    cli: "Cli", echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(microgpt.LanguageModel, "reply", lambda *_, **__: asked.append(1))
    path = write(tmp_path / "questions.jsonl", question("h", "h"), b"{")
    assert cli("evaluate", echo, "--questions", path).status == 1
    assert asked == []


def test_unknown_characters_of_questions_are_counted(
    cli: "Cli", echo: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "questions.jsonl", question("H?", "hhhhh"), question("hX", "hhhh"))
    result = cli("evaluate", echo, "--questions", path)
    assert result.lines[-1] == "all           2 of    2   100.0%"
    assert result.err == "warning: 3 characters left out that the model does not know\n"


@pytest.mark.parametrize("is_there", [True, False])
def test_file_that_cannot_be_read_is_an_error(
    cli: "Cli", echo: Path, tmp_path: Path, *, is_there: bool
) -> None:
    path = tmp_path if is_there else tmp_path / "nowhere"
    result = cli("evaluate", echo, "--questions", path)
    error = f"failed to read {path}: No such file or directory; expected a UTF-8 text file"
    if is_there:
        error = f"no text file in {path}, expected one; skipped: none"
    assert result == (1, "", f"error: {error}\n")


def test_no_questions_is_an_error(cli: "Cli", echo: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "questions.jsonl", b"", b"  ")
    result = cli("evaluate", echo, "--questions", path)
    assert result == (1, "", f"error: {path} holds no questions\n")


def test_model_without_chat_tokens_is_an_error(
    cli: "Cli", model_dir: Path, questions: Path
) -> None:
    result = cli("evaluate", model_dir, "--questions", questions)
    error = "error: this model was not trained with chat tokens\n"
    hint = "hint: retrain with --chat to enable chat support\n"
    assert result == (1, "", error + hint)


def test_sample_questions_can_be_asked(cli: "Cli", tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    assert cli("data", "questions", "--output", path).status == 0
    n_questions = len(path.read_text().splitlines())
    biased("hi ", {"end_turn": 100.0}, block_size=256).save(tmp_path / "model")
    result = cli("evaluate", tmp_path / "model", "--questions", path, "--json")
    assert json.loads(result.out)["asked"] == n_questions
    assert "too long" not in result.err


@pytest.mark.parametrize("n", [90, 10**7])
def test_question_that_does_not_fit_counts_as_wrong(
    cli: "Cli", echo: Path, tmp_path: Path, n: int
) -> None:
    path = write(tmp_path / "questions.jsonl", question("h", "h"), question("h" * n, "h"))
    result = cli("evaluate", echo, "--questions", path, "--json")
    assert json.loads(result.out)["asked"] == 2
    assert (
        json.loads(result.out)["right"]
        == json.loads(
            cli("evaluate", echo, "--questions", write(path, question("h", "h")), "--json").out
        )["right"]
    )
    assert result.err.startswith(
        f"warning: 1 question counted as wrong, too long: line 2: the last message has {n + 2} "
        "tokens, expected at most 4 of "
    )
