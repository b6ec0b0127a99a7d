"""Checks of arguments: each error names the value and the expected domain."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias

from microgpt.errors import ChatError, ConfigError, DataError, TokenError

__all__ = [
    "ROLES",
    "SYSTEM_ROLES",
    "PathLike",
    "cause_of",
    "check_chars",
    "check_choice",
    "check_text",
    "check_type",
    "check_vocabularies",
    "checked_ids",
    "checked_integer",
    "checked_messages",
    "checked_path",
    "checked_texts",
    "half_of_a_character",
    "is_integer",
    "is_number",
    "listed",
]

ROLES = ("user", "assistant")  # of messages, in the order of their token ids
SYSTEM_ROLES = ("system", "developer")  # of a first message that instructs the assistant

MAX_SHOWN = 10  # characters that an error message names

PathLike: TypeAlias = str | os.PathLike[str]


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer, of Python or NumPy."""
    if type(value) is int:  # an eighth of the time; called for every token
        return True
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a real number, of Python or NumPy, that a float can hold."""
    if type(value) is float:  # the common case, an eighth of the time
        return True
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def checked_integer(name: str, value: Any, at_least: float = -math.inf) -> int:
    """Return a plain integer of at least that, or raise ConfigError."""
    if not is_integer(value) or value < at_least:
        smallest = f" of at least {at_least}" * (at_least > -math.inf)
        raise ConfigError(f"{name} is {value!r:.80}, expected an integer{smallest}")
    return int(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ConfigError unless a value is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{name} is {value!r:.80}, expected one of {', '.join(choices)}")


def check_type(name: str, value: Any, expected: type) -> None:
    """Raise ConfigError unless a value is of that class."""
    if not isinstance(value, expected):
        raise ConfigError(f"{name} is {value!r:.80}, expected a {expected.__name__}")


def check_vocabularies(of_tokenizer: int, of_parameters: int) -> None:
    """Raise ConfigError unless a tokenizer has as many token ids as the weights of a model."""
    if of_tokenizer != of_parameters:
        raise ConfigError(
            f"the tokenizer has {of_tokenizer} token ids, expected vocab_size={of_parameters}"
        )


def listed(chars: Sequence[str]) -> str:
    """Return the first characters for a message, and dots if there are more."""
    return ", ".join(map(repr, chars[:MAX_SHOWN])) + ", ..." * (len(chars) > MAX_SHOWN)


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
    for i, document in enumerate(documents):
        if not isinstance(document, str):
            raise DataError(f"documents[{i}] is {document!r:.80}, expected a string")
        yield document


def checked_messages(messages: Any) -> Iterator[tuple[str, str]]:
    """Yield role and content of each message, or raise ChatError.

    Only the first message may be one of the system, which is also called developer.
    """
    if isinstance(messages, str | dict) or not isinstance(messages, Iterable):
        raise ChatError(f"a conversation is {messages!r:.80}, expected a list of messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ChatError(
                f'a message is {message!r:.80}, expected {{"role": ..., "content": ...}}'
            )
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or role not in ROLES:
            if not isinstance(role, str) or role not in SYSTEM_ROLES or i > 0:
                hint = 'expected "user" or "assistant", or "system" for the first message'
                raise ChatError(f"unknown role: {role!s:.80}", hint=hint)
            role = "system"
        if not isinstance(content, str):
            raise ChatError(f"the content of a message is {content!r:.80}, expected a string")
        yield role, content


def check_text(text: Any) -> None:
    """Raise TokenError unless the text is a string."""
    if not isinstance(text, str):
        raise TokenError(f"the text is {text!r:.80}, expected a string")


def checked_ids(token_ids: Any, vocab_size: int) -> list[int]:
    """Return token ids as a list, or raise TokenError."""
    if not isinstance(token_ids, Iterable):
        raise TokenError(f"token ids are {token_ids!r:.80}, expected a list of integers")
    ids = list(token_ids)
    for token_id in ids:
        if not is_integer(token_id) or not 0 <= token_id < vocab_size:
            raise TokenError(f"token id {token_id!r:.80}, expected 0 to {vocab_size - 1}")
    return ids


def half_of_a_character(text: str) -> str:
    """Return the message about the first lone surrogate of a text."""
    surrogate = next(char for char in text if "\ud800" <= char <= "\udfff")
    return (
        f"the text holds {surrogate!r}, half of a character, expected Unicode text; "
        'decode it anew, perhaps with errors="replace"'
    )


def check_chars(chars: Any) -> None:
    """Raise DataError unless `chars` is a tuple of characters, each once."""
    if not isinstance(chars, tuple) or any(
        not isinstance(char, str) or len(char) != 1 for char in chars
    ):
        raise DataError(f"chars is {chars!r:.80}, expected a tuple of single characters")
    if any("\ud800" <= char <= "\udfff" for char in chars):
        raise DataError(half_of_a_character("".join(chars)))
    if len(set(chars)) != len(chars):
        raise DataError("chars holds a character twice, expected each once")


def cause_of(error: Exception) -> object:
    """Return the operating system's message for an error, or the error itself."""
    return (isinstance(error, OSError) and error.strerror) or error
