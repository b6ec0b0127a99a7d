"""The served model: loaded at start, reloaded on SIGHUP."""

import time
from pathlib import Path

from microgpt import LanguageModel, load

from microgpt_serve.serving.errors import UnavailableError

__all__ = ["ModelStore"]


class ModelStore:
    """The model of a directory.

    A request takes `model` once and keeps it, so a reload does not affect requests in flight.

    Args:
        directory: a model directory.
        threads: cores to use; None for all.

    Attributes:
        id: name of the model for clients.
        created: time of loading, in seconds since 1970.
    """

    def __init__(self, directory: str, threads: int | None = None) -> None:
        self._directory, self._threads = directory, threads
        self._model: LanguageModel | None = None
        self.id = Path(directory).resolve().name or "microgpt"
        self.created = int(time.time())

    @property
    def is_loaded(self) -> bool:
        """Whether a model is loaded."""
        return self._model is not None

    @property
    def model(self) -> LanguageModel:
        """The model.

        Raises:
            UnavailableError: no model is loaded yet.
        """
        if self._model is None:
            raise UnavailableError("the model is still loading", "loading")
        return self._model

    def load(self) -> LanguageModel:
        """Read and check the model, then replace the previous one.

        Raises:
            CheckpointError: the model cannot be read; the previous one is kept.
        """
        model = load(self._directory, threads=self._threads)
        model.generate(1, max_tokens=1)  # a model that cannot generate is refused
        self._model, self.created = model, int(time.time())
        return model
