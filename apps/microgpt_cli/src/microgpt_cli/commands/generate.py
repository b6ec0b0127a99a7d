"""`microgpt-cli generate`: new documents from a trained model."""

from pathlib import Path
from typing import Annotated

import microgpt
import typer

from microgpt_cli.options import ModelDir, Seed, Temperature, Threads, TopK, TopP
from microgpt_cli.terminal import shown

__all__ = ["command"]


def command(
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
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most characters after the prompt.", show_default="what fits"),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Text before which a sample ends; may be given repeatedly."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Print samples of a trained model."""
    microgpt.SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)  # which checks them
    model = microgpt.load(model_dir, threads=threads)
    for i in range(num_samples):  # one by one, so that each is seen as soon as it is there
        (sample,) = model.generate(
            1,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            prompt=prompt,
            max_tokens=max_tokens,
            stop=stop or (),
            seed=seed + i,
        )
        # Not typer.echo, which leaves out what looks like a colour.
        print(f"sample {i + 1:2d}: {shown(sample)}", flush=True)  # noqa: T201
