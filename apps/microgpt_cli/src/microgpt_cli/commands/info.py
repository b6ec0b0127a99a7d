"""`microgpt-cli info`: the contents of a model directory."""

from pathlib import Path

import microgpt
import typer

from microgpt_cli.options import ModelDir

__all__ = ["command"]


def command(*, model_dir: ModelDir = Path("output")) -> None:
    """Show the contents of a model directory."""
    model = microgpt.load(model_dir)
    config, tokenizer = model.config, model.tokenizer
    rows: dict[str, object] = {
        "vocab_size": config.vocab_size,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
        "block_size": config.block_size,
        "charset": list(tokenizer.chars),
    }
    if tokenizer.is_chat:
        rows["special_tokens"] = list(tokenizer.special_tokens)
    rows |= {"num_params": config.n_params, "dtype": model.dtype, "engine": model.engine.name}
    typer.echo("microgpt model")
    for label, value in rows.items():
        typer.echo(f"  {label + ':':<17}{value}")
