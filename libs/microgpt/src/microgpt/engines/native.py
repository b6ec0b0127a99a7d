"""The compiled engine: C through ctypes, so that the interpreter is free while it computes.

What crosses to C is checked here first; C trusts its arguments. The source is in `kernel/`, and
`hatch_build.py` compiles it into one shared library, which holds the same functions for both types
of numbers and for several widths of vectors. The processor decides which of them are used.
"""

import ctypes
import hashlib
import os
from collections.abc import Collection, Sequence
from ctypes import POINTER, addressof, byref, c_double, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microgpt.corpus.batches import Batch, Batches
from microgpt.engines.base import Engine, StepResult
from microgpt.engines.decoding import SamplingConfig, StopSignal
from microgpt.errors import EngineError, NonFiniteLossError, SamplingError, ShapeError
from microgpt.parameters import FloatArray, IntArray, Parameters
from microgpt.train import ADAM_EPS, BETA1, BETA2

__all__ = ["NativeEngine", "why_unavailable"]

LIBRARY = Path(__file__).with_name("kernel") / "libmicrogpt.so"
DIGEST = LIBRARY.with_suffix(".sha256")
ABI = 3  # microgpt_abi of kernel.c
CHUNK_ROWS = 256  # of layout.h
MAX_THREADS = 64  # MAX_MEMBERS of team.h
VECTOR_BYTES = (16, 32, 64)  # widths that hatch_build.py may compile for
LINE_BYTES = 64  # of the cache; arrays are aligned to it
FLOPS_PER_THREAD = 3e7  # of a step: below some 300 us, threads wait more than they work
MIN_TOGETHER = 16  # tokens from which on preparing weights for products pays

_Arrays = dict[str, NDArray[Any]]


class _Model(ctypes.Structure):
    _fields_ = [
        ("vocab_size", c_int64),
        ("n_embd", c_int64),
        ("n_head", c_int64),
        ("n_layer", c_int64),
        ("block_size", c_int64),
        ("weights", c_void_p),
        ("grads", c_void_p),
        ("adam_m", c_void_p),
        ("adam_v", c_void_p),
    ]


class _Training(ctypes.Structure):
    _fields_ = [
        ("workspace", c_void_p),
        ("max_rows", c_int64),
        ("n_members", c_int64),
        ("inputs", c_void_p),
        ("targets", c_void_p),
        ("starts", c_void_p),
        ("n_steps", c_int64),
        ("first_documents", c_void_p),
        ("n_targets", c_void_p),
        ("learning_rates", c_void_p),
        ("loss_only", c_int64),
        ("weight_decay", c_double),
        ("clip", c_double),
        ("n_updates", c_int64),
        ("beta1", c_double),
        ("beta2", c_double),
        ("eps", c_double),
        ("losses", c_void_p),
        ("norms", c_void_p),
        ("n_done", c_int64),
    ]


class _Stream(ctypes.Structure):
    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("stride", c_int64),
        ("length", c_int64),
        ("row", c_void_p),
    ]


class _Generation(ctypes.Structure):
    _fields_ = [
        ("temperature", c_double),
        ("top_p", c_double),
        ("top_k", c_int64),
        ("forbidden", c_void_p),
        ("stop", c_int64),
        ("n_samples", c_int64),
        ("max_tokens", c_int64),
        ("uniforms", c_void_p),
        ("first_logits", c_void_p),
        ("logits", c_void_p),
        ("weights", c_void_p),
        ("candidates", c_void_p),
        ("tokens", c_void_p),
        ("lengths", c_void_p),
        ("ended", c_void_p),
    ]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "workspace_bytes": (c_int64, [POINTER(_Model), c_int64, c_int64, c_int64]),
    "train": (None, [POINTER(_Model), POINTER(_Training)]),
    "update": (None, [POINTER(_Model), POINTER(_Training)]),
    "row_bytes": (c_int64, [POINTER(_Model), c_int64]),
    "decode": (None, [POINTER(_Model), POINTER(_Stream), c_int64, c_void_p]),
    "extend": (
        None,
        [
            POINTER(_Model),
            POINTER(_Stream),
            c_void_p,
            c_int64,
            c_void_p,
            c_int64,
            c_void_p,
            c_int64,
        ],
    ),
    "generate": (None, [POINTER(_Model), POINTER(_Stream), POINTER(_Generation)]),
}


