"""Options that several commands share, defined once."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Dtype",
    "Engine",
    "Long",
    "LossOn",
    "ModelDir",
    "Schedule",
    "Seed",
    "Temperature",
    "Threads",
    "TopK",
    "TopP",
    "positive",
]


class Dtype(StrEnum):
    """Types of numbers that a model can be made of."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


class Engine(StrEnum):
    """Ways to compute."""

    AUTO = "auto"
    NATIVE = "native"
    VECTORIZED = "vectorized"
    SCALAR = "scalar"


class Schedule(StrEnum):
    """What the learning rate does after the warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


class Long(StrEnum):
    """What becomes of documents that are longer than the block."""

    TRUNCATE = "truncate"
    SPLIT = "split"
    SKIP = "skip"


class LossOn(StrEnum):
    """Which tokens of a conversation count in the loss."""

    ALL = "all"
    ASSISTANT = "assistant"


def positive(value: float | None) -> float | None:
    """Accept only finite numbers above 0 (a callback for typer)."""
    if value is not None and not 0.0 < value < math.inf:
        raise typer.BadParameter(f"{value} is not a finite number above 0.")
    return value


ModelDir = Annotated[Path, typer.Option(help="Directory of a trained model.", show_default=True)]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all randomness.")]
Temperature = Annotated[
    float, typer.Option(help="0 for the likeliest text; higher is more surprising.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, help="Processor cores to use; results do not depend on it.", show_default="all"
    ),
]
TopK = Annotated[
    int | None, typer.Option(min=1, help="Choose among the K likeliest characters only.")
]
TopP = Annotated[
    float, typer.Option(help="Choose among the likeliest characters that reach probability P.")
]
