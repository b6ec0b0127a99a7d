"""Text in, token ids out: documents, conversations, the tokenizer and the encoded dataset.

Files are read line by line and encoded as they come, so that a file of any size needs little more
memory than its token ids. This module knows nothing of models.
"""

import hashlib
import math
import os
import random
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from microgpt.errors import ConfigError, DataError, TokenError

__all__ = [
    "ROLES",
    "Batch",
    "Conversations",
    "Dataset",
    "Message",
    "Tokenizer",
    "read_conversations",
    "read_documents",
]

ROLES = ("user", "assistant")
Long: TypeAlias = Literal["truncate", "split", "skip"]
LONG: tuple[Long, ...] = get_args(Long)
Unknown: TypeAlias = Literal["error", "skip"]
SPECIAL_TOKENS = (*ROLES, "end_turn")  # of chat models, in the order of their ids
MAX_SHOWN = 10  # characters that an error message names

Message: TypeAlias = dict[str, str]  # {"role": "user" or "assistant", "content": text}
PathLike: TypeAlias = str | os.PathLike[str]


# ---------------------------------------------------------------- reading files


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
    """
    return (text for _, text in _read_lines(Path(path)))


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
        """Append one conversation, trimmed; count it where it changes."""
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

    Or an object whose "messages" are such an array.

    Blank lines and empty arrays are passed over. User turns at the end that nobody answered are
    trimmed, and conversations that the assistant never joins are skipped; both are counted.

    Args:
        path: a UTF-8 file.

    Raises:
        DataError: the file cannot be read, or a line is not such an array (the line is named).
    """
    result = Conversations()
    for number, text in _read_lines(Path(path)):
        if messages := _parse_conversation(number, text):
            result.add(messages)
    return result


# ---------------------------------------------------------------- characters and ids


@dataclass(frozen=True)
class Tokenizer:
    """Characters to token ids and back.

    Characters have ids 0..n-1 in the order of their code points. Text models have one more token,
    BOS = n. Chat models have user = n, assistant = n+1, end_turn = n+2 and BOS = n+3.

    Args:
        chars: the characters, sorted, each once.
        is_chat: whether the chat tokens exist.

    Raises:
        DataError: `chars` holds something else than single characters, or one of them twice.

    Example:
        >>> tokenizer = Tokenizer.from_texts(["anna", "bob"])
        >>> tokenizer.encode_document("nab")
        [4, 2, 0, 1, 4]
        >>> tokenizer.decode([4, 2, 0, 1, 4])
        'nab'
    """

    chars: tuple[str, ...]
    is_chat: bool = False

    def __post_init__(self) -> None:
        if any(not isinstance(char, str) or len(char) != 1 for char in self.chars):
            raise DataError("chars must be single characters")
        if len(set(self.chars)) != len(self.chars):
            raise DataError("chars holds a character twice, expected each once")
        object.__setattr__(self, "_ids", {char: i for i, char in enumerate(self.chars)})

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, is_chat: bool = False) -> "Tokenizer":
        """Return a tokenizer for every character that occurs in `texts`."""
        return cls(tuple(sorted(set().union(*texts))), is_chat)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Names of the chat tokens in the order of their ids; empty for text models."""
        return SPECIAL_TOKENS if self.is_chat else ()

    @property
    def bos(self) -> int:
        """Id of the token before and after every document; always the last one."""
        return len(self.chars) + len(self.special_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of token ids: V."""
        return self.bos + 1

    def special_id(self, name: str) -> int:
        """Return the id of "user", "assistant" or "end_turn".

        Raises:
            TokenError: this tokenizer has no such token.
        """
        if name not in self.special_tokens:
            raise TokenError(
                f"no special token {name!r}, expected one of {list(self.special_tokens)}"
            )
        return len(self.chars) + self.special_tokens.index(name)

    def encode(self, text: str, *, unknown: Unknown = "error") -> list[int]:
        """Return the ids of the characters of `text`, without special tokens.

        Args:
            text: any text.
            unknown: what to do about characters that are not in the vocabulary.

        Raises:
            TokenError: there are such characters and `unknown` is "error"; they are named.
        """
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]  # set in __post_init__
        if unknown == "error" and (strange := sorted(set(text) - ids.keys())):
            shown = ", ".join(map(repr, strange[:MAX_SHOWN])) + ", ..." * (len(strange) > MAX_SHOWN)
            raise TokenError(
                f"the text holds characters that the model does not know: {shown}",
                hint="the model knows only characters of its training data",
            )
        return [ids[char] for char in text if char in ids]

    def encode_document(self, text: str) -> list[int]:
        """Return BOS, the characters, BOS.

        Raises:
            TokenError: a character is not in the vocabulary.
        """
        return [self.bos, *self.encode(text), self.bos]

    def encode_turn(self, role: str, content: str, *, unknown: Unknown = "error") -> list[int]:
        """Return the role's token, the characters, end_turn.

        Args:
            role: "user" or "assistant".
            content: any text.
            unknown: see `encode`.

        Raises:
            TokenError: the role is not in the vocabulary, or see `encode`.
        """
        ids = self.encode(content, unknown=unknown)
        return [self.special_id(role), *ids, self.special_id("end_turn")]

    def encode_conversation(self, messages: Iterable[Message]) -> list[int]:
        """Return BOS, every turn, BOS.

        Raises:
            TokenError: a role or a character is not in the vocabulary.
        """
        turns = (self.encode_turn(message["role"], message["content"]) for message in messages)
        return [self.bos, *chain.from_iterable(turns), self.bos]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the characters of `token_ids`; special tokens yield nothing.

        Raises:
            TokenError: an id is not in the vocabulary.
        """
        text = []
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise TokenError(f"token id {token_id}, expected 0 to {self.vocab_size - 1}")
            if token_id < len(self.chars):
                text.append(self.chars[token_id])
        return "".join(text)


# ---------------------------------------------------------------- encoded data


class Batch(NamedTuple):
    """Documents laid end to end, ready for an engine.

    Args:
        inputs: token ids, shape (N,), N the sum of `lengths`.
        targets: the token that follows each, shape (N,); -1 where it does not count.
        lengths: positions of each document, shape (B,), each at least 1.
    """

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    lengths: NDArray[np.int32]


class Batches:
    """One batch for each of several steps, all laid end to end; iterating yields each.

    Args:
        together: their documents, as one batch.
        n_documents: of each, shape (n_steps,), at least 1.

    Attributes:
        first_documents: where each begins in `together.lengths`, and the end, shape (n_steps + 1,).
        first_rows: where each begins in `together.inputs`, and the end, shape (n_steps + 1,).
    """

    def __init__(self, together: Batch, n_documents: ArrayLike) -> None:
        self.together = together
        self.first_documents = starts_of(n_documents)
        self.first_rows = starts_of(together.lengths)[self.first_documents]

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> "Batches":
        """Lay batches end to end, at least one."""
        together = Batch(*map(np.concatenate, zip(*batches, strict=True)))
        return cls(together, [batch.lengths.size for batch in batches])

    def __len__(self) -> int:
        return len(self.first_documents) - 1

    def __iter__(self) -> Iterator[Batch]:
        inputs, targets, lengths = self.together
        rows, documents = pairwise(self.first_rows), pairwise(self.first_documents)
        for (row, end_row), (document, end) in zip(rows, documents, strict=True):
            yield Batch(inputs[row:end_row], targets[row:end_row], lengths[document:end])


def starts_of(lengths: ArrayLike) -> NDArray[np.int64]:
    """Return where parts of these lengths begin when they lie end to end, and the end of all."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


