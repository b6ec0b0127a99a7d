"""Interchangeable engines for the same model, from clear to fast."""

from microgpt.checks import checked_integer
from microgpt.engines.base import Engine
from microgpt.engines.library import why_unavailable
from microgpt.engines.native import NativeEngine
from microgpt.engines.scalar import ScalarEngine
from microgpt.engines.vectorized import VectorizedEngine
from microgpt.errors import EngineError
from microgpt.parameters import Parameters

__all__ = ["ENGINES", "resolved_engine", "select", "unavailable_engines"]

_CLASSES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (NativeEngine, VectorizedEngine, ScalarEngine)
}

ENGINES = ("auto", *_CLASSES)


def unavailable_engines() -> dict[str, str]:
    """Return the engines that cannot run here, and why; empty where all of them can."""
    reason = why_unavailable()
    return {} if reason is None else {NativeEngine.name: reason}


def resolved_engine(name: str) -> str:
    """Return the name of an engine that exists; "auto" becomes the fastest that runs here.

    Raises:
        EngineError: there is no such engine.
    """
    if name not in ENGINES:
        raise EngineError(f"engine is {name!r}, expected one of {', '.join(ENGINES)}")
    if name == "auto":
        return next(name for name in _CLASSES if name not in unavailable_engines())
    return name


def select(name: str, parameters: Parameters, threads: int | None = None) -> Engine:
    """Return the engine of that name, on `parameters`; see `resolved_engine`.

    Raises:
        EngineError: there is no such engine, or it cannot run here.
        ConfigError: `threads` is below 1.
    """
    if threads is not None:
        threads = checked_integer("threads", threads, 1)
    return _CLASSES[resolved_engine(name)](parameters, threads)
