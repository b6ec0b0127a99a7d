"""`microgpt-cli score`: the loss of a trained model on a file."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import microgpt
import typer

from microgpt_cli.datasets import check_kind, read_dataset
from microgpt_cli.options import JsonField, ModelDir, Split, Threads
from microgpt_cli.plan import Source

__all__ = ["command"]


def command(
    *,
    model_dir: ModelDir = Path("output"),
    input: Annotated[  # noqa: A002 - the name of the flag
        list[str], typer.Option(help="Text file, folder, - for stdin; JSONL for a chat model.")
    ],
    split: Split = "line",
    field: JsonField = None,
    per_document: Annotated[
        bool, typer.Option("--per-document", help="Print the loss of each document too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: Threads = None,
) -> None:
    """Measure how well a model predicts text. All characters and ends of documents count."""
    model = microgpt.load(model_dir, threads=threads)
    check_kind(split, field, chat=model.tokenizer.is_chat)
    source = Source(input, chat=model.tokenizer.is_chat, split=split, field=field)
    dataset = read_dataset(source.input, source)
    total = model.measure(dataset)
    figures: dict[str, Any] = {
        "n_tokens": total.n_tokens,
        "nats_per_token": total.nats_per_token,
        "bits_per_token": total.bits_per_token,
        "bits_per_byte": total.bits_per_byte,
        "perplexity": total.perplexity,
    }
    documents = []
    if per_document:
        documents = [model.measure(dataset.only(i)).nats_per_token for i in range(len(dataset))]
    if as_json:
        # JSON has no infinity, and no figure for no bytes.
        figures = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        typer.echo(json.dumps(figures | ({"documents": documents} if per_document else {})))
        return
    for i, nats_per_token in enumerate(documents, 1):
        typer.echo(f"{i:6d}  {nats_per_token:.4f}")
    for label, value in figures.items():
        typer.echo(f"{label + ':':<17}{value if label == 'n_tokens' else f'{value:.4f}'}")
