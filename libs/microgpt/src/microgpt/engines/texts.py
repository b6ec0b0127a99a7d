"""Texts that engines continue, many together, each as if it were alone."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from microgpt.engines.decoding import SamplingConfig, StopSignal
from microgpt.parameters import FloatArray, IntArray

__all__ = ["Text"]


@dataclass(eq=False)
class Text:
    """A text that grows token by token; made by `Engine.begin`, continued by `Engine.advance`.

    Args:
        cache: of the tokens that were read; one that no other text uses.
        logits: of the next token, shape (V,).
        draws: numbers in [0, 1), one per token, shape (max_tokens,).
        config: temperature and filters.
        stop: token id that ends the text; not part of it.
        forbidden: token ids that are never chosen.
        signal: once set, the text ends where it is.
        chosen_from: shape (max_tokens, V), receives the logits of each token; None to keep none.

    Attributes:
        tokens: shape (max_tokens,), of which `n_tokens` are chosen.
        n_tokens: tokens chosen so far.
        is_finished: whether no token follows.
        has_failed: whether it ended at logits that are not finite.
    """

    cache: Any
    logits: Sequence[float]
    draws: FloatArray
    config: SamplingConfig
    stop: int
    forbidden: Collection[int] = ()
    signal: StopSignal = field(default_factory=StopSignal)
    chosen_from: FloatArray | None = None
    n_tokens: int = field(init=False, default=0)
    is_finished: bool = field(init=False, default=False)
    has_failed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.tokens: IntArray = np.zeros(len(self.draws), np.int32)

    @property
    def has_chosen_stop(self) -> bool:
        """Whether `stop` was chosen, from `logits`."""
        was_ended = self.has_failed or self.signal.is_set or self.n_tokens == len(self.draws)
        return self.is_finished and not was_ended
