"""The model that is served: loaded at start, and again on demand beside the old one."""

import time
from pathlib import Path

from microgpt import LanguageModel, load

from microgpt_serve.serving.errors import UnavailableError

__all__ = ["ModelStore"]


class ModelStore:
    """Holds the model of a directory.

    Requests take `model` once and keep it, so that a swap does not concern them.

    Args:
        directory: a model directory.

    Attributes:
        id: how clients call it.
        created: when it was loaded, in seconds since 1970.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._model: LanguageModel | None = None
        self.id = Path(directory).resolve().name or "microgpt"
        self.created = int(time.time())

    @property
    def is_loaded(self) -> bool:
        """Whether there is a model."""
        return self._model is not None

    @property
    def model(self) -> LanguageModel:
        """The model.

        Raises:
            UnavailableError: it is not loaded yet.
        """
        if self._model is None:
            raise UnavailableError("the model is still loading", "loading")
        return self._model

    def load(self) -> LanguageModel:
        """Read the model, check it, and put it in the place of the one before.

        Raises:
            CheckpointError: it cannot be read or is damaged; the one before stays.
        """
        model = load(self._directory, threads=1)  # many texts at once, each on one core
        model.generate(1, max_tokens=1)  # what cannot generate is not taken
        self._model, self.created = model, int(time.time())
        return model
