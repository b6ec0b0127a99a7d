"""The options of a run: one schema, with type, bounds, default and description of each.

Snapshots store it, `prepare` takes it, and tests compare the keywords of `fit` and the flags of the
command line with it. `resolved` chooses the learning rates and the engine where they are open.
"""

import math
import operator
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import force_setattr, replace

from microgpt.checks import check_choice, is_integer, is_number
from microgpt.corpus.dataset import Long
from microgpt.corpus.subwords import VOCAB_SIZE
from microgpt.engines import resolved_engine
from microgpt.engines.muon import MOMENTUM, N_ITERATIONS, Muon
from microgpt.errors import ConfigError
from microgpt.model import ModelConfig
from microgpt.train import LEARNING_RATE

__all__ = [
    "DEFAULTS",
    "Dtype",
    "LossOn",
    "OptimizerName",
    "Schedule",
    "TokenizerName",
    "TrainConfig",
    "default_learning_rate",
    "muon_of",
    "resolved",
]

Schedule: TypeAlias = Literal["linear", "cosine", "constant"]
LossOn: TypeAlias = Literal["all", "assistant"]
TokenizerName: TypeAlias = Literal["characters", "bpe"]
OptimizerName: TypeAlias = Literal["adam", "muon"]
Dtype: TypeAlias = Literal["float32", "float64"]
Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
AtLeastOne: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]

MUON_LEARNING_RATE = 0.02  # at any width: it bounds the change of a matrix's output


def _about(description: str, **bounds: Any) -> msgspec.Meta:
    return msgspec.Meta(description=description, **bounds)


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to train; each field has its type, bounds, default and description here.

    Raises:
        ConfigError: a value is out of its domain, or two of them do not fit together.
    """

    steps: Annotated[int, _about("number of updates", ge=1)] = 1000
    learning_rate: Annotated[
        Positive | None,
        _about("highest learning rate; None for one chosen from the width, a fifth with init_from"),
    ] = None
    batch_size: Annotated[int, _about("documents per step", ge=1)] = 1
    warmup_steps: Annotated[
        int, _about("warm-up steps, over which the learning rate rises from 0", ge=0)
    ] = 0
    schedule: Annotated[Schedule, _about("learning-rate schedule after the warm-up")] = "linear"
    clip: Annotated[Positive | None, _about("clip the gradient to this norm; None for none")] = None
    weight_decay: Annotated[
        float, _about("decoupled weight decay; each step takes off this share times the rate", ge=0)
    ] = 0.0
    optimizer: Annotated[
        OptimizerName, _about("adam, or muon for the layers' matrices and adam for all other ones")
    ] = "adam"
    muon_learning_rate: Annotated[
        Positive | None,
        _about("highest learning rate of Muon, on the same schedule; None for 0.02"),
    ] = None
    muon_momentum: Annotated[
        Annotated[float, msgspec.Meta(ge=0, lt=1)] | None,
        _about("share of Muon's running mean that each step keeps; None for 0.95"),
    ] = None
    muon_iterations: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=100)] | None,
        _about("Newton-Schulz iterations per update of Muon; None for 5"),
    ] = None
    tokenizer: Annotated[
        TokenizerName, _about("tokens are characters, or subwords learned by byte-pair encoding")
    ] = "characters"
    vocab_size: Annotated[
        AtLeastOne | None,
        _about("token ids of subwords, special tokens included; None for 1024"),
    ] = None
    n_embd: Annotated[int, _about("width of the model", ge=1)] = 16
    n_head: Annotated[int, _about("attention heads; must divide n_embd", ge=1)] = 4
    n_layer: Annotated[int, _about("transformer blocks", ge=1)] = 1
    block_size: Annotated[int, _about("longest context in tokens", ge=1)] = 16
    long: Annotated[
        Long, _about("treatment of documents longer than block_size; see `Dataset.fitted`")
    ] = "truncate"
    loss_on: Annotated[LossOn, _about("turns of a conversation that count in the loss")] = "all"
    shuffle: Annotated[bool, _about("take documents in random order")] = True
    val_fraction: Annotated[
        float,
        _about(
            "share kept for validation: of the documents, or of all tokens with windows", ge=0, lt=1
        ),
    ] = 0.0
    eval_every: Annotated[int, _about("steps between validations", ge=1)] = 100
    patience: Annotated[
        AtLeastOne | None,
        _about("stop after this many validations in a row without a better one; None for never"),
    ] = None
    seed: Annotated[int, _about("seed of all randomness")] = 42
    dtype: Annotated[Dtype, _about("type of the numbers")] = "float32"
    engine: Annotated[str, _about("engine to compute with; auto for the fastest here")] = "auto"

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
        for name in ("muon_learning_rate", "muon_momentum", "muon_iterations"):
            value = getattr(self, name)
            if value is not None and self.optimizer != "muon":
                raise ConfigError(f"{name} is {value}, expected None without optimizer muon")
        if self.vocab_size is not None and self.tokenizer != "bpe":
            raise ConfigError(
                f"vocab_size is {self.vocab_size}, expected None without tokenizer bpe: a "
                "vocabulary of characters has those of the data"
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
        """Return the factor of the highest learning rate at a step.

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
    bare = get_type_hints(TrainConfig)
    for name, hint in get_type_hints(TrainConfig, include_extras=True).items():
        kind, about = get_args(hint)
        inner = [get_args(part)[1] for part in get_args(kind) if get_origin(part) is Annotated]
        kinds[name] = bare[name], inner[0] if inner else about  # bounds of an optional are inside
    return kinds


