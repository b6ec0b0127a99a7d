"""Validation: the loss on documents that are not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from microgpt.corpus.dataset import Dataset
from microgpt.engines.base import Engine
from microgpt.errors import ConfigError
from microgpt.inference.score import ROWS_TOGETHER
from microgpt.parameters import FloatArray
from microgpt.training.ranks import Ranks

__all__ = ["Best", "Validation", "validation_loss"]


@dataclass(frozen=True)
class Validation:
    """Documents to validate on, and how often.

    Args:
        dataset: encoded with the tokenizer of the training set.
        order: indices of its documents, at least one.
        every: steps between two validations; the last step is followed by one in any case.

    Raises:
        ConfigError: `order` is empty, or `every` is below 1.
    """

    dataset: Dataset
    order: Sequence[int]
    every: int = 100

    def __post_init__(self) -> None:
        if len(self.order) == 0 or self.every < 1:
            raise ConfigError(
                f"documents to validate on: {len(self.order)}, steps between validations: "
                f"{self.every}; expected at least 1 of each"
            )


@dataclass(frozen=True)
class Best:
    """The model with the least validation loss so far.

    Args:
        val_loss: in nats per token.
        step: number of steps after which it was computed.
        weights: a copy, in the order of `Parameters.flat`.
    """

    val_loss: float
    step: int
    weights: FloatArray


@np.errstate(all="ignore")  # divergence is reported by the loss
def validation_loss(engine: Engine, validation: Validation, ranks: Ranks | None = None) -> float:
    """Return the mean loss of the documents in nats per predicted token.

    Raises:
        RankLostError: another process no longer answers.
    """
    dataset, order = validation.dataset.fitted(engine.config.block_size), validation.order
    longest = int(dataset.lengths[np.asarray(order)].max())
    n_together = max(1, ROWS_TOGETHER // longest)
    total, n_tokens = 0.0, 0
    if ranks:
        order = ranks.share_of(order)
    for first in range(0, len(order), n_together):
        indices = order[first : first + n_together]
        nll, n = engine.loss(dataset.batches(indices, len(indices)).together)
        total += nll
        n_tokens += n
    if ranks:
        total, n_tokens = ranks.add_up(total, n_tokens)
    return total / n_tokens
