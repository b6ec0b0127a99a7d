"""Models with random weights and batches for them, and what it means for two engines to agree."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from microgpt import Batch, Dataset, ModelConfig, Tokenizer
from microgpt.engines import select
from microgpt.engines.base import Engine
from microgpt.parameters import FloatArray, Parameters

TOLERANCES = {"float64": (1e-12, 1e-10), "float32": (1e-4, 1e-4)}  # loss, gradients; relative


class Case(NamedTuple):
    """A model with random weights, and a batch of random documents for it."""

    config: ModelConfig
    lengths: Sequence[int]  # of the documents; what exceeds block_size is cut
    share_hidden: float = 0.0  # of the targets: -1
    seed: int = 42

    def parameters(self, dtype: str = "float64") -> Parameters:
        # Weights large enough for attention and probabilities to be far from uniform, and small
        # enough for a wide model's logits to stay of their order.
        std = min(0.3, self.config.n_embd**-0.5)
        weights = np.random.default_rng(self.seed).normal(0.0, std, self.config.n_params)
        return Parameters(self.config, weights.astype(dtype))

    def engine(self, name: str, dtype: str = "float64", threads: int | None = None) -> Engine:
        return select(name, self.parameters(dtype), threads)

    def batch(self, seed: int | None = None) -> Batch:
        rng = np.random.default_rng(self.seed if seed is None else seed)
        lengths = np.array(self.lengths)
        tokens = rng.integers(0, self.config.vocab_size, lengths.sum() + 1, np.uint16)
        is_counted = rng.random(len(tokens)) >= self.share_hidden
        starts = np.cumsum(lengths) - lengths
        dataset = Dataset(Tokenizer(("a",), is_chat=False), tokens, starts, lengths, is_counted)
        return dataset.batch(range(len(lengths)), self.config.block_size)


def sizes(vocab_size: int, n_embd: int, n_head: int, n_layer: int, block_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        block_size=block_size,
    )


RAGGED = Case(sizes(vocab_size=7, n_embd=6, n_head=3, n_layer=2, block_size=5), [3, 5, 1], 0.2)


def float64_weights(engine: Engine) -> Parameters:
    return Parameters(engine.config, engine.parameters.flat.astype(np.float64))


def assert_same_loss_and_grads(
    engine: Engine,
    batch: Batch,
    nll: float,
    n_targets: int,
    grads: dict[str, FloatArray],
    norms: dict[str, float] | None = None,
) -> None:
    """Compare with what is expected; `norms` replace those of the gradients as the scale."""
    dtype = engine.parameters.dtype
    loss_tolerance, grad_tolerance = TOLERANCES[dtype]
    # A probability near 1 is known to a rounding error, and so is a loss or gradient that is
    # what it lacks of 1: such small ones have no more digits to agree in.
    rounding = 10 * float(np.finfo(dtype).eps)
    got_nll, got_n_targets = engine.loss_and_grads(batch)
    assert got_n_targets == n_targets
    assert got_nll == pytest.approx(nll, rel=loss_tolerance, abs=rounding)
    for parameter, expected in grads.items():
        error = np.linalg.norm(engine.grads[parameter] - expected)
        norm = norms[parameter] if norms else np.linalg.norm(expected)
        assert error <= grad_tolerance * norm + rounding, parameter


def norms_by_document(engine: Engine, batch: Batch) -> dict[str, float]:
    """Return the sum over documents of each gradient's norm: gradients may cancel each other."""
    ends = np.cumsum(batch.lengths)
    norms = dict.fromkeys(engine.grads, 0.0)
    for start, end in zip(ends - batch.lengths, ends, strict=True):
        alone = Batch(batch.inputs[start:end], batch.targets[start:end], np.array([end - start]))
        engine.loss_and_grads(alone)
        for name, grad in engine.grads.items():
            norms[name] += float(np.linalg.norm(grad))
    return norms
