"""Inference in compiled C: streams of text, and many texts in lockstep.

Arguments are checked here, before they are passed to C; C does not check them again.
"""

import ctypes
import os
from collections.abc import Callable, Collection, Sequence
from ctypes import addressof, byref
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from microgpt.engines.base import Engine
from microgpt.engines.decoding import NOT_FINITE_LOGITS, SamplingConfig, StopSignal
from microgpt.engines.library import (
    NOT_FINITE,
    RUNNING,
    Model,
    Stream,
    address,
    aligned_zeros,
    functions_for,
    max_members,
    padded,
)
from microgpt.engines.library import Text as Fields
from microgpt.engines.muon import Muon
from microgpt.engines.texts import Text
from microgpt.errors import SamplingError, ShapeError
from microgpt.parameters import FloatArray, IntArray, Parameters

__all__ = ["NativeInference", "NativeStream", "pop_or"]

FLOPS_PER_THREAD = 3e7  # of a step: below some 300 us, threads wait more than they work
MUON_FLOPS = 62.0  # per iteration and layer, times n_embd^3; see kernel/muon.h
MIN_SLOTS, MAX_SLOTS = 8, 64  # texts of a thread that are continued together
SLOTS_BYTES = 4 << 20  # of their caches: more leave the processor's own cache

WORK_ALONE = 30_000  # multiplications that tokens one by one take less time for than together
DIGEST_BYTES = 256  # of the widest vectors
FIELDS = np.dtype(Fields)
NO_SIGNAL = StopSignal()  # never set

_T = TypeVar("_T")


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pop_or(pool: list[_T], make: Callable[..., _T], argument: object) -> _T:
    """Return an item of `pool`, or a new one where other threads use all of them."""
    try:
        return pool.pop()
    except IndexError:
        return make(argument)


class NativeStream:
    """The cache of one stream of text; see `Engine.new_cache`."""

    def __init__(self, engine: "NativeInference") -> None:
        self.model = engine.model  # the engine recognises its own streams by their model
        self.panels = engine.panels()  # of the weights as they are now
        self.memory = aligned_zeros(engine.functions["stream_bytes"](byref(self.model)))
        self.logits = padded(engine.config.vocab_size, engine.parameters.dtype)
        self._token: IntArray = np.zeros(1, np.int32)
        self.struct = Stream(
            memory=address(self.memory),
            panels=address(self.panels),
            n_members=1,
            tokens=address(self._token),
            n_tokens=1,
            logits=address(self.logits),
            n_logits=1,
        )
        self.pointer = addressof(self.struct)
        self._workspace: NDArray[np.uint8] | None = None  # for one token
        self.functions = engine.functions

    @property
    def length(self) -> int:
        """Positions held so far."""
        return int(self.struct.length)

    @property
    def n_bytes(self) -> int:
        """Memory that it takes."""
        workspace = 0 if self._workspace is None else len(self._workspace)
        return len(self.memory) + self.logits.nbytes + workspace

    def clear(self, panels: NDArray[np.uint8]) -> None:
        """Forget all tokens; read others with these weights."""
        if panels is not self.panels:
            self.panels = panels
            self.struct.panels = address(panels)
        self.struct.length = 0

    def append(self, token_id: int) -> None:
        """Read a token; `logits` are those of the next."""
        if self._workspace is None:
            n_bytes = self.functions["extension_bytes"](byref(self.model), 1, 1)
            self._workspace = aligned_zeros(n_bytes)
            self.struct.workspace = address(self._workspace)
        self._token[0] = token_id
        self.functions["extend"](addressof(self.model), self.pointer)