# ---------------------------------------------------------------- the library


@cache
def _open_library() -> ctypes.CDLL:
    """Return the library, or raise EngineError saying why it cannot be used."""
    hint = "install a C compiler and reinstall microgpt-lib, or use --engine vectorized"
    try:
        content = LIBRARY.read_bytes()
        expected = DIGEST.read_bytes().strip()
    except OSError as error:
        raise EngineError(
            f"the native engine is not built: {error.filename} cannot be read", hint=hint
        ) from error
    # A cut file would end the process when it is mapped, so its content is checked before.
    if hashlib.sha256(content).hexdigest().encode() != expected:
        raise EngineError(f"{LIBRARY} is damaged: its digest differs from {DIGEST.name}", hint=hint)
    try:
        library = ctypes.CDLL(str(LIBRARY))
        found = int(library.microgpt_abi())
    except (OSError, AttributeError) as error:
        raise EngineError(f"{LIBRARY} cannot be loaded: {error}", hint=hint) from error
    if found != ABI:
        raise EngineError(
            f"{LIBRARY} is of another version: its ABI is {found}, expected {ABI}", hint=hint
        )
    return library


def why_unavailable() -> str | None:
    """Return why the native engine cannot be used here, or None if it can."""
    try:
        _open_library()
    except EngineError as error:
        return str(error)
    return None


@cache
def _functions(dtype: str, vector_bytes: int | None) -> dict[str, Any]:
    """Return the exported functions for one type of numbers and one width of vectors."""
    library = _open_library()
    widest = int(library.microgpt_vector_bytes())
    widths = [width for width in VECTOR_BYTES if width <= widest]
    width = widths[-1] if vector_bytes is None else vector_bytes
    if width not in widths:
        raise EngineError(f"vector_bytes is {width}, expected 16, 32 or 64, at most {widest} here")
    functions = {}
    for name, (result, arguments) in _SIGNATURES.items():
        function = library[f"{name}_{dtype.removeprefix('float')}_{width}"]
        function.restype, function.argtypes = result, arguments
        functions[name] = function
    return functions


def _address(array: Any) -> int:
    """Return where a writable array lies; six times as fast as its `ctypes.data`."""
    return addressof(ctypes.c_char.from_buffer(array)) if array.size else 0


def _aligned_zeros(n_bytes: int) -> NDArray[np.uint8]:
    memory = np.zeros(n_bytes + LINE_BYTES, np.uint8)
    start = -_address(memory) % LINE_BYTES
    return memory[start : start + n_bytes]


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---------------------------------------------------------------- the engine


@dataclass(frozen=True)
class _TrainingCall:
    """Arguments of `train` or `update`, and the arrays that they point to."""

    struct: _Training
    arrays: _Arrays


