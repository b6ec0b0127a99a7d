"""Byte-pair encoding: which pairs of tokens to merge, learned from texts.

A text is bytes of UTF-8, and each byte is a token. The pair of neighbouring tokens that is most
frequent is merged into a token of its own, and so on until the vocabulary is full. No merge
crosses the end of a word, see `words`.

Source: Sennrich et al. 2016, arXiv:1508.07909; bytes: Radford et al. 2019 (GPT-2).
"""

import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from microgpt import checks
from microgpt.corpus.words import whole_words, words_of
from microgpt.errors import DataError

__all__ = [
    "BYTES",
    "MAX_TOKEN_BYTES",
    "N_BYTES",
    "Pair",
    "Vocabulary",
    "byte_ids",
    "count_words",
    "learn_merges",
]

Pair: TypeAlias = tuple[int, int]  # ids of neighbouring tokens
_Places: TypeAlias = NDArray[np.int32]
_Found: TypeAlias = tuple[int, Pair, _Places]  # minus the count, for the heap

N_BYTES = 256
MAX_TOKEN_BYTES = 128  # of a learned token: a row of dashes needs no token of its own length

# Byte i of BYTES has id i: GPT-2's order, printable characters of Latin-1 first, as ids of the
# `tokenizers` package have it.
_PRINTABLE = bytes([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
BYTES = _PRINTABLE + bytes(byte for byte in range(N_BYTES) if byte not in _PRINTABLE)
_IDS_OF_BYTES = bytes(BYTES.index(byte) for byte in range(N_BYTES))
_NO_BYTE = 0xFF  # UTF-8 never has it: between words
_NO_TOKEN = _IDS_OF_BYTES[_NO_BYTE]


def byte_ids(word: str) -> bytes:
    """Return the ids of the bytes of a word; raise UnicodeEncodeError for a lone surrogate."""
    return word.encode().translate(_IDS_OF_BYTES)


class Vocabulary:
    """The bytes of every token; the index is the id."""

    def __init__(self) -> None:
        self.contents = [bytes([byte]) for byte in BYTES]
        self._ids = {content: i for i, content in enumerate(self.contents)}

    def joined(self, pair: Pair) -> bytes:
        """Return the bytes of a pair."""
        return self.contents[pair[0]] + self.contents[pair[1]]

    def merged(self, pair: Pair) -> int:
        """Return the id of the token that a merge makes; another merge may make the same."""
        content = self.joined(pair)
        if content not in self._ids:
            self._ids[content] = len(self.contents)
            self.contents.append(content)
        return self._ids[content]


def count_words(texts: Iterable[str | Iterable[str]]) -> Counter[str]:
    """Return how often each word occurs.

    Args:
        texts: read once; each a string, or the pieces of one text.

    Raises:
        DataError: a text is no string.
    """
    counts: Counter[str] = Counter()
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        texts = checks.checked_texts(texts)  # raises
    for text in texts:
        pieces = checks.checked_texts([text] if isinstance(text, str) else text)
        for part in whole_words(pieces):
            counts.update(words_of(part))
    return counts


def learn_merges(counts: Mapping[str, int], n_tokens: int) -> list[Pair]:
    """Return the merges that byte-pair encoding learns, the first learned first.

    The most frequent pair is merged; of equally frequent pairs the one with the lowest ids. No
    two merges make the same token: bytes between two ends of tokens are merged in one way only.
    No token is longer than 128 bytes.

    Args:
        counts: the words, each with its number of occurrences.
        n_tokens: of the vocabulary, bytes included. Fewer come of it where the words have no pair
            left to merge.

    Raises:
        DataError: a word holds a lone surrogate.

    Example:
        >>> merges = learn_merges({"aaabdaaabac": 1}, 259)
        >>> [(chr(BYTES[left]), chr(BYTES[right])) for left, right in merges[:2]], merges[2]
        ([('a', 'a'), ('a', 'b')], (256, 257))
    """
    learner = _Learner(counts)
    merges: list[Pair] = []
    while N_BYTES + len(merges) < n_tokens and (found := learner.most_frequent()):
        learner.merge(*found)
        merges.append(found[0])
    return merges


class _Learner:
    """All words in one row of bytes, with the tokens they are and the places of every pair.

    The id of a token stands at its first byte and at its last, and all its occurrences have one
    length: so its neighbours are found without links. A pair stands where the merge that makes its
    later token puts it, and nowhere else afterwards: its count, noted then, can only fall.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        row = bytearray([_NO_BYTE])
        for word in counts:
            try:
                row += word.encode()
            except UnicodeEncodeError:
                raise DataError(checks.half_of_a_character(word)) from None
            row.append(_NO_BYTE)
        token_ids = row.translate(_IDS_OF_BYTES)
        self.tokens = np.frombuffer(token_ids, np.uint8).astype(np.int32)
        self.lengths = array("i", [1]) * N_BYTES  # by token, in bytes
        self.lengths[_NO_TOKEN] = MAX_TOKEN_BYTES  # so that it is merged with nothing
        # By place: occurrences of its word.
        dtype = np.min_scalar_type(max(counts.values(), default=0))
        n_places = np.diff(np.flatnonzero(self.tokens == _NO_TOKEN))
        self.weights = np.repeat(np.fromiter(counts.values(), dtype), n_places)
        self.heap: list[tuple[int, Pair, _Places, Iterator[_Found]]] = []
        for token in {*token_ids} - {_NO_TOKEN}:
            self._add_pairs_after(token, np.flatnonzero(self.tokens == token).astype(np.int32))

    def _add_pairs_after(self, token: int, places: _Places) -> None:
        right = self.tokens[places + self.lengths[token]]
        fits = self._fits(right, token)
        self._push(self._found(right[fits], places[fits], lambda right: (token, right)))

    def _add_pairs_before(self, token: int, places: _Places) -> None:
        left = self.tokens[places - 1]
        fits = self._fits(left, token) & (left != token)  # the pair of both is one after
        left, places = left[fits], places[fits]
        places -= np.asarray(self.lengths)[left]
        self._push(self._found(left, places, lambda left: (left, token)))

    def _fits(self, neighbours: NDArray[np.int32], token: int) -> NDArray[np.bool_]:
        return np.asarray(self.lengths)[neighbours] <= MAX_TOKEN_BYTES - self.lengths[token]

    def _found(
        self, neighbours: NDArray[np.int32], places: _Places, pair_with: Callable[[int], Pair]
    ) -> Iterator[_Found]:
        """Yield the pairs of a token with each neighbour, the most frequent first."""
        order = np.argsort(neighbours, kind="stable")
        neighbours, places = neighbours[order], places[order]
        starts = np.flatnonzero(np.diff(neighbours, prepend=-1))
        counts = np.add.reduceat(self.weights[places], starts, dtype=np.int64)
        neighbours, ends = neighbours[starts], np.append(starts[1:], len(places))
        order = np.argsort(-counts, kind="stable")
        for i in order:
            pair = pair_with(int(neighbours[i]))
            yield -int(counts[i]), pair, places[starts[i] : ends[i]]

    def _push(self, pairs: Iterator[_Found]) -> None:
        """Put the next of some pairs on the heap; the others follow when it is taken."""
        if found := next(pairs, None):
            heapq.heappush(self.heap, (*found, pairs))

    def most_frequent(self) -> tuple[Pair, _Places] | None:
        """Return the next pair to merge and its places, or None if there is none."""
        while self.heap:
            count, pair, places, others = heapq.heappop(self.heap)
            self._push(others)
            left, right = self.tokens[places], self.tokens[places + self.lengths[pair[0]]]
            places = places[(left == pair[0]) & (right == pair[1])]  # not merged otherwise
            now = int(self.weights[places].sum(dtype=np.int64))
            if now == -count:
                return pair, places
            if now:
                heapq.heappush(self.heap, (-now, pair, places, iter(())))
        return None

    def merge(self, pair: Pair, places: _Places) -> None:
        """Merge a pair at its places."""
        token, n_left = len(self.lengths), self.lengths[pair[0]]
        n_bytes = n_left + self.lengths[pair[1]]
        self.lengths.append(n_bytes)
        if pair[0] == pair[1]:
            places = _without_overlaps(places, n_left)
        self.tokens[places + n_left] = _NO_TOKEN
        self.tokens[places] = self.tokens[places + n_bytes - 1] = token
        self._add_pairs_before(token, places)
        self._add_pairs_after(token, places)


def _without_overlaps(places: _Places, n_bytes: int) -> _Places:
    """Return every second place of tokens in a row: aaa is one pair and a token."""
    numbers = np.arange(len(places))
    is_next = np.diff(places, prepend=0) == n_bytes
    first: NDArray[np.int64] = np.maximum.accumulate(np.where(is_next, 0, numbers))  # of its row
    every_second: _Places = places[(numbers - first) % 2 == 0]
    return every_second
