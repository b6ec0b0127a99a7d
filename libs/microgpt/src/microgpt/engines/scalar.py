"""The reference engine: the algorithm of `model.py`, `autograd.py` and `train.py`, as it is.

Four orders of magnitude slower than `native`. Arithmetic is Python's float64; with
dtype float32 the weights are rounded when they are stored.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from microgpt.corpus.batches import Batch
from microgpt.engines.base import Engine, documents_of
from microgpt.engines.muon import Muon
from microgpt.model import GPT, InferenceGPT, KVCache, cross_entropy
from microgpt.parameters import FloatArray
from microgpt.train import Adam

__all__ = ["ScalarEngine"]


class ScalarEngine(Engine):
    """Every number a `Value`: the definition that the other engines must equal."""

    name = "scalar"

    def _model(self) -> GPT:
        return GPT.from_numbers(self.config, iter(self.parameters.flat.tolist()))

    def loss_and_grads(self, batch: Batch) -> tuple[float, int]:
        """See `Engine.loss_and_grads`."""
        self.check_batch(batch)
        model = self._model()
        losses = []
        for inputs, targets in documents_of(batch):
            logits = model.logits(inputs.tolist())
            losses += [
                cross_entropy(z, target)
                for z, target in zip(logits, targets.tolist(), strict=True)
                if target >= 0
            ]
        if not losses:
            self.grads.flat[:] = 0.0
            return 0.0, 0
        nll = sum(losses[1:], start=losses[0])
        nll.backward()
        self.grads.flat[:] = [weight.grad for weight in model.parameters()]
        return nll.data, len(losses)

    def update(
        self,
        learning_rate: float,
        clip: float | None = None,
        weight_decay: float = 0.0,
        muon: Muon | None = None,
    ) -> float | None:
        """See `Engine.update`; Muon is defined for matrices, in NumPy."""
        if muon:
            return super().update(learning_rate, clip, weight_decay, muon)
        weights = self._model().parameters()
        for weight, grad in zip(weights, self.grads.flat.tolist(), strict=True):
            weight.grad = grad
        adam = Adam(weights)
        adam.m, adam.v = self.adam_m.flat.tolist(), self.adam_v.flat.tolist()
        adam.n_updates = self.n_updates
        norm = adam.step(learning_rate, clip, weight_decay)
        self.n_updates = adam.n_updates
        self.parameters.flat[:] = [weight.data for weight in weights]
        self.adam_m.flat[:], self.adam_v.flat[:] = adam.m, adam.v
        return norm

    def _inference_model(self) -> InferenceGPT:
        return InferenceGPT(
            self.config, {name: view.tolist() for name, view in self.parameters.items()}
        )

    def new_cache(self) -> "_ModelCache":
        """See `Engine.new_cache`."""
        return _ModelCache(self._inference_model())

    def fork(self, cache: "_ModelCache", length: int) -> "_ModelCache":
        """See `Engine.fork`."""
        copy = _ModelCache(cache.model)
        copy.kv.keys = [vectors[:length] for vectors in cache.kv.keys]
        copy.kv.values = [vectors[:length] for vectors in cache.kv.values]
        return copy

    def prefill(self, token_ids: Sequence[int], cache: "_ModelCache") -> list[float]:
        """See `Engine.prefill`."""
        ids = self.check_tokens(token_ids, cache.length)
        return cache.model.prefill(ids.tolist(), cache.kv)

    def logits(self, token_ids: Sequence[int]) -> FloatArray:
        """See `Engine.logits`."""
        ids = self.check_tokens(token_ids)
        return np.array(self._inference_model().logits(ids.tolist()))


class _ModelCache:
    """A cache, and the model at the time when its text began."""

    def __init__(self, model: InferenceGPT) -> None:
        self.model = model
        self.kv: KVCache[Any] = model.new_cache()

    @property
    def length(self) -> int:
        return self.kv.length

    @property
    def n_bytes(self) -> int:
        """Memory that it takes with its model; a number in lists takes less than 48 bytes."""
        config = self.model.config
        return 48 * (config.n_params + 2 * config.n_layer * self.length * config.n_embd)
