"""`microgpt-cli info`: what a model directory holds."""

from pathlib import Path

import typer

from microgpt_cli.options import ModelDir

__all__ = ["info"]


def info(*, model_dir: ModelDir = Path("output")) -> None:
    """Show what a trained model is made of."""
    import microgpt  # noqa: PLC0415 - see main

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
