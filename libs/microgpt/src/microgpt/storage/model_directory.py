"""Model directories: weights and `meta.json`, written as one and checked when read.

Weights are `weights.json`, which the Rust system reads too, or `weights.safetensors`; the metadata
says which.

A save must never lose a model. Both files are written beside the old ones under other names and
flushed to disk; then a record that names them (`commit.json`) appears, in one rename; then they
take their places and the record goes. Whoever finds a record completes what it says, so a save
that is cut short at any point leaves either the old pair or the new one.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from microgpt.checks import PathLike, checked_path
from microgpt.data import Tokenizer
from microgpt.errors import CheckpointError, ConfigError, MicrogptError
from microgpt.model import ModelConfig, parameter_shapes
from microgpt.parameters import DTYPES, FloatArray, Parameters

__all__ = [
    "SNAPSHOTS",
    "STAGED",
    "Checkpoint",
    "Format",
    "check_writable",
    "holds_model",
    "read_checkpoint",
    "sync_directory",
    "write_checkpoint",
    "write_durably",
]

Format: TypeAlias = Literal["json", "safetensors"]

META = "meta.json"
FILE_DTYPES = ("float16", *DTYPES)  # of a safetensors file
WEIGHTS: dict[Format, str] = {"json": "weights.json", "safetensors": "weights.safetensors"}
COMMIT = "commit.json"
SNAPSHOTS = "checkpoints"  # the folder beside them
STAGED = ".staged"  # suffix of a file that is not yet in place

MAX_META_BYTES = 64 << 20  # every character of Unicode, escaped, and then some
MAX_BYTES_PER_WEIGHT = 64  # in JSON, the longest float64 takes 24 characters and a comma
MIN_BYTES_PER_WEIGHT = 2  # "0,", or a float16
MAX_HEADER_BYTES = 1 << 20  # around the weights


_Matrix: TypeAlias = list[list[float]] | FloatArray


@dataclass(frozen=True)
class Checkpoint:
    """What a model directory holds.

    Args:
        tokenizer: its characters.
        parameters: its sizes and weights.
    """

    tokenizer: Tokenizer
    parameters: Parameters


class _Meta(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The metadata file; the seed's keys first, then ours."""

    vocab_size: int
    n_embd: int
    n_head: int
    n_layer: int
    block_size: int
    chars: list[str]
    special_tokens: list[str] | None = None
    dtype: str | None = None
    weights_file: str | None = None
    weights_sha256: str | None = None

    @property
    def file(self) -> str:
        """Name of the weights' file; the seed's metadata does not say."""
        return self.weights_file or WEIGHTS["json"]


# ---------------------------------------------------------------- writing


