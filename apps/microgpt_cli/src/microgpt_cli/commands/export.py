"""`microgpt-cli export`: a model in another format."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import microgpt
import typer

from microgpt_cli.metrics import remove_run
from microgpt_cli.options import Directory, ModelDir, chosen_directory
from microgpt_cli.terminal import warn
from microgpt_cli.writing import refuse_to_overwrite

__all__ = ["command"]


class Format(StrEnum):
    """Formats of weights."""

    JSON = "json"
    SAFETENSORS = "safetensors"


def command(
    directory: Directory = None,
    *,
    model_dir: ModelDir = None,
    output: Annotated[Path, typer.Option(help="Directory for the copy.")],
    format: Annotated[  # noqa: A002 - the name of the flag
        Format, typer.Option(help="json, which the Rust system reads too, or safetensors.")
    ] = Format.SAFETENSORS,
    half: Annotated[
        bool, typer.Option("--half", help="Round the weights to float16; safetensors only.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a model in OUTPUT.")] = False,
) -> None:
    """Write a copy of a model in another format. Every command and the service read both."""
    if half and format is not Format.SAFETENSORS:
        raise typer.BadParameter("it needs --format safetensors.", param_hint="--half")
    if not force:
        refuse_to_overwrite(output)
    source = chosen_directory(directory, model_dir)
    model = microgpt.load(source, engine="vectorized")  # without the compiled library
    # The snapshots and metrics of another model would belong to nothing.
    is_in_place = output.resolve() == source.resolve()
    with microgpt.lock_directory(output):
        model.save(
            output,
            format=format.value,
            half=half,
            before_replacing=(lambda: None) if is_in_place else partial(remove_run, output),
        )
    if format is Format.JSON and (reason := _not_for_rust(model.tokenizer)):
        warn(f"the Rust system cannot read this model: {reason}")
    weights = output / f"weights.{format.value}"
    typer.echo(f"weights saved to {weights} ({weights.stat().st_size:,} bytes)")
    typer.echo(f"metadata saved to {output / 'meta.json'}")


def _not_for_rust(tokenizer: microgpt.BaseTokenizer) -> str:
    """Return why the Rust system cannot read a model, or nothing."""
    if isinstance(tokenizer, microgpt.SubwordTokenizer):
        return "its tokens are subwords"
    return "it has a token for messages of the system" * tokenizer.has_system
