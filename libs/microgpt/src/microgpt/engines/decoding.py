"""From logits to text: temperature, top-k and top-p, and the loop that feeds tokens back.

Every draw takes one `random()` from a generator that the caller passes, and picks the first token
whose cumulative weight exceeds it: the same token as `random.choices` would. Greedy choices
(temperature 0) draw nothing.
"""

import math
import sys
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from ctypes import c_int64
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, NamedTuple, Protocol

from microgpt.checks import checked_integer, is_number
from microgpt.errors import ConfigError, ContextLengthError, SamplingError, ShapeError
from microgpt.model import ModelConfig
from microgpt.sampling import TEMPERATURE

__all__ = [
    "NOT_FINITE_LOGITS",
    "ChosenToken",
    "Decoder",
    "Draws",
    "SamplingConfig",
    "StopSignal",
    "choose_token",
    "generate",
    "generate_from_prompt",
    "room_after",
    "slid",
]


NOT_FINITE_LOGITS = (
    "the model's logits are not finite, expected finite ones; its weights are too large"
)


@dataclass(frozen=True)
class SamplingConfig:
    """How a text is drawn; the filters apply in the order of the fields.

    Args:
        temperature: logits are divided by it; 0 always takes the most likely token.
        top_k: keep only the k most likely tokens; None keeps all.
        top_p: of those, keep the fewest most likely tokens whose probabilities reach p; 1 keeps
            all.
        max_tokens: the most tokens of the text, beyond the block too (see `slid`); None for as many
            as the block leaves.
        stop: stop texts; the text ends before the first.
        seed: of the draws.

    Raises:
        ConfigError: temperature negative or not finite, top_k or max_tokens below 1, top_p outside
            (0, 1], a seed that is no integer, or a stop text that is empty or no string.
    """

    temperature: float = TEMPERATURE
    top_k: int | None = None
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    seed: int = 42

    def __post_init__(self) -> None:
        if not is_number(self.temperature) or not 0.0 <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature is {self.temperature!r:.80}, expected a finite number of at least 0"
            )
        for name in ("top_k", "max_tokens"):
            if getattr(self, name) is not None:
                checked_integer(name, getattr(self, name), 1)
        if not is_number(self.top_p) or not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p is {self.top_p!r:.80}, expected above 0 and at most 1")
        is_list = isinstance(self.stop, Collection) and not isinstance(self.stop, str)
        if not is_list or not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(
                f"stop is {self.stop!r:.80}, expected a list of strings that are not empty"
            )
        checked_integer("seed", self.seed)


class StopSignal:
    """Ends the texts that are being drawn, from any thread and within one token.

    Example:
        >>> signal = StopSignal()
        >>> signal.set()
        >>> signal.is_set
        True
    """

    def __init__(self) -> None:
        self.flag = c_int64(0)  # compiled code reads it too

    def set(self) -> None:
        """End the texts."""
        self.flag.value = 1

    @property
    def is_set(self) -> bool:
        """Whether it was set."""
        return self.flag.value != 0


class Draws(Protocol):
    """A source of draws: a `random.Random`, or any object with its `random()`."""

    def random(self) -> float:
        """Return the next number in [0, 1)."""