def _checked(name: str, value: Any, kind: Any, bounds: msgspec.Meta) -> Any:
    """Return a value as the plain type of its field, or raise ConfigError."""
    if get_origin(kind) is Literal:
        check_choice(name, value, get_args(kind))
        return str(value)
    if type(None) in get_args(kind):
        if value is None:
            return None
        (kind,) = {*get_args(kind)} - {type(None)}
    if kind in (int, float):
        return _checked_number(name, value, kind, bounds)
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is {value!r:.80}, expected a {kind.__name__}")
    return value


def _checked_number(name: str, value: Any, kind: Any, bounds: msgspec.Meta) -> Any:
    is_kind = is_integer(value) if kind is int else is_number(value) and math.isfinite(value)
    limits: list[tuple[Any, str, Any]] = [
        (bounds.ge, "of at least", operator.ge),
        (bounds.gt, "above", operator.gt),
        (bounds.le, "of at most", operator.le),
        (bounds.lt, "below", operator.lt),
    ]
    limits = [limit for limit in limits if limit[0] is not None]
    if is_kind and all(compare(value, bound) for bound, _, compare in limits):
        return kind(value)
    words = " and ".join(f"{word} {bound:g}" for bound, word, _ in limits)
    expected = "an integer" if kind is int else "a finite number"
    raise ConfigError(f"{name} is {value!r:.80}, expected {expected} {words}".rstrip())


DEFAULTS = TrainConfig()


def default_learning_rate(n_embd: int, optimizer: OptimizerName = "adam") -> float:
    """Return 0.01 x 16 / n_embd: Adam's best rate shrinks with the width of the model.

    With Muon, Adam updates embeddings and `lm_head` only, whose best rate shrinks less: 0.01 times
    the root of 16 / n_embd.

    Source: Yang et al. 2022, arXiv:2203.03466; 0.01 is the rate of microgpt.py, at its own width.
    """
    share = DEFAULTS.n_embd / n_embd
    return LEARNING_RATE * (share if optimizer == "adam" else math.sqrt(share))


def resolved(config: TrainConfig) -> TrainConfig:
    """Return the options with those that are None chosen, and the name of the engine.

    Raises:
        EngineError: there is no such engine.
    """
    chosen: dict[str, Any] = {
        "learning_rate": default_learning_rate(config.n_embd, config.optimizer)
    }
    if config.tokenizer == "bpe":
        chosen["vocab_size"] = VOCAB_SIZE
    if config.optimizer == "muon":
        chosen["muon_learning_rate"] = MUON_LEARNING_RATE
        chosen["muon_momentum"] = MOMENTUM
        chosen["muon_iterations"] = N_ITERATIONS
    chosen = {name: value for name, value in chosen.items() if getattr(config, name) is None}
    return replace(config, **chosen, engine=resolved_engine(config.engine))


def muon_of(config: TrainConfig) -> Muon | None:
    """Return the options of Muon from resolved ones; None with another optimizer."""
    if config.optimizer != "muon":
        return None
    assert config.learning_rate, "resolved"
    assert config.muon_learning_rate, "resolved"
    assert config.muon_momentum is not None, "resolved"
    assert config.muon_iterations, "resolved"
    ratio = config.muon_learning_rate / config.learning_rate
    return Muon(ratio, config.muon_momentum, config.muon_iterations)
