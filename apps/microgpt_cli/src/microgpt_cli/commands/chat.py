"""`microgpt-cli chat`: talk with a model, at a terminal or through a pipe."""

import codecs
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import microgpt
import typer

from microgpt_cli.conversation import COMMANDS, HELP, Conversation
from microgpt_cli.errors import report_error
from microgpt_cli.options import (
    Directory,
    MaxTokens,
    ModelDir,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    chosen_directory,
)
from microgpt_cli.terminal import counted, printable, remark

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

__all__ = ["command"]

USER, ASSISTANT, MORE = "you> ", "microgpt> ", "...  "
QUOTES = '"""'
PIPED_TOKENS = 64  # of a reply at once; an interrupt waits for them


def command(
    directory: Directory = None,
    *,
    model_dir: ModelDir = None,
    temperature: Temperature = microgpt.SamplingConfig.temperature,
    seed: Seed = microgpt.SamplingConfig.seed,
    top_k: TopK = microgpt.SamplingConfig.top_k,
    top_p: TopP = microgpt.SamplingConfig.top_p,
    max_tokens: MaxTokens = microgpt.SamplingConfig.max_tokens,
    stop: Stop = None,
    system: Annotated[
        str, typer.Option("--system", help="Instruct the assistant, as /system does.")
    ] = "",
    separate: Annotated[
        bool,
        typer.Option("--separate", help="Begin a new conversation at each line of a pipe."),
    ] = False,
    threads: Threads = None,
) -> None:
    """Talk with a trained chat model. Through a pipe, each line gets one line of answer."""
    config = microgpt.SamplingConfig(temperature, top_k, top_p, max_tokens, stop or [], seed)
    model = microgpt.load(chosen_directory(directory, model_dir), threads=threads)
    model.prompt([{"role": "user", "content": ""}])  # raises if the model cannot chat
    conversation = Conversation(model, config)
    if system:
        conversation.instruct(system)
    if sys.stdin.isatty() and sys.stdout.isatty():
        _talk(conversation)
    else:
        _answer_lines(conversation, separate=separate)


def _note(text: str) -> None:
    remark(f"({text})")


# ---------------------------------------------------------------- one line of input


def _respond(conversation: Conversation, line: str, *, at_terminal: bool) -> bool:
    """Run a command or reply to a message; return False to leave."""
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if not line.startswith("/"):
        if n_unknown := conversation.ask(line):
            _note(f"{counted(n_unknown, 'character')} left out that the model does not know")
        _reply(conversation, at_terminal=at_terminal)
    elif name == "/quit":
        return False
    elif name == "/regen":
        if conversation.take_back():
            _reply(conversation, at_terminal=at_terminal)
        else:
            _note("nothing was said yet")
    else:
        _obey(conversation, line, name, argument, at_terminal=at_terminal)
    return True


def _obey(
    conversation: Conversation, line: str, name: str, argument: str, *, at_terminal: bool
) -> None:
    """Run a command that needs no reply."""
    if name == "/clear":
        conversation.clear()
        kept = "; the system's message is kept, /system removes it" * bool(conversation.messages)
        typer.echo(f"(history cleared{kept})", err=not at_terminal)
    elif name == "/system":
        conversation.instruct(argument)
    elif name == "/save" and argument:
        conversation.save(Path(argument))
        _note(f"saved to {argument}")
    elif name == "/set" and argument:
        option, _, value = argument.partition(" ")
        conversation.change(option, value.strip())
    elif name in {"/set", "/help"}:
        typer.echo(HELP if name == "/help" else conversation.options(), err=not at_terminal)
    elif name == "/save":
        raise microgpt.ConfigError("/save needs a file; /help explains the commands")
    else:
        commands = ", ".join(COMMANDS)
        raise microgpt.ConfigError(f"unknown command {line!r}, expected one of {commands}")


