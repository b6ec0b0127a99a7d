"""`microgpt-cli score`: the loss of a trained model on a file."""

import json
import math
from pathlib import Path
from typing import Annotated

import microgpt
import typer

from microgpt_cli.datasets import read_dataset
from microgpt_cli.options import ModelDir, Threads

__all__ = ["command"]


def command(
    *,
    model_dir: ModelDir = Path("output"),
    input: Annotated[  # noqa: A002 - the name of the flag
        Path, typer.Option(help="Text file, or JSONL for a chat model.")
    ],
    per_document: Annotated[
        bool, typer.Option("--per-document", help="Print the loss of each document too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: Threads = None,
) -> None:
    """Measure how well a model predicts a file. All characters and ends of documents count."""
    model = microgpt.load(model_dir, threads=threads)
    dataset = read_dataset(input, chat=model.tokenizer.is_chat)
    total = model.measure(dataset)
    figures: dict[str, float | None] = {
        "n_tokens": total.n_tokens,
        "nats_per_token": total.nats_per_token,
        "bits_per_token": total.bits_per_token,
        "perplexity": total.perplexity,
    }
    documents = []
    if per_document:
        documents = [model.measure(dataset.only(i)).nats_per_token for i in range(len(dataset))]
    if as_json:
        if math.isinf(total.perplexity):
            figures["perplexity"] = None  # JSON has no infinity
        typer.echo(json.dumps(figures | ({"documents": documents} if per_document else {})))
        return
    for i, nats_per_token in enumerate(documents, 1):
        typer.echo(f"{i:6d}  {nats_per_token:.4f}")
    for label, value in figures.items():
        typer.echo(f"{label + ':':<17}{value if label == 'n_tokens' else f'{value:.4f}'}")
