"""The served models: loaded at start, loaded again on SIGHUP."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from microgpt import CheckpointError, LanguageModel, MicrogptError, holds_model, load

from microgpt_serve.serving.batcher import Batcher
from microgpt_serve.serving.errors import ApiError, UnavailableError, explained
from microgpt_serve.serving.log import log

__all__ = ["ModelStore", "ServedModel", "model_directories"]

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ServedModel:
    """A model of a directory as requests see it that begin before the next reload.

    Args:
        id: name of the model for clients: the name of the directory, or of the link to it.
        model: of the directory.
        batcher: generates the texts of the model, and of those that replace it.
        created: time of loading, in seconds since 1970.
    """

    id: str
    model: LanguageModel
    batcher: Batcher
    created: int = field(default_factory=lambda: int(time.time()))


class ModelStore:
    """The models of one or several directories.

    Args:
        model_dir: a model directory, several with commas between them, or one that holds several.
        make_batcher: returns the batcher for a model's name.
        threads: cores to use; None for all.
        max_bytes: most memory for the weights of all models; 0 for no limit.
        default: name of the default model; if there is none, the first is it.
    """

    def __init__(
        self,
        model_dir: str,
        make_batcher: Callable[[str], Batcher],
        threads: int | None = None,
        max_bytes: int = 0,
        default: str = "",
    ) -> None:
        self._model_dir, self._make_batcher = model_dir, make_batcher
        self._threads, self._max_bytes = threads, max_bytes
        self._default = default
        self._served: dict[str, ServedModel] = {}  # by name, the default model first

    def __iter__(self) -> Iterator[ServedModel]:
        """Yield the models, the default first."""
        return iter(list(self._served.values()))

    @property
    def is_loaded(self) -> bool:
        """Whether the models are loaded."""
        return bool(self._served)

    @property
    def is_healthy(self) -> bool:
        """Whether every model accepts more requests."""
        return all(served.batcher.is_healthy for served in self)

    def get(self, name: str | None = None) -> ServedModel:
        """Return the model of a name, the default for None.

        Raises:
            UnavailableError: no model is loaded yet.
            ApiError: there is no such model (404).
        """
        if not self._served:
            raise UnavailableError("the model is still loading", "loading")
        served = next(iter(self._served.values())) if name is None else self._served.get(name)
        if served is None:
            raise ApiError(
                404,
                f"the model {name!r:.200} does not exist, expected "
                f"{' or '.join(map(repr, self._served))}",
                param="model",
                code="model_not_found",
            )
        return served

    def load(self) -> None:
        """Read and check all models.

        Raises:
            CheckpointError: a model cannot be read, two have the same name, or their weights take
                more memory than allowed; nothing is served then.
        """
        loaded: dict[str, ServedModel] = {}
        directories = model_directories(self._model_dir)
        for name in sorted(directories, key=lambda name: name != self._default):
            model = self._read(directories[name], loaded)
            loaded[name] = ServedModel(name, model, self._make_batcher(name))
        self._served = loaded

    def reload(self) -> None:
        """Read all models again; one that cannot be read is logged, and its old one is kept.

        Requests in flight keep the model that they began with.
        """
        try:
            directories = model_directories(self._model_dir)
        except CheckpointError as error:
            log(logging.ERROR, "cannot reload the models, keeping the old ones", error=str(error))
            return
        for name in self._served.keys() - directories.keys():
            log(logging.WARNING, "the directory is gone, keeping the old model", model=name)
        for name, directory in directories.items():
            others = {other: served for other, served in self._served.items() if other != name}
            try:
                model = self._read(directory, others)
            except MicrogptError as error:
                event = "cannot reload the model, keeping the old one"
                log(logging.ERROR, event, model=name, error=explained(error))
                continue
            old = self._served.get(name)
            batcher = old.batcher if old else self._make_batcher(name)
            self._served = {**self._served, name: ServedModel(name, model, batcher)}
            log(logging.INFO, "model reloaded", model=name)

    def abort_all(self) -> None:
        """Abort all requests, and accept no more."""
        for served in self:
            served.batcher.abort_all()

    def _read(self, directory: Path, others: dict[str, ServedModel]) -> LanguageModel:
        """Return the model of a directory.

        Raises:
            CheckpointError: it cannot be read, or its weights and those of `others` take more
                memory than allowed.
        """
        if not holds_model(directory):
            raise CheckpointError(
                f"there is no model in {directory}, expected MODEL_DIR to be a model directory, "
                "several with commas, or a directory that holds several"
            )
        model = load(directory, threads=self._threads)
        model.generate(1, max_tokens=1)  # a model that cannot generate is refused
        models = [model, *(served.model for served in others.values())]
        n_bytes = sum(each.parameters.flat.nbytes for each in models)
        if 0 < self._max_bytes < n_bytes:
            raise CheckpointError(
                f"the weights of {len(models)} models up to {directory} take "
                f"{n_bytes / MEBIBYTE:,.0f} MiB, expected at most MODELS_MB="
                f"{self._max_bytes // MEBIBYTE}; raise MODELS_MB or serve fewer models"
            )
        return model


def model_directories(model_dir: str) -> dict[str, Path]:
    """Return the directories of MODEL_DIR by the names of their models, at least one.

    Raises:
        CheckpointError: there is none, one cannot be looked into, or two have the same name.
    """
    is_one = os.path.exists(model_dir)  # noqa: PTH110 - false for a name that is too long
    names = [model_dir] if is_one else model_dir.split(",")
    paths = [Path(name.strip()) for name in names if name.strip()]
    directories: dict[str, Path] = {}
    for directory in (directory for path in paths for directory in _models_in(path)):
        if (name := model_id(directory)) in directories:
            raise CheckpointError(
                f"two models are named {name!r}; rename the directory {directory}"
            )
        directories[name] = directory
    if not directories:
        raise CheckpointError(f"MODEL_DIR is {model_dir!r}, expected a model directory")
    return directories


def model_id(directory: Path) -> str:
    """Return the name of a model for clients; a link keeps its own, wherever it leads."""
    name = Path(os.path.abspath(directory)).name or "microgpt"  # noqa: PTH100 - follows no links
    return name.encode(errors="replace").decode()  # of bytes that are not UTF-8, "?"


def _models_in(path: Path) -> list[Path]:
    """Return a model directory, or those inside a directory that holds several."""
    try:
        if holds_model(path) or not path.is_dir():
            return [path]
        return [inside for inside in sorted(path.iterdir()) if _is_model(inside)] or [path]
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _is_model(path: Path) -> bool:
    try:
        return holds_model(path)
    except OSError as error:  # such as lost+found, at the top of a volume
        event = "cannot look into a directory beside the models"
        log(logging.WARNING, event, path=str(path), error=error.strerror)
        return False
