"""Documents and conversations as token ids, encoded once into one array and cut into batches.

A file of any size needs little more memory than its token ids.
"""

import hashlib
import math
import random
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from microgpt.checks import ROLES, check_choice, checked_integer, checked_texts
from microgpt.corpus.batches import Batch, Batches, starts_of
from microgpt.corpus.conversations import Conversations
from microgpt.corpus.documents import Documents
from microgpt.corpus.encoder import Encoder
from microgpt.corpus.excerpts import excerpt, vocabulary_of
from microgpt.corpus.recoding import recoded, texts_of
from microgpt.corpus.subwords import VOCAB_SIZE, SubwordTokenizer
from microgpt.data import BaseTokenizer, Message, Tokenizer
from microgpt.errors import ChatError, ConfigError, DataError
from microgpt.notebook import table

__all__ = ["Dataset", "Long"]

N_SHOWN = 5  # documents, in a notebook

Long: TypeAlias = Literal["truncate", "split", "skip", "window"]

TOKENS_TOGETHER = 1 << 20  # counted at a time: counting makes 8 bytes of each


def _lengths(offsets: NDArray[np.int64]) -> NDArray[np.integer[Any]]:
    """Return the differences, in 4 bytes each where they fit: there may be millions."""
    fits = int(offsets[-1]) < np.iinfo(np.int32).max
    return np.subtract(offsets[1:], offsets[:-1], dtype=np.int32 if fits else np.int64)


