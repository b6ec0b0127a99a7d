"""Files of conversations: JSON lines, or one JSON array over many lines."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import msgspec

from microgpt.checks import checked_messages
from microgpt.corpus.chat_formats import (
    EXPECTED,
    OtherForm,
    SkippedConversation,
    Turn,
    conversations_in,
    turns_of,
)
from microgpt.corpus.json_lines import decoded_line
from microgpt.corpus.sources import Inputs, Notes, Source, Sources
from microgpt.corpus.texts import numbered_lines, text_of
from microgpt.data import Message
from microgpt.errors import DataError

__all__ = ["Conversations", "read_conversations"]

MAX_ARRAY = 1 << 28  # characters of a JSON array over many lines, which is read as a whole
BLANK = re.compile(r"[ \t\n\r]*")
SEPARATOR = re.compile(r"[ \t\n\r]*,?")  # after an entry of an array
NO_ASSISTANT = "no assistant turn"


class _PlainTurn(msgspec.Struct, forbid_unknown_fields=True):
    """A turn of our own form: decoded in half the time of the general way."""

    role: Literal["user", "assistant"]
    content: str


_plain = msgspec.json.Decoder(list[_PlainTurn])
_any = msgspec.json.Decoder()


@dataclass
class Conversations:
    """Conversations ready for training, and counts of the changes to them.

    Args:
        conversations: each a list of messages that ends with the assistant, unless unanswered turns
            are kept. A message with the weight 0 is read, not learned.
        n_trimmed: conversations that lost unanswered user turns at their end.
        n_skipped: conversations without any assistant turn, left out whole.
        skipped: all conversations that were left out, by reason.
        kinds: conversations that were read from files, by the first key of their form.
        notes: what was skipped in folders or given twice.
        keep_unanswered: whether turns that nobody answered stay: to be read, not learned.
    """

    conversations: list[list[Message]] = field(default_factory=list)
    n_trimmed: int = 0
    n_skipped: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    notes: Notes = field(default_factory=Notes, compare=False)
    keep_unanswered: bool = field(default=False, compare=False)

    def add(self, messages: Sequence[Message]) -> None:
        """Append one conversation without its unanswered turns at the end; count the change.

        Args:
            messages: each with "role" and "content".

        Raises:
            ChatError: the messages, or one of them, are not as expected.
        """
        self._append(messages, [role for role, _ in checked_messages(messages)])

    def _append(self, messages: Sequence[Message], roles: list[str]) -> None:
        if self.keep_unanswered:
            self.conversations.append(list(messages))
            return
        answered = [i for i, role in enumerate(roles, 1) if role == "assistant"]
        if not answered:
            self.n_skipped += 1
            self.skipped[NO_ASSISTANT] += 1
            return
        self.n_trimmed += answered[-1] < len(messages)
        self.conversations.append(list(messages[: answered[-1]]))

    def _add_value(self, value: Any) -> None:
        """Append a conversation of JSON; raise OtherForm if it is none."""
        if isinstance(value, list) and value and isinstance(value[0], _PlainTurn):
            self.kinds["messages"] += 1
            messages = [{"role": turn.role, "content": turn.content} for turn in value]
            self._append(messages, [turn.role for turn in value])
            return
        try:
            kind, turns = turns_of(value)
        except SkippedConversation as reason:
            self.skipped[str(reason)] += 1
            return
        if turns:
            self.kinds[kind] += 1
            self._append(list(map(_message, turns)), [turn.role for turn in turns])


def _message(turn: Turn) -> Message:
    weight: Message = {} if turn.counts else {"weight": 0}
    return {"role": turn.role, "content": turn.content} | weight


def read_conversations(path: Inputs, *, keep_unanswered: bool = False) -> Conversations:
    """Read files of conversations.

    A file holds a conversation per line, or one JSON array of conversations. The forms of a
    conversation are told apart by their keys: an array of {"role", "content"} objects or an object
    whose "messages" are such an array; "conversations" of {"from", "value"} objects (ShareGPT);
    "instruction", "input" and "output" (Alpaca); "prompt" and "completion"; "question" and
    "answer". Blank lines and empty arrays are passed over. A first turn of the system is kept. User
    turns at the end that nobody answered are trimmed; conversations that the assistant never joins,
    with calls of tools, with content other than text or with a system turn inside are skipped. All
    are counted.

    Args:
        path: a file, or whatever else `read_documents` takes.
        keep_unanswered: keep user turns that nobody answered, for a model to answer them.

    Returns:
        The conversations in their order, and the counts.

    Raises:
        DataError: a file cannot be read, or a line is no conversation (file and line are named).
    """
    result = Conversations(keep_unanswered=keep_unanswered)
    sources = Sources(path)
    for source, chunks in sources:
        for number, value in _values(source, text_of(source, chunks, sources.notes)):
            try:
                for each in conversations_in(value):
                    result._add_value(each)  # noqa: SLF001 - a part of this class
            except OtherForm as error:
                raise DataError(f"{source.name}, line {number}: {error}") from error
    result.notes = sources.notes
    return result


def _values(source: Source, text: Iterator[str]) -> Iterator[tuple[int, Any]]:
    """Yield the line, from 1, and the content of each value of JSON."""
    beginning = _until(lambda text: "\n" in text.lstrip(), source, text)
    first_line = beginning.lstrip().partition("\n")[0].strip()
    if first_line in {"[", "{"} or (first_line[:1] == "[" and not _is_json(first_line)):
        yield from _entries(source, _until(lambda _: False, source, chain([beginning], text)))
    else:
        for number, line in numbered_lines(chain([beginning], text)):
            try:
                yield number, _plain.decode(line)
            except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
                yield number, decoded_line(source, number, line, _any, EXPECTED)


def _until(is_enough: Callable[[str], bool], source: Source, text: Iterator[str]) -> str:
    """Return the beginning of a text, or all of it; raise DataError if that is too long."""
    pieces, n_characters = [], 0
    for piece in text:
        pieces.append(piece)
        n_characters += len(piece)
        if is_enough(piece):
            break
        if n_characters > MAX_ARRAY:
            raise DataError(
                f"{source.name} is one JSON value of more than {MAX_ARRAY:,} characters, expected "
                "one conversation per line",
                hint="convert it, for instance with jq -c '.[]'",
            )
    return "".join(pieces)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _entries(source: Source, text: str) -> Iterator[tuple[int, Any]]:
    """Yield line and content of each entry of an array over many lines, or of a single object."""
    decoder = json.JSONDecoder()
    at = _after(BLANK, text)
    is_array = text[at] == "["
    at, line = at + is_array, 1 + text.count("\n", 0, at)
    while True:
        start, at = at, _after(BLANK, text, at)
        line += text.count("\n", start, at)
        try:
            if is_array and text[at : at + 1] == "]":
                return
            value, end = decoder.raw_decode(text, at)
            yield line, value
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", at)) + 1
            cause = getattr(error, "msg", error)
            raise DataError(
                f"invalid JSON on line {line} of {source.name}: {cause}; expected {EXPECTED}"
            ) from error
        line += text.count("\n", at, end)
        at = _after(SEPARATOR, text, end)
        line += text.count("\n", end, at)
        if at == len(text) and not is_array:
            return


def _after(pattern: re.Pattern[str], text: str, at: int = 0) -> int:
    """Return the place after what matches at a place; the pattern may match nothing."""
    found = pattern.match(text, at)
    assert found, "a pattern that matches nothing too"
    return found.end()
