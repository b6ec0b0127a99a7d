"""The command `microgpt-cli`: the table of its commands, and its exit status.

The module of a command is imported when that command is called, so the root `--help` and shell
completion load neither the library nor NumPy.
"""

import errno
import sys
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from microgpt_cli.system import reader_has_left
from microgpt_cli.terminal import discard, open_streams, remark

__all__ = ["app", "run"]

COMMANDS = {  # each is `command` of the module of that name in commands/
    "train": "Train a model on text and save it.",
    "generate": "Print samples of a trained model.",
    "chat": "Talk with a trained chat model.",
    "info": "Show the contents of a model directory.",
    "plot": "Draw the learning curve of a training run.",
    "score": "Measure how well a model predicts text.",
    "explain": "Show attention and choices of a model that reads a text.",
    "export": "Write a copy of a model in another format.",
    "evaluate": "Ask a chat model questions and count exact answers.",
    "bench": "Measure the speed of the engines on this machine.",
    "data": "Write sample data, or describe your own.",
}


class Commands(TyperGroup):
    """A group whose commands are names and help lines until one is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, summary in COMMANDS.items():
            self.add_command(TyperCommand(name, help=summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that is called."""
        name, command, rest = super().resolve_command(ctx, args)
        if name:
            member = import_module(f"microgpt_cli.commands.{name}").command
            if not isinstance(member, typer.Typer):
                function, member = member, typer.Typer(add_completion=False, rich_markup_mode=None)
                member.command(name)(function)
            command = typer.main.get_command(member)
        return name, command, rest


app = typer.Typer(
    name="microgpt-cli",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help set by rich would take 0.2 s longer to appear
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:  # noqa: FBT001 - typer's signature
    if value:
        from importlib.metadata import version  # noqa: PLC0415 - 15 ms

        typer.echo(
            f"microgpt-cli {version('microgpt-cli')} (microgpt-lib {version('microgpt-lib')})"
        )
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Train, sample and inspect small GPTs."""


def _leave_with_reader() -> NoReturn:
    discard(sys.stdout.fileno())  # Python writes the rest at exit
    sys.exit(0)


def run() -> None:
    """Run the command line; a user's error ends as one line on stderr with status 1.

    A reader of stdout that leaves ends the command with status 0. Typer handles wrong usage
    (status 2) and Ctrl-C (status 130).
    """
    open_streams()
    try:
        app()
    except SystemExit as status:
        if isinstance(status.__context__, BrokenPipeError):  # typer gives it status 1
            _leave_with_reader()
        raise
    except OSError as error:  # a full disk under stdout, or a directory that was removed
        if reader_has_left(error):
            _leave_with_reader()
        place = "stdin or stdout" if error.errno == errno.EBADF else error.filename
        remark(f"error: {f'{place}: ' if place else ''}{error.strerror or error}")
        sys.exit(1)
    except Exception as error:
        from microgpt_cli.errors import report_error  # noqa: PLC0415 - loads the library

        if not report_error(error):
            raise
        sys.exit(1)
