import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import microgpt
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
    """Write lines of JSON, strings as they are."""
    lines = [q if isinstance(q, str) else json.dumps(q, ensure_ascii=False) for q in questions]
    path.write_text("\n".join(lines), "utf-8", "surrogatepass")
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


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{", "question 2 of {path}: Input data was truncated; expected "),
        ("[]", "question 2 of {path}: Expected `object`, got `array`; expected "),
        ('{"answer": "a"}', "question 2 of {path}: Object missing required field `messages`"),
        (
            question("h", "h") | {"answer": 3},
            "question 2 of {path}: Expected `str`, got `int` - at",
        ),
        (
            {"messages": [{"role": "user", "content": None}], "answer": ""},
            "question 2 of {path}: Expected `str`, got `null` - at `$.messages[0].content`",
        ),
        (question("\ud800", "h"), "failed to read {path}: invalid UTF-8 on line 2 (byte offset "),
        ('{"messages": [], "answer": "\0"}', "failed to read {path}: NUL byte on line 2 (byte "),
        ({"messages": [], "answer": "a"}, "question 2 of {path}: messages must not be empty"),
        (
            {"messages": [{"role": "bot", "content": "h"}], "answer": "a"},
            "question 2 of {path}: unknown role: bot",
        ),
        (
            question("h" * 90, "h"),
            "question 2 of {path}: the last message has 92 tokens, expected at most 4 of ",
        ),
        ('{"x": ' + "[" * 100_000, "question 2 of {path}: "),
    ],
    ids=str,
)
def test_question_that_cannot_be_asked_is_named(
    cli: "Cli", echo: Path, tmp_path: Path, line: Any, error: str
) -> None:
    path = write(tmp_path / "questions.jsonl", question("h", "h"), line)
    result = cli("evaluate", echo, "--questions", path)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("error: " + error.format(path=path))
    assert result.err.count("error:") == 1


def test_no_questions_is_an_error(cli: "Cli", echo: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "questions.jsonl", "", "  ")
    result = cli("evaluate", echo, "--questions", path)
    assert result == (1, "", f"error: {path} holds no questions\n")
    path.unlink()
    result = cli("evaluate", echo, "--questions", path)
    assert result.err.startswith(f"error: failed to read {path}: No such file or directory")


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
    model = biased("hi ", {"h": 100.0}, block_size=256)
    model.save(tmp_path / "model")
    result = cli("evaluate", tmp_path / "model", "--questions", path, "--json")
    assert json.loads(result.out)["asked"] == n_questions
