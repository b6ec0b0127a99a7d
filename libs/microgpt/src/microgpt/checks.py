"""Checks of what callers pass: each names what was got and what is expected."""

import math
import os
from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias

from microgpt.errors import ConfigError, DataError

__all__ = [
    "PathLike",
    "check_integer",
    "check_type",
    "checked_path",
    "checked_texts",
    "is_integer",
    "is_number",
]

PathLike: TypeAlias = str | os.PathLike[str]


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer, of Python or NumPy."""
    if type(value) is int:  # an eighth of the time, and asked of every token
        return True
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a real number, of Python or NumPy, that a float can hold."""
    if type(value) is float:  # sooner told than below
        return True
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def check_integer(name: str, value: Any, at_least: float = -math.inf) -> None:
    """Raise ConfigError unless a value is an integer, of at least that."""
    if not is_integer(value) or value < at_least:
        smallest = f" of at least {at_least}" * (at_least > -math.inf)
        raise ConfigError(f"{name} is {value!r:.80}, expected an integer{smallest}")


def check_type(name: str, value: Any, expected: type) -> None:
    """Raise ConfigError unless a value is of that class."""
    if not isinstance(value, expected):
        raise ConfigError(f"{name} is {value!r:.80}, expected a {expected.__name__}")


def checked_path(value: Any) -> Path:
    """Return a path, or raise ConfigError."""
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"the path is {value!r:.80}, expected a string or a Path")
    return Path(value)


def checked_texts(documents: Iterable[Any]) -> Iterator[str]:
    """Yield the documents, each a string, or raise DataError."""
    if isinstance(documents, str) or not isinstance(documents, Iterable):
        raise DataError(
            f"the documents are {documents!r:.80}, expected a list of strings; "
            "put a single one in a list"
        )
    for document in documents:
        if not isinstance(document, str):
            raise DataError(f"a document is {document!r:.80}, expected a string")
        yield document
