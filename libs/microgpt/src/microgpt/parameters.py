"""All numbers of a model in one array: a flat buffer, and named matrices that are views of it.

Weights, gradients and Adam's moments each are one such buffer, so saving, clipping, averaging over
processes and the kernel handle one array apiece.
"""

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microgpt.errors import ConfigError, ShapeError
from microgpt.model import ModelConfig, init_weights, parameter_shapes

__all__ = ["DTYPES", "FloatArray", "IntArray", "Parameters", "check_dtype"]

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

DTYPES = ("float32", "float64")


def check_dtype(dtype: str) -> str:
    """Return `dtype`, or raise ConfigError unless it is float32 or float64."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    return dtype


class Parameters(Mapping[str, FloatArray]):
    """A flat buffer and its named 2-D views, in the order of `parameter_shapes`.

    Args:
        config: sizes.
        flat: shape (config.n_params,), float32 or float64, contiguous; it is not copied.

    Raises:
        ShapeError: `flat` has another shape, type or layout.

    Example:
        >>> parameters = Parameters.zeros(ModelConfig(vocab_size=27), "float32")
        >>> parameters["wte"][0, 0] = 1.0
        >>> parameters.flat[0], len(parameters), parameters["layer0.mlp_fc1"].shape
        (np.float32(1.0), 9, (64, 16))
    """

    def __init__(self, config: ModelConfig, flat: FloatArray) -> None:
        if (
            flat.shape != (config.n_params,)
            or flat.dtype not in DTYPES
            or not flat.flags.c_contiguous
        ):
            raise ShapeError(
                f"got an array of shape {flat.shape} and type {flat.dtype}, expected a contiguous "
                f"one of shape ({config.n_params},) and type float32 or float64"
            )
        self.config = config
        self.flat = flat
        self._spans: dict[str, tuple[int, int]] = {}  # start and end of each in `flat`
        self._views: dict[str, FloatArray] = {}
        start = 0
        for name, (rows, columns) in parameter_shapes(config).items():
            end = start + rows * columns
            self._spans[name] = start, end
            self._views[name] = flat[start:end].reshape(rows, columns)
            start = end

    def __reduce__(self) -> tuple[type["Parameters"], tuple[ModelConfig, FloatArray]]:
        """Support copying and pickling: the copy's views are of its own buffer."""
        return type(self), (self.config, self.flat)

    @classmethod
    def zeros(cls, config: ModelConfig, dtype: str) -> "Parameters":
        """Return a buffer of zeros."""
        return cls(config, np.zeros(config.n_params, check_dtype(dtype)))

    @classmethod
    def init(cls, config: ModelConfig, rng: random.Random, dtype: str) -> "Parameters":
        """Return initial weights drawn from `rng` in float64, then rounded to `dtype`."""
        draws = np.fromiter(init_weights(config, rng), np.float64, config.n_params)
        return cls(config, draws.astype(check_dtype(dtype)))

    @property
    def dtype(self) -> str:
        """Name of the numbers' type: float32 or float64."""
        return str(self.flat.dtype)

    def stacked(self, first: str, last: str) -> FloatArray:
        """Return the matrices from `first` to `last`, all of one width, as one view."""
        start, end = self._spans[first][0], self._spans[last][1]
        return self.flat[start:end].reshape(-1, self._views[first].shape[1])

    def __getitem__(self, name: str) -> FloatArray:
        return self._views[name]

    def __setitem__(self, name: str, values: ArrayLike) -> None:
        """Write values, one or of the matrix's shape, into the flat buffer."""
        matrix = self._views[name]
        if np.shape(values) not in {(), matrix.shape}:
            raise ShapeError(
                f"got values of shape {np.shape(values)} for {name}, expected {matrix.shape}"
            )
        matrix[:] = values

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)
