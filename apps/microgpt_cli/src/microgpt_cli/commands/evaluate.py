"""`microgpt-cli evaluate`: the share of questions that a chat model answers right."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import microgpt
import msgspec
import typer

from microgpt_cli.options import Directory, ModelDir, Threads, chosen_directory
from microgpt_cli.questions import likeliest_replies
from microgpt_cli.terminal import counted, printable, warn

__all__ = ["command"]


EXPECTED = (
    '{"messages": [{"role": ..., "content": ...}, ...], "answer": ...} or '
    '{"question": ..., "answer": ...}'
)


class Question(NamedTuple):
    """A question; one that does not fit into the block has no prompt."""

    task: str
    prompt: microgpt.Prompt | None
    text: str
    answer: str


def command(
    directory: Directory = None,
    *,
    model_dir: ModelDir = None,
    questions: Annotated[
        Path,
        typer.Option(help="JSONL file: messages or a question, and the expected answer, per line."),
    ],
    show_wrong: Annotated[
        bool, typer.Option("--show-wrong", help="Print each wrong answer too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: Threads = None,
) -> None:
    """Ask a chat model questions and count exact answers. Replies are the most likely ones."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    model = microgpt.load(chosen_directory(directory, model_dir), threads=threads)
    read = _read(questions, model)
    replies = likeliest_replies(model, [question.prompt for question in read])
    for question, reply in zip(read, replies, strict=True):
        asked[question.task] += 1
        right[question.task] += reply == question.answer
        if show_wrong and reply != question.answer:
            line = f"{question.text!r}: {reply!r}, expected {question.answer!r}"
            typer.echo(line, err=as_json)
    if as_json:
        tasks = {task: {"asked": n, "right": right[task]} for task, n in asked.items()}
        total = {"asked": asked.total(), "right": right.total()}
        typer.echo(json.dumps({"tasks": tasks, **total}))
        return
    rows = [(printable(task), right[task], n) for task, n in asked.items()]
    rows.append(("all", right.total(), asked.total()))
    width = max(len(name) for name, *_ in rows)
    for name, n_right, n_asked in rows:
        typer.echo(f"{name:<{width}}  {n_right:>4} of {n_asked:>4}  {n_right / n_asked:7.1%}")


def _read(path: Path, model: microgpt.LanguageModel) -> list[Question]:
    """Return the questions of a file.

    Raises:
        DataError: a question cannot be asked.
    """
    message = msgspec.defstruct("Message", [("role", str), ("content", str)])
    kind = msgspec.defstruct(
        "Question",
        [
            ("answer", str),
            ("messages", list[message] | None, None),  # type: ignore[valid-type] # made above
            ("question", str | None, None),
            ("task", str, "questions"),
        ],
    )
    questions: list[Question] = []
    too_long: list[str] = []
    n_unknown = 0
    for number, line in microgpt.read_json_lines(path, kind, EXPECTED):
        fields = msgspec.to_builtins(line)
        messages = _messages_of(fields, number)
        prompt = None
        try:
            prompt = model.prompt(messages, unknown="skip")
            n_unknown += prompt.n_unknown
        except microgpt.ContextLengthError as error:
            too_long.append(f"line {number}: {error}")
        except microgpt.ChatError as error:
            if not model.tokenizer.is_chat:  # no question is at fault
                raise
            raise microgpt.DataError(f"line {number}: {error}", hint=error.hint) from error
        if messages[-1]["role"] == "assistant":
            raise microgpt.DataError(
                f"line {number}: the last message is the assistant's, expected the user's question"
            )
        question = Question(fields["task"], prompt, messages[-1]["content"], fields["answer"])
        questions.append(question)
    if not questions:
        raise microgpt.DataError(f"{path} holds no questions")
    if too_long:
        warn(f"{counted(len(too_long), 'question')} counted as wrong, too long: {too_long[0]}")
    if n_unknown:
        warn(f"{counted(n_unknown, 'character')} left out that the model does not know")
    return questions


def _messages_of(fields: dict[str, Any], line: int) -> list[microgpt.Message]:
    messages: list[microgpt.Message] | None = fields["messages"]
    if messages is not None:
        return messages
    if fields["question"] is None:
        raise microgpt.DataError(f"line {line}: no question; expected {EXPECTED}")
    return [{"role": "user", "content": fields["question"]}]
