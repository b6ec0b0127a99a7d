"""Files of text: documents and conversations, read line by line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from microgpt.checks import PathLike, checked_path
from microgpt.errors import DataError
from microgpt.tokenizer import ROLES, Message

__all__ = ["Conversations", "read_conversations", "read_documents"]


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        cause = (isinstance(error, OSError) and error.strerror) or error
        raise DataError(f"failed to read {path}: {cause}; expected a UTF-8 text file") from error


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


@dataclass
class Conversations:
    """Conversations ready for training, and what had to be left out of them.

    Args:
        conversations: each a list of messages that ends with the assistant.
        n_trimmed: conversations that lost unanswered user turns at their end.
        n_skipped: conversations without any assistant turn, left out whole.
    """

    conversations: list[list[Message]] = field(default_factory=list)
    n_trimmed: int = 0
    n_skipped: int = 0

    def add(self, messages: Sequence[Message]) -> None:
        """Append one conversation, trimmed; count it where it changes.

        Args:
            messages: each with "role" and "content".
        """
        answered = [i for i, message in enumerate(messages, 1) if message["role"] == "assistant"]
        if not answered:
            self.n_skipped += 1
            return
        self.n_trimmed += answered[-1] < len(messages)
        self.conversations.append(list(messages[: answered[-1]]))


class _Turn(msgspec.Struct):
    role: str
    content: str


class _Conversation(msgspec.Struct):
    messages: list[_Turn]


_line_decoder = msgspec.json.Decoder(list[_Turn] | _Conversation)


def _parse_conversation(number: int, text: str) -> list[Message]:
    try:
        line = _line_decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise DataError(
            f"invalid JSON on line {number}: {error}; expected an array of "
            '{"role": ..., "content": ...}, or {"messages": [...]} around it'
        ) from error
    turns = line.messages if isinstance(line, _Conversation) else line
    for turn in turns:
        if turn.role == "system":
            raise DataError(
                f"line {number}: system turns cannot be trained on yet "
                '(expected "user" or "assistant"); take them out of the file'
            )
        if turn.role not in ROLES:
            raise DataError(
                f'line {number}: unknown role "{turn.role}" (expected "user" or "assistant")'
            )
    return [{"role": turn.role, "content": turn.content} for turn in turns]


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
    for number, text in _read_lines(checked_path(path)):
        if messages := _parse_conversation(number, text):
            result.add(messages)
    return result
