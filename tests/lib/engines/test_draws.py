"""Draws of many seeds against `random.Random`."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from microgpt import EngineError
from microgpt.engines import draws, library

RNG = random.Random(42)
SEEDS = [  # of one word and of two words
    *(0, 1, -1, 42, 2**31, 2**32 - 1, -(2**32) + 1, 2**32, -(2**32), 2**32 + 1, 2**33, 2**63),
    *(-(2**63), 2**64 - 2**32, 2**64 - 1, -(2**64) + 1),
    *(RNG.getrandbits(n_bits) for n_bits in range(1, 65)),
]
WIDTHS = [None, *library.VECTOR_BYTES]  # None: without the library


@pytest.fixture(params=WIDTHS, ids=lambda width: f"{width or 'python'}")
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `uniforms` use vectors of one width alone, or no library."""
    if request.param is None:
        monkeypatch.setattr(draws, "why_unavailable", lambda: "not built")
        monkeypatch.delattr(draws, "functions_for")
        return
    try:
        functions = library.functions_for("float32", request.param)
    except EngineError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(draws, "functions_for", lambda *_: functions)
    monkeypatch.delattr(draws, "random")


def check(seeds: Sequence[int], n_draws: int) -> None:
    found = draws.uniforms(seeds, n_draws)
    expected = [[rng.random() for _ in range(n_draws)] for rng in map(random.Random, seeds)]
    assert found.shape == (len(seeds), n_draws)
    assert found.dtype == np.dtype("float64")
    assert found.tolist() == expected


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("n_draws", [0, 1, 5, 16, 113, 114, 311, 312, 313, 700])
def test_draws_are_those_of_python(n_draws: int) -> None:
    check(SEEDS, n_draws)


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("n_seeds", [0, *range(2, 6), *range(7, 66, 8), *range(8, 73, 8), 129])
def test_seeds_need_not_fill_a_group(n_seeds: int) -> None:
    check(SEEDS[3 : 3 + n_seeds], 3)
    check(range(n_seeds), 3)


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("seeds", [range(-40, 40), range(9, -9, -2), range(2**64 - 9, 2**64)])
def test_seeds_may_be_a_range(seeds: range) -> None:
    check(seeds, 3)


def test_python_draws_for_a_single_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(draws, "functions_for")
    check([7], 20)


@pytest.mark.parametrize("wide", [2**64, -(2**64), 2**96 + 5, 3**400])
def test_python_draws_where_a_seed_has_more_than_64_bits(wide: int) -> None:
    check([1, wide, 2], 7)
    check([wide], 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_engines_of_both_types_draw_the_same(dtype: str) -> None:
    if (reason := library.why_unavailable()) is not None:
        pytest.skip(reason)
    keys, found = np.arange(70, dtype=np.uint64), np.empty((70, 9))
    function: Any = library.functions_for(dtype, None)["draws"]
    function(library.address(keys), 70, 9, library.address(found))
    np.testing.assert_array_equal(found, draws.uniforms(range(70), 9))
