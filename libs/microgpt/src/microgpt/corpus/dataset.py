"""Documents and conversations as token ids: encoded once into one array, and cut into batches.

Texts are encoded as they come, so that a file of any size needs little more memory than its token
ids. This module knows nothing of models.
"""

import hashlib
import math
import random
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microgpt.checks import checked_texts, is_integer
from microgpt.data import (
    ROLES,
    SPECIAL_TOKENS,
    Message,
    Tokenizer,
    check_conversation,
    checked_message,
)
from microgpt.errors import ChatError, ConfigError, DataError

__all__ = ["Batch", "Batches", "Dataset"]

Long: TypeAlias = Literal["truncate", "split", "skip"]
LONG: tuple[Long, ...] = get_args(Long)


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
        starts: where each document begins in `together.inputs`, and the end.
        first_documents: where each begins in `together.lengths`, and the end, shape (n_steps + 1,).
        first_rows: where each begins in `together.inputs`, and the end, shape (n_steps + 1,).
    """

    def __init__(self, together: Batch, n_documents: ArrayLike) -> None:
        self.together = together
        self.first_documents = starts_of(n_documents)
        self.starts = starts_of(together.lengths)
        self.first_rows = self.starts[self.first_documents]

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> "Batches":
        """Return batches laid end to end.

        Args:
            batches: at least one.
        """
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

        Args:
            documents: texts, read once.

        Returns:
            The documents in their order, with a tokenizer of their characters.

        Raises:
            DataError: there is no document, or one is no string or holds a lone surrogate.
        """
        encoder = _Encoder()
        for document in checked_texts(documents):
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

        Args:
            conversations: each a list of messages with "role" and "content", read once.

        Returns:
            The conversations in their order, with a tokenizer of their characters.

        Raises:
            DataError: there is no conversation, or one holds a lone surrogate.
            ChatError: the conversations, one of them or a message are not as expected.
        """
        if isinstance(conversations, str | dict) or not isinstance(conversations, Iterable):
            raise ChatError(
                f"the conversations are {conversations!r:.80}, expected a list of lists of messages"
            )
        encoder = _Encoder()
        for messages in conversations:
            check_conversation(messages)
            encoder.start_document()
            for message in messages:
                role, content = checked_message(message)
                encoder.special(role)
                encoder.extend(content)
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
        """Return how many positions so many percent of the documents have at most.

        Args:
            *percents: 0 to 100 each.
        """
        at = [max(math.ceil(percent / 100 * len(self)) - 1, 0) for percent in percents]
        found = np.partition(self.lengths, at)[at]  # np.percentile would make several copies
        return [int(length) for length in found]

    def encoded_with(self, tokenizer: Tokenizer) -> "Dataset":
        """Return the same documents as another tokenizer encodes them.

        Args:
            tokenizer: of a model, for instance.

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
        """Return a dataset of one document of this one.

        Args:
            index: which, from 0.
        """
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
        if long not in LONG or not is_integer(block_size) or block_size < 1:
            raise ConfigError(
                f"got block_size={block_size!r:.80} and long={long!r:.80}, expected at least 1 and "
                f"one of {', '.join(LONG)}"
            )
        is_long = self.lengths > block_size
        if not is_long.any():
            return self
        if long == "truncate":
            return replace(self, lengths=np.minimum(self.lengths, block_size))
        if long == "skip":
            if is_long.all():
                raise DataError(
                    f"every document is longer than block_size={block_size}",
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

    def shuffled(self, rng: random.Random) -> Sequence[int]:
        """Return the indices of the documents in an order drawn from `rng`.

        Args:
            rng: what `random.Random.shuffle` draws is drawn from it.
        """
        order = array("i" if len(self) < 1 << 31 else "q", range(len(self)))
        rng.shuffle(order)
        return order

    def batch(self, indices: Collection[int], block_size: int) -> Batch:
        """Return the chosen documents, each cut after `block_size` positions.

        Args:
            indices: of the documents, at least one; repeats are allowed.
            block_size: the most positions of a document.
        """
        return self.batches(indices, len(indices), block_size).together

    def batches(self, indices: Collection[int], batch_size: int, block_size: int) -> Batches:
        """Return the chosen documents, `batch_size` to a batch; see `batch`.

        Args:
            indices: of the documents of all batches, one batch after another.
            batch_size: documents to a batch; divides the number of indices.
            block_size: the most positions of a document.
        """
        index = np.fromiter(indices, np.int64, len(indices))
        lengths = np.minimum(self.lengths[index], block_size)
        *first_rows, n_rows = starts_of(lengths)
        gather = np.repeat(self.starts[index] - first_rows, lengths) + np.arange(n_rows)
        inputs, targets = (self.tokens[at].astype(np.int32) for at in (gather, gather + 1))
        if self.counted is not None:
            targets[~self.counted[gather + 1]] = -1
        together = Batch(inputs, targets, lengths)
        return Batches(together, np.full(len(index) // batch_size, batch_size))
