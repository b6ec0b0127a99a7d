"""Learning: the Adam optimizer, one training step, and the loop around it."""

import math
from collections.abc import Iterator, Sequence

from microgpt.autograd import Value
from microgpt.errors import NonFiniteLossError
from microgpt.model import GPT

__all__ = ["ADAM_EPS", "BETA1", "BETA2", "LEARNING_RATE", "Adam", "train", "train_step"]

BETA1 = 0.85
BETA2 = 0.99
ADAM_EPS = 1e-8
LEARNING_RATE = 0.01  # for n_embd 16; the default rate of other widths is in training/options.py


class Adam:
    """The Adam optimizer over `Value`, one number at a time.

    Args:
        parameters: the values to train.
        beta1: share of the running mean of gradients that each step keeps.
        beta2: share of the running mean of squared gradients that each step keeps.
        eps: added to the root of the mean square.

    Example:
        >>> x = Value(1.0)
        >>> adam = Adam([x])
        >>> for _ in range(20):
        ...     (x * x).backward()
        ...     adam.step(learning_rate=0.1)
        >>> abs(x.data) < 0.5
        True

    Source: Kingma & Ba 2015, arXiv:1412.6980, weight decay as in Loshchilov & Hutter 2019,
    arXiv:1711.05101; the constants are those of microgpt.py.
    """

    def __init__(
        self,
        parameters: Sequence[Value],
        beta1: float = BETA1,
        beta2: float = BETA2,
        eps: float = ADAM_EPS,
    ) -> None:
        self.parameters = list(parameters)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.m = [0.0] * len(self.parameters)
        self.v = [0.0] * len(self.parameters)
        self.n_updates = 0

    def step(
        self, learning_rate: float, clip: float | None = None, weight_decay: float = 0.0
    ) -> float | None:
        """Move every parameter against its gradient, and set the gradients to 0.

        Args:
            learning_rate: approximate change of a parameter, in its units.
            clip: scale a longer gradient down to this norm; None for no clipping.
            weight_decay: decay each parameter by this share times the learning rate.

        Returns:
            The gradient's norm before clipping; None without `clip`.
        """
        self.n_updates += 1
        norm = None
        if clip is not None:
            norm = math.sqrt(sum(p.grad * p.grad for p in self.parameters))
            for parameter in self.parameters:
                parameter.grad *= min(1.0, clip / norm) if norm else 1.0
        for i, parameter in enumerate(self.parameters):
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * parameter.grad
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * parameter.grad * parameter.grad
            m_hat = self.m[i] / (1 - self.beta1**self.n_updates)  # both means began at 0
            v_hat = self.v[i] / (1 - self.beta2**self.n_updates)
            parameter.data *= 1 - learning_rate * weight_decay
            parameter.data -= learning_rate * m_hat / (v_hat**0.5 + self.eps)
            parameter.grad = 0.0
        return norm


def train_step(
    model: GPT, optimizer: Adam, token_ids: Sequence[int], learning_rate: float
) -> float:
    """Learn from one document: forward, backward, update.

    Args:
        model: over `Value`.
        optimizer: of that model's parameters.
        token_ids: one document, at least 2 tokens, cut after block_size + 1.
        learning_rate: of this step.

    Returns:
        The mean loss in nats, before the update.

    Raises:
        NonFiniteLossError: the loss is NaN or infinite; nothing was changed.
    """
    loss = model.loss(token_ids)
    if not math.isfinite(loss.data):
        raise NonFiniteLossError(optimizer.n_updates + 1, learning_rate, loss.data)
    loss.backward()
    optimizer.step(learning_rate)
    return loss.data


def train(
    model: GPT, documents: Sequence[Sequence[int]], steps: int, learning_rate: float = LEARNING_RATE
) -> Iterator[float]:
    """Yield the loss in nats of each of `steps` training steps, one document each, as it is taken.

    Args:
        model: over `Value`; trained in place.
        documents: token ids, taken in order, from the start again after the last.
        steps: number of updates.
        learning_rate: of the first step; it falls linearly to 0 after the last.
    """
    optimizer = Adam(model.parameters())
    for step in range(steps):
        token_ids = documents[step % len(documents)]
        yield train_step(model, optimizer, token_ids, learning_rate * (1 - step / steps))
