"""From a model directory to a model in use."""

from microgpt.checks import PathLike
from microgpt.inference.language_model import LanguageModel
from microgpt.storage.model_directory import read_model

__all__ = ["load"]


def load(
    directory: PathLike,
    *,
    engine: str = "auto",
    dtype: str | None = None,
    threads: int | None = None,
) -> LanguageModel:
    """Load a model from its directory.

    Args:
        directory: holds `meta.json` and the weights.
        engine: see `ENGINES`.
        dtype: float32 or float64; None for the one it was saved from.
        threads: cores to use; None for all.

    Returns:
        The model, ready to use.

    Raises:
        CheckpointError: the directory does not hold a sound model.
        ConfigError: there is no such dtype.
        EngineError: there is no such engine, or it cannot run here.
    """
    stored = read_model(directory, dtype)
    return LanguageModel(
        stored.tokenizer,
        stored.parameters,
        engine=engine,
        threads=threads,
        training=stored.training,
        windows=stored.windows,
    )
