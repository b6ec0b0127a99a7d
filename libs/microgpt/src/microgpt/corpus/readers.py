"""Files of text: documents and conversations, read line by line."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from microgpt.checks import ROLES, PathLike, cause_of, checked_messages, checked_path
from microgpt.data import Message
from microgpt.errors import DataError

__all__ = ["Conversations", "read_conversations", "read_documents", "read_json_lines"]


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise DataError(
            f"failed to read {path}: {cause_of(error)}; expected a UTF-8 text file"
        ) from error


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of every line that is not blank, stripped."""
    byte_offset = 0
    for number, raw in enumerate(_raw_lines(path), 1):
        line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if b"\0" in line:
            at = byte_offset + raw.index(b"\0")
            raise DataError(
                f"failed to read {path}: NUL byte on line {number} (byte offset {at}), "
                "expected UTF-8 text; convert UTF-16 or binary files first"
            )
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            at = byte_offset + len(raw) - len(line) + error.start
            raise DataError(
                f"failed to read {path}: invalid UTF-8 on line {number} (byte offset {at}): "
                f"{error.reason}; save the file as UTF-8"
            ) from error
        byte_offset += len(raw)
        if text:
            yield number, text


def read_documents(path: PathLike) -> Iterator[str]:
    """Yield the documents of a text file: one per line, stripped, blank lines left out.

    A byte order mark, CRLF line ends and a missing final newline make no difference.

    Args:
        path: a UTF-8 text file.

    Raises:
        DataError: the file cannot be read, or is not UTF-8 text (line and byte offset are named).
        ConfigError: `path` is no path.
    """
    return (text for _, text in _read_lines(checked_path(path)))


def read_json_lines(path: PathLike, kind: Any, expected: str) -> Iterator[tuple[int, Any]]:
    r"""Yield number, from 1, and content of every line of a JSONL file that is not blank.

    Args:
        path: a UTF-8 file.
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
    decoder = msgspec.json.Decoder(kind)
    for number, text in _read_lines(checked_path(path)):
        try:
            content = decoder.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
            cause = _lone_surrogate(text) or error
            message = f"invalid JSON on line {number}: {cause}; expected {expected}"
            raise DataError(message) from error
        yield number, content


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


@dataclass
class Conversations:
    """Conversations ready for training, and counts of the changes to them.

    Args:
        conversations: each a list of messages that ends with the assistant.
        n_trimmed: conversations that lost unanswered user turns at their end.
        n_skipped: conversations without any assistant turn, left out whole.
    """

    conversations: list[list[Message]] = field(default_factory=list)
    n_trimmed: int = 0
    n_skipped: int = 0

    def add(self, messages: Sequence[Message]) -> None:
        """Append one conversation without its unanswered turns at the end; count the change.

        Args:
            messages: each with "role" and "content".

        Raises:
            ChatError: the messages, or one of them, are not as expected.
        """
        self._append(messages, [role for role, _ in checked_messages(messages)])

    def _append(self, messages: Sequence[Message], roles: list[str]) -> None:
        answered = [i for i, role in enumerate(roles, 1) if role == "assistant"]
        if not answered:
            self.n_skipped += 1
            return
        self.n_trimmed += answered[-1] < len(messages)
        self.conversations.append(list(messages[: answered[-1]]))


EXPECTED = 'an array of {"role": ..., "content": ...}, or {"messages": [...]} around it'


class _Turn(msgspec.Struct):
    role: str
    content: str


class _Conversation(msgspec.Struct):
    messages: list[_Turn]


def _check_roles(number: int, turns: list[_Turn]) -> None:
    for turn in turns:
        if turn.role == "system":
            raise DataError(
                f"line {number}: system turns cannot be trained on yet "
                '(expected "user" or "assistant"); take them out of the file'
            )
        if turn.role not in ROLES:
            raise DataError(
                f'line {number}: unknown role "{turn.role:.80}" (expected "user" or "assistant")'
            )


def read_conversations(path: PathLike) -> Conversations:
    """Read a JSONL file of conversations: per line an array of {"role", "content"} objects.

    A line may also be an object whose "messages" are such an array. Blank lines and empty arrays
    are passed over. User turns at the end that nobody answered are trimmed, and conversations that
    the assistant never joins are skipped; both are counted.

    Args:
        path: a UTF-8 file.

    Returns:
        The conversations in the order of their lines, and both counts.

    Raises:
        DataError: the file cannot be read, or a line is not such an array (the line is named).
    """
    result = Conversations()
    for number, line in read_json_lines(path, list[_Turn] | _Conversation, EXPECTED):
        turns = line.messages if isinstance(line, _Conversation) else line
        _check_roles(number, turns)
        if turns:
            messages = [{"role": turn.role, "content": turn.content} for turn in turns]
            result._append(messages, [turn.role for turn in turns])  # noqa: SLF001 - checked above
    return result
