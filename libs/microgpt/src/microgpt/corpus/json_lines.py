"""Files of JSON lines: each line that is not blank is a document of JSON."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from microgpt.corpus.sources import Inputs, Source, Sources
from microgpt.corpus.texts import numbered_lines, text_of
from microgpt.errors import DataError

__all__ = ["decoded_line", "json_lines", "read_json_lines"]


def json_lines(
    source: Source, text: Iterator[str], kind: Any, expected: str
) -> Iterator[tuple[int, Any]]:
    """Yield number and content of every line of one file; see `read_json_lines`."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in numbered_lines(text):
        yield number, decoded_line(source, number, line, decoder, expected)


def decoded_line(
    source: Source, number: int, line: str, decoder: msgspec.json.Decoder[Any], expected: str
) -> Any:
    """Return the content of one line, or raise DataError."""
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        cause = _lone_surrogate(line) or error
        raise DataError(
            f"invalid JSON on line {number} of {source.name}: {cause}; expected {expected}"
        ) from error


def read_json_lines(path: Inputs, kind: Any, expected: str) -> Iterator[tuple[int, Any]]:
    r"""Yield number, from 1, and content of every line of a JSONL file that is not blank.

    Args:
        path: a file, or whatever else `read_documents` takes.
        kind: type of a decoded line; any type that msgspec knows.
        expected: form of a line, for the error about a line of another form.

    Raises:
        DataError: the file cannot be read, or a line is not of this kind (the line is named).
        ConfigError: `path` is no path.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "pairs.jsonl")
        ...     _ = path.write_text("[1, 2]\n\n[3, 4]\n")
        ...     list(read_json_lines(path, list[int], "a pair of integers"))
        [(1, [1, 2]), (3, [3, 4])]
    """
    sources = Sources(path)
    for source, chunks in sources:
        yield from json_lines(source, text_of(source, chunks, sources.notes), kind, expected)


def _lone_surrogate(text: str) -> str | None:
    """Return the error message for JSON with half a surrogate pair; None if there is none.

    msgspec reports half a pair near the end of a line as a line that is cut short.
    """
    try:
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code_point = ord(error.object[error.start])
        return f"\\u{code_point:04x} is half of a surrogate pair, which is no character"
    except (ValueError, RecursionError):
        pass
    return None
