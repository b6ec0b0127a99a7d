"""Documents in the tokens of another tokenizer, such as one of subwords that they have taught.

Documents are encoded by characters when they are read, in one pass: that is fast, and two bytes a
character or less than a character take little memory. Subwords are learned and encoded from there.
"""

from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microgpt.corpus.words import whole_words
from microgpt.data import BaseTokenizer, Tokenizer

__all__ = ["recoded", "texts_of"]

PIECE = 1 << 20  # characters that are encoded at a time


class _Texts:
    """The texts between the special tokens of documents."""

    def __init__(self, tokenizer: BaseTokenizer) -> None:
        self._tokenizer = tokenizer
        self._code_points = np.empty(0, "<u4")
        if isinstance(tokenizer, Tokenizer):
            self._code_points = np.array([ord(char) for char in tokenizer.chars], "<u4")

    def spans(self, ids: NDArray[Any]) -> list[tuple[int, int]]:
        """Return (mark, end) of each special token and of the end of the text after it.

        Where a document does not begin with a special token, the first mark is -1.
        """
        marks = (ids >= self._tokenizer.n_plain).nonzero()[0].tolist()
        if not marks or marks[0] > 0:
            marks.insert(0, -1)
        return list(pairwise([*marks, len(ids)]))

    def pieces(self, ids: NDArray[Any]) -> Iterator[str]:
        """Yield the text of ids without special tokens, in pieces that begin and end with words."""
        if not len(self._code_points):
            return iter([self._tokenizer.decode(ids.tolist())])
        pieces = (
            self._code_points[ids[start : start + PIECE]].tobytes().decode("utf-32-le")
            for start in range(0, len(ids), PIECE)
        )
        return pieces if len(ids) <= PIECE else whole_words(pieces)


def texts_of(
    tokens: NDArray[Any],
    starts: NDArray[Any],
    lengths: NDArray[Any],
    tokenizer: BaseTokenizer,
) -> Iterator[Iterator[str]]:
    """Yield each document's or turn's text in pieces; the arguments are those of `Dataset`."""
    texts = _Texts(tokenizer)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        ids = tokens[start : start + length + 1]
        for mark, end in texts.spans(ids):
            if end > mark + 1:
                yield texts.pieces(ids[mark + 1 : end])


def recoded(
    tokens: NDArray[Any],
    starts: NDArray[Any],
    lengths: NDArray[Any],
    counted: NDArray[np.bool_] | None,
    tokenizers: Sequence[BaseTokenizer],
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_] | None]:
    """Return tokens, starts, lengths and what counts, all as in `Dataset`, by another tokenizer.

    Args:
        tokens: see `Dataset`.
        starts: see `Dataset`.
        lengths: see `Dataset`.
        counted: see `Dataset`; all tokens of a text count, or none.
        tokenizers: of the tokens, and of the result.

    Raises:
        TokenError: the new tokenizer lacks a character or a special token.
    """
    old, new = tokenizers
    texts = _Texts(old)
    special = [*map(new.special_id, old.special_tokens), new.bos]
    out = array("H" if new.vocab_size <= 1 << 16 else "I")
    out_counted, out_starts, out_lengths = bytearray(), array("q"), array("q")
    last = -1  # id of the document before; the next one may begin with it
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        out_start, first = len(out), start
        if start == last:
            out_start, first = len(out) - 1, start + 1
        last = start + length
        ids = tokens[first : last + 1]
        for mark, end in texts.spans(ids):
            if mark >= 0:
                out.append(special[int(ids[mark]) - old.n_plain])
                if counted is not None:
                    out_counted.append(int(counted[first + mark]))
            if end == mark + 1:
                continue
            for piece in texts.pieces(ids[mark + 1 : end]):
                new_ids = new.encode(piece)
                out.extend(new_ids)
                if counted is not None:
                    out_counted += bytes([int(counted[first + mark + 1])]) * len(new_ids)
        out_starts.append(out_start)
        out_lengths.append(len(out) - 1 - out_start)
    return (
        np.frombuffer(out, np.dtype(out.typecode)),
        np.frombuffer(out_starts, np.int64),
        np.array(out_lengths, lengths.dtype),
        None if counted is None else np.frombuffer(out_counted, np.bool_),
    )
