"""`microgpt-cli explain`: attention and choices of a model that reads a text."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import microgpt
import typer

from microgpt_cli.datasets import check_kind, open_texts, read_talks, warn_of_texts
from microgpt_cli.explaining import lines_of
from microgpt_cli.options import Force, JsonField, ModelDir, Split, chosen_directory
from microgpt_cli.plan import Source
from microgpt_cli.terminal import counted, warn
from microgpt_cli.writing import refuse_to_replace

__all__ = ["command"]

LEAST_WIDTH = 40  # columns


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DIR] [TEXT]",
            help="Directory of a trained model, unless --model-dir names it, and the text to read; "
            "for a chat model a message.",
        ),
    ] = None,
    *,
    model_dir: ModelDir = None,
    input: Annotated[  # noqa: A002 - as in other commands
        str | None,
        typer.Option(
            help="Text file, or JSONL of conversations for a chat model, in place of TEXT; "
            "- for stdin."
        ),
    ] = None,
    document: Annotated[
        int, typer.Option(min=1, help="Number of the document or conversation in INPUT.")
    ] = 1,
    split: Split = "line",
    field: JsonField = None,
    go_on: Annotated[
        bool,
        typer.Option(
            "--continue", help="Continue the text by its likeliest tokens, and explain these too."
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="HTML file for a page that shows all, by itself.")
    ] = None,
    force: Force = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, as the library's Trace.to_json.")
    ] = False,
) -> None:
    """Show attention and choices of a model that reads a text.

    Surprise is the loss of a token, next the likeliest tokens after it, and lens N the likeliest
    next token if the model ended after block N.
    """
    directory, text = _split_arguments(arguments or [], model_dir, is_text_last=input is None)
    of_input = {"--document": document != 1, "--split": split != "line", "--field": field}
    for flag, is_given in of_input.items():
        if is_given and input is None:
            raise typer.BadParameter("it needs --input; TEXT is one document.", param_hint=flag)
    if as_json and output:
        raise typer.BadParameter("use it or --output, not both.", param_hint="--json")
    if output:
        refuse_to_replace(output, force=force)
    model = microgpt.load(chosen_directory(directory, model_dir))
    check_kind(split, field, chat=model.tokenizer.is_chat)
    read: str | list[microgpt.Message] = text
    if input is not None:
        source = Source([input], chat=model.tokenizer.is_chat, split=split, field=field)
        read = _read(source, document)
    elif model.tokenizer.is_chat:
        read = [{"role": "user", "content": text}]
    trace = model.trace(read, unknown="skip" if model.tokenizer.is_chat else "error")
    _warn_of(trace.prompt)
    if go_on:
        trace = model.trace(_continued(model, trace))
    if output:
        from microgpt_cli.explained_page import page_of  # noqa: PLC0415 - reads three files

        microgpt.write_file(output, page_of(trace).encode())
    elif as_json:
        typer.echo(trace.to_json())
    else:
        width = max(LEAST_WIDTH, shutil.get_terminal_size().columns)
        typer.echo("\n".join(lines_of(trace, width)))


def _split_arguments(
    arguments: list[str], model_dir: Path | None, *, is_text_last: bool
) -> tuple[Path | None, str]:
    """Return the directory, if it is among the arguments, and the text; the text is the last.

    Raises:
        BadParameter: there are too many, or there is no text.
    """
    is_directory = (
        len(arguments) == 1 and model_dir is None and microgpt.holds_model(Path(arguments[0]))
    )
    if is_text_last and (not arguments or is_directory):
        raise typer.BadParameter("it is missing.", param_hint="TEXT")
    *before, text = arguments if is_text_last else [*arguments, ""]
    if len(before) > 1:
        expected = "a directory and a text" if is_text_last else "with --input a directory alone"
        raise typer.BadParameter(
            f"got {len(arguments)}, expected {expected}; quote a text with spaces.",
            param_hint="arguments",
        )
    return (Path(before[0]) if before else None), text


def _read(source: Source, number: int) -> str | list[microgpt.Message]:
    """Return a document or conversation of a source, by its number from 1.

    Raises:
        DataError: there are fewer.
    """
    if source.chat:
        talks = read_talks(source.input, keep_unanswered=True)
        read: Sequence[str | list[microgpt.Message]] = talks.conversations
    else:
        read = documents = open_texts(source.input, source)
        len(documents)  # reads them
        warn_of_texts(documents, source)
    if number > len(read):
        kind = "conversation" if source.chat else "document"
        raise microgpt.DataError(
            f"{source.input[0]} holds {counted(len(read), kind)}, expected at least {number}",
        )
    return read[number - 1]


def _warn_of(prompt: microgpt.Prompt) -> None:
    if prompt.n_unknown:
        warn(f"{counted(prompt.n_unknown, 'character')} left out that the model does not know")
    if prompt.turns_dropped:
        warn(f"{counted(prompt.turns_dropped, 'old turn')} left out to fit")
    if prompt.system_dropped:
        warn("the message of the system left out: the model knows none")


def _continued(model: microgpt.LanguageModel, trace: microgpt.Trace) -> list[int]:
    """Return the tokens of a trace and their likeliest continuation, up to the end of the text.

    Raises:
        ConfigError: the trace ends with an answer.
    """
    prompt = trace.prompt
    if prompt.token_ids[-1] == prompt.stop_token and len(prompt.token_ids) > 1:
        raise microgpt.ConfigError("the conversation ends with an answer, which --continue lacks")
    reply = model.reply(prompt, microgpt.SamplingConfig(temperature=0))
    end = [prompt.stop_token] * (reply.finish_reason == "stop")
    return [*prompt.token_ids, *reply.token_ids, *end][: model.config.block_size]
