"""Windows: parts of documents, from places that an integer hash of seed, step and row chooses.

Resumed runs, MPI processes and programs in other languages thus repeat the places of a run.
"""

from array import array
from collections.abc import Collection, MutableSequence, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from microgpt.corpus.dataset import Dataset

__all__ = ["divided", "drawn_windows", "place_of", "share_of_beginnings", "window_entries"]

MASK = (1 << 64) - 1


def splitmix64(number: Any) -> Any:
    """Return a hash of an integer modulo 2**64, or of each in an array of uint64.

    Source: Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195.

    Example:
        >>> hex(splitmix64(0))
        '0xe220a8397b1dcdaf'
    """
    z = (number + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def place_of(seed: int, step: Any, row: Any, n_places: Any) -> Any:
    """Return the place of a window in its document.

    Args:
        seed: of the run; counts modulo 2**64.
        step: counted from 0; this and the others are integers, or arrays of uint64 of one shape.
        row: of the whole batch, counted from 0.
        n_places: number of places to choose from.

    Example:
        >>> [place_of(42, step, row, 1000) for step in (0, 1) for row in (0, 1)]
        [950, 318, 524, 338]
    """
    return splitmix64(splitmix64(splitmix64(seed) ^ step) ^ row) % n_places


def window_entries(dataset: Dataset, block_size: int) -> MutableSequence[int]:
    """Return the index of each document once per `block_size` positions, rounded up, in order."""
    n_entries = -(-dataset.lengths // block_size)
    kind = np.min_scalar_type(len(dataset) - 1)  # there may be millions of entries: 1 to 4 bytes
    entries = array(kind.char)
    entries.frombytes(np.repeat(np.arange(len(dataset), dtype=kind), n_entries).view(np.uint8).data)
    return entries


def share_of_beginnings(dataset: Dataset, block_size: int) -> float:
    """Return the share of windows, on average, that begin where their document does: with BOS."""
    n_entries = -(-dataset.lengths // block_size)
    n_places = np.maximum(dataset.lengths - block_size, 0) + 1
    return float((n_entries / n_places).sum() / n_entries.sum(dtype=np.int64))


def drawn_windows(
    dataset: Dataset, indices: Collection[int], block_size: int, seed: int, steps: range
) -> Dataset:
    """Return a window of each chosen document; documents of at most `block_size` whole.

    Args:
        dataset: whole documents.
        indices: of the documents of all steps, one step after another.
        block_size: positions of a window.
        seed: of the run.
        steps: divide `indices` into batches of one size.
    """
    index = np.fromiter(indices, np.int64, len(indices))
    lengths = np.minimum(dataset.lengths[index], block_size)
    n_places = (dataset.lengths[index] - lengths + 1).astype(np.uint64)
    batch_size = len(index) // len(steps)
    step = np.repeat(np.arange(steps.start, steps.stop, dtype=np.uint64), batch_size)
    row = np.tile(np.arange(batch_size, dtype=np.uint64), len(steps))
    places = place_of(seed, step, row, n_places).astype(np.int64)
    return replace(dataset, starts=dataset.starts[index] + places, lengths=lengths)


def divided(dataset: Dataset, order: Sequence[int], n_first: int) -> tuple[Dataset, Dataset]:
    """Divide documents, taken in an order, after so many positions.

    A document at the border is divided there: its parts share one id, the last target of the first
    part, which the second part only reads.

    Args:
        dataset: whole documents.
        order: index of each document.
        n_first: positions of the first dataset, more than 0 and less than all.
    """
    index = np.asarray(order)
    starts, lengths = dataset.starts[index], dataset.lengths[index]
    ends = np.cumsum(lengths, dtype=np.int64)
    border = int(np.searchsorted(ends, n_first))  # the document that holds the last of them
    n_kept = n_first - int(ends[border] - lengths[border])
    first_lengths, rest_starts, rest_lengths = (
        part.copy() for part in (lengths[: border + 1], starts[border:], lengths[border:])
    )
    first_lengths[-1] = n_kept
    rest_starts[0] += n_kept
    rest_lengths[0] -= n_kept
    at = slice(int(rest_lengths[0] == 0), None)
    return (
        replace(dataset, starts=starts[: border + 1], lengths=first_lengths),
        replace(dataset, starts=rest_starts[at], lengths=rest_lengths[at]),
    )
