import random
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from microgpt import Dataset
from microgpt.corpus.windows import (
    divided,
    drawn_windows,
    place_of,
    share_of_beginnings,
    splitmix64,
    window_entries,
)
from texts import documents

integers = st.integers(0, (1 << 64) - 1)


# ---------------------------------------------------------------- the hash


def test_hash_gives_the_stream_of_the_reference() -> None:
    # Of Vigna's splitmix64.c from the state 1234567, which grows by the same number each time.
    states = [(1234567 + i * 0x9E3779B97F4A7C15) % (1 << 64) for i in range(5)]
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert list(map(splitmix64, states)) == expected
    assert splitmix64(np.array(states, np.uint64)).tolist() == expected


@given(st.integers(), st.lists(st.tuples(integers, integers, st.integers(1, 1 << 40)), min_size=1))
def test_places_of_arrays_are_those_of_integers(
    seed: int, cases: list[tuple[int, int, int]]
) -> None:
    arrays = (np.array(column, np.uint64) for column in zip(*cases, strict=True))
    assert place_of(seed, *arrays).tolist() == [place_of(seed, *case) for case in cases]


@pytest.mark.parametrize("varies", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)])
def test_places_are_equally_likely_whichever_of_seed_step_and_row_changes(
    varies: tuple[int, int, int],
) -> None:
    seed, step, row = varies
    counts = Counter(place_of(42 + seed * i, step * i, row * i, 7) for i in range(7000))
    assert sorted(counts) == list(range(7))
    # Chi-square of 6 degrees of freedom: one in a thousand is above.
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 22.5


# ---------------------------------------------------------------- windows


@given(documents, st.integers(1, 9), st.randoms())
def test_windows_are_parts_of_their_documents_of_one_block(
    docs: list[str], block_size: int, rng: random.Random
) -> None:
    dataset = Dataset.from_documents(docs)
    indices = rng.choices(range(len(dataset)), k=6)
    windows = drawn_windows(dataset, indices, block_size, 42, range(10, 13))
    assert len(windows) == 6
    for row, index in enumerate(indices):
        whole, window = dataset[index].tolist(), windows[row].tolist()
        length = min(len(whole) - 1, block_size)
        start = place_of(42, 10 + row // 2, row % 2, len(whole) - length)
        assert window == whole[start : start + length + 1]


def test_every_place_of_a_document_is_drawn_its_beginning_and_its_end_too() -> None:
    dataset = Dataset.from_documents(["abcdefg"])
    windows = drawn_windows(dataset, [0] * 300, 5, 42, range(300))
    starts = Counter(windows.starts.tolist())
    assert sorted(starts) == [0, 1, 2, 3]  # of 8 positions
    assert windows.lengths.tolist() == [5] * 300
    assert min(starts.values()) > 50


def test_share_of_beginnings_is_that_of_the_windows_drawn() -> None:
    dataset = Dataset.from_documents(["abcdefg", "ab", "abcde"])  # 8, 3 and 6 positions
    assert share_of_beginnings(dataset, 5) == (2 / 4 + 1 + 2 / 2) / (2 + 1 + 2)
    entries = list(window_entries(dataset, 5))
    windows = drawn_windows(dataset, entries * 1000, 5, 42, range(1000))
    begins = np.isin(windows.starts, dataset.starts)
    assert abs(begins.mean() - 0.5) < 0.03  # four standard deviations
    assert share_of_beginnings(dataset, 8) == 1


@given(documents, st.integers(1, 9))
def test_document_has_an_entry_for_each_block_that_it_would_be_split_into(
    docs: list[str], block_size: int
) -> None:
    dataset = Dataset.from_documents(docs)
    expected = [[i] * -(-n // block_size) for i, n in enumerate(dataset.lengths.tolist())]
    entries = window_entries(dataset, block_size)
    assert list(entries) == list(chain.from_iterable(expected))
    assert len(entries) == len(dataset.fitted(block_size, "split"))


@pytest.mark.parametrize(("n_documents", "n_bytes"), [(1, 1), (256, 1), (257, 2), (65_537, 4)])
def test_entries_take_as_few_bytes_as_the_number_of_documents_allows(
    n_documents: int, n_bytes: int
) -> None:
    entries = window_entries(Dataset.from_documents(["ab"] * n_documents), 2)
    assert list(entries) == [i for i in range(n_documents) for _ in range(2)]
    assert memoryview(entries).itemsize == n_bytes  # type: ignore[arg-type] # an array


# ---------------------------------------------------------------- divided


def targets(dataset: Dataset) -> list[int]:
    """Return where each target stands in the array of ids."""
    pairs = zip(dataset.starts.tolist(), dataset.lengths.tolist(), strict=True)
    return [at for start, length in pairs for at in range(start + 1, start + length + 1)]


@given(documents, st.randoms(), st.data())
def test_divided_documents_have_each_target_on_one_side(
    docs: list[str], rng: random.Random, data: st.DataObject
) -> None:
    dataset = Dataset.from_documents(docs)
    order = dataset.shuffled(rng)
    n_first = data.draw(st.integers(1, int(dataset.lengths.sum()) - 1))
    first, rest = divided(dataset, order, n_first)
    whole = [at for i in order for at in targets(dataset.only(i))]
    assert targets(first) == whole[:n_first]
    assert targets(rest) == whole[n_first:]
    assert min(*first.lengths, *rest.lengths) > 0
    assert targets(dataset) == sorted(whole)  # as it was
