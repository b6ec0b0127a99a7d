"""Interchangeable ways to compute the same model, from clear to fast."""

from microgpt.engines.base import Engine
from microgpt.engines.scalar import ScalarEngine
from microgpt.engines.vectorized import VectorizedEngine
from microgpt.errors import EngineError
from microgpt.parameters import Parameters

__all__ = ["ENGINES", "select"]

_CLASSES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (VectorizedEngine, ScalarEngine)
}

ENGINES = ("auto", *_CLASSES)


def select(name: str, parameters: Parameters, threads: int | None = None) -> Engine:
    """Return the engine of that name, on `parameters`; "auto" is the fastest that runs here.

    Raises:
        EngineError: there is no such engine.
    """
    if name not in ENGINES:
        raise EngineError(f"engine is {name!r}, expected one of {', '.join(ENGINES)}")
    engine = _CLASSES.get(name, VectorizedEngine)
    return engine(parameters, threads)
