"""Documents laid end to end, as engines take them: one batch, or one for each of many steps."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Batch", "Batches", "starts_of"]


class Batch(NamedTuple):
    """Documents laid end to end, ready for an engine.

    Args:
        inputs: token ids, shape (N,), N the sum of `lengths`.
        targets: the token that follows each, shape (N,); -1 where it does not count.
        lengths: positions of each document, shape (B,), each at least 1.
    """

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    lengths: NDArray[np.integer[Any]]


class Batches:
    """One batch for each of several steps, all laid end to end; iterating yields each.

    Args:
        together: the documents of all batches, as one batch.
        n_documents: number of documents of each batch, shape (n_steps,), at least 1.

    Attributes:
        starts: start of each document in `together.inputs`, and the end of the last.
        first_documents: start of each batch in `together.lengths`, and the end of the last, shape
            (n_steps + 1,).
        first_rows: start of each batch in `together.inputs`, and the end of the last, shape
            (n_steps + 1,).
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
    """Return the starts of parts of these lengths, laid end to end, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
