"""Model directories: weights and `meta.json`, written as one and checked when read.

Weights are `weights.json`, which the Rust system reads too, or `weights.safetensors`; the metadata
names the file. Subwords are in `tokenizer.json`; characters are part of the metadata.
"""

import hashlib
import os
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from microgpt.checks import PathLike, cause_of, checked_path
from microgpt.corpus.subwords import SubwordTokenizer
from microgpt.corpus.tokenizer_json import decode_tokenizer, encode_tokenizer, most_bytes
from microgpt.data import BaseTokenizer, Tokenizer
from microgpt.errors import CheckpointError, ConfigError, MicrogptError
from microgpt.model import ModelConfig
from microgpt.parameters import DTYPES, Parameters
from microgpt.storage.commit import (
    COMMIT,
    FILES,
    STAGED,
    check_commit,
    complete_commit,
    current_path,
    replace_together,
)
from microgpt.storage.weights import (
    WEIGHTS,
    Format,
    decode_weights,
    encode_weights,
    plausible_sizes,
)

__all__ = [
    "SNAPSHOTS",
    "Origin",
    "StoredModel",
    "TrainingRecord",
    "check_writable",
    "holds_model",
    "read_model",
    "write_model",
]

META = "meta.json"
TOKENIZER = "tokenizer.json"
SNAPSHOTS = "checkpoints"  # folder of a run's snapshots; the name is part of the format

MAX_META_BYTES = 64 << 20  # every character of Unicode, escaped, and then some


class Origin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The model that a run has started from.

    Args:
        weights_digest: hash of its weights.
        training: how it was made, where that is known.
    """

    weights_digest: str
    training: "TrainingRecord | None" = None


class TrainingRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a model was made.

    Args:
        options: fields of `TrainConfig` and their values.
        seed: of all draws; None where the caller passed a generator of another state.
        data_digest: hash of the documents trained on and validated on, and of their order.
        steps: steps taken.
        loss: of the last step, in nats per token.
        val_loss: least validation loss, in nats per token.
        library_version: version of microgpt-lib.
        init_from: the model that training has started from; None for initial weights.
    """

    options: dict[str, Any]
    seed: int | None = None
    data_digest: str
    steps: int
    loss: float | None = None
    val_loss: float | None = None
    library_version: str
    init_from: Origin | None = None


@dataclass(frozen=True)
class StoredModel:
    """The content of a model directory.

    Args:
        tokenizer: its characters or subwords.
        parameters: its sizes and weights.
        training: how it was made, where that is known.
        windows: it was trained on windows of long documents, few of which begin with BOS.
    """

    tokenizer: BaseTokenizer
    parameters: Parameters
    training: TrainingRecord | None = None
    windows: bool = False


class _Meta(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The content of `meta.json`; the keys of the Rust system come first."""

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
    training: Any = None
    windows: bool = False
    tokenizer_sha256: str | None = None

    @property
    def file(self) -> str:
        """Name of the weights' file; metadata of the Rust system has none."""
        return self.weights_file or WEIGHTS["json"]


# ---------------------------------------------------------------- writing


def write_model(
    directory: PathLike,
    model: StoredModel,
    format: Format = "json",  # noqa: A002 - as everywhere
    *,
    half: bool = False,
    before_replacing: Callable[[], None] = lambda: None,
) -> None:
    """Save a model; replaces the one that the directory holds, if any.

    Args:
        directory: made if it does not exist.
        model: to be saved.
        format: of the weights: "json" or "safetensors".
        half: round weights to float16, three digits, to save space; safetensors only.
        before_replacing: called when all new files are on the disk, just before they replace the
            old ones; an error that it raises keeps the old model.

    Raises:
        ConfigError: there is no such format, or `half` with JSON.
        CheckpointError: a weight is not finite, or the directory cannot be written; the model that
            it held before is intact.
    """
    if format not in tuple(WEIGHTS) or (half and format != "safetensors"):
        raise ConfigError(
            f"got format {format!r:.80} and half={half!r:.80}, expected json, safetensors, or "
            "safetensors and half"
        )
    path = checked_path(directory)
    dtype = "float16" if half else model.parameters.dtype
    weights = encode_weights(model.parameters, format, dtype)
    name = WEIGHTS[format]
    files = {name: weights}
    if isinstance(model.tokenizer, SubwordTokenizer):
        files[TOKENIZER] = encode_tokenizer(model.tokenizer)
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    files[META] = _encode_meta(model, name, digests)
    hint = None
    try:
        if holds_model(path):
            hint = "the model that was there before is intact"
        path.mkdir(parents=True, exist_ok=True)
        replace_together(path, files, before_replacing)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot write {path}: {cause_of(error)}", hint=hint) from error


def _encode_meta(model: StoredModel, weights_file: str, digests: Mapping[str, str]) -> bytes:
    tokenizer, parameters = model.tokenizer, model.parameters
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
        weights_sha256=digests[weights_file],
        training=model.training,
        windows=model.windows,
        tokenizer_sha256=digests.get(TOKENIZER),
    )
    return msgspec.json.format(msgspec.json.encode(meta), indent=2)


