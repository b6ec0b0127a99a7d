"""`microgpt-cli evaluate`: how many questions a chat model answers right."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microgpt_cli.options import Threads
from microgpt_cli.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from microgpt import Message

__all__ = ["evaluate"]


def evaluate(
    model_dir: Annotated[Path, typer.Argument(help="Directory of a trained chat model.")],
    *,
    questions: Annotated[
        Path,
        typer.Option(
            help="JSONL: per line a task, messages and the expected answer; see data questions."
        ),
    ],
    show_wrong: Annotated[
        bool, typer.Option("--show-wrong", help="Print each wrong answer as well.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: Threads = None,
) -> None:
    """Ask a model questions and count exact answers. It gives the most likely ones."""
    import microgpt  # noqa: PLC0415 - see main

    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    model = microgpt.load(model_dir, threads=threads)
    to_ask = list(_read(questions))
    if not to_ask:
        raise microgpt.DataError(f"{questions} holds no questions")
    for number, (task, messages, answer) in enumerate(to_ask, 1):
        try:
            reply = model.chat(messages, temperature=0)
        except (microgpt.ChatError, microgpt.ContextLengthError) as error:
            if not model.tokenizer.is_chat:  # then no question is at fault
                raise
            message = f"question {number} of {questions}: {error}"
            raise microgpt.DataError(message, hint=error.hint) from error
        asked[task] += 1
        right[task] += reply.content == answer
        if show_wrong and reply.content != answer:
            typer.echo(
                f"{messages[-1]['content']!r}: {reply.content!r}, expected {answer!r}", err=as_json
            )
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


def _read(path: Path) -> "Iterator[tuple[str, list[Message], str]]":
    """Yield task, messages and expected answer of each question."""
    import microgpt  # noqa: PLC0415 - see main
    import msgspec  # noqa: PLC0415

    turn = msgspec.defstruct("Turn", [("role", str), ("content", str)])
    question = msgspec.defstruct(
        "Question",
        [("messages", list[turn]), ("answer", str), ("task", str, "questions")],  # type: ignore[valid-type] # made above
    )
    decoder = msgspec.json.Decoder(question)
    for number, line in enumerate(microgpt.read_documents(path), 1):
        try:
            fields = msgspec.to_builtins(decoder.decode(line))
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
            raise microgpt.DataError(
                f"question {number} of {path}: {error}; expected "
                '{"messages": [...], "answer": ...}'
            ) from error
        yield fields["task"], fields["messages"], fields["answer"]