class NativeStream:
    """The cache of one stream of text; see `Engine.new_cache`."""

    def __init__(self, engine: "NativeEngine") -> None:
        self.model = engine.model  # by which its engine knows it
        config = engine.config
        itemsize = engine.parameters.flat.itemsize
        line = LINE_BYTES // itemsize
        stride = -(-config.block_size // line) * line
        cache_bytes = config.n_layer * config.n_embd * stride * itemsize
        row_bytes = engine.functions["row_bytes"](byref(engine.model), stride)
        self._memory = _aligned_zeros(2 * cache_bytes + row_bytes)
        start = _address(self._memory)
        self.struct = _Stream(start, start + cache_bytes, stride, 0, start + 2 * cache_bytes)
        self.pointer = ctypes.pointer(self.struct)
        self.logits = np.empty(config.vocab_size, engine.parameters.flat.dtype)
        self.logits_pointer = _address(self.logits)

    @property
    def length(self) -> int:
        """Positions held so far."""
        return int(self.struct.length)


class _Sampler(NativeStream):
    """A stream, and what choosing its tokens takes besides; used again, to save time."""

    def __init__(self, engine: "NativeEngine") -> None:
        super().__init__(engine)
        vocab_size = engine.config.vocab_size
        self.first_logits = np.empty_like(self.logits)
        self.is_forbidden = np.empty(vocab_size, np.uint8)
        self._weights = np.empty(vocab_size)
        self._candidates = np.empty(2 * vocab_size)
        self.generation = _Generation(
            forbidden=_address(self.is_forbidden),
            first_logits=_address(self.first_logits),
            logits=self.logits_pointer,
            weights=_address(self._weights),
            candidates=_address(self._candidates),
        )
        self.generation_pointer = ctypes.pointer(self.generation)

    def clear(self) -> None:
        """Forget all tokens."""
        self._memory.fill(0)
        self.is_forbidden.fill(0)
        self.struct.length = 0


class NativeEngine(Engine):
    """Compiled for this machine; as fast as it gets.

    Args:
        parameters: see `Engine`.
        threads: see `Engine`.
        vector_bytes: width of vectors: 16, 32 or 64; None for the widest that the processor has.

    Raises:
        EngineError: the shared library is missing, damaged or of another version.
        ShapeError: the weights are not aligned in memory.
    """

    name = "native"

    def __init__(
        self, parameters: Parameters, threads: int | None = None, vector_bytes: int | None = None
    ) -> None:
        super().__init__(parameters, threads)
        config = self.config
        if not parameters.flat.flags.aligned:
            raise ShapeError("the weights are not aligned in memory, expected an aligned array")
        self.functions = _functions(parameters.dtype, vector_bytes)
        self.model = _Model(
            config.vocab_size,
            config.n_embd,
            config.n_head,
            config.n_layer,
            config.block_size,
            parameters.flat.ctypes.data,
        )
        self._model_pointer = ctypes.pointer(self.model)
        self._decode = self.functions["decode"]
        # What training works in, while no call is using it: threads may compute losses at once.
        self._workspaces: list[NDArray[np.uint8]] = []
        self._samplers: list[_Sampler] = []  # likewise

    def _n_threads(self, n_tokens: int, passes: int) -> int:
        """Return how many threads are worth their while for so many tokens at once."""
        flops = 2.0 * passes * n_tokens * self.config.n_params
        cores = _usable_cores()  # more threads than that would only wait for each other
        wanted = min(self.threads or cores, cores, MAX_THREADS)
        return max(1, min(wanted, int(flops / FLOPS_PER_THREAD)))

    # ------------------------------------------------------------ training

    def loss(self, batch: Batch) -> tuple[float, int]:
        """See `Engine.loss`."""
        return self._loss(batch, loss_only=True)

    def loss_and_grads(self, batch: Batch) -> tuple[float, int]:
        """See `Engine.loss_and_grads`."""
        return self._loss(batch, loss_only=False)

    def _loss(self, batch: Batch, *, loss_only: bool) -> tuple[float, int]:
        if not loss_only:
            self._prepare_training()
        call = self._training_call([batch])
        call.struct.loss_only = loss_only
        self._run("train", call)
        return float(call.arrays["losses"][0]), int((batch.targets >= 0).sum())

    def update(
        self, learning_rate: float, clip: float | None = None, weight_decay: float = 0.0
    ) -> float | None:
        """See `Engine.update`."""
        self._prepare_training()
        call = self._training_call([], [learning_rate], clip, weight_decay)
        self._run("update", call)
        self.n_updates += 1
        return None if clip is None else float(call.arrays["norms"][0])

    def train_steps(
        self,
        batches: Batches | Sequence[Batch],
        learning_rates: Sequence[float],
        clip: float | None = None,
        weight_decay: float = 0.0,
    ) -> list[StepResult]:
        """See `Engine.train_steps`."""
        if len(batches) != len(learning_rates):
            raise ShapeError(f"got {len(batches)} batches and {len(learning_rates)} learning rates")
        if not batches:
            return []
        self._prepare_training()
        call = self._training_call(batches, learning_rates, clip, weight_decay)
        self._run("train", call)
        n_done = call.struct.n_done
        self.n_updates += n_done
        losses, n_targets = call.arrays["losses"].tolist(), call.arrays["n_targets"].tolist()
        if n_done < len(batches):
            raise NonFiniteLossError(self.n_updates + 1, learning_rates[n_done], losses[n_done])
        norms = [None] * n_done if clip is None else call.arrays["norms"].tolist()
        return list(map(StepResult, losses, n_targets, norms))

    def _training_call(
        self,
        batches: Batches | Sequence[Batch],
        learning_rates: Sequence[float] | None = None,
        clip: float | None = None,
        weight_decay: float = 0.0,
    ) -> "_TrainingCall":
        """Check arguments and bring them into the form that C takes."""
        n_steps = max(len(batches), 1)
        arrays: _Arrays = {"losses": np.empty(n_steps), "norms": np.empty(n_steps)}
        n_rows = 1
        if batches:
            checked = self.check_batches(batches)
            inputs, targets, _ = checked.together
            n_rows = int(np.diff(checked.first_rows).max())
            arrays |= {
                "inputs": np.ascontiguousarray(inputs, np.int32),
                "targets": np.ascontiguousarray(targets, np.int32),
                "starts": checked.starts,
                "first_documents": checked.first_documents,
                "n_targets": np.add.reduceat(targets >= 0, checked.first_rows[:-1], dtype=np.int64),
            }
        if learning_rates is not None:
            arrays["learning_rates"] = np.array(learning_rates, np.float64)
        n_threads = self._n_threads(n_rows, passes=3)
        max_rows = max(CHUNK_ROWS, self.config.block_size)
        struct = _Training(
            max_rows=max_rows,
            n_members=n_threads,
            n_steps=n_steps,
            weight_decay=weight_decay,
            clip=clip or 0.0,
            n_updates=self.n_updates,
            beta1=BETA1,
            beta2=BETA2,
            eps=ADAM_EPS,
            **{name: array.ctypes.data for name, array in arrays.items()},
        )
        return _TrainingCall(struct, arrays)

    def _prepare_training(self) -> None:
        """Make room for gradients and moments, which inference does without."""
        if not self.parameters.flat.flags.writeable:
            raise ShapeError(
                "the weights are read-only, expected an array that training may change"
            )
        if not self.model.grads:
            self.model.grads = self.grads.flat.ctypes.data
            self.model.adam_m = self.adam_m.flat.ctypes.data
            self.model.adam_v = self.adam_v.flat.ctypes.data

    def _run(self, function: str, call: _TrainingCall) -> None:
        """Call `train` or `update`, in a workspace that nobody else is using."""
        struct = call.struct
        n_bytes = self.functions["workspace_bytes"](
            self._model_pointer, struct.max_rows, struct.n_members, 1
        )
        try:
            workspace = self._workspaces.pop()
        except IndexError:
            workspace = _aligned_zeros(n_bytes)
        if len(workspace) < n_bytes:
            workspace = _aligned_zeros(n_bytes)
        struct.workspace = workspace.ctypes.data
        self.functions[function](self._model_pointer, byref(struct))
        self._workspaces.append(workspace)

    # ------------------------------------------------------------ inference

    def new_cache(self) -> NativeStream:
        """See `Engine.new_cache`."""
        return NativeStream(self)

    def prefill(self, token_ids: Sequence[int], cache: NativeStream) -> list[float]:
        """See `Engine.prefill`."""
        self._check_cache(cache)
        self._read(token_ids, cache)
        logits: list[float] = cache.logits.tolist()
        return logits

    def _read(self, token_ids: Sequence[int], cache: NativeStream) -> None:
        """Append tokens to `cache`; fill its logits, those after the last one."""
        if len(token_ids) == 1:
            self._append(token_ids[0], cache)
            return
        ids = self.check_tokens(token_ids, cache.length)
        if ids.size >= MIN_TOGETHER:
            self._extend(ids, cache, cache.logits)
        else:
            for token_id in ids.tolist():
                self._decode(self._model_pointer, cache.pointer, token_id, cache.logits_pointer)

    def decode(self, token_id: int, cache: NativeStream) -> list[float]:
        """See `Engine.decode`."""
        self._append(token_id, cache)
        logits: list[float] = cache.logits.tolist()
        return logits

    def _append(self, token_id: int, cache: NativeStream) -> None:
        """Append one token, checked in little time; fill the cache's logits."""
        config = self.config
        if not (
            getattr(cache, "model", None) is self.model
            and isinstance(token_id, int)
            and 0 <= token_id < config.vocab_size
            and cache.struct.length < config.block_size
        ):
            self._check_cache(cache)
            self.check_tokens([token_id], cache.length)
        self._decode(self._model_pointer, cache.pointer, int(token_id), cache.logits_pointer)

    def _check_cache(self, cache: NativeStream) -> None:
        """Raise ShapeError for a cache laid out for another model."""
        if getattr(cache, "model", None) is not self.model:
            raise ShapeError("the cache is not of this engine, expected one from its new_cache()")

    def logits(self, token_ids: Sequence[int]) -> FloatArray:
        """See `Engine.logits`."""
        ids = self.check_tokens(token_ids)
        logits = np.empty((ids.size, self.config.vocab_size), self.parameters.dtype)
        self._extend(ids, self.new_cache(), logits)
        return logits

    def _extend(self, ids: IntArray, cache: NativeStream, logits: FloatArray) -> None:
        """Append tokens to `cache`; fill `logits`, those after the last ones."""
        n_threads = self._n_threads(ids.size, passes=1)
        tokens = np.ascontiguousarray(ids, np.int32)
        n_bytes = self.functions["workspace_bytes"](self._model_pointer, ids.size, n_threads, 0)
        workspace = _aligned_zeros(n_bytes)
        self.functions["extend"](
            self._model_pointer,
            cache.pointer,
            tokens.ctypes.data,
            ids.size,
            workspace.ctypes.data,
            n_threads,
            logits.ctypes.data,
            logits.size // self.config.vocab_size,
        )

    def sample(
        self,
        prompt: Sequence[int],
        uniforms: FloatArray,
        config: SamplingConfig,
        *,
        stop: int,
        forbidden: Collection[int] = (),
        signal: StopSignal | None = None,
    ) -> list[list[int]]:
        """See `Engine.sample`."""
        max_tokens = self.check_uniforms(uniforms, prompt)
        signal = signal or StopSignal()
        try:
            sampler = self._samplers.pop()
        except IndexError:
            sampler = _Sampler(self)
        sampler.clear()
        self._read(prompt, sampler)
        sampler.first_logits[:] = sampler.logits
        if forbidden:
            sampler.is_forbidden[list(forbidden)] = 1
        draws = np.array(uniforms, np.float64, order="C")
        tokens: IntArray = np.empty(draws.shape, np.int32)
        lengths: IntArray = np.empty(len(draws), np.int64)
        generation = sampler.generation
        generation.temperature = config.temperature
        generation.top_p = config.top_p
        # Any larger one may not fit into 64 bits.
        generation.top_k = min(config.top_k or 0, self.config.vocab_size)
        generation.stop = stop
        generation.n_samples, generation.max_tokens = len(draws), max_tokens
        generation.uniforms = _address(draws)
        generation.tokens, generation.lengths = _address(tokens), _address(lengths)
        generation.ended = addressof(signal.flag)
        self.functions["generate"](self._model_pointer, sampler.pointer, sampler.generation_pointer)
        self._samplers.append(sampler)
        n_chosen: list[int] = lengths.tolist()
        if min(n_chosen, default=0) < 0:
            raise SamplingError(
                "the model's logits are not finite, expected finite ones; its weights are too large"
            )
        return [ids[:length] for ids, length in zip(tokens.tolist(), n_chosen, strict=True)]
