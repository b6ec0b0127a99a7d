"""Optimizers over flat arrays, the NumPy form of `train.py`."""

import math

import numpy as np

from microgpt.parameters import FloatArray
from microgpt.train import ADAM_EPS, BETA1, BETA2

__all__ = ["adam_update", "clip_gradient"]


def adam_update(
    weights: FloatArray,
    grads: FloatArray,
    m: FloatArray,
    v: FloatArray,
    *,
    n_updates: int,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Take one Adam step in place; all arrays have shape (n_params,).

    Args:
        weights: to be changed.
        grads: the gradient to step along.
        m: running mean of the gradients; changed too.
        v: running mean of their squares; changed too.
        n_updates: number of this update, counted from 1, for the bias correction.
        learning_rate: step size.
        weight_decay: share of each weight, times the learning rate, taken off first.
    """
    if weight_decay:
        weights *= 1.0 - learning_rate * weight_decay
    m *= BETA1
    m += (1.0 - BETA1) * grads
    v *= BETA2
    v += (1.0 - BETA2) * grads * grads
    denominator = np.sqrt(v / (1.0 - BETA2**n_updates))
    denominator += ADAM_EPS
    weights -= (learning_rate / (1.0 - BETA1**n_updates)) * m / denominator


def clip_gradient(grads: FloatArray, clip: float) -> float:
    """Scale `grads` in place to a norm of at most `clip`; return the norm before."""
    norm = math.sqrt(float(np.dot(grads, grads)))
    if norm > clip:
        grads *= clip / norm
    return norm