def write_checkpoint(
    directory: PathLike,
    checkpoint: Checkpoint,
    format: Format = "json",  # noqa: A002 - as everywhere
    *,
    half: bool = False,
    before_replacing: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Save a model; replaces the one that the directory holds, if any.

    Args:
        directory: made if it does not exist.
        checkpoint: what to save.
        format: of the weights: "json" or "safetensors".
        half: round weights to float16, three digits, to save space; safetensors only.
        before_replacing: called when all that is new lies on the disk, just before it takes its
            place; what it raises keeps the model that was there.

    Returns:
        The files written: weights, metadata.

    Raises:
        ConfigError: there is no such format, or `half` is asked of JSON.
        CheckpointError: a weight is not finite, or the directory cannot be written; what it held
            before is intact.
    """
    if format not in tuple(WEIGHTS) or (half and format != "safetensors"):
        raise ConfigError(
            f"got format {format!r:.80} and half={half!r:.80}, expected json, safetensors, or "
            "safetensors and half"
        )
    path = checked_path(directory)
    parameters = checkpoint.parameters
    dtype = "float16" if half else parameters.dtype
    _check_finite(parameters, dtype)
    if format == "json":
        weights = _encode_json(parameters)
    else:
        from safetensors.numpy import save  # noqa: PLC0415 - 90 ms, and only here

        weights = save({name: view.astype(dtype) for name, view in parameters.items()})
    name = WEIGHTS[format]
    meta = _encode_meta(checkpoint, name, hashlib.sha256(weights).hexdigest())
    hint = None
    try:
        if holds_model(path):
            hint = "the model that was there before is intact"
        path.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            _complete_commit(path)
            _write_together(path, {name: weights, META: meta}, before_replacing)
            _remove_others(path, {name, META})
    except (OSError, ValueError) as error:
        cause = (isinstance(error, OSError) and error.strerror) or error
        raise CheckpointError(f"cannot write {path}: {cause}", hint=hint) from error
    return [path / name, path / META]


def _remove_others(path: Path, kept: set[str]) -> None:
    """Remove the weights of the model before, and what a save that failed has left."""
    for name in (META, *WEIGHTS.values(), COMMIT):
        (path / (name + STAGED)).unlink(missing_ok=True)
        if name not in kept:
            (path / name).unlink(missing_ok=True)


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


def _encode_json(parameters: Parameters) -> bytes:
    shortest = Parameters(parameters.config, _shortest(parameters.flat))
    return msgspec.json.encode({name: view.tolist() for name, view in shortest.items()})


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


def _encode_meta(checkpoint: Checkpoint, weights_file: str, weights_sha256: str) -> bytes:
    tokenizer, parameters = checkpoint.tokenizer, checkpoint.parameters
    config = parameters.config
    meta = _Meta(
        vocab_size=config.vocab_size,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_layer=config.n_layer,
        block_size=config.block_size,
        chars=list(tokenizer.chars),
        special_tokens=list(tokenizer.special_tokens) or None,
        dtype=parameters.dtype,
        weights_file=weights_file,
        weights_sha256=weights_sha256,
    )
    return msgspec.json.format(msgspec.json.encode(meta), indent=2)


def _write_together(
    path: Path, contents: dict[str, bytes], before_replacing: Callable[[], None]
) -> None:
    """Replace several files in `path` such that all of them change or none does."""
    try:
        for name, content in contents.items():
            write_durably(path / (name + STAGED), content)
        write_durably(path / (COMMIT + STAGED), msgspec.json.encode(list(contents)))
        sync_directory(path)
        before_replacing()
        (path / (COMMIT + STAGED)).replace(path / COMMIT)
    except BaseException:
        for name in (*contents, COMMIT):
            with suppress(OSError):
                (path / (name + STAGED)).unlink()
        raise
    sync_directory(path)
    _complete_commit(path)


def _complete_commit(path: Path) -> None:
    """Put staged files in place if a record says that all of them are there."""
    try:
        names = _committed_names(path)
        for name in names:
            with suppress(FileNotFoundError):  # in place already
                (path / (name + STAGED)).replace(path / name)
        if names:
            sync_directory(path)
            (path / COMMIT).unlink()
    except FileNotFoundError:
        pass  # somebody else has completed it


def _committed_names(path: Path) -> Sequence[str]:
    """Return the files that a record in `path` names; none without a record."""
    try:
        names = msgspec.json.decode((path / COMMIT).read_bytes(), type=list[str])
    except FileNotFoundError:
        return ()
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"invalid {path / COMMIT}: {error}", hint="it is not one of ours: move it away"
        ) from error
    if strange := set(names) - {META, *WEIGHTS.values()}:
        raise CheckpointError(f"invalid {path / COMMIT}: it names {sorted(strange)}")
    return names


def write_durably(path: Path, content: bytes) -> None:
    """Write a file such that it is on disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make renames in a directory survive a loss of power."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time write to a directory."""
    if os.name != "posix":
        yield
        return
    import fcntl  # noqa: PLC0415 - exists on POSIX only

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which also releases the lock


def holds_model(directory: PathLike) -> bool:
    """Return whether a model, whole or damaged, lies in `directory`.

    Args:
        directory: may be missing.
    """
    path = checked_path(directory)
    return any((path / name).exists() for name in (META, COMMIT, *WEIGHTS.values()))


def check_writable(directory: PathLike) -> None:
    """Find out now what would keep a model or snapshots from being saved later.

    Args:
        directory: of the model; need not exist.

    Raises:
        CheckpointError: it says what stands in the way.
    """
    path = checked_path(directory)
    existing = next((place for place in (path, *path.parents) if place.exists()), Path())
    for place in (existing, path / SNAPSHOTS):
        if place.exists() and not place.is_dir():
            raise CheckpointError(f"cannot write {path}: {place} is not a directory")
        if place.exists() and not os.access(place, os.W_OK | os.X_OK):
            raise CheckpointError(f"cannot write {path}: no permission to write {place}")
    names = (META, COMMIT, *WEIGHTS.values())
    places = (path / (name + suffix) for name in names for suffix in ("", STAGED))
    for place in (*places, *(path / SNAPSHOTS).glob("step-*")):
        if place.is_dir():
            raise CheckpointError(f"cannot write {path}: {place} is a directory")
    _committed_names(path)


# ---------------------------------------------------------------- reading


def read_checkpoint(directory: PathLike, dtype: str | None = None) -> Checkpoint:
    """Load a model, and check everything about it.

    Args:
        directory: holds `meta.json` and the weights.
        dtype: of the weights in memory; None for the one they were saved from (float64 where the
            metadata does not say, as in files of the Rust system).

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the other; it says which, what
            was found and what was expected.
    """
    path = checked_path(directory)
    for _ in range(3):  # a writer may swap the pair between our two reads: then look again
        meta, weights = _read_pair(path)
        if meta.weights_sha256 in (None, hashlib.sha256(weights).hexdigest()):
            break
    else:
        raise CheckpointError(
            f"{path / meta.file} is not what {META} describes: its SHA-256 digest differs",
            hint="it was changed or damaged after it was saved; restore both files from one copy",
        )
    config, tokenizer = _check_meta(path / META, meta)
    saved_dtype = meta.dtype or "float64"
    parameters = Parameters.zeros(config, dtype or saved_dtype)
    _decode_weights(path / meta.file, weights, parameters)
    return Checkpoint(tokenizer, parameters)


def _read_pair(path: Path) -> tuple[_Meta, bytes]:
    # Read-only: `_in_place` finds the files where they are. No directory: `_read_regular` says so.
    with suppress(OSError, ValueError):
        _complete_commit(path)
    meta_path = path / META
    try:
        meta = msgspec.json.decode(_read_regular(meta_path, 0, MAX_META_BYTES), type=_Meta)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CheckpointError(f"invalid {META}: {error} in {meta_path}") from error
    config, _ = _check_meta(meta_path, meta)
    smallest, largest = (
        config.n_params * size for size in (MIN_BYTES_PER_WEIGHT, MAX_BYTES_PER_WEIGHT)
    )
    return meta, _read_regular(path / meta.file, smallest, largest + MAX_HEADER_BYTES)


def _in_place(path: Path) -> Path:
    """Return where the committed content of `path` stands now."""
    staged = path.with_name(path.name + STAGED)
    is_committed = path.name in _committed_names(path.parent) and staged.exists()
    return staged if is_committed else path


def _read_regular(path: Path, min_bytes: int, max_bytes: int) -> bytes:
    """Read a file whose size is plausible, or raise CheckpointError."""
    try:
        content_path = _in_place(path)
        status = content_path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"cannot read {path}: it is not a regular file")
        if not min_bytes <= status.st_size <= max_bytes:
            raise CheckpointError(
                f"cannot read {path}: its size in bytes is {status.st_size}, expected {min_bytes} "
                f"to {max_bytes} for a model of this size"
            )
        return content_path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        cause = (isinstance(error, OSError) and error.strerror) or error
        raise CheckpointError(
            f"cannot read {path}: {cause}", hint="is this the directory of a trained model?"
        ) from error