class _Encoder:
    """Encodes a stream of texts in one pass, before their characters are all known.

    Ids are given in order of appearance, special tokens first, and put in their final order at
    the end. Texts are gathered and encoded some hundred thousand characters at a time.
    """

    _SPECIAL = ("bos", *SPECIAL_TOKENS)
    _CODE_POINTS = 0x110000  # special token s stands as code point 0x110000 + s
    _CHUNK = 1 << 18
    _NEW = -2  # in place of an id: seen, but not numbered yet

    def __init__(self) -> None:
        self._texts: list[str] = []  # not yet encoded; _marks[i] stands before _texts[i]
        self._marks: list[int] = []
        self._n_pending = 0
        self._n_tokens = 0
        self._offsets = array("q")
        self._tokens = np.empty(0, np.uint16)
        self._ids = np.full(self._CODE_POINTS + len(self._SPECIAL), -1, np.int32)
        self._ids[self._CODE_POINTS :] = range(len(self._SPECIAL))
        self._code_points = list(range(self._CODE_POINTS, len(self._ids)))  # by id

    def start_document(self) -> None:
        self._offsets.append(self._n_tokens + self._n_pending)
        self.special("bos")

    def special(self, name: str) -> None:
        if self._n_pending > self._CHUNK:
            self._flush()
        self._marks.append(self._CODE_POINTS + self._SPECIAL.index(name))
        self._texts.append("")
        self._n_pending += 1

    def extend(self, text: str) -> None:
        """Append characters after the latest special token."""
        if len(text) <= self._CHUNK:
            self._texts[-1] = text
            self._n_pending += len(text)
            return
        self._flush()
        for start in range(0, len(text), self._CHUNK):
            self._append(_code_points(text[start : start + self._CHUNK]))

    def finish(self, *, is_chat: bool) -> tuple[Tokenizer, NDArray[Any], NDArray[np.int64]]:
        """Return the tokenizer, all tokens and the offsets, the final BOS included."""
        self.start_document()
        self._flush()
        chars = sorted(self._code_points[len(self._SPECIAL) :])
        tokenizer = Tokenizer(tuple(map(chr, chars)), is_chat)
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
        """Encode what follows, shape (N,)."""
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


