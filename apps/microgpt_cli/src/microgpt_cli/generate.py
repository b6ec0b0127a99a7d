"""`microgpt-cli generate`: new documents from a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from microgpt_cli.options import ModelDir, Seed, Temperature, Threads, TopK, TopP

__all__ = ["generate"]


def generate(
    *,
    model_dir: ModelDir = Path("output"),
    num_samples: Annotated[
        int, typer.Option(min=0, help="How many; the one at index i is drawn with seed SEED + i.")
    ] = 20,
    temperature: Temperature = 0.5,
    seed: Seed = 42,
    prompt: Annotated[str, typer.Option(help="How every sample begins.")] = "",
    top_k: TopK = None,
    top_p: TopP = 1.0,
    threads: Threads = None,
) -> None:
    """Print samples of a trained model."""
    import microgpt  # noqa: PLC0415 - see main

    model = microgpt.load(model_dir, threads=threads)
    for i in range(num_samples):  # one by one, so that each is seen as soon as it is there
        (sample,) = model.generate(
            1, temperature=temperature, top_k=top_k, top_p=top_p, prompt=prompt, seed=seed + i
        )
        typer.echo(f"sample {i + 1:2d}: {sample}")
