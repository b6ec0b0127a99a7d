"""`microgpt-cli data`: sample data to begin with."""

import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="Sample data to begin with.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Sample data to begin with."""


@app.command()
def names(
    *,
    output: Annotated[Path | None, typer.Option(help="File to write; stdout if not given.")] = None,
) -> None:
    """Write a list of given names, one per line."""
    content = (files("microgpt_cli") / "sample_data" / "names.txt").read_bytes()
    if output is None:
        sys.stdout.buffer.write(content)
        return
    from microgpt import DataError  # noqa: PLC0415 - see main

    try:
        if output.exists() and output.read_bytes() != content:
            raise DataError(f"{output} exists and holds something else; name another file")
        staged = output.with_name(output.name + ".staged")
        staged.write_bytes(content)
        staged.replace(output)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error.strerror or error}") from error
