"""Flags that several commands share, and flags made from the schema of a run."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import microgpt
import typer

__all__ = [
    "Directory",
    "Force",
    "JsonField",
    "MaxTokens",
    "ModelDir",
    "Seed",
    "Split",
    "Stop",
    "Temperature",
    "Threads",
    "TopK",
    "TopP",
    "VocabSize",
    "check_vocab_size",
    "chosen_directory",
    "field",
    "positive",
]

MODEL_DIR = Path("output")
SCHEMA = get_type_hints(microgpt.TrainConfig, include_extras=True)


def field(name: str, *flags: str, **attributes: Any) -> Any:
    """Return the flag of a field of `TrainConfig`, with its description and bounds."""
    _, about = get_args(SCHEMA[name])
    text = about.description.partition(";")[0]
    attributes = {"help": f"{text[0].upper()}{text[1:]}.", "min": about.ge} | attributes
    return typer.Option(*flags, **attributes)


def positive(value: float | None) -> float | None:
    """Accept only finite numbers above 0 (a callback for typer)."""
    if value is not None and not 0.0 < value < math.inf:
        raise typer.BadParameter(f"{value} is not a finite number above 0.")
    return value


def check_vocab_size(vocab_size: int | None, tokenizer: str) -> None:
    """Raise BadParameter for a number of tokens that the data itself decides."""
    if vocab_size is not None and tokenizer != "bpe":
        raise typer.BadParameter("it needs --tokenizer bpe.", param_hint="--vocab-size")


def chosen_directory(directory: Path | None, model_dir: Path | None) -> Path:
    """Return the model's directory, which may be an argument, `--model-dir` or both.

    Raises:
        BadParameter: they differ.
    """
    if directory and model_dir and directory != model_dir:
        raise typer.BadParameter(
            f"it is {model_dir}, expected the same as the argument, {directory}; give one of them.",
            param_hint="--model-dir",
        )
    return directory or model_dir or MODEL_DIR


JsonField = Annotated[
    str | None,
    typer.Option(help="Field of each JSON line that is the document.", show_default="plain text"),
]
ModelDir = Annotated[Path | None, typer.Option(help="The same as DIR.", show_default=False)]
Directory = Annotated[  # `chosen_directory` makes one of the two
    Path | None,
    typer.Argument(metavar="[DIR]", help=f"Directory of a trained model.  [default: {MODEL_DIR}]"),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file OUTPUT.")]
Seed = Annotated[int, field("seed", min=0)]
Temperature = Annotated[
    float, typer.Option(help="Sampling temperature; 0 for the most likely text.")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Processor cores; no result depends on them.", show_default="all"),
]
TopK = Annotated[int | None, typer.Option(min=1, help="Keep the K most likely tokens.")]
TopP = Annotated[float, typer.Option(help="Keep the most likely tokens up to probability P.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Maximum length in tokens after the prompt; may exceed the block.",
        show_default="rest of the block",
    ),
]
Split = Annotated[
    Literal["line", "paragraph", "file"],
    typer.Option(help="Part of a file that is one document; lines are stripped."),
]
VocabSize = Annotated[int | None, field("vocab_size", min=1, show_default="1024 with bpe")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the output; may be repeated.")]