class NativeText(Text):
    """A text with its fields as compiled code takes them; it may be used again for another one."""

    def __init__(self, stream: NativeStream, n_draws: int) -> None:
        logits = cast("Sequence[float]", stream.logits)
        super().__init__(stream, logits, np.empty(n_draws), SamplingConfig(), -1)
        self.record = Fields(
            memory=stream.struct.memory,
            prompt=stream.struct.memory,  # of copies, which have no memory
            logits=stream.struct.logits,
            tokens=address(self.tokens),
        )
        self.pointer = addressof(self.record)
        self._space: NDArray[np.uint8] | None = None  # to continue the text alone

    def begin(
        self,
        draws: FloatArray,
        config: SamplingConfig,
        stop: int,
        forbidden: Sequence[int],
        signal: StopSignal | None,
    ) -> None:
        """Continue what the stream has read; see `Text`."""
        self.draws, self.config, self.stop = np.ascontiguousarray(draws, np.float64), config, stop
        self.n_tokens, self.is_finished, self.has_failed = 0, False, False
        record = self.record
        record.uniforms, record.max_tokens = address(self.draws), len(draws)
        record.length, record.n_tokens, record.state = self.cache.length, 0, RUNNING
        record.temperature, record.top_p = config.temperature, config.top_p
        record.top_k = min(config.top_k or 0, len(self.cache.logits))  # may exceed 64 bits
        is_token = 0 <= stop < len(self.cache.logits)  # a larger one may exceed 64 bits
        record.stop, record.n_forbidden = stop if is_token else -1, len(forbidden)
        if forbidden:
            self._never: IntArray = np.array(forbidden, np.int32)
            record.forbidden = address(self._never)
        self.signal = signal or NO_SIGNAL  # not that of the text before, which may be set any time
        record.ended = addressof(self.signal.flag)

    def advance(self, n_steps: int) -> None:
        """Continue this text alone, in half the time that a batch of one takes."""
        stream = self.cache
        if self._space is None:
            n_bytes = stream.functions["generation_bytes"](byref(stream.model), 1, 1)
            self._space, self._pointers = aligned_zeros(n_bytes), np.array([self.pointer], np.int64)
            self._places = addressof(stream.model), address(self._pointers), address(self._space)
        model, pointers, space = self._places
        stream.functions["generate"](model, stream.struct.panels, pointers, 1, n_steps, space, 1, 1)
        self.update()

    def update(self) -> None:
        """Take over what compiled code has changed."""
        record = self.record
        self.cache.struct.length, self.n_tokens = record.length, record.n_tokens
        self.is_finished, self.has_failed = record.state != RUNNING, record.state == NOT_FINITE


