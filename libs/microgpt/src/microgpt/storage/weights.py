"""Weights as files: JSON, which the Rust system reads too, or safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from microgpt.errors import CheckpointError
from microgpt.model import parameter_shapes
from microgpt.parameters import DTYPES, FloatArray, Parameters

__all__ = ["WEIGHTS", "Format", "decode_weights", "encode_weights", "plausible_sizes"]

Format: TypeAlias = Literal["json", "safetensors"]

WEIGHTS: dict[Format, str] = {"json": "weights.json", "safetensors": "weights.safetensors"}
FILE_DTYPES = ("float16", *DTYPES)  # of a safetensors file

MAX_BYTES_PER_WEIGHT = 64  # in JSON, the longest float64 takes 24 characters and a comma
MIN_BYTES_PER_WEIGHT = 2  # "0,", or a float16
MAX_HEADER_BYTES = 1 << 20  # around the weights

_Matrix: TypeAlias = list[list[float]] | FloatArray


def plausible_sizes(n_params: int) -> tuple[int, int]:
    """Return the least and the most bytes of a file of so many weights."""
    return n_params * MIN_BYTES_PER_WEIGHT, n_params * MAX_BYTES_PER_WEIGHT + MAX_HEADER_BYTES


# ---------------------------------------------------------------- writing


def encode_weights(parameters: Parameters, format: Format, dtype: str) -> bytes:  # noqa: A002 - as everywhere
    """Return the content of a weights file; raise CheckpointError for numbers it cannot hold."""
    _check_finite(parameters, dtype)
    if format == "json":
        shortest = Parameters(parameters.config, _shortest(parameters.flat))
        return msgspec.json.encode({name: view.tolist() for name, view in shortest.items()})
    from safetensors.numpy import save  # noqa: PLC0415 - 90 ms, and only here

    return save({name: view.astype(dtype) for name, view in parameters.items()})


def _check_finite(parameters: Parameters, dtype: str) -> None:
    """Raise CheckpointError unless all weights are finite in `dtype`."""
    with np.errstate(over="ignore"):
        rounded = {name: view.astype(dtype) for name, view in parameters.items()}
    for name, view in parameters.items():
        if not np.isfinite(view).all():
            raise CheckpointError(
                f"cannot save: {name} holds numbers that are not finite",
                hint="train with a smaller learning rate",
            )
        if not np.isfinite(rounded[name]).all():
            raise CheckpointError(
                f"cannot save: {name} holds numbers beyond the range of {dtype}",
                hint="save it without half",
            )


def _shortest(numbers: FloatArray) -> FloatArray:
    """Return float64 numbers whose shortest decimal form is that of `numbers`, below 2**24.

    The nearest float64 to a float32 needs 17 digits in print; the nearest one that rounds to the
    same float32 mostly needs 8.
    """
    if numbers.dtype == np.float64:
        return numbers
    exact = numbers.astype(np.float64)
    result = exact.copy()
    open_ = np.flatnonzero(exact)
    for n_decimals in range(16):
        scale = 10.0**n_decimals
        rounded = np.rint(exact[open_] * scale) / scale
        fits = rounded.astype(np.float32) == numbers[open_]
        result[open_[fits]] = rounded[fits]
        open_ = open_[~fits]
    for i in open_:  # smaller than 1e-7 or so: rare
        result[i] = float(str(numbers[i]))
    return result


# ---------------------------------------------------------------- reading


def decode_weights(path: Path, content: bytes, parameters: Parameters) -> None:
    """Parse `content` into `parameters`, or raise CheckpointError."""
    matrices = (
        _parse_json(path, content) if path.suffix == ".json" else _parse_tensors(path, content)
    )
    shapes = parameter_shapes(parameters.config)
    for kind, names in (
        ("is missing", shapes.keys() - matrices.keys()),
        ("is unknown", matrices.keys() - shapes.keys()),
    ):
        if names:
            raise CheckpointError(
                f"invalid {path}: {min(names)} {kind}; expected the {len(shapes)} tensors of "
                f"n_layer={parameters.config.n_layer}"
            )
    for name, shape in shapes.items():
        _fill(path, name, parameters[name], matrices[name], shape)


def _parse_json(path: Path, content: bytes) -> Mapping[str, _Matrix]:
    try:
        return msgspec.json.decode(content, type=dict[str, list[list[float]]])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CheckpointError(f"invalid {path}: {error}") from error


def _parse_tensors(path: Path, content: bytes) -> Mapping[str, _Matrix]:
    import safetensors  # noqa: PLC0415 - 90 ms, and only here
    from safetensors.numpy import load  # noqa: PLC0415

    try:
        tensors = load(content)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"invalid {path}: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype.name not in FILE_DTYPES or tensor.ndim != 2:  # noqa: PLR2004 - a matrix
            raise CheckpointError(
                f"invalid {path}: {name} is of shape {tensor.shape} and type {tensor.dtype}, "
                f"expected a matrix of {', '.join(FILE_DTYPES)}"
            )
    return tensors


def _fill(path: Path, name: str, view: FloatArray, rows: _Matrix, shape: tuple[int, int]) -> None:
    lengths = {len(row) for row in rows}
    if len(rows) != shape[0] or lengths != {shape[1]}:
        n_columns = " or ".join(map(str, sorted(lengths)[:3])) or 0
        raise CheckpointError(
            f"invalid {path}: {name} has shape ({len(rows)}, {n_columns}), expected {shape} as "
            "meta.json says"
        )
    with np.errstate(over="ignore"):
        view[:] = rows
    if not np.isfinite(view).all():
        raise CheckpointError(
            f"invalid {path}: {name} holds a number beyond the range of {view.dtype}, "
            "expected finite numbers"
        )
