"""Subwords to token ids and back: byte-level BPE.

To encode a text, the bytes of each word are merged, in the order in which `byte_pairs` learned the
merges. Any text can be encoded, since any byte is a token.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

from microgpt import checks
from microgpt.corpus.byte_pairs import (
    MAX_TOKEN_BYTES,
    N_BYTES,
    Pair,
    Vocabulary,
    byte_ids,
    count_words,
    learn_merges,
)
from microgpt.corpus.words import words_of
from microgpt.data import BaseTokenizer, Unknown
from microgpt.errors import ConfigError, DataError, TokenError

__all__ = ["VOCAB_SIZE", "SubwordTokenizer"]

VOCAB_SIZE = 1024  # unless another is asked for

MAX_CACHED_WORDS, MAX_CACHED_LENGTH = 1 << 17, 64  # characters of a word
SHORT = 40  # bytes of a word: above, the heap is faster than the search
END = -1  # in place of a token: after the last one, and where a merged one was


def _is_pair(pair: object, n_tokens: int) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2  # noqa: PLR2004 - a pair
        and all(checks.is_integer(token) and 0 <= token < n_tokens for token in pair)
    )


class _Words(dict[str, list[int]]):
    """Ids of words, encoded when first asked for; frequent words are asked for again."""

    def __init__(self, ranks: Mapping[Pair, int], made: Sequence[int]) -> None:
        self.ranks, self.made = ranks, made

    def __missing__(self, word: str) -> list[int]:
        token_ids = self._encoded(word)
        if len(word) <= MAX_CACHED_LENGTH:
            if len(self) >= MAX_CACHED_WORDS:
                self.clear()
            self[word] = token_ids
        return token_ids

    def _encoded(self, word: str) -> list[int]:
        """Return the ids after all merges: the first learned first, each from the left."""
        tokens = list(byte_ids(word))
        return self._merged(tokens) if len(tokens) <= SHORT else self._merged_long(tokens)

    def _merged(self, tokens: list[int]) -> list[int]:
        """Merge by search for the lowest rank: quadratic, but faster for short words."""
        rank_of, none = self.ranks.get, len(self.ranks)
        ranks = [rank_of(pair, none) for pair in pairwise(tokens)]
        while ranks and (rank := min(ranks)) < none:
            i = ranks.index(rank)
            token = tokens[i] = self.made[rank]
            del tokens[i + 1], ranks[i]
            if i > 0:
                ranks[i - 1] = rank_of((tokens[i - 1], token), none)
            if i < len(ranks):
                ranks[i] = rank_of((token, tokens[i + 1]), none)
        return tokens

    def _merged_long(self, tokens: list[int]) -> list[int]:
        """Merge with a heap of ranks: a word of a million characters takes seconds."""
        rank_of = self.ranks.get
        heap = [
            (r, i) for i, pair in enumerate(pairwise(tokens)) if (r := rank_of(pair)) is not None
        ]
        heapq.heapify(heap)
        left, right = list(range(-1, len(tokens))), [*range(1, len(tokens) + 1), 0]
        tokens.append(END)  # last, and by index -1 also left of the first
        while heap:
            rank, i = heapq.heappop(heap)
            merged = right[i]
            if rank_of((tokens[i], tokens[merged])) != rank:
                continue  # merged otherwise meanwhile
            after = right[merged]
            tokens[i], tokens[merged] = self.made[rank], END
            right[i], left[after] = after, i
            for place in (left[i], i):
                if (new := rank_of((tokens[place], tokens[right[place]]))) is not None:
                    heapq.heappush(heap, (new, place))
        return [token for token in tokens if token != END]


@dataclass(frozen=True)
class SubwordTokenizer(BaseTokenizer):
    """Subwords to token ids and back.

    Bytes have ids 0..255 in GPT-2's order, learned subwords the ids after them in the order in
    which they were learned, special tokens those after them.

    Args:
        merges: the pairs of ids to merge, the first learned first.
        is_chat: whether the chat tokens exist.
        has_system: whether the chat tokens include "system".

    Raises:
        DataError: `merges` holds something other than pairs of ids that exist before the merge, or
            a pair twice; or a token is longer than 128 bytes.
        ConfigError: `has_system` without `is_chat`.

    Attributes:
        subwords: the bytes of every token but the special ones; the index is the id.

    Example:
        >>> tokenizer = SubwordTokenizer.from_texts(["aaabdaaabac"], vocab_size=260)
        >>> [tokenizer.token_text(i) for i in tokenizer.encode("aaabdaaabac")]
        ['aaab', 'd', 'aaab', 'a', 'c']
        >>> tokenizer.decode(tokenizer.encode("any text: ☺"))
        'any text: ☺'
    """

    merges: tuple[Pair, ...]
    is_chat: bool = False
    has_system: bool = False
    subwords: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    _words: _Words = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.has_system and not self.is_chat:
            raise ConfigError("has_system is True with is_chat False, expected a chat tokenizer")
        if not isinstance(self.merges, tuple):  # a list would differ from an equal tuple
            raise DataError(f"merges is {self.merges!r:.80}, expected a tuple of pairs of ids")
        vocabulary, ranks, made = Vocabulary(), dict[Pair, int](), list[int]()
        for rank, pair in enumerate(self.merges):
            if not _is_pair(pair, n := len(vocabulary.contents)):
                raise DataError(
                    f"merge {rank} is of {pair!r:.80}, expected two ids from 0 to {n - 1}, "
                    "those of the tokens before"
                )
            if pair in ranks:
                raise DataError(f"merge {rank} is that of {ranks[pair]}, expected each pair once")
            if (n_bytes := len(vocabulary.joined(pair))) > MAX_TOKEN_BYTES:
                raise DataError(
                    f"merge {rank} makes a token of {n_bytes} bytes, "
                    f"expected at most {MAX_TOKEN_BYTES}"
                )
            ranks[pair] = rank
            made.append(vocabulary.merged(pair))
        object.__setattr__(self, "subwords", tuple(vocabulary.contents))
        object.__setattr__(self, "chars", ())
        object.__setattr__(self, "n_plain", len(vocabulary.contents))
        object.__setattr__(self, "_words", _Words(ranks, made))

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str | Iterable[str]],
        vocab_size: int,
        *,
        is_chat: bool = False,
        has_system: bool = False,
    ) -> "SubwordTokenizer":
        """Return a tokenizer with subwords learned from texts.

        Args:
            texts: read once; each a string, or the pieces of one text.
            vocab_size: number of token ids, special tokens included. The tokenizer's own
                `vocab_size` is smaller if the texts have no more pairs to merge.
            is_chat: whether the chat tokens exist.
            has_system: whether the chat tokens include "system".

        Raises:
            ConfigError: `vocab_size` is below 256 and the special tokens.
            DataError: a text is no string, or holds a lone surrogate.
        """
        n_special = cls((), is_chat, has_system).vocab_size - N_BYTES
        if checks.checked_integer("vocab_size", vocab_size) < N_BYTES + n_special:
            raise ConfigError(
                f"vocab_size is {vocab_size}, expected at least {N_BYTES + n_special}: "
                f"{N_BYTES} bytes and {n_special} special token{'s' * (n_special > 1)}"
            )
        merges = learn_merges(count_words(texts), vocab_size - n_special)
        return cls(tuple(merges), is_chat, has_system)

    def _encode(self, text: str, unknown: Unknown) -> list[int]:
        if unknown == "skip":
            text = text.encode(errors="ignore").decode()
        try:
            return list(chain.from_iterable(map(self._words.__getitem__, words_of(text))))
        except UnicodeEncodeError:
            raise TokenError(checks.half_of_a_character(text)) from None

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, perhaps a part of a character; special tokens have none.

        Args:
            token_id: 0 to V - 1, or TokenError is raised.
        """
        (token_id,) = checks.checked_ids([token_id], self.vocab_size)
        return self.subwords[token_id] if token_id < self.n_plain else b""

    def _decode(self, token_ids: Sequence[int]) -> str:
        content = b"".join([self.subwords[token_id] for token_id in token_ids])
        return content.decode(errors="replace")