class NativeInference(Engine):
    """The half of the compiled engine that trained models need.

    Args:
        parameters: see `Engine`.
        threads: see `Engine`.
        vector_bytes: width of vectors: 16, 32 or 64; None for the widest that the processor has.

    Raises:
        EngineError: the shared library is missing, damaged or of another version.
        ShapeError: the weights are not aligned in memory.
    """

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
        self.model_pointer = ctypes.pointer(self.model)
        # Memory that no call uses at the moment: several threads may sample.
        self._spaces: list[NDArray[np.uint8]] = []
        self._texts: list[NativeText] = []
        self._sizes: dict[tuple[int, bool], int] = {}  # of the memory for texts in lockstep
        self._packed: tuple[bytes, NDArray[np.uint8]] = (b"", aligned_zeros(0))
        stream_bytes = self.functions["stream_bytes"](self.model_pointer)
        self._n_together = max(MIN_SLOTS, min(MAX_SLOTS, SLOTS_BYTES // stream_bytes))

    def n_threads(self, n_tokens: int, passes: int, muon: Muon | None = None) -> int:
        """Return the number of threads that pays for so many tokens at once."""
        flops = 2.0 * passes * n_tokens * self.config.n_params
        if muon:
            cubes = self.config.n_layer * self.config.n_embd**3 / muon.every
            flops += MUON_FLOPS * muon.iterations * cubes
        cores = _usable_cores()  # more threads would only wait for each other
        wanted = min(self.threads or cores, cores, max_members())
        return max(1, min(wanted, int(flops / FLOPS_PER_THREAD)))

    def panels(self) -> NDArray[np.uint8]:
        """Return the weights in panels, packed again where they have changed."""
        digest = np.zeros(DIGEST_BYTES, np.uint8)
        self.functions["digest"](self.model_pointer, address(digest))
        known, panels = self._packed
        if digest.tobytes() != known:
            panels = aligned_zeros(self.functions["panels_bytes"](self.model_pointer))
            self.functions["pack"](self.model_pointer, address(panels))
            self._packed = digest.tobytes(), panels  # texts that are begun keep theirs
        return panels

    def new_cache(self) -> NativeStream:
        """See `Engine.new_cache`."""
        return NativeStream(self)

    def fork(self, cache: NativeStream, length: int) -> NativeStream:
        """See `Engine.fork`."""
        self._check_cache(cache)
        copy = self.new_cache()
        self.functions["fork"](
            self.model_pointer, address(cache.memory), length, address(copy.memory)
        )
        copy.struct.length = length
        return copy

    def prefill(self, token_ids: Sequence[int], cache: NativeStream) -> list[float]:
        """See `Engine.prefill`."""
        self._check_cache(cache)
        self._read(token_ids, cache)
        return self._logits_of(cache)

    def _read(self, token_ids: Sequence[int], cache: NativeStream) -> None:
        """Append tokens to `cache`, whose `logits` are then those of the next."""
        if len(token_ids) == 1:
            self._append(token_ids[0], cache)
            return
        ids = self.check_tokens(token_ids, cache.length)
        if ids.size * self.config.n_params < WORK_ALONE:
            for token_id in ids.tolist():
                cache.append(token_id)
        else:
            self._extend(ids, cache, cache.logits)

    def decode(self, token_id: int, cache: NativeStream) -> list[float]:
        """See `Engine.decode`."""
        self._append(token_id, cache)
        return self._logits_of(cache)

    def _append(self, token_id: int, cache: NativeStream) -> None:
        config = self.config
        if not (  # quick; the full checks run only where this one fails
            getattr(cache, "model", None) is self.model
            and isinstance(token_id, int)
            and 0 <= token_id < config.vocab_size
            and cache.struct.length < config.block_size
        ):
            self._check_cache(cache)
            self.check_tokens([token_id], cache.length)
        cache.append(token_id)

    def _logits_of(self, cache: NativeStream) -> list[float]:
        logits: list[float] = cache.logits.tolist()
        return logits

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
        """Append tokens to `cache`, and write the logits after the last tokens to `logits`."""
        n_threads = self.n_threads(ids.size, passes=1)
        tokens = np.ascontiguousarray(ids, np.int32)
        n_bytes = self.functions["extension_bytes"](self.model_pointer, ids.size, n_threads)
        workspace = self._memory_of(n_bytes)
        struct = Stream(
            cache.struct.memory,
            cache.struct.length,
            cache.struct.panels,
            address(workspace),
            n_threads,
            address(tokens),
            ids.size,
            address(logits),
            logits.size // self.config.vocab_size,
        )
        self.functions["extend"](addressof(self.model), addressof(struct))
        cache.struct.length = struct.length
        self._spaces.append(workspace)

    def _generation_bytes(self, n_slots: int, *, has_memory: bool) -> int:
        key = n_slots, has_memory
        if key not in self._sizes:
            self._sizes[key] = self.functions["generation_bytes"](self.model_pointer, *key)
        return self._sizes[key]

    def _memory_of(self, n_bytes: int) -> NDArray[np.uint8]:
        """Return memory that no other call uses; it goes back to `_spaces`."""
        memory = pop_or(self._spaces, aligned_zeros, n_bytes)
        return memory if len(memory) >= n_bytes else aligned_zeros(n_bytes)

    def begin(
        self,
        prompt: Sequence[int],
        cache: NativeStream,
        draws: FloatArray,
        config: SamplingConfig,
        *,
        stop: int,
        forbidden: Collection[int] = (),
        signal: StopSignal | None = None,
        keep_logits: bool = False,
    ) -> NativeText:
        """See `Engine.begin`."""
        self._check_cache(cache)
        never = self.checked_forbidden(forbidden) if forbidden else ()
        self._read(prompt, cache)
        self.check_draws(draws, cache.length)
        text = NativeText(cache, len(draws))
        if keep_logits:
            shape = len(draws), self.config.vocab_size
            text.chosen_from = np.empty(shape, cache.logits.dtype)
            text.record.chosen_from = address(text.chosen_from)
        text.begin(draws, config, stop, never, signal)
        return text

    def draw(
        self,
        prompt: Sequence[int],
        uniforms: FloatArray,
        config: SamplingConfig,
        *,
        stop: int,
        forbidden: Collection[int] = (),
        signal: StopSignal | None = None,
    ) -> tuple[IntArray, IntArray]:
        """See `Engine.draw`; each text begins with a copy of the prompt's cache."""
        self.check_uniforms(uniforms, prompt)
        never = self.checked_forbidden(forbidden) if forbidden else ()
        text = pop_or(self._texts, self._new_text, self.config.block_size)
        text.cache.clear(self.panels())
        self._read(prompt, text.cache)
        if len(uniforms) == 1:  # in half the time
            text.begin(uniforms[0], config, stop, never, signal)
            text.advance(len(text.draws))
            tokens, lengths = text.tokens[None, : len(text.draws)].copy(), np.array([text.n_tokens])
            has_failed = text.has_failed
        else:
            draws = np.ascontiguousarray(uniforms, np.float64)
            text.begin(draws.ravel(), config, stop, never, signal)
            tokens, lengths, has_failed = self._draw_rows(text, draws)
        self._texts.append(text)
        if has_failed:
            raise SamplingError(NOT_FINITE_LOGITS)
        return tokens, lengths

    def _new_text(self, n_draws: int) -> NativeText:
        return NativeText(self.new_cache(), n_draws)

    def _draw_rows(self, text: NativeText, draws: FloatArray) -> tuple[IntArray, IntArray, bool]:
        """Return tokens and lengths of texts that begin alike; whether one has failed."""
        tokens: IntArray = np.empty(draws.shape, np.int32)
        records = np.frombuffer(bytearray(bytes(text.record) * len(draws)), FIELDS)
        rows = np.arange(len(draws))
        records["memory"] = 0
        records["max_tokens"] = draws.shape[1]
        records["uniforms"] = address(draws) + rows * draws.strides[0]
        records["tokens"] = address(tokens) + rows * tokens.strides[0]
        pointers = address(records) + rows * records.itemsize
        self._generate(pointers, draws.shape[1], text.cache.panels, has_memory=False)
        return tokens, records["n_tokens"].copy(), bool((records["state"] == NOT_FINITE).any())

    def advance(self, texts: Sequence[Text], n_steps: int) -> None:
        """See `Engine.advance`."""
        going_on = [self._checked_text(text) for text in texts if not text.is_finished]
        if len(going_on) == 1:
            going_on[0].advance(n_steps)
        elif going_on:
            panels = going_on[0].cache.panels
            together = [text for text in going_on if text.cache.panels is panels]
            pointers = np.array([text.pointer for text in together], np.int64)
            self._generate(pointers, n_steps, panels, has_memory=True)
            for text in together:
                text.update()
            if len(together) < len(going_on):  # begun before or after a change of the weights
                self.advance(
                    [text for text in going_on if text.cache.panels is not panels], n_steps
                )

    def _checked_text(self, text: Text) -> NativeText:
        """Return a text, or raise ShapeError for one of another engine."""
        if isinstance(text, NativeText) and text.cache.model is self.model:
            return text
        raise ShapeError("the text is not of this engine, expected one from its begin()")

    def _generate(
        self, pointers: IntArray, n_steps: int, panels: NDArray[np.uint8], *, has_memory: bool
    ) -> None:
        """Continue the texts at these addresses by at most n_steps tokens each."""
        n_texts = len(pointers)
        if not n_texts:
            return
        n_members = min(n_texts, self.n_threads(n_texts * n_steps, passes=1))
        n_slots = min(-(-n_texts // n_members), self._n_together)
        memory = self._memory_of(n_members * self._generation_bytes(n_slots, has_memory=has_memory))
        self.functions["generate"](
            addressof(self.model),
            address(panels),
            address(pointers),
            n_texts,
            n_steps,
            address(memory),
            n_slots,
            n_members,
        )
        self._spaces.append(memory)
