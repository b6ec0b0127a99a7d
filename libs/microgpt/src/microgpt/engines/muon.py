"""Muon, an optimizer for the matrices of the layers; Adam updates the embeddings and `lm_head`.

The gradient of a matrix is dominated by a few directions, those of its largest singular values: an
update along it changes what the matrix does to few inputs, and hardly changes what it does to all
others, whose gradients are small but no less telling. Muon keeps the directions and makes all their
lengths about equal: with the gradient's singular value decomposition U S V^T, it moves the matrix
along U V^T. Each step then uses all directions, and no step changes an output by more than the
learning rate, whatever the width. A polynomial of odd degree, applied to the matrix several times,
brings its singular values near 1 (0.7 to 1.2) with products only, no decomposition.

Sums and products have the type of the weights: an update need not be orthogonal to the last bit.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; weight decay
as in Loshchilov & Hutter 2019, arXiv:1711.05101.
"""

import math
from dataclasses import dataclass

import numpy as np

from microgpt.parameters import FloatArray, Parameters

__all__ = ["MOMENTUM", "N_ITERATIONS", "Muon", "muon_update", "orthogonalized"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3 and x^5: steep at 0, near 1 around 1
MOMENTUM = 0.95
N_ITERATIONS = 5
EPS = 1e-7  # added to the norm of a matrix: zeros stay zeros


@dataclass(frozen=True)
class Muon:
    """Options of Muon.

    Args:
        ratio: learning rate, as a multiple of Adam's at the same step.
        momentum: share of the running mean of gradients that each step keeps.
        iterations: applications of the polynomial, at least 1.
        first: number of the first matrix to update, in the order of `muon_matrices`.
        every: update every so many matrices; others keep their weights and means.
    """

    ratio: float
    momentum: float = MOMENTUM
    iterations: int = N_ITERATIONS
    first: int = 0
    every: int = 1


def muon_matrices(parameters: Parameters) -> list[str]:
    """Return the names of the matrices that Muon updates: those of the layers, large ones first."""
    names = [name for name in parameters if name.startswith("layer")]
    return sorted(names, key=lambda name: -parameters[name].size)


@np.errstate(all="ignore")  # on arm64, BLAS may warn of correct products
def orthogonalized(matrix: FloatArray, iterations: int) -> FloatArray:
    """Return a matrix with the same singular vectors, and all singular values near 1.

    Args:
        matrix: shape (rows, columns).
        iterations: of the polynomial; five also raise values of a hundredth of the norm.
    """
    a, b, c = COEFFICIENTS
    is_wide = matrix.shape[0] < matrix.shape[1]
    x = matrix.T if is_wide else matrix  # so that x^T x is the smaller one of the Gram matrices
    x = x / matrix.dtype.type(np.linalg.norm(matrix) + EPS)  # no singular value exceeds the norm
    for _ in range(iterations):
        gram = x.T @ x
        x = a * x + x @ (b * gram + c * gram @ gram)
    return x.T if is_wide else x


def muon_update(
    weights: Parameters,
    grads: Parameters,
    means: Parameters,
    muon: Muon,
    *,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Take one step of Muon in place, for the matrices of all layers or a share of them.

    Args:
        weights: to be changed.
        grads: the gradient to step along.
        means: running mean of the gradients; changed too.
        muon: its options.
        learning_rate: Adam's.
        weight_decay: share of each weight, times the learning rate, taken off first.
    """
    rate = learning_rate * muon.ratio
    for name in muon_matrices(weights)[muon.first :: muon.every]:
        w, g, mean = weights[name], grads[name], means[name]
        mean *= muon.momentum
        mean += (1.0 - muon.momentum) * g
        direction = muon.momentum * mean + (1.0 - muon.momentum) * g  # Nesterov: a step ahead
        n_out, n_in = w.shape
        w *= 1.0 - rate * weight_decay
        w -= rate * math.sqrt(max(1.0, n_out / n_in)) * orthogonalized(direction, muon.iterations)