def _check_meta(path: Path, meta: _Meta) -> tuple[ModelConfig, Tokenizer]:
    """Return what the metadata says, or raise CheckpointError if it cannot be."""
    try:
        config = ModelConfig(
            vocab_size=meta.vocab_size,
            n_embd=meta.n_embd,
            n_head=meta.n_head,
            n_layer=meta.n_layer,
            block_size=meta.block_size,
        )
        tokenizer = Tokenizer(tuple(meta.chars), is_chat=bool(meta.special_tokens))
    except MicrogptError as error:
        raise CheckpointError(f"invalid {META}: {error} in {path}") from error
    expected_tokens = list(tokenizer.special_tokens)
    for what, found, expected in (
        ("special_tokens", meta.special_tokens or [], expected_tokens),
        ("vocab_size", meta.vocab_size, tokenizer.vocab_size),
    ):
        if found != expected:
            raise CheckpointError(
                f"invalid {META}: {what} is {found!r}, expected {expected!r} in {path}"
            )
    if meta.file not in WEIGHTS.values():
        raise CheckpointError(
            f"invalid {META}: weights_file is {meta.file!r}, expected weights.json or "
            f"weights.safetensors in {path}"
        )
    if meta.dtype not in (None, *DTYPES):
        raise CheckpointError(
            f"invalid {META}: dtype is {meta.dtype!r}, expected float32 or float64 in {path}"
        )
    return config, tokenizer


def _decode_weights(path: Path, content: bytes, parameters: Parameters) -> None:
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
            f"{META} says"
        )
    with np.errstate(over="ignore"):
        view[:] = rows
    if not np.isfinite(view).all():
        raise CheckpointError(
            f"invalid {path}: {name} holds a number beyond the range of {view.dtype}, "
            "expected finite numbers"
        )