def holds_model(directory: PathLike) -> bool:
    """Return whether there is a model, whole or damaged, in `directory`.

    Args:
        directory: may be missing.
    """
    path = checked_path(directory)
    return any((path / name).exists() for name in (*FILES, COMMIT))


def check_writable(directory: PathLike) -> None:
    """Check before training that a model and snapshots can be saved later.

    Args:
        directory: of the model; need not exist.

    Raises:
        CheckpointError: something is in the way; it is named.
    """
    path = checked_path(directory)
    existing = next((place for place in (path, *path.parents) if place.exists()), Path())
    for place in (existing, path / SNAPSHOTS):
        if place.exists() and not place.is_dir():
            raise CheckpointError(f"cannot write {path}: {place} is not a directory")
        if place.exists() and not os.access(place, os.W_OK | os.X_OK):
            if sys.platform != "win32" and os.statvfs(place).f_flag & os.ST_RDONLY:
                raise CheckpointError(
                    f"cannot write {path}: the file system of {place} is read-only"
                )
            raise CheckpointError(f"cannot write {path}: no permission to write {place}")
    names = (*FILES, COMMIT)
    places = (path / (name + suffix) for name in names for suffix in ("", STAGED))
    for place in (*places, *(path / SNAPSHOTS).glob("step-*")):
        if place.is_dir():
            raise CheckpointError(f"cannot write {path}: {place} is a directory")
    check_commit(path)


# ---------------------------------------------------------------- reading


def read_model(directory: PathLike, dtype: str | None = None) -> StoredModel:
    """Load a model, and check everything about it.

    Args:
        directory: holds `meta.json` and the weights.
        dtype: of the weights in memory; None for the type they were saved from (float64 where the
            metadata has none, as in files of the Rust system).

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the other; file, content and
            expectation are named.
    """
    path = checked_path(directory)
    for _ in range(2):  # a writer may replace the files between our reads: read again
        with suppress(CheckpointError):
            return _read_files(path, dtype)
    return _read_files(path, dtype)


def _training_record(stored: Any) -> TrainingRecord | None:
    """Return how the model was made; None where another program has stored something else."""
    try:
        return msgspec.convert(stored, TrainingRecord)
    except msgspec.ValidationError:
        return None


def _read_files(path: Path, dtype: str | None) -> StoredModel:
    # A read-only directory: `current_path` finds the files. No directory: `_read_regular` reports.
    with suppress(OSError, ValueError):
        complete_commit(path)
    meta_path = path / META
    try:
        meta = msgspec.json.decode(_read_regular(meta_path, 0, MAX_META_BYTES), type=_Meta)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CheckpointError(f"invalid {META}: {error} in {meta_path}") from error
    tokenizer = _tokenizer_of(path, meta)
    config = _checked_config(meta_path, meta, tokenizer)
    weights = _read_regular(path / meta.file, *plausible_sizes(config.n_params))
    _check_digest(path / meta.file, weights, meta.weights_sha256)
    parameters = Parameters.zeros(config, dtype or meta.dtype or "float64")
    decode_weights(path / meta.file, weights, parameters)
    return StoredModel(tokenizer, parameters, _training_record(meta.training), meta.windows)


def _check_digest(path: Path, content: bytes, expected: str | None) -> None:
    if expected not in (None, hashlib.sha256(content).hexdigest()):
        raise CheckpointError(
            f"{path} is not what {META} describes: its SHA-256 digest differs",
            hint="it was changed or damaged after it was saved; restore all files from one copy",
        )


def _tokenizer_of(path: Path, meta: _Meta) -> BaseTokenizer:
    special_tokens = meta.special_tokens or []
    is_chat, has_system = bool(special_tokens), "system" in special_tokens
    try:
        if meta.tokenizer_sha256 is None:
            return Tokenizer(tuple(meta.chars), is_chat, has_system)
        if meta.chars:
            raise CheckpointError(f"chars is {meta.chars!r:.80}, expected none beside {TOKENIZER}")
    except MicrogptError as error:
        raise CheckpointError(f"invalid {META}: {error} in {path / META}") from error
    content = _read_regular(path / TOKENIZER, 0, most_bytes(meta.vocab_size))
    _check_digest(path / TOKENIZER, content, meta.tokenizer_sha256)
    try:
        return decode_tokenizer(content, is_chat=is_chat, has_system=has_system)
    except CheckpointError as error:
        raise CheckpointError(f"{error} in {path}", hint=error.hint) from error


def _read_regular(path: Path, min_bytes: int, max_bytes: int) -> bytes:
    """Read a file whose size is plausible, or raise CheckpointError."""
    try:
        content_path = current_path(path)
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
        raise CheckpointError(
            f"cannot read {path}: {cause_of(error)}",
            hint="is this the directory of a trained model?",
        ) from error


def _checked_config(path: Path, meta: _Meta, tokenizer: BaseTokenizer) -> ModelConfig:
    """Return the sizes of the metadata, or raise CheckpointError if they do not fit."""
    try:
        config = ModelConfig(
            vocab_size=meta.vocab_size,
            n_embd=meta.n_embd,
            n_head=meta.n_head,
            n_layer=meta.n_layer,
            block_size=meta.block_size,
        )
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
    return config