class Decoder(Protocol):
    """The part of a model that generation needs; `InferenceGPT` and every engine have it."""

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model."""

    def new_cache(self) -> Any:
        """Return an empty cache."""

    def prefill(self, token_ids: Sequence[int], cache: Any) -> Sequence[float]:
        """Append tokens to the cache; return the logits after the last, shape (V,)."""

    def decode(self, token_id: int, cache: Any) -> Sequence[float]:
        """Append one token to the cache; return the logits of the next, shape (V,)."""


def _most_likely_first(weights: Sequence[float]) -> list[int]:
    """Return the indices by falling weight; equals keep their order."""
    return sorted(range(len(weights)), key=lambda i: -weights[i])


def choose_token(
    logits: Sequence[float],
    config: SamplingConfig,
    rng: Draws,
    forbidden: Collection[int] = (),
) -> int:
    """Choose one token.

    Args:
        logits: shape (V,), finite.
        config: temperature and filters.
        rng: one `random()` is drawn, none at temperature 0.
        forbidden: token ids that may not be chosen.

    Returns:
        A token id.

    Raises:
        SamplingError: a logit is NaN or infinite.

    Example:
        >>> import random
        >>> choose_token([1.0, 3.0, 2.0], SamplingConfig(temperature=0), random.Random(42))
        1
    """
    if not math.isfinite(sum(logits)):  # one pass in C finds any NaN or infinity
        raise SamplingError(NOT_FINITE_LOGITS)
    scores = [-math.inf if i in forbidden else z for i, z in enumerate(logits)]
    if config.temperature == 0.0:
        return max(range(len(scores)), key=scores.__getitem__)
    largest = max(scores)
    # Shift before dividing: a tiny temperature then gives -inf and weight 0, never inf - inf.
    weights = [math.exp((z - largest) / config.temperature) for z in scores]
    if config.top_k is not None and config.top_k < len(weights):
        for i in _most_likely_first(weights)[config.top_k :]:
            weights[i] = 0.0
    if config.top_p < 1.0:
        order = _most_likely_first(weights)
        reached = list(accumulate(weights[i] for i in order))
        for i in order[_count_until(reached, config.top_p * reached[-1]) :]:
            weights[i] = 0.0
    return _choose(weights, rng.random())


def _count_until(cumulative: Sequence[float], threshold: float) -> int:
    """Return how many leading items it takes for the sum to reach `threshold`."""
    return next(i for i, total in enumerate(cumulative, 1) if total >= threshold)


def _choose(weights: Sequence[float], draw: float) -> int:
    """Return the first index whose cumulative weight exceeds `draw` (in [0, 1)) of the total."""
    cumulative = list(accumulate(weights))
    chosen = bisect_right(cumulative, draw * cumulative[-1])
    # Rounding can put the product at the total itself: then the last index that has weight.
    return min(chosen, bisect_right(cumulative, math.nextafter(cumulative[-1], 0.0)))


def room_after(prompt: Sequence[int], block_size: int) -> int:
    """Return the most tokens that can follow `prompt`; the model need not read the last one.

    Raises:
        ShapeError: the prompt is empty.
        ContextLengthError: the prompt is longer than block_size.
    """
    if not prompt:
        raise ShapeError("the prompt is empty, expected at least one token")
    if len(prompt) > block_size:
        raise ContextLengthError(
            f"the prompt has {len(prompt)} tokens, expected at most block_size={block_size}; "
            "shorten it or load a model with a larger block_size"
        )
    return block_size - len(prompt) + 1


class ChosenToken(NamedTuple):
    """A token of a text.

    Args:
        token_id: 0 to V - 1.
        logits: the logits that it was chosen from, shape (V,); empty where they were not kept.
    """

    token_id: int
    logits: Sequence[float] = ()


def slid(token_ids: Sequence[int], block_size: int, first: Sequence[int] = ()) -> list[int]:
    """Return the context of the next token, after more tokens than the model can attend to.

    The newest half of the block is kept and encoded anew. So a token costs little on average, and
    each has at least half a block of context.

    Args:
        token_ids: of the prompt and the text so far, more than block_size.
        block_size: the most tokens that the model can attend to.
        first: tokens that every context begins with, such as BOS; they count in the half.

    Example:
        >>> slid([9, 0, 1, 2, 3, 4, 5, 6, 7], block_size=8, first=[9])
        [9, 5, 6, 7]
    """
    n_kept = max(1, block_size // 2 - len(first))
    return [*first, *token_ids[-n_kept:]][-block_size:]


def generate_from_prompt(
    model: Decoder,
    prompt: Sequence[int],
    rng: Draws,
    config: SamplingConfig,
    *,
    stop: int,
    forbidden: Collection[int] = (),
    max_tokens: int | None = None,
    first: Sequence[int] = (),
) -> Iterator[int]:
    """Yield token ids that continue `prompt`, as they are chosen.

    Args:
        model: any decoder.
        prompt: 1 to block_size token ids.
        rng: one draw per token.
        config: temperature, filters and `max_tokens`, beyond the block too; its stop texts and
            seed are not used.
        stop: token id that ends the text; not yielded.
        forbidden: token ids that are never chosen.
        max_tokens: a further bound on the tokens.
        first: see `slid`.

    Raises:
        ShapeError: the prompt is empty.
        ContextLengthError: the prompt is longer than block_size.
    """
    block_size = model.config.block_size
    room = room_after(prompt, block_size)
    n_tokens = room if config.max_tokens is None else config.max_tokens

    def tokens() -> Iterator[int]:  # apart, so that the checks above run at the call
        context = list(prompt)
        cache = model.new_cache()
        logits = model.prefill(context, cache)
        for n_left in reversed(range(n_tokens)):
            token_id = choose_token(logits, config, rng, forbidden)
            if token_id == stop:
                return
            yield token_id
            if not n_left:
                return
            context.append(token_id)
            if len(context) <= block_size:
                logits = model.decode(token_id, cache)
            else:
                context = slid(context, block_size, first)
                cache = model.new_cache()
                logits = model.prefill(context, cache)

    if max_tokens is not None:
        max_tokens = max(0, min(max_tokens, sys.maxsize))
    return islice(tokens(), max_tokens)


def generate(
    model: Decoder,
    bos: int,
    rng: Draws,
    config: SamplingConfig | None = None,
    *,
    forbidden: Collection[int] = (),
) -> list[int]:
    """Return the token ids of one document: from BOS until the next BOS.

    Without `max_tokens` it ends after block_size tokens.

    Args:
        model: any decoder.
        bos: token id that begins the document and ends it.
        rng: one draw per token.
        config: temperature and filters; None for the defaults.
        forbidden: token ids that are never chosen.
    """
    config = config or SamplingConfig()
    return list(
        generate_from_prompt(model, [bos], rng, config, stop=bos, forbidden=forbidden, first=[bos])
    )