def _lengths(offsets: NDArray[np.int64]) -> NDArray[np.integer[Any]]:
    """Return the differences, in 4 bytes each where they fit: there may be millions."""
    fits = int(offsets[-1]) < np.iinfo(np.int32).max
    return np.subtract(offsets[1:], offsets[:-1], dtype=np.int32 if fits else np.int64)


@dataclass(frozen=True)
class Dataset:
    """Documents or conversations, encoded once into one array.

    Document i is `tokens[starts[i] : starts[i] + lengths[i] + 1]`; neighbours share the BOS
    between them.

    Args:
        tokenizer: made from the same texts.
        tokens: every document's ids, shape (N,), 2 bytes each where the vocabulary allows.
        starts: where each document's first id stands, shape (n,).
        lengths: positions to learn of each: its ids less one, shape (n,).
        counted: whether each id counts as a target, shape (N,); None if all do.

    Example:
        >>> dataset = Dataset.from_documents(["ab", "b"])
        >>> dataset[0].tolist(), dataset[1].tolist()
        ([2, 0, 1, 2], [2, 1, 2])
        >>> len(dataset), dataset.lengths.tolist()
        (2, [3, 2])
    """

    tokenizer: Tokenizer
    tokens: NDArray[np.unsignedinteger[Any]]
    starts: NDArray[np.int64]
    lengths: NDArray[np.integer[Any]]
    counted: NDArray[np.bool_] | None = None

    @classmethod
    def from_documents(cls, documents: Iterable[str]) -> "Dataset":
        """Encode documents; blank ones are left out, the others stripped.

        Raises:
            DataError: there is no document.
        """
        encoder = _Encoder()
        for document in documents:
            if text := document.strip():
                encoder.start_document()
                encoder.extend(text)
        tokenizer, tokens, offsets = encoder.finish(is_chat=False)
        if len(offsets) == 1:
            raise DataError("dataset is empty")
        return cls(tokenizer, tokens, offsets[:-1], _lengths(offsets))

    @classmethod
    def from_conversations(cls, conversations: Iterable[Sequence[Message]]) -> "Dataset":
        """Encode conversations with the chat tokens.

        Raises:
            DataError: there is no conversation, or a role is unknown.
        """
        encoder = _Encoder()
        for messages in conversations:
            encoder.start_document()
            for message in messages:
                role = message["role"]
                if role not in ROLES:
                    raise DataError(f'unknown role "{role}" (expected "user" or "assistant")')
                encoder.special(role)
                encoder.extend(message["content"])
                encoder.special("end_turn")
        tokenizer, tokens, offsets = encoder.finish(is_chat=True)
        if len(offsets) == 1:
            raise DataError("chat dataset is empty")
        return cls(tokenizer, tokens, offsets[:-1], _lengths(offsets))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> NDArray[np.unsignedinteger[Any]]:
        """Return the ids of one document, both BOS included, shape (T + 1,)."""
        start = self.starts[index]
        return self.tokens[start : start + self.lengths[index] + 1]

    def length_percentiles(self, *percents: float) -> list[int]:
        """Return how many positions so many percent of the documents have at most."""
        at = [max(math.ceil(percent / 100 * len(self)) - 1, 0) for percent in percents]
        found = np.partition(self.lengths, at)[at]  # np.percentile would make several copies
        return [int(length) for length in found]

    def encoded_with(self, tokenizer: Tokenizer) -> "Dataset":
        """Return the same documents as another tokenizer encodes them.

        Raises:
            TokenError: it does not know a character that is in here.
            DataError: one of the two is for chat and the other is not.
        """
        if tokenizer.is_chat != self.tokenizer.is_chat:
            raise DataError("got conversations and plain documents, expected both of one kind")
        ids = tokenizer.encode("".join(self.tokenizer.chars))
        ids += [tokenizer.special_id(name) for name in self.tokenizer.special_tokens]
        ids.append(tokenizer.bos)  # all in the order of our own ids
        new_ids = np.array(ids, np.min_scalar_type(tokenizer.vocab_size))
        return replace(self, tokenizer=tokenizer, tokens=new_ids[self.tokens])

    def only(self, index: int) -> "Dataset":
        """Return a dataset of one document of this one."""
        at = slice(index, index + 1)
        return replace(self, starts=self.starts[at], lengths=self.lengths[at])

    def digest(self) -> str:
        """Return a hash of everything here: two datasets with the same one train alike."""
        digest = hashlib.sha256(repr(self.tokenizer).encode("utf-8", "surrogatepass"))
        for numbers in (self.tokens, self.starts, self.lengths, self.counted):
            if numbers is not None:
                digest.update(np.ascontiguousarray(numbers).data)
        return digest.hexdigest()

    def fitted(self, block_size: int, long: Long = "truncate") -> "Dataset":
        """Return the documents as a model of that block size can learn them.

        Args:
            block_size: the most positions of a document.
            long: what becomes of longer documents. "truncate" keeps their beginning; "skip" leaves
                them out; "split" makes several documents of each, which together cover it: for
                chat these begin where a turn does, and only a turn that is longer than the block
                is cut inside.

        Raises:
            DataError: no document is left.
            ConfigError: `long` is unknown, or block_size below 1.
        """
        if long not in LONG or block_size < 1:
            raise ConfigError(
                f"got block_size={block_size} and long={long!r}, expected at least 1 and one of "
                f"{', '.join(LONG)}"
            )
        is_long = self.lengths > block_size
        if not is_long.any():
            return self
        if long == "truncate":
            return replace(self, lengths=np.minimum(self.lengths, block_size))
        if long == "skip":
            if is_long.all():
                raise DataError(
                    f"all {len(self)} documents are longer than block_size={block_size}",
                    hint="split or truncate them, or use a larger block size",
                )
            return replace(self, starts=self.starts[~is_long], lengths=self.lengths[~is_long])
        if self.tokenizer.is_chat:
            return self._split_at_turns(block_size)
        n_parts = -(-self.lengths // block_size)
        ends = np.cumsum(n_parts)
        part = np.arange(ends[-1]) - np.repeat(ends - n_parts, n_parts)  # 0, 1, .. per document
        rest = np.repeat(self.lengths, n_parts) - part * block_size
        return replace(
            self,
            starts=np.repeat(self.starts, n_parts) + part * block_size,
            lengths=np.minimum(rest, block_size),
        )

    def _split_at_turns(self, block_size: int) -> "Dataset":
        roles = [self.tokenizer.special_id(role) for role in ROLES]
        starts, lengths = [], []
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            end = start + length
            turns = start + np.flatnonzero(np.isin(self.tokens[start:end], roles))
            while end - start > block_size:
                fitting = turns[(turns > start) & (turns <= start + block_size)]
                cut = int(fitting[-1]) if fitting.size else start + block_size
                starts.append(start)
                lengths.append(cut - start)
                start = cut  # noqa: PLW2901 - walks through the document
            starts.append(start)
            lengths.append(end - start)
        return replace(self, starts=np.array(starts), lengths=np.array(lengths))

    def only_assistant(self) -> "Dataset":
        """Return conversations of which only what the assistant says counts, and its end_turn.

        Those in which it says nothing, perhaps because they were cut before, are left out.

        Raises:
            DataError: these are no conversations, or none is left.
        """
        if not self.tokenizer.is_chat:
            raise DataError("got plain documents, expected conversations")
        speakers = [*map(self.tokenizer.special_id, ROLES), self.tokenizer.bos]
        is_mark = np.isin(self.tokens, speakers)
        latest_mark = np.maximum.accumulate(np.where(is_mark, np.arange(len(self.tokens)), 0))
        is_assistant = self.tokens[latest_mark] == self.tokenizer.special_id("assistant")
        counted = is_assistant & ~is_mark
        n_counted = np.concatenate([[0], np.cumsum(counted)])
        kept = n_counted[self.starts + self.lengths + 1] > n_counted[self.starts + 1]
        if not kept.any():
            raise DataError("the assistant says nothing in any conversation")
        return replace(self, starts=self.starts[kept], lengths=self.lengths[kept], counted=counted)

    def shuffled(self, rng: random.Random) -> "array[int]":
        """Return the indices of the documents in an order drawn from `rng`."""
        order = array("i" if len(self) < 1 << 31 else "q", range(len(self)))
        rng.shuffle(order)
        return order

    def batch(self, indices: Collection[int], block_size: int) -> Batch:
        """Return the chosen documents, each cut after `block_size` positions."""
        return self.batches(indices, len(indices), block_size).together

    def batches(self, indices: Collection[int], batch_size: int, block_size: int) -> Batches:
        """Return the chosen documents, `batch_size` to a batch; see `batch`."""
        index = np.fromiter(indices, np.int64, len(indices))
        lengths = np.minimum(self.lengths[index], block_size)
        *first_rows, n_rows = starts_of(lengths)
        gather = np.repeat(self.starts[index] - first_rows, lengths) + np.arange(n_rows)
        inputs, targets = (self.tokens[at].astype(np.int32) for at in (gather, gather + 1))
        if self.counted is not None:
            targets[~self.counted[gather + 1]] = -1
        together = Batch(inputs, targets, lengths)
        return Batches(together, np.full(len(index) // batch_size, batch_size))
