"""The compiled engine: C through ctypes, which releases the interpreter while C computes.

Arguments are checked here, before they are passed to C; C does not check them again.
"""

import ctypes
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from ctypes import addressof, byref
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from microgpt.corpus.batches import Batch, Batches
from microgpt.engines.base import Engine, StepResult
from microgpt.engines.decoding import SamplingConfig, StopSignal
from microgpt.engines.library import (
    Generation,
    Model,
    Stream,
    Training,
    address,
    aligned_zeros,
    functions_for,
    max_members,
)
from microgpt.engines.muon import Muon
from microgpt.errors import NonFiniteLossError, SamplingError, ShapeError
from microgpt.parameters import FloatArray, IntArray, Parameters
from microgpt.train import ADAM_EPS, BETA1, BETA2

__all__ = ["NativeEngine"]

FLOPS_PER_THREAD = 3e7  # of a step: below some 300 us, threads wait more than they work
MUON_FLOPS = 62.0  # per iteration and layer, times n_embd^3; see kernel/muon.h
MIN_TOGETHER = 16  # tokens from which on preparing weights for products pays

_Arrays = dict[str, NDArray[Any]]
_T = TypeVar("_T")


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _pop_or(pool: list[_T], make: Callable[..., _T], argument: object) -> _T:
    """Return an item of `pool`, or a new one where other threads use all of them."""
    try:
        return pool.pop()
    except IndexError:
        return make(argument)


def _arrays_of(batches: Batches) -> _Arrays:
    """Return the documents of all steps as the arrays of `Training`."""
    inputs, targets, _ = batches.together
    return {
        "inputs": np.ascontiguousarray(inputs, np.int32),
        "targets": np.ascontiguousarray(targets, np.int32),
        "starts": batches.starts,
        "first_documents": batches.first_documents,
        "n_targets": np.add.reduceat(targets >= 0, batches.first_rows[:-1], dtype=np.int64),
    }


class NativeStream:
    """The cache of one stream of text; see `Engine.new_cache`."""

    def __init__(self, engine: "NativeEngine") -> None:
        self.model = engine.model  # the engine recognises its own streams by their model
        self._memory = aligned_zeros(engine.functions["stream_bytes"](byref(self.model)))
        self.struct = Stream(address(self._memory), 0)
        self.pointer = ctypes.pointer(self.struct)
        self.logits = np.empty(engine.config.vocab_size, engine.parameters.dtype)
        self.logits_pointer = address(self.logits)

    @property
    def length(self) -> int:
        """Positions held so far."""
        return int(self.struct.length)


class _Sampler(NativeStream):
    """A stream and the memory for choosing its tokens; reused, because allocation takes time."""

    def __init__(self, engine: "NativeEngine") -> None:
        super().__init__(engine)
        self._generate = engine.functions["generate"]
        self._space = aligned_zeros(engine.functions["generation_bytes"](byref(self.model)))
        self._is_forbidden = np.zeros(engine.config.vocab_size, np.uint8)
        self._generation = Generation(
            memory=address(self._space),
            first_logits=self.logits_pointer,
            forbidden=address(self._is_forbidden),
        )
        self._pointers = tuple(map(ctypes.pointer, (self.model, self.struct, self._generation)))

    def clear(self) -> None:
        """Forget all tokens."""
        self._memory.fill(0)
        self.struct.length = 0

    def draw(
        self,
        uniforms: FloatArray,
        config: SamplingConfig,
        stop: int,
        forbidden: Collection[int],
        signal: StopSignal,
    ) -> list[list[int]]:
        """Return texts that continue the stream; see `Engine.sample`."""
        draws = np.array(uniforms, np.float64, order="C")
        tokens: IntArray = np.empty(draws.shape, np.int32)
        lengths: IntArray = np.empty(len(draws), np.int64)
        self._is_forbidden.fill(0)
        if forbidden:
            self._is_forbidden[list(forbidden)] = 1
        g = self._generation
        g.temperature, g.top_p = config.temperature, config.top_p
        g.top_k = min(config.top_k or 0, len(self.logits))  # a larger one may exceed 64 bits
        g.stop = stop
        g.n_samples, g.max_tokens = draws.shape
        g.uniforms = address(draws)
        g.tokens, g.lengths = address(tokens), address(lengths)
        g.ended = addressof(signal.flag)
        self._generate(*self._pointers)
        n_chosen: list[int] = lengths.tolist()
        if min(n_chosen, default=0) < 0:
            raise SamplingError(
                "the model's logits are not finite, expected finite ones; its weights are too large"
            )
        return [ids[:length] for ids, length in zip(tokens.tolist(), n_chosen, strict=True)]


