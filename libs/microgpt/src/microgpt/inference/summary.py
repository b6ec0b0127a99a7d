"""A model in few words, for display."""

from microgpt.corpus.excerpts import vocabulary_of
from microgpt.data import BaseTokenizer
from microgpt.engines.base import Engine
from microgpt.storage.model_directory import TrainingRecord

__all__ = ["one_line", "rows_of"]

SHOWN = {"learning_rate", "batch_size", "schedule", "optimizer"}  # of the options of a run


def one_line(engine: Engine, tokenizer: BaseTokenizer, training: TrainingRecord | None) -> str:
    """Return sizes and training of a model on one line."""
    n_tokens, n_params = tokenizer.vocab_size, engine.config.n_params
    parts = [_sizes(engine), f"{n_tokens:,} tokens, {n_params:,} weights"]
    return "; ".join(
        [*parts, f"{training.steps:,} steps, {_loss(training)}"] if training else parts
    )


def rows_of(
    engine: Engine, tokenizer: BaseTokenizer, training: TrainingRecord | None
) -> dict[str, str]:
    """Return what is known of a model, by name."""
    kind = " for chat" * tokenizer.is_chat
    rows = {
        "sizes": _sizes(engine),
        "vocabulary": vocabulary_of(tokenizer) + kind,
        "weights": f"{engine.config.n_params:,} of type {engine.parameters.dtype}",
        "engine": engine.name,
    }
    if training:
        options = [
            f"{name} {_short(value)}" for name, value in training.options.items() if name in SHOWN
        ]
        seed = [] if training.seed is None else [f"seed {training.seed}"]
        rows["training"] = ", ".join([f"{training.steps:,} steps", *options, *seed])
        rows["loss"] = f"{_loss(training)} (nats per token)"
    return rows


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sizes(engine: Engine) -> str:
    c = engine.config
    return f"n_embd {c.n_embd}, n_head {c.n_head}, n_layer {c.n_layer}, block_size {c.block_size}"


def _loss(training: TrainingRecord) -> str:
    """Return the least validation loss, or without validation the loss of the last step."""
    if training.val_loss is not None:
        return f"validation loss {training.val_loss:.3f}"
    return "no loss" if training.loss is None else f"last loss {training.loss:.3f}"
