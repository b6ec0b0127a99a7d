"""The errors that the library raises: one tree, with `MicrogptError` at its root."""

__all__ = [
    "ChatError",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "DataError",
    "EngineError",
    "MicrogptError",
    "NonFiniteLossError",
    "RankLostError",
    "SamplingError",
    "ShapeError",
    "TokenError",
]


class MicrogptError(Exception):
    """Base of all errors of this library: the message names the value, the expectation, the remedy.

    Attributes:
        hint: the next step, or None.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(MicrogptError, ValueError):
    """A hyperparameter or option is outside its domain."""


class DataError(MicrogptError, ValueError):
    """A dataset cannot be read, or holds nothing to learn from."""


class ShapeError(MicrogptError, ValueError):
    """An array or list has another shape or type than the operation needs."""


class TokenError(MicrogptError, ValueError):
    """A token id or a character is not in the vocabulary."""


class ChatError(MicrogptError, ValueError):
    """Messages are not as expected, or the model was not trained to chat."""


class ContextLengthError(MicrogptError, ValueError):
    """More tokens than the model's block_size."""


class SamplingError(MicrogptError, ArithmeticError):
    """The next token cannot be chosen: the logits are not numbers."""


class CheckpointError(MicrogptError):
    """A model directory or snapshot cannot be read or written, or is damaged."""


class EngineError(MicrogptError):
    """An engine is unknown, or cannot run here."""


class RankLostError(MicrogptError):
    """Another process of the same training no longer answers."""


class NonFiniteLossError(MicrogptError, ArithmeticError):
    """Training met a loss that is NaN or infinite; the weights are those that gave it.

    Attributes:
        step: number of the step that failed, counted from 1; for a validation loss, of the step
            after which it was computed.
        learning_rate: the rate of that step.
    """

    def __init__(self, step: int, learning_rate: float, loss: float, *, what: str = "loss") -> None:
        super().__init__(
            f"{what} is {loss} at step {step} (learning rate {learning_rate:.3g}), "
            "expected a finite number; training stopped there",
            hint="try a smaller learning rate",
        )
        self.step = step
        self.learning_rate = learning_rate
