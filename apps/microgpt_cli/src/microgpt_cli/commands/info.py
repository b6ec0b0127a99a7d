"""`microgpt-cli info`: the contents of a model directory."""

import microgpt
import typer

from microgpt_cli.options import Directory, ModelDir, chosen_directory
from microgpt_cli.terminal import printable

__all__ = ["command"]


def command(directory: Directory = None, *, model_dir: ModelDir = None) -> None:
    """Show the contents of a model directory."""
    model = microgpt.load(chosen_directory(directory, model_dir))
    config, tokenizer = model.config, model.tokenizer
    rows: dict[str, object] = {
        "vocab_size": config.vocab_size,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
        "block_size": config.block_size,
    }
    if isinstance(tokenizer, microgpt.SubwordTokenizer):
        longest = max(range(tokenizer.n_plain), key=lambda i: len(tokenizer.token_bytes(i)))
        rows["subwords"] = (
            f"{tokenizer.n_plain - 256} besides single bytes, longest "
            f"{tokenizer.token_text(longest)!r}"
        )
    else:
        rows["charset"] = list(tokenizer.chars)
    if tokenizer.is_chat:
        rows["special_tokens"] = list(tokenizer.special_tokens)
    if model.windows:
        rows["prompts"] = "any part of a document, without BOS"
    rows |= {"num_params": config.n_params, "dtype": model.dtype, "engine": model.engine.name}
    if model.training:
        made = _training_rows(model.training)
        rows |= {label: printable(str(value), one_line=True) for label, value in made.items()}
    typer.echo("microgpt model")
    for label, value in rows.items():
        typer.echo(f"  {label + ':':<17}{value}")


def _training_rows(training: microgpt.TrainingRecord) -> dict[str, object]:
    """Return how the model was made, by label; of its options, those that are not the default."""
    defaults = microgpt.TrainConfig()
    options = [
        f"{name}={value}"
        for name, value in training.options.items()
        if value != getattr(defaults, name, None)
    ]
    rows: dict[str, object] = {
        "trained": f"{training.steps} steps",
        "options": ", ".join(options),
        "seed": "unknown" if training.seed is None else training.seed,
        "data_digest": training.data_digest[:12],
    }
    if training.loss is not None:
        rows["loss"] = f"{training.loss:.4f}"
    if training.val_loss is not None:
        rows["val_loss"] = f"{training.val_loss:.4f}"
    if origin := training.init_from:
        made = f", trained {origin.training.steps} steps" if origin.training else ""
        rows["init from"] = f"a model with the weights {origin.weights_digest[:12]}{made}"
    return rows | {"library": f"microgpt-lib {training.library_version}"}