def _reply(conversation: Conversation, *, at_terminal: bool) -> None:
    """Write one reply to stdout, at a terminal as it grows; there Ctrl-C stops it."""
    reply = conversation.begin()
    _note_left_out(conversation, reply.prompt)
    sys.stdout.write(ASSISTANT if at_terminal else "")
    content = ""
    with (
        _stoppable(at_terminal=at_terminal) as stopped,
        closing(conversation.pieces(reply, 1 if at_terminal else PIPED_TOKENS)) as pieces,
    ):
        for piece in pieces:
            content += piece
            sys.stdout.write(printable(piece, one_line=not at_terminal))
            if at_terminal:
                sys.stdout.flush()
            if stopped:
                break
    sys.stdout.write("\n")
    sys.stdout.flush()
    conversation.keep(content)
    if stopped:
        _note("stopped")


def _note_left_out(conversation: Conversation, prompt: microgpt.Prompt) -> None:
    if prompt.turns_dropped:
        _note(f"{counted(prompt.turns_dropped, 'old turn')} left out to fit")
    tokenizer = conversation.model.tokenizer
    from_last = prompt.token_ids[::-1].index(tokenizer.special_id("user"))
    n_read = len(tokenizer.decode(prompt.token_ids[-from_last:]))
    n_cut = len(conversation.messages[-1]["content"]) - n_read
    if n_cut > 0:
        _note(f"too long: {counted(n_cut, 'character')} cut off at the beginning")


@contextmanager
def _stoppable(*, at_terminal: bool) -> Iterator[list[int]]:
    """Yield a list that collects Ctrl-C; through a pipe Ctrl-C ends the program instead."""
    received: list[int] = []
    if not at_terminal:
        yield received
        return
    previous = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)


# ---------------------------------------------------------------- many lines


def _lines_of_stdin() -> Iterator[str]:
    """Yield lines as they come; of UTF-8, or UTF-16 with the mark that PowerShell 5 writes."""
    first = sys.stdin.buffer.readline()
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        whole = (first + sys.stdin.buffer.read()).decode("utf-16", "replace")
        yield from whole.removesuffix("\n").split("\n")
        return
    lines = chain([first.removeprefix(codecs.BOM_UTF8)] if first else [], sys.stdin.buffer)
    yield from (line.decode("utf-8", "replace") for line in lines)


def _answer_lines(conversation: Conversation, *, separate: bool) -> None:
    """Answer every line of stdin with one line on stdout, a blank one with a blank one.

    A command that fails ends the program, because the lines after it rely on it.
    """
    for number, raw in enumerate(_lines_of_stdin(), 1):
        line = raw.strip()
        if not line:
            typer.echo()
            continue
        if separate and not line.startswith("/"):
            conversation.clear()
        try:
            if not _respond(conversation, line, at_terminal=False):
                return
        except microgpt.MicrogptError as error:
            if not line.startswith("/"):
                raise
            raise microgpt.MicrogptError(f"line {number}: {error}", hint=error.hint) from error


def _talk(conversation: Conversation) -> None:
    """Read and answer messages until the user leaves."""
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - for terminals only

    typer.echo(f"microgpt chat (block_size={conversation.model.config.block_size})")
    instruct = ", /system TEXT to instruct the assistant"
    can_instruct = conversation.model.tokenizer.has_system
    typer.echo(f"type /quit to exit, /clear to reset history{instruct * can_instruct}\n")
    prompt: PromptSession[str] = PromptSession()
    was_interrupted = False
    while True:
        try:
            line = _read(prompt)
            was_interrupted = False
            if line and not _respond(conversation, line, at_terminal=True):
                return
        except EOFError:
            return
        except KeyboardInterrupt:  # at the prompt: clears the line, and twice it leaves
            if was_interrupted and not prompt.default_buffer.text:
                return
            was_interrupted = True
        except Exception as error:
            if not report_error(error, spelled=str):  # /set takes the names of fields
                raise


def _read(prompt: "PromptSession[str]") -> str:
    """Return one line, or several between triple quotes; stripped."""
    text = prompt.prompt(USER).strip()
    if not text.startswith(QUOTES):
        return text
    text = text.removeprefix(QUOTES)
    while not text.endswith(QUOTES):
        text += "\n" + prompt.prompt(MORE).rstrip()
    return text.removesuffix(QUOTES).strip()
