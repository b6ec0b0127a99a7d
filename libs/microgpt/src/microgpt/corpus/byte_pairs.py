"""Byte-pair encoding: which pairs of tokens to merge, learned from texts.

A text is bytes of UTF-8, and each byte is a token. The pair of neighbouring tokens that is most
frequent is merged into a token of its own, and so on until the vocabulary is full. No merge
crosses the end of a word, see `words`.

Source: Sennrich et al. 2016, arXiv:1508.07909; bytes: Radford et al. 2019 (GPT-2).
"""

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise, repeat
from typing import TypeAlias

from microgpt import checks
from microgpt.corpus.words import whole_words, words_of
from microgpt.errors import DataError

__all__ = [
    "BYTES",
    "END",
    "MAX_TOKEN_BYTES",
    "N_BYTES",
    "Pair",
    "Row",
    "Vocabulary",
    "byte_ids",
    "count_words",
    "learn_merges",
]

Pair: TypeAlias = tuple[int, int]  # ids of neighbouring tokens

N_BYTES = 256
MAX_TOKEN_BYTES = 128  # of a learned token: a row of dashes needs no token of its own length

# Byte i of BYTES has id i: GPT-2's order, printable characters of Latin-1 first, as ids of the
# `tokenizers` package have it.
_PRINTABLE = bytes([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
BYTES = _PRINTABLE + bytes(byte for byte in range(N_BYTES) if byte not in _PRINTABLE)
_IDS_OF_BYTES = bytes(BYTES.index(byte) for byte in range(N_BYTES))

END = -1  # in place of a token: after the last one of a word, and where a merged one was


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


class Row:
    """Tokens in a row, each with its neighbours: a merge takes as long in a long row as in a short.

    Every word ends with END. Index -1, left of the first token, is the last END.
    """

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.left = array("i", range(-1, len(tokens) - 1))
        self.right = array("i", range(1, len(tokens) + 1))

    def pair_at(self, i: int) -> Pair:
        """Return token i, which is no END, and the next; a token merged into another is END."""
        return self.tokens[i], self.tokens[self.right[i]]

    def merge(self, i: int, token: int) -> None:
        """Put `token` in place of token i and the next."""
        merged = self.right[i]
        after = self.right[merged]
        self.tokens[i], self.tokens[merged] = token, END
        self.right[i], self.left[after] = after, i


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

    The most frequent pair is merged; of equally frequent pairs the one with the lowest ids. A
    token that two merges make has one id. No token is longer than 128 bytes.

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
    merges = []
    while len(learner.vocabulary.contents) < n_tokens and (pair := learner.most_frequent()):
        merges.append(pair)
        learner.merge(pair)
    return merges


class _Learner:
    """All words in one row, with the count of every pair and the places where it stands."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        tokens: list[int] = []
        self.weights = array("q")  # by place: occurrences of its word
        for word, count in counts.items():
            try:
                tokens += byte_ids(word)
            except UnicodeEncodeError:
                raise DataError(checks.half_of_a_character(word)) from None
            tokens.append(END)
            self.weights.extend(repeat(count, len(tokens) - len(self.weights)))
        self.row = Row(tokens)
        self.vocabulary = Vocabulary()
        self.pair_counts: dict[Pair, int] = defaultdict(int)
        self.places: dict[Pair, array[int]] = defaultdict(lambda: array("i"))
        for i, pair in enumerate(pairwise(self.row.tokens)):
            if END not in pair:
                self._add(pair, i)
        self.heap = [(-count, pair) for pair, count in self.pair_counts.items()]
        heapq.heapify(self.heap)

    def _add(self, pair: Pair, i: int) -> None:
        self.pair_counts[pair] += self.weights[i]
        self.places[pair].append(i)

    def most_frequent(self) -> Pair | None:
        """Return the next pair to merge, or None if there is none."""
        while self.heap:
            count, pair = heapq.heappop(self.heap)
            now = self.pair_counts.get(pair, 0)
            if now == -count:
                return pair
            if now:  # merges of its neighbours have taken some
                heapq.heappush(self.heap, (-now, pair))
        return None

    def merge(self, pair: Pair) -> None:
        """Merge a pair wherever it stands."""
        token = self.vocabulary.merged(pair)
        row, new_pairs = self.row, set()
        for i in sorted(self.places.pop(pair)):
            if row.pair_at(i) != pair:  # merged otherwise meanwhile
                continue
            row.merge(i, token)
            before, after = row.left[i], row.right[i]
            old_and_new = (
                ((row.tokens[before], pair[0]), (row.tokens[before], token), before),
                ((pair[1], row.tokens[after]), (token, row.tokens[after]), i),
            )
            for old, new, place in old_and_new:
                if END not in new:
                    self.pair_counts[old] -= self.weights[i]
                    if len(self.vocabulary.joined(new)) <= MAX_TOKEN_BYTES:
                        self._add(new, place)
                        new_pairs.add(new)
        del self.pair_counts[pair]
        for new in new_pairs:
            if count := self.pair_counts[new]:  # none left where the next merge took it: aaaa
                heapq.heappush(self.heap, (-count, new))
