"""One pass from texts to token ids, before the characters of all texts are known."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microgpt.checks import checked_messages
from microgpt.data import SPECIAL_TOKENS, Message, Tokenizer

__all__ = ["Encoder"]


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


class Encoder:
    """Encodes documents or conversations, one after the other, into one array.

    Ids are given in order of appearance, special tokens first, and put in their final order at
    the end. Texts are gathered and encoded some hundred thousand characters at a time.
    """

    _SPECIAL = ("bos", *SPECIAL_TOKENS)
    _CODE_POINTS = 0x110000  # special token s stands as code point 0x110000 + s
    _CHUNK = 1 << 18
    _NEW = -2  # in place of an id: seen, but not numbered yet

    def __init__(self) -> None:
        self._texts: list[str] = []  # not encoded yet; special token _marks[i] is before _texts[i]
        self._marks: list[int] = []
        self._has_system = False
        self._uncounted: list[tuple[int, int]] = []  # first tokens, and ends
        self._n_pending = 0
        self._n_tokens = 0
        self._offsets = array("q")
        self._tokens = np.empty(0, np.uint16)
        self._ids = np.full(self._CODE_POINTS + len(self._SPECIAL), -1, np.int32)
        self._ids[self._CODE_POINTS :] = range(len(self._SPECIAL))
        self._code_points = list(range(self._CODE_POINTS, len(self._ids)))  # by id

    def add_document(self, pieces: Iterable[str]) -> None:
        """Append a document in pieces; its closing BOS is the opening BOS of the next one."""
        self._begin()
        for piece in pieces:
            self._add_text(piece)

    def add_conversation(self, messages: Sequence[Message]) -> None:
        """Append a conversation; raise ChatError for messages of another form."""
        turns = list(checked_messages(messages))
        self._begin()
        for role, content in turns:
            self._has_system |= role == "system"
            self._add_special(role)
            self._add_text(content)
            self._add_special("end_turn")
        if max(map(len, messages), default=0) > len(("role", "content")):
            self._skip_turns(messages)

    def _skip_turns(self, messages: Sequence[Message]) -> None:
        """Note the tokens, end_turn included, of the latest conversation's turns of weight 0."""
        end = self._n_tokens + self._n_pending
        for message in reversed(messages):
            start = end - len(message["content"]) - 1
            if message.get("weight", 1) == 0:
                self._uncounted.append((start, end))
            end = start - 1

    def _begin(self) -> None:
        self._offsets.append(self._n_tokens + self._n_pending)
        self._add_special("bos")

    def _add_special(self, name: str) -> None:
        if self._n_pending > self._CHUNK:
            self._flush()
        self._marks.append(self._CODE_POINTS + self._SPECIAL.index(name))
        self._texts.append("")
        self._n_pending += 1

    def _add_text(self, text: str) -> None:
        """Append characters after the latest special token."""
        if self._texts and len(self._texts[-1]) + len(text) <= self._CHUNK:
            self._texts[-1] += text
            self._n_pending += len(text)
            return
        self._flush()
        for start in range(0, len(text), self._CHUNK):
            self._append(_code_points(text[start : start + self._CHUNK]))

    def finish(self, *, is_chat: bool) -> tuple[Tokenizer, NDArray[Any], NDArray[np.int64]]:
        """Return the tokenizer, all tokens, and the starts of the documents, the end included."""
        self._begin()
        self._flush()
        chars = sorted(self._code_points[len(self._SPECIAL) :])
        tokenizer = Tokenizer(tuple(map(chr, chars)), is_chat, self._has_system)
        final = np.zeros(len(self._code_points), self._tokens.dtype)
        final[self._ids[chars]] = range(len(chars))
        for i, name in enumerate(self._SPECIAL):
            if name in tokenizer.special_tokens:
                final[i] = tokenizer.special_id(name)
        final[0] = tokenizer.bos
        for start in range(0, len(self._tokens), self._CHUNK):
            chunk = self._tokens[start : start + self._CHUNK]
            chunk[:] = final[chunk]
        return tokenizer, self._tokens, np.frombuffer(self._offsets, np.int64)

    def counted(self) -> NDArray[np.bool_] | None:
        """Return whether each token counts as a target; None if all do."""
        if not self._uncounted:
            return None
        counted = np.ones(self._n_tokens, np.bool_)
        for start, end in self._uncounted:
            counted[start:end] = False
        return counted

    def _flush(self) -> None:
        lengths = np.fromiter(map(len, self._texts), np.int64, len(self._texts))
        marks_at = np.cumsum(lengths + 1) - lengths - 1
        code_points = np.empty(self._n_pending, np.int32)
        is_char = np.ones(self._n_pending, np.bool_)
        is_char[marks_at] = False
        code_points[marks_at] = self._marks
        code_points[is_char] = _code_points("".join(self._texts))
        self._append(code_points)
        self._texts, self._marks, self._n_pending = [], [], 0

    def _append(self, code_points: NDArray[np.integer[Any]]) -> None:
        """Encode the next characters and special tokens, shape (N,)."""
        ids = self._ids[code_points]
        self._ids[code_points[ids < 0]] = self._NEW
        new = np.flatnonzero(self._ids == self._NEW)  # np.unique would import numpy.ma, 20 ms
        self._ids[new] = range(len(self._code_points), len(self._code_points) + len(new))
        self._code_points += new.tolist()
        if len(self._code_points) > np.iinfo(self._tokens.dtype).max:
            self._tokens = self._tokens.astype(np.uint32)
        # In place, so that growing needs no second copy of all tokens.
        self._tokens.resize(self._n_tokens + len(code_points), refcheck=False)
        self._tokens[self._n_tokens :] = self._ids[code_points]
        self._n_tokens += len(code_points)
