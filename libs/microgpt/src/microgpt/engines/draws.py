"""Uniform draws of many seeds at once."""

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from microgpt.engines.library import address, functions_for, why_unavailable
from microgpt.parameters import FloatArray

__all__ = ["uniforms"]


def _keys(seeds: Sequence[int]) -> NDArray[np.uint64] | None:
    """Return the absolute values of seeds, shape (len(seeds),); None if one needs over 64 bits."""
    try:
        return np.fromiter(map(abs, seeds), np.uint64, len(seeds))
    except OverflowError:
        return None


def uniforms(seeds: Sequence[int], n_draws: int) -> FloatArray:
    """Return the first numbers of `random.Random(seed).random()` for each seed.

    The native library computes them, whichever engine is in use; without it, or with a seed of
    more than 64 bits, `random.Random` does, in over ten times the time.

    Args:
        seeds: any integers; `random.Random` ignores their signs.
        n_draws: numbers per seed, at least 0.

    Returns:
        Numbers from 0 to below 1, float64, shape (len(seeds), n_draws).
    """
    is_one = len(seeds) == 1  # of a group that the kernel computes in one go
    keys = None if is_one or why_unavailable() else _keys(seeds)
    if keys is None:
        rows = [[rng.random() for _ in range(n_draws)] for rng in map(random.Random, seeds)]
        return np.array(rows, np.float64).reshape(len(seeds), n_draws)
    draws = np.empty((len(seeds), n_draws))
    functions_for("float32", None)["draws"](address(keys), len(keys), n_draws, address(draws))
    return draws