@dataclass(frozen=True, repr=False)
class Dataset:
    """Documents or conversations, encoded once into one array.

    Document i is `tokens[starts[i] : starts[i] + lengths[i] + 1]`; neighbours share the BOS
    between them.

    Args:
        tokenizer: of the tokens.
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

    tokenizer: BaseTokenizer
    tokens: NDArray[np.unsignedinteger[Any]]
    starts: NDArray[np.int64]
    lengths: NDArray[np.integer[Any]]
    counted: NDArray[np.bool_] | None = None

    @classmethod
    def from_documents(cls, documents: Iterable[str]) -> "Dataset":
        """Encode documents; blank ones are left out.

        Args:
            documents: texts, read once and stripped; or the result of `read_documents`, taken as
                it is.

        Returns:
            The documents in their order, with a tokenizer of their characters.

        Raises:
            DataError: there is no document, or one is no string or holds a lone surrogate.
        """
        encoder = Encoder()
        if isinstance(documents, Documents):
            for pieces in documents.pieces():
                encoder.add_document(pieces)
        else:
            for document in checked_texts(documents):
                if text := document.strip():
                    encoder.add_document([text])
        return cls._from_encoder(encoder, is_chat=False)

    @classmethod
    def from_conversations(
        cls, conversations: Conversations | Iterable[Sequence[Message]]
    ) -> "Dataset":
        """Encode conversations with the chat tokens.

        Args:
            conversations: each a list of messages with "role" and "content", read once; or the
                result of `read_conversations`.

        Returns:
            The conversations in their order, with a tokenizer of their characters.

        Raises:
            DataError: there is no conversation, or one holds a lone surrogate.
            ChatError: the conversations, one of them or a message are not as expected.
        """
        if isinstance(conversations, Conversations):
            conversations = conversations.conversations
        if isinstance(conversations, str | dict) or not isinstance(conversations, Iterable):
            raise ChatError(
                f"the conversations are {conversations!r:.80}, expected a list of lists of messages"
            )
        encoder = Encoder()
        for messages in conversations:
            encoder.add_conversation(messages)
        return cls._from_encoder(encoder, is_chat=True)

    @classmethod
    def _from_encoder(cls, encoder: Encoder, *, is_chat: bool) -> "Dataset":
        tokenizer, tokens, offsets = encoder.finish(is_chat=is_chat)
        if len(offsets) == 1:
            raise DataError("chat dataset is empty" if is_chat else "dataset is empty")
        return cls(tokenizer, tokens, offsets[:-1], _lengths(offsets), encoder.counted())

    def __len__(self) -> int:
        return len(self.starts)

    def __repr__(self) -> str:
        sizes = {**self._sizes(), "vocabulary": f"{self.tokenizer.vocab_size:,}"}
        return f"<Dataset: {', '.join(f'{name} {size}' for name, size in sizes.items())}>"

    def _repr_html_(self) -> str:
        beginnings = [excerpt(self[i], self.tokenizer) for i in range(min(len(self), N_SHOWN))]
        shown = {f"document {i}": text for i, text in enumerate(beginnings)}
        vocabulary = {"vocabulary": vocabulary_of(self.tokenizer)}
        return table("Dataset", self._sizes() | vocabulary | shown)

    def _sizes(self) -> dict[str, str]:
        sizes = {
            "conversations" if self.tokenizer.is_chat else "documents": len(self),
            "tokens": int(self.lengths.sum(dtype=np.int64)),
            "longest": int(self.lengths.max(initial=0)),
        }
        return {name: f"{size:,}" for name, size in sizes.items()}

    def __getitem__(self, index: int) -> NDArray[np.unsignedinteger[Any]]:
        """Return the ids of one document, both BOS included, shape (T + 1,)."""
        start = self.starts[index]
        return self.tokens[start : start + self.lengths[index] + 1]

    def length_percentiles(self, *percents: float) -> list[int]:
        """Return percentiles of the documents' lengths, in positions.

        Args:
            *percents: 0 to 100 each.
        """
        at = [max(math.ceil(percent / 100 * len(self)) - 1, 0) for percent in percents]
        found = np.partition(self.lengths, at)[at]  # np.percentile would make several copies
        return [int(length) for length in found]

    def token_counts(self) -> NDArray[np.int64]:
        """Return how often each token counts as a target, shape (vocab_size,)."""
        counts = np.zeros(self.tokenizer.vocab_size, np.int64)
        changes = np.zeros(len(self.tokens) + 1, np.int8)  # of the documents at a place
        np.add.at(changes, self.starts + 1, 1)
        np.subtract.at(changes, self.starts + self.lengths + 1, 1)
        n_documents = 0
        for first in range(0, len(self.tokens), TOKENS_TOGETHER):
            part = slice(first, first + TOKENS_TOGETHER)
            tokens = self.tokens[part]
            n_at = n_documents + np.cumsum(changes[part], dtype=np.int64)
            is_target = n_at[: len(tokens)] > 0
            n_documents += int(changes[part].sum())
            if self.counted is not None:
                is_target &= self.counted[part]
            counts += np.bincount(tokens[is_target], minlength=len(counts))
        return counts

    def encoded_with(self, tokenizer: BaseTokenizer) -> "Dataset":
        """Return the same documents, encoded by another tokenizer.

        Args:
            tokenizer: of a model, for instance.

        Raises:
            TokenError: a character of the documents is not in the tokenizer's vocabulary.
            DataError: only one of the dataset and the tokenizer is for chat.
        """
        old = self.tokenizer
        if tokenizer == old:
            return self
        if tokenizer.is_chat != old.is_chat:
            raise DataError("got conversations and plain documents, expected both of one kind")
        if not (isinstance(old, Tokenizer) and isinstance(tokenizer, Tokenizer)):
            arrays = self.tokens, self.starts, self.lengths, self.counted
            return Dataset(tokenizer, *recoded(*arrays, (old, tokenizer)))
        ids = tokenizer.encode("".join(old.chars))
        ids += [tokenizer.special_id(name) for name in old.special_tokens]
        ids.append(tokenizer.bos)  # all in the order of our own ids
        new_ids = np.array(ids, np.min_scalar_type(tokenizer.vocab_size))
        return replace(self, tokenizer=tokenizer, tokens=new_ids[self.tokens])

    def with_subwords(self, vocab_size: int = VOCAB_SIZE) -> "Dataset":
        """Return the same documents, encoded by subwords that are learned from them.

        Args:
            vocab_size: number of token ids, special tokens included; there are fewer where the
                documents have no more pairs to merge.

        Raises:
            ConfigError: `vocab_size` is below 256 and the special tokens.

        Example:
            >>> dataset = Dataset.from_documents(["banana", "bandana"]).with_subwords(259)
            >>> [dataset.tokenizer.token_text(token_id) for token_id in dataset[0]]
            ['bos', 'ban', 'an', 'a', 'bos']
        """
        old = self.tokenizer
        texts = texts_of(self.tokens, self.starts, self.lengths, old)
        tokenizer = SubwordTokenizer.from_texts(
            texts, vocab_size, is_chat=old.is_chat, has_system=old.has_system
        )
        return self.encoded_with(tokenizer)

    def only(self, index: int) -> "Dataset":
        """Return a dataset of one of the documents.

        Args:
            index: of the document, from 0.
        """
        at = slice(index, index + 1)
        return replace(self, starts=self.starts[at], lengths=self.lengths[at])

    def digest(self) -> str:
        """Return a hash of the vocabulary and all documents: equal datasets have equal digests."""
        # Spelled out, since snapshots hold the digest of their data.
        kind, is_chat = type(self.tokenizer).__name__, self.tokenizer.is_chat
        field = "chars" if isinstance(self.tokenizer, Tokenizer) else "merges"
        plain = f"{field}={getattr(self.tokenizer, field)!r}"
        system = ", has_system=True" * self.tokenizer.has_system
        vocabulary = f"{kind}({plain}, is_chat={is_chat!r}{system})"
        digest = hashlib.sha256(vocabulary.encode("utf-8", "surrogatepass"))
        for numbers in (self.tokens, self.starts, self.lengths, self.counted):
            if numbers is not None:
                digest.update(np.ascontiguousarray(numbers).data)
        return digest.hexdigest()

    def fitted(self, block_size: int, long: Long = "truncate") -> "Dataset":
        """Return the documents, each of at most `block_size` positions unless `long` is "window".

        Args:
            block_size: the most positions of a document.
            long: treatment of longer documents. "truncate" keeps the beginning; "skip" leaves them
                out; "split" divides each into several documents, which for chat begin at a turn:
                only a turn that is longer than the block is cut inside; "window" keeps them
                whole, for a `Trainer` to draw windows from.

        Raises:
            DataError: no document is left.
            ConfigError: `long` is unknown, or "window" with conversations; or block_size is below
                1.
        """
        checked_integer("block_size", block_size, 1)
        check_choice("long", long, get_args(Long))
        if long == "window":
            self._check_windows()
            return self
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

    def _check_windows(self) -> None:
        if self.tokenizer.is_chat:
            raise ConfigError(
                "long is 'window', which would begin and end inside the turns of conversations",
                hint="use split, which divides long conversations between turns",
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
        """Return conversations with targets in the assistant's turns only, end_turn included.

        Conversations without such a target are left out; a cut may have removed the turn.

        Raises:
            DataError: the dataset holds plain documents, or no conversation is left.
        """
        if not self.tokenizer.is_chat:
            raise DataError("got plain documents, expected conversations")
        speakers = [*map(self.tokenizer.special_id, ROLES), self.tokenizer.bos]
        is_mark = np.isin(self.tokens, speakers)
        latest_mark = np.maximum.accumulate(np.where(is_mark, np.arange(len(self.tokens)), 0))
        is_assistant = self.tokens[latest_mark] == self.tokenizer.special_id("assistant")
        counted = is_assistant & ~is_mark
        if self.counted is not None:
            counted &= self.counted
        n_counted = np.concatenate([[0], np.cumsum(counted)])
        kept = n_counted[self.starts + self.lengths + 1] > n_counted[self.starts + 1]
        if not kept.any():
            raise DataError(
                "the assistant says nothing in any conversation",
                hint="a larger block_size holds turns that were cut off",
            )
        return replace(self, starts=self.starts[kept], lengths=self.lengths[kept], counted=counted)

    def shuffled(self, rng: random.Random) -> Sequence[int]:
        """Return the indices of the documents in a random order.

        Args:
            rng: source of the draws of `random.Random.shuffle`.
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

    def batches(
        self, indices: Collection[int], batch_size: int, block_size: int | None = None
    ) -> Batches:
        """Return the chosen documents, `batch_size` to a batch.

        Args:
            indices: of the documents of all batches, one batch after another.
            batch_size: documents per batch; divides the number of indices.
            block_size: the most positions of a document; None for whole documents.
        """
        if block_size is not None:
            return self.fitted(block_size).batches(indices, batch_size)
        index = np.fromiter(indices, np.int64, len(indices))
        lengths = self.lengths[index]
        *first_rows, n_rows = starts_of(lengths)
        gather = np.repeat(self.starts[index] - first_rows, lengths) + np.arange(n_rows)
        inputs, targets = (self.tokens[at].astype(np.int32) for at in (gather, gather + 1))
        if self.counted is not None:
            targets[~self.counted[gather + 1]] = -1
        together = Batch(inputs, targets, lengths)
        return Batches(together, np.full(len(index) // batch_size, batch_size))
