"""The command `microgpt-cli`: its subcommands, and what becomes of their errors.

Only typer is imported here; each command imports the library when it runs, so that `--help` and
shell completion stay quick.
"""

import errno
import io
import sys
from typing import Annotated

import typer

from microgpt_cli.commands import (
    bench,
    chat,
    data,
    evaluate,
    export,
    generate,
    info,
    plot,
    score,
    train,
)
from microgpt_cli.terminal import open_streams, remark, report_error

__all__ = ["app", "run"]

app = typer.Typer(
    name="microgpt-cli",
    help="Train, sample and inspect small GPTs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help set by rich would take 0.2 s longer to appear
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("info")(info.info)
app.command("plot")(plot.plot)
app.command("score")(score.score)
app.command("export")(export.export)
app.command("evaluate")(evaluate.evaluate)
app.command("bench")(bench.bench)
app.add_typer(data.app, name="data")


def _print_version(value: bool) -> None:  # noqa: FBT001 - typer's signature
    if value:
        from importlib.metadata import version  # noqa: PLC0415

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


def run() -> None:
    """Run the command line; errors that are the user's end as one line on stderr, status 1.

    Typer does the rest: status 2 for wrong usage, 130 for Ctrl-C, silence when our reader leaves.
    """
    open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model may know characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except OSError as error:  # a full disk under our output, or a directory that vanished
        place = "stdin or stdout" if error.errno == errno.EBADF else error.filename
        remark(
            f"error: {place}: {error.strerror}" if place else f"error: {error.strerror or error}"
        )
        sys.exit(1)
    except Exception as error:
        if not report_error(error):
            raise
        sys.exit(1)
