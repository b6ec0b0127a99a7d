"""The options of a run: one schema, with type, bounds, default and description of each.

Snapshots store it, `prepare` takes it, and a test compares the keywords of `fit` and the flags of
the command line with it. `None` stands for a value that `resolved` chooses.
"""

import math
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import force_setattr, replace

from microgpt.checks import check_choice, checked_integer, is_number
from microgpt.corpus.dataset import Long
from microgpt.engines import resolved_engine
from microgpt.errors import ConfigError
from microgpt.model import ModelConfig
from microgpt.train import LEARNING_RATE

__all__ = [
    "DEFAULTS",
    "Dtype",
    "LossOn",
    "Schedule",
    "TrainConfig",
    "default_learning_rate",
    "resolved",
]

Schedule: TypeAlias = Literal["linear", "cosine", "constant"]
LossOn: TypeAlias = Literal["all", "assistant"]
Dtype: TypeAlias = Literal["float32", "float64"]
Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]


def _about(description: str, **bounds: Any) -> msgspec.Meta:
    return msgspec.Meta(description=description, **bounds)


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to train; each field has its type, bounds, default and description here.

    Raises:
        ConfigError: a value is out of its domain, or two of them do not fit together.
    """

    steps: Annotated[int, _about("number of updates", ge=1)] = 1000
    learning_rate: Annotated[
        Positive | None, _about("highest learning rate; None for 0.01 x 16 / n_embd")
    ] = None
    batch_size: Annotated[int, _about("documents per step", ge=1)] = 1
    warmup_steps: Annotated[
        int, _about("first steps, over which the learning rate rises from 0", ge=0)
    ] = 0
    schedule: Annotated[Schedule, _about("learning-rate schedule after the warm-up")] = "linear"
    clip: Annotated[Positive | None, _about("norm to clip the gradient to; None for none")] = None
    weight_decay: Annotated[
        float, _about("share of the weights, times the rate, taken off per step", ge=0)
    ] = 0.0
    n_embd: Annotated[int, _about("width of the model", ge=1)] = 16
    n_head: Annotated[int, _about("attention heads; must divide n_embd", ge=1)] = 4
    n_layer: Annotated[int, _about("transformer blocks", ge=1)] = 1
    block_size: Annotated[int, _about("longest context in tokens", ge=1)] = 16
    long: Annotated[Long, _about("treatment of documents longer than block_size")] = "truncate"
    loss_on: Annotated[LossOn, _about("turns of a conversation that count in the loss")] = "all"
    shuffle: Annotated[bool, _about("take documents in random order")] = True
    val_fraction: Annotated[
        float, _about("share of the documents kept for validation", ge=0, lt=1)
    ] = 0.0
    eval_every: Annotated[int, _about("steps between validations", ge=1)] = 100
    seed: Annotated[int, _about("seed of all randomness")] = 42
    dtype: Annotated[Dtype, _about("type of the numbers")] = "float32"
    engine: Annotated[str, _about("engine that computes; auto for the fastest here")] = "auto"

    def __post_init__(self) -> None:
        for name, (kind, bounds) in _kinds().items():
            value = getattr(self, name)
            checked = _checked(name, value, kind, bounds)
            if checked is not value:
                force_setattr(self, name, checked)
        if self.warmup_steps >= self.steps:
            raise ConfigError(
                f"warmup_steps is {self.warmup_steps!r:.80}, expected at least 0 and less than the "
                f"{self.steps} steps of the run"
            )
        self.model_config(vocab_size=1)

    def model_config(self, vocab_size: int) -> ModelConfig:
        """Return the sizes of the model.

        Args:
            vocab_size: number of token ids.

        Raises:
            ConfigError: n_head does not divide n_embd, or the model is too large.
        """
        return ModelConfig(
            vocab_size=vocab_size,
            n_embd=self.n_embd,
            n_head=self.n_head,
            n_layer=self.n_layer,
            block_size=self.block_size,
        )

    def rate_at(self, step: int) -> float:
        """Return the share of the highest learning rate that a step takes.

        Args:
            step: 0 to `steps` - 1.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        if self.schedule == "linear":
            return 1 - progress
        return (1 + math.cos(math.pi * progress)) / 2 if self.schedule == "cosine" else 1.0


@cache
def _kinds() -> dict[str, tuple[Any, msgspec.Meta]]:
    """Return the type of each field, without its annotations, and its bounds."""
    kinds = {}
    for name, hint in get_type_hints(TrainConfig, include_extras=True).items():
        kind, about = get_args(hint)
        if Positive in get_args(kind):
            kind, about = float | None, get_args(Positive)[1]
        kinds[name] = kind, about
    return kinds


def _checked(name: str, value: Any, kind: Any, bounds: msgspec.Meta) -> Any:
    """Return a value as the plain type of its field, or raise ConfigError."""
    if get_origin(kind) is Literal:
        check_choice(name, value, get_args(kind))
        return str(value)
    if kind is int:
        return checked_integer(name, value, -math.inf if bounds.ge is None else bounds.ge)
    if kind in (float, float | None):
        return None if value is None and kind is not float else _checked_number(name, value, bounds)
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is {value!r:.80}, expected a {kind.__name__}")
    return value


def _checked_number(name: str, value: Any, bounds: msgspec.Meta) -> float:
    low = -math.inf if bounds.ge is None else bounds.ge
    above = -math.inf if bounds.gt is None else bounds.gt
    below = math.inf if bounds.lt is None else bounds.lt
    if is_number(value) and low <= value < below and value > above:
        return float(value)
    limits = [f"above {bounds.gt:g}"] if bounds.gt is not None else []
    limits += [f"of at least {bounds.ge:g}"] if bounds.ge is not None else []
    limits += [f"below {bounds.lt:g}"] if bounds.lt is not None else []
    raise ConfigError(f"{name} is {value!r:.80}, expected a finite number {' and '.join(limits)}")


DEFAULTS = TrainConfig()


def default_learning_rate(n_embd: int) -> float:
    """Return 0.01 x 16 / n_embd: Adam's best rate shrinks with the width of the model.

    Source: Yang et al. 2022, arXiv:2203.03466; 0.01 is the rate of microgpt.py, at its own width.
    """
    return LEARNING_RATE * DEFAULTS.n_embd / n_embd


def resolved(config: TrainConfig) -> TrainConfig:
    """Return the options with a value in place of each None, and of the engine "auto".

    Raises:
        EngineError: there is no such engine.
    """
    rate = config.learning_rate
    return replace(
        config,
        learning_rate=default_learning_rate(config.n_embd) if rate is None else rate,
        engine=resolved_engine(config.engine),
    )
