"""The protocol of engines: one model's numbers, and the ways to train and to run it.

An engine keeps weights, gradients and Adam's moments as flat buffers (`Parameters`). Subclasses
compute gradients and logits. The update, many steps in one call and sampling have definitions here,
which a subclass may override.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from microgpt.corpus.batches import Batch, Batches
from microgpt.engines.decoding import (
    NOT_FINITE_LOGITS,
    Draws,
    SamplingConfig,
    StopSignal,
    choose_token,
)
from microgpt.engines.inputs import InputChecks
from microgpt.engines.muon import Muon, muon_update
from microgpt.engines.optimizers import adam_update, clip_gradient
from microgpt.engines.texts import Text
from microgpt.errors import NonFiniteLossError, SamplingError
from microgpt.model import ModelConfig
from microgpt.parameters import FloatArray, IntArray, Parameters

__all__ = ["ArrayCache", "Engine", "StepResult", "documents_of"]


class StepResult(NamedTuple):
    """Result of one training step.

    Args:
        loss: mean over the batch's predicted tokens, in nats, before the update.
        n_tokens: number of those tokens.
        grad_norm: Euclidean norm of the gradient before clipping; None without clipping.
    """

    loss: float
    n_tokens: int
    grad_norm: float | None = None


@dataclass
class ArrayCache:
    """Keys and values of one stream of text.

    Args:
        keys: shape (n_layer, block_size, C).
        values: the same.
        length: positions held so far.
    """

    keys: FloatArray
    values: FloatArray
    length: int = 0

    @property
    def n_bytes(self) -> int:
        """Memory that it takes."""
        return self.keys.nbytes + self.values.nbytes


class _Replayed:
    """A source of numbers that were drawn ahead."""

    def __init__(self, draws: Iterator[float]) -> None:
        self.random = draws.__next__


class Engine(InputChecks, ABC):
    """One model in one place: weights, training, inference.

    Args:
        parameters: the weights; used in place, so training changes them.
        threads: most processor cores to use; None for all. Results do not depend on it.

    Attributes:
        name: value of `--engine`.
        has_exact_prefixes: whether logits are the same bit for bit, however many tokens `prefill`
            reads at once.
        n_updates: optimizer steps taken so far; Adam's bias correction depends on it.
    """

    name: ClassVar[str]
    has_exact_prefixes: ClassVar[bool] = True

    def __init__(self, parameters: Parameters, threads: int | None = None) -> None:
        self.parameters = parameters
        self.threads = threads
        self.n_updates = 0

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrays only: views and addresses are of no use to a copy.
        names = {"n_updates", "grads", "adam_m", "adam_v"} & vars(self).keys()
        state = {name: vars(self)[name] for name in names}
        return type(self), (self.parameters, self.threads), state

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model."""
        return self.parameters.config

    @cached_property
    def grads(self) -> Parameters:
        """Gradients of the latest batch, laid out as the weights."""
        return Parameters.zeros(self.config, self.parameters.dtype)

    @cached_property
    def adam_m(self) -> Parameters:
        """Adam's running mean of the gradients, and Muon's."""
        return Parameters.zeros(self.config, self.parameters.dtype)

    @cached_property
    def adam_v(self) -> Parameters:
        """Adam's running mean of their squares."""
        return Parameters.zeros(self.config, self.parameters.dtype)

    # ------------------------------------------------------------ training

    @abstractmethod
    def loss_and_grads(self, batch: Batch) -> tuple[float, int]:
        """Compute the loss of a batch, and write the gradient of its sum to `grads`.

        Args:
            batch: documents laid end to end; a target of -1 does not count.

        Returns:
            Summed negative log-likelihood in nats, and how many targets it sums over.

        Raises:
            ShapeError: shapes, types or lengths do not fit together.
            TokenError: a token id is not in the vocabulary.
            ContextLengthError: a document has more than block_size positions.
        """

    def loss(self, batch: Batch) -> tuple[float, int]:
        """Compute the loss of a batch as `loss_and_grads` does; `grads` is undefined afterwards."""
        return self.loss_and_grads(batch)

    def losses(self, batches: Batches) -> list[float]:
        """Return the summed loss of each batch in nats, to the bit as `loss` computes it alone."""
        return [self.loss(batch)[0] for batch in batches]

    def update(
        self,
        learning_rate: float,
        clip: float | None = None,
        weight_decay: float = 0.0,
        muon: Muon | None = None,
    ) -> float | None:
        """Take one step along `grads`, which the caller has normalised, by Adam or with Muon.

        Args:
            learning_rate: step size.
            clip: scale a longer gradient down to this norm; None for no clipping.
            weight_decay: share of each weight, times its learning rate, taken off first.
            muon: how Muon updates the matrices of the layers; None for Adam on all weights. Muon's
                running mean of the gradients is in `adam_m`, and it leaves `adam_v` as it is.

        Returns:
            The gradient's norm before clipping; None without `clip`.
        """
        self.n_updates += 1
        norm = None if clip is None else clip_gradient(self.grads.flat, clip)
        n_adam = self.parameters.flat.size
        if muon:
            n_adam = self.parameters.stacked("wte", "lm_head").size  # the layers follow them
            muon_update(
                self.parameters,
                self.grads,
                self.adam_m,
                muon,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
            )
        adam_update(
            self.parameters.flat[:n_adam],
            self.grads.flat[:n_adam],
            self.adam_m.flat[:n_adam],
            self.adam_v.flat[:n_adam],
            n_updates=self.n_updates,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
        )
        return norm

    def train_steps(
        self,
        batches: Batches | Sequence[Batch],
        learning_rates: Sequence[float],
        clip: float | None = None,
        weight_decay: float = 0.0,
        muon: Muon | None = None,
    ) -> list[StepResult]:
        """Take one training step per batch and return the result of each.

        Args:
            batches: at least one target each that counts.
            learning_rates: one per batch.
            clip: see `update`.
            weight_decay: see `update`.
            muon: see `update`.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite; that step did not change the weights.
        """
        return self.take_steps(
            self.loss_and_grads, self.update, batches, learning_rates, clip, weight_decay, muon
        )

    def each_step(
        self,
        batches: Batches,
        learning_rates: Sequence[float],
        clip: float | None = None,
        weight_decay: float = 0.0,
        muon: Muon | None = None,
    ) -> Iterator[tuple[float, int, float | None]]:
        """Take training steps as `train_steps` does, each when its result is asked for.

        Yields:
            The fields of a `StepResult`; a plain tuple saves time where the step is short.
        """
        for batch, learning_rate in zip(batches, learning_rates, strict=True):
            yield from self.train_steps([batch], [learning_rate], clip, weight_decay, muon)

    @np.errstate(all="ignore")  # divergence is reported by the loss
    def take_steps(
        self,
        loss_and_grads: Callable[[Batch], tuple[float, int]],
        update: Callable[[float, float | None, float, Muon | None], float | None],
        batches: Batches | Sequence[Batch],
        learning_rates: Sequence[float],
        clip: float | None,
        weight_decay: float,
        muon: Muon | None,
    ) -> list[StepResult]:
        """Take training steps as `train_steps` does, with other functions for the two parts."""
        results = []
        for batch, learning_rate in zip(batches, learning_rates, strict=True):
            nll, n_tokens = loss_and_grads(batch)
            loss = nll / n_tokens
            if not math.isfinite(loss):
                raise NonFiniteLossError(self.n_updates + 1, learning_rate, loss)
            grads = self.grads.flat
            grads *= 1.0 / n_tokens
            norm = update(learning_rate, clip, weight_decay, muon)
            results.append(StepResult(loss, n_tokens, norm))
        return results

    # ------------------------------------------------------------ inference

    @abstractmethod
    def new_cache(self) -> Any:
        """Return an empty cache for one stream of text.

        Many may be in use at once, each by one thread at a time.
        """

    @abstractmethod
    def fork(self, cache: Any, length: int) -> Any:
        """Return a new cache with the first `length` positions of another one."""

    @abstractmethod
    def prefill(self, token_ids: Sequence[int], cache: Any) -> list[float]:
        """Append tokens to `cache`; return the logits after the last, shape (V,).

        Raises:
            ShapeError: there are no tokens.
            TokenError: a token id is not in the vocabulary.
            ContextLengthError: the cache would hold more than block_size tokens.
        """

    def decode(self, token_id: int, cache: Any) -> list[float]:
        """Append one token to `cache`; return the logits of the next, shape (V,).

        Raises:
            TokenError: the id is not in the vocabulary.
            ContextLengthError: the cache already holds block_size tokens.
        """
        return self.prefill([token_id], cache)

    @abstractmethod
    def logits(self, token_ids: Sequence[int]) -> FloatArray:
        """Return the logits after each token, shape (T, V).

        Raises:
            As `prefill`.
        """

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
        """Return texts that continue `prompt`, one for each row of draws.

        Args:
            prompt: 1 to block_size token ids.
            uniforms: numbers in [0, 1), shape (n_samples, max_tokens); token i of a text takes
                column i of its row. max_tokens is at most `room_after` the prompt.
            config: temperature and filters.
            stop: token id that ends a text; not part of it.
            forbidden: token ids that are never chosen.
            signal: once set, all texts end where they are.

        Raises:
            As `generate_from_prompt`; SamplingError if logits are not finite.
        """
        tokens, lengths = self.draw(
            prompt, uniforms, config, stop=stop, forbidden=forbidden, signal=signal
        )
        return [ids[:n] for ids, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]

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
        """Return the texts of `sample` as arrays.

        Args:
            prompt: see `sample`.
            uniforms: see `sample`.
            config: see `sample`.
            stop: see `sample`.
            forbidden: see `sample`.
            signal: see `sample`.

        Returns:
            Token ids, shape (n_samples, max_tokens), and how many of each row are the text.
        """
        max_tokens = self.check_uniforms(uniforms, prompt)
        signal = signal or StopSignal()
        texts = [
            self.begin(
                prompt,
                self.new_cache(),
                row,
                config,
                stop=stop,
                forbidden=forbidden,
                signal=signal,
            )
            for row in uniforms
        ]
        self.advance(texts, max_tokens)
        if any(text.has_failed for text in texts):
            raise SamplingError(NOT_FINITE_LOGITS)
        tokens: IntArray = np.array([text.tokens for text in texts], np.int32)
        lengths: IntArray = np.array([text.n_tokens for text in texts], np.int64)
        return tokens.reshape(uniforms.shape), lengths

    def begin(
        self,
        prompt: Sequence[int],
        cache: Any,
        draws: FloatArray,
        config: SamplingConfig,
        *,
        stop: int,
        forbidden: Collection[int] = (),
        signal: StopSignal | None = None,
        keep_logits: bool = False,
    ) -> Text:
        """Read a prompt; return the text that continues it, without tokens yet.

        Args:
            prompt: the tokens that follow those in the cache, at least one.
            cache: empty, or with the beginning of the prompt; for this text alone.
            draws: numbers in [0, 1), shape (max_tokens,); there must be room for as many tokens.
            config: temperature and filters.
            stop: see `sample`.
            forbidden: see `sample`.
            signal: see `sample`.
            keep_logits: keep what each token is chosen from, in its `chosen_from`.

        Raises:
            As `prefill`; ShapeError for more draws than there is room; TokenError if all tokens
            are forbidden.
        """
        forbidden = self.checked_forbidden(forbidden)
        logits = self.prefill(prompt, cache)
        self.check_draws(draws, cache.length)
        shape = draws.size, self.config.vocab_size
        return Text(
            cache,
            logits,
            np.ascontiguousarray(draws, np.float64),
            config,
            stop,
            forbidden,
            signal or StopSignal(),
            np.empty(shape, self.parameters.dtype) if keep_logits else None,
        )

    def advance(self, texts: Sequence[Text], n_steps: int) -> None:
        """Continue texts by up to `n_steps` tokens each; finished texts stay as they are.

        A text has the same tokens in any company, on any number of threads.
        """
        for text in texts:
            draws = _Replayed(iter(text.draws[text.n_tokens :].tolist()))
            for _ in range(n_steps):
                self._choose_next(text, draws)

    def _choose_next(self, text: Text, draws: Draws) -> None:
        text.is_finished |= text.n_tokens == len(text.draws) or text.signal.is_set
        if text.is_finished:
            return
        try:
            token_id = choose_token(text.logits, text.config, draws, text.forbidden)
        except SamplingError:
            text.is_finished = text.has_failed = True
            return
        if token_id == text.stop:
            text.is_finished = True
            return
        if text.chosen_from is not None:
            text.chosen_from[text.n_tokens] = text.logits
        text.tokens[text.n_tokens] = token_id
        text.n_tokens += 1
        if text.n_tokens < len(text.draws):
            text.logits = self.decode(token_id, text.cache)
        else:
            text.is_finished = True


def documents_of(batch: Batch) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield the inputs and targets of each document of a batch."""
    ends = np.cumsum(batch.lengths)[:-1]
    yield from zip(np.split(batch.inputs, ends), np.split(batch.targets, ends), strict=True)
