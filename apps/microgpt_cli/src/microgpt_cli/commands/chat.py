"""`microgpt-cli chat`: talk with a model, at a terminal or through a pipe."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import microgpt
import typer

from microgpt_cli.conversation import HELP, Session, Settings
from microgpt_cli.errors import report_error
from microgpt_cli.options import ModelDir, Seed, Temperature, Threads, TopK, TopP
from microgpt_cli.terminal import counted, printable, remark

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

__all__ = ["command"]

USER, ASSISTANT, MORE = "you> ", "microgpt> ", "...  "
QUOTES = '"""'


def command(
    *,
    model_dir: ModelDir = Path("output"),
    temperature: Temperature = 0.5,
    seed: Seed = 42,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest reply.", show_default="what fits")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends a reply; may be given repeatedly.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Talk with a trained chat model. Piped in, each line gets one line of answer."""
    microgpt.SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    model = microgpt.load(model_dir, threads=threads)
    # Raises now if the model cannot chat at all.
    nothing: microgpt.Message = {"role": "user", "content": ""}
    microgpt.build_prompt([nothing], model.tokenizer, model.config.block_size)
    settings = Settings(temperature, top_k, top_p, max_tokens, stop or [], seed)
    session = Session(model, settings)
    if sys.stdin.isatty() and sys.stdout.isatty():
        _talk(session)
    else:
        _answer_lines(session)


def _note(text: str) -> None:
    remark(f"({text})")


# ---------------------------------------------------------------- one line of input


def _respond(session: Session, line: str, *, at_terminal: bool) -> bool:
    """Carry out a command or reply to a message; return False to leave."""
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if not line.startswith("/"):
        if n_unknown := session.ask(line):
            _note(f"{counted(n_unknown, 'character')} left out that the model does not know")
        _reply(session, at_terminal=at_terminal)
    elif name == "/quit":
        return False
    elif name == "/clear":
        session.clear()
        typer.echo("(history cleared)", err=not at_terminal)
    elif name == "/regen":
        if session.take_back():
            _reply(session, at_terminal=at_terminal)
        else:
            _note("nothing was said yet")
    elif name == "/save" and argument:
        session.save(Path(argument))
        _note(f"saved to {argument}")
    elif name == "/set" and argument:
        setting, _, value = argument.partition(" ")
        session.settings.change(setting, value.strip())
    elif name in {"/set", "/help"}:
        typer.echo(HELP if name == "/help" else str(session.settings), err=not at_terminal)
    else:
        what = "file after /save" if name == "/save" else f"command {line!r}"
        raise microgpt.ConfigError(f"no {what}; /help shows them")
    return True


def _reply(session: Session, *, at_terminal: bool) -> None:
    """Stream one reply to stdout; at a terminal, Ctrl-C stops it."""
    stream = session.reply()
    if stream.prompt:
        _note_what_is_left_out(session, stream.prompt)
    sys.stdout.write(ASSISTANT if at_terminal else "")
    said = ""
    with _stoppable(at_terminal=at_terminal) as stopped:
        for piece in stream:
            said += piece
            sys.stdout.write(printable(piece, one_line=not at_terminal))
            sys.stdout.flush()
            if stopped:
                break
    sys.stdout.write("\n")
    sys.stdout.flush()
    session.keep(said)
    if stopped:
        _note("stopped")


def _note_what_is_left_out(session: Session, prompt: microgpt.ChatPrompt) -> None:
    if prompt.turns_dropped:
        _note(f"{counted(prompt.turns_dropped, 'old turn')} left out to fit")
    n_read = len(session.model.tokenizer.decode(prompt.token_ids))
    n_cut = len(session.messages[-1]["content"]) - n_read
    if n_cut > 0:  # only a message that stands alone is ever cut
        _note(f"too long: {counted(n_cut, 'character')} cut off at the beginning")


@contextmanager
def _stoppable(*, at_terminal: bool) -> Iterator[list[int]]:
    """Collect Ctrl-C in the list that is yielded; through a pipe it ends the program instead."""
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


def _answer_lines(session: Session) -> None:
    """Answer every line of stdin with one line on stdout.

    A command that fails ends this: what follows relies on it, and nobody is there to see.
    """
    for number, raw in enumerate(sys.stdin.buffer, 1):
        line = raw.decode("utf-8", "replace").strip()
        try:
            if line and not _respond(session, line, at_terminal=False):
                return
        except microgpt.MicrogptError as error:
            if not line.startswith("/"):
                raise
            raise microgpt.MicrogptError(f"line {number}: {error}", hint=error.hint) from error


def _talk(session: Session) -> None:
    """Go on until the person leaves."""
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - for terminals only

    typer.echo(f"microgpt chat (block_size={session.model.config.block_size})")
    typer.echo("type /quit to exit, /clear to reset history\n")
    prompt: PromptSession[str] = PromptSession()
    was_interrupted = False
    while True:
        try:
            line = _read(prompt)
            was_interrupted = False
            if line and not _respond(session, line, at_terminal=True):
                return
        except EOFError:
            return
        except KeyboardInterrupt:  # at the prompt: the line is gone, a second one leaves
            if was_interrupted and not prompt.default_buffer.text:
                return
            was_interrupted = True
        except Exception as error:
            if not report_error(error):
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
