"""Files of conversations."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from microgpt.checks import ROLES, checked_messages
from microgpt.corpus.json_lines import json_lines
from microgpt.corpus.sources import Inputs, Source, Sources
from microgpt.corpus.texts import text_of
from microgpt.data import Message
from microgpt.errors import DataError

__all__ = ["Conversations", "read_conversations"]


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


def _check_roles(source: Source, number: int, turns: list[_Turn]) -> None:
    for turn in turns:
        if turn.role == "system":
            raise DataError(
                f"{source.name}, line {number}: system turns cannot be trained on yet "
                '(expected "user" or "assistant"); take them out of the file'
            )
        if turn.role not in ROLES:
            raise DataError(
                f'{source.name}, line {number}: unknown role "{turn.role:.80}" '
                '(expected "user" or "assistant")'
            )


def read_conversations(path: Inputs) -> Conversations:
    """Read JSONL files of conversations: per line an array of {"role", "content"} objects.

    A line may also be an object whose "messages" are such an array. Blank lines and empty arrays
    are passed over. User turns at the end that nobody answered are trimmed, and conversations that
    the assistant never joins are skipped; both are counted.

    Args:
        path: a file, or whatever else `read_documents` takes.

    Returns:
        The conversations in the order of their lines, and both counts.

    Raises:
        DataError: a file cannot be read, or a line is not such an array (the line is named).
    """
    result = Conversations()
    sources = Sources(path)
    for source, chunks in sources:
        text = text_of(source, chunks, sources.notes)
        for number, line in json_lines(source, text, list[_Turn] | _Conversation, EXPECTED):
            turns = line.messages if isinstance(line, _Conversation) else line
            _check_roles(source, number, turns)
            if turns:
                messages = [{"role": turn.role, "content": turn.content} for turn in turns]
                result._append(messages, [turn.role for turn in turns])  # noqa: SLF001 - checked
    return result
