"""`microgpt-cli generate`: new documents from a trained model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import microgpt
import typer

from microgpt_cli.options import MaxTokens, ModelDir, Seed, Stop, Temperature, Threads, TopK, TopP
from microgpt_cli.terminal import counted, shown, warn

__all__ = ["command"]


def command(
    *,
    model_dir: ModelDir = Path("output"),
    num_samples: Annotated[
        int,
        typer.Option(min=0, help="Number of samples; sample i, from 0, has seed SEED + i."),
    ] = 20,
    temperature: Temperature = microgpt.SamplingConfig.temperature,
    seed: Seed = microgpt.SamplingConfig.seed,
    prompt: Annotated[str, typer.Option(help="Beginning of every sample.")] = "",
    top_k: TopK = microgpt.SamplingConfig.top_k,
    top_p: TopP = microgpt.SamplingConfig.top_p,
    max_tokens: MaxTokens = microgpt.SamplingConfig.max_tokens,
    stop: Stop = None,
    threads: Threads = None,
) -> None:
    """Print samples of a trained model."""
    config = microgpt.SamplingConfig(temperature, top_k, top_p, max_tokens, stop or [], seed)
    model = microgpt.load(model_dir, threads=threads)
    start = model.prompt(prompt, too_long="truncate" if max_tokens else "error")
    if start.tokens_dropped:
        dropped = counted(start.tokens_dropped, "token")
        warn(f"{dropped} at the beginning of the prompt do not fit into the block and are not read")
    for i in range(num_samples):  # one by one, so that each is printed as soon as it is drawn
        text = prompt + model.reply(start, replace(config, seed=seed + i)).content
        # Not typer.echo, which removes the escape sequences of colours.
        print(f"sample {i + 1:2d}: {shown(text)}", flush=True)  # noqa: T201