class NativeEngine(Engine):
    """The model in compiled C; the fastest engine.

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
        self.functions = functions_for(parameters.dtype, vector_bytes)
        self.model = Model(
            config.vocab_size,
            config.n_embd,
            config.n_head,
            config.n_layer,
            config.block_size,
            parameters.flat.ctypes.data,
        )
        self._model_pointer = ctypes.pointer(self.model)
        self._decode = self.functions["decode"]
        # Memory that no call uses at the moment: several threads may compute losses or sample.
        self._workspaces: list[NDArray[np.uint8]] = []
        self._samplers: list[_Sampler] = []

    def _n_threads(self, n_tokens: int, passes: int, muon: Muon | None = None) -> int:
        """Return the number of threads that pays for so many tokens at once."""
        flops = 2.0 * passes * n_tokens * self.config.n_params
        if muon:
            cubes = self.config.n_layer * self.config.n_embd**3 / muon.every
            flops += MUON_FLOPS * muon.iterations * cubes
        cores = _usable_cores()  # more threads would only wait for each other
        wanted = min(self.threads or cores, cores, max_members())
        return max(1, min(wanted, int(flops / FLOPS_PER_THREAD)))

    # ------------------------------------------------------------ training

    def loss(self, batch: Batch) -> tuple[float, int]:
        """See `Engine.loss`."""
        arrays = self._train("train", [batch], loss_only=True)
        return float(arrays["losses"][0]), int(arrays["n_targets"][0])

    def loss_and_grads(self, batch: Batch) -> tuple[float, int]:
        """See `Engine.loss_and_grads`."""
        self._prepare_training()
        arrays = self._train("train", [batch])
        return float(arrays["losses"][0]), int(arrays["n_targets"][0])

    def update(
        self,
        learning_rate: float,
        clip: float | None = None,
        weight_decay: float = 0.0,
        muon: Muon | None = None,
    ) -> float | None:
        """See `Engine.update`."""
        self._prepare_training()
        arrays = self._train("update", [], [learning_rate], clip, weight_decay, muon)
        self.n_updates += 1
        return None if clip is None else float(arrays["norms"][0])

    def train_steps(
        self,
        batches: Batches | Sequence[Batch],
        learning_rates: Sequence[float],
        clip: float | None = None,
        weight_decay: float = 0.0,
        muon: Muon | None = None,
    ) -> list[StepResult]:
        """See `Engine.train_steps`."""
        if len(batches) != len(learning_rates):
            raise ShapeError(f"got {len(batches)} batches and {len(learning_rates)} learning rates")
        if not batches:
            return []
        self._prepare_training()
        struct, arrays, workspace = self._training(
            batches, learning_rates, clip, weight_decay, muon
        )
        try:
            self.functions["train"](self._model_pointer, byref(struct))
        finally:  # an interrupt is raised here, after the steps
            self.n_updates += struct.n_done
            self._workspaces.append(workspace)
        losses, n_targets = arrays["losses"].tolist(), arrays["n_targets"].tolist()
        if (n_done := struct.n_done) < len(batches):
            raise NonFiniteLossError(self.n_updates + 1, learning_rates[n_done], losses[n_done])
        norms = [None] * n_done if clip is None else arrays["norms"].tolist()
        return list(map(StepResult, losses, n_targets, norms))

    def each_step(
        self,
        batches: Batches,
        learning_rates: Sequence[float],
        clip: float | None = None,
        weight_decay: float = 0.0,
        muon: Muon | None = None,
    ) -> Iterator[tuple[float, int, float | None]]:
        """See `Engine.each_step`; all but the step itself is prepared for all steps together."""
        self._prepare_training()
        struct, arrays, workspace = self._training(
            batches, learning_rates, clip, weight_decay, muon
        )
        take = partial(self.functions["train"], addressof(self.model), addressof(struct))
        loss_of, norm_of = arrays["losses"].item, arrays["norms"].item
        try:
            for step, n_targets in enumerate(arrays["n_targets"].tolist()):
                struct.n_steps = step + 1
                try:
                    take()
                finally:
                    self.n_updates += struct.n_done - step
                if struct.n_done == step:
                    rate = learning_rates[step]
                    raise NonFiniteLossError(self.n_updates + 1, rate, loss_of(step))
                yield loss_of(step), n_targets, None if clip is None else norm_of(step)
        finally:
            self._workspaces.append(workspace)

    def _prepare_training(self) -> None:
        """Allocate gradients and moments, which inference does without."""
        if not self.parameters.flat.flags.writeable:
            raise ShapeError(
                "the weights are read-only, expected an array that training may change"
            )
        if not self.model.grads:
            self.model.grads = self.grads.flat.ctypes.data
            self.model.adam_m = self.adam_m.flat.ctypes.data
            self.model.adam_v = self.adam_v.flat.ctypes.data

    def _train(
        self,
        function: str,
        batches: Batches | Sequence[Batch],
        *options: Any,
        loss_only: bool = False,
    ) -> _Arrays:
        """Call `train` or, without batches, `update`; return all arrays."""
        struct, arrays, workspace = self._training(batches, *options, loss_only=loss_only)
        self.functions[function](self._model_pointer, byref(struct))
        self._workspaces.append(workspace)
        return arrays

    def _training(
        self,
        batches: Batches | Sequence[Batch],
        learning_rates: Sequence[float] | None = None,
        clip: float | None = None,
        weight_decay: float = 0.0,
        muon: Muon | None = None,
        *,
        loss_only: bool = False,
    ) -> tuple[Training, _Arrays, NDArray[np.uint8]]:
        """Return the arguments of `train` or, without batches, `update`, and what is in them.

        That is the arrays by name, and a workspace, which goes back to `_workspaces`.
        """
        n_steps, n_rows = max(len(batches), 1), 1
        arrays: _Arrays = {"losses": np.empty(n_steps), "norms": np.empty(n_steps)}
        if batches:
            checked = self.check_batches(batches)
            arrays |= _arrays_of(checked)
            n_rows = int(np.diff(checked.first_rows).max())
        if learning_rates is not None:
            arrays["learning_rates"] = np.array(learning_rates, np.float64)
        n_threads = self._n_threads(n_rows, 3, muon)
        n_bytes = self.functions["training_bytes"](self._model_pointer, n_threads)
        workspace = _pop_or(self._workspaces, aligned_zeros, n_bytes)
        if len(workspace) < n_bytes:
            workspace = aligned_zeros(n_bytes)
        struct = Training(
            workspace=workspace.ctypes.data,
            n_members=n_threads,
            n_steps=n_steps,
            loss_only=loss_only,
            weight_decay=weight_decay,
            clip=clip or 0.0,
            n_updates=self.n_updates,
            beta1=BETA1,
            beta2=BETA2,
            eps=ADAM_EPS,
            muon_ratio=muon.ratio if muon else 0.0,
            muon_momentum=muon.momentum if muon else 0.0,
            muon_iterations=muon.iterations if muon else 0,
            muon_first=muon.first if muon else 0,
            muon_every=muon.every if muon else 1,
            **{name: array.ctypes.data for name, array in arrays.items()},
        )
        return struct, arrays, workspace

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
        """Append tokens to `cache`, and write the logits after the last one to its `logits`."""
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
        """As `_read` for one token; the full checks run only where a quick one fails."""
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
        """Raise ShapeError for a cache of another engine."""
        if getattr(cache, "model", None) is not self.model:
            raise ShapeError("the cache is not of this engine, expected one from its new_cache()")

    def logits(self, token_ids: Sequence[int]) -> FloatArray:
        """See `Engine.logits`."""
        ids = self.check_tokens(token_ids)
        logits = np.empty((ids.size, self.config.vocab_size), self.parameters.dtype)
        self._extend(ids, self.new_cache(), logits)
        return logits

    def _extend(self, ids: IntArray, cache: NativeStream, logits: FloatArray) -> None:
        """Append tokens to `cache`, and write the logits after the last ones to `logits`."""
        n_threads = self._n_threads(ids.size, passes=1)
        tokens = np.ascontiguousarray(ids, np.int32)
        n_bytes = self.functions["extension_bytes"](self._model_pointer, ids.size, n_threads)
        workspace = aligned_zeros(n_bytes)
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
        self.check_uniforms(uniforms, prompt)
        sampler = _pop_or(self._samplers, _Sampler, self)
        sampler.clear()
        self._read(prompt, sampler)
        texts = sampler.draw(uniforms, config, stop, forbidden, signal or StopSignal())
        self._samplers.append(sampler)
        return texts
