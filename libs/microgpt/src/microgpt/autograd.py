"""Reverse-mode automatic differentiation on scalars.

Each operation makes a new `Value` that remembers its operands and, for each of them, the local
derivative. `Value.backward` walks that graph from the result to the leaves and applies the chain
rule. The functions below take a `Value` or a float: one forward pass serves training and inference.
"""

import math
from collections.abc import Iterator
from typing import TypeVar

__all__ = ["Scalar", "Value", "exp", "log", "number", "relu"]


class Value:
    """A number that remembers how it was computed.

    Args:
        data: the number.
        operands: the values it was computed from.
        local_grads: d(self)/d(operand) for each of them.

    Attributes:
        data: the number.
        grad: d(result)/d(self), after `backward` of a result; 0.0 before.

    Example:
        >>> x = Value(3.0)
        >>> y = x * x + x  # x is used three times; the contributions add up
        >>> y.backward()
        >>> y.data, x.grad
        (12.0, 7.0)
    """

    __slots__ = ("_local_grads", "_operands", "data", "grad")

    def __init__(
        self,
        data: float,
        operands: tuple["Value", ...] = (),
        local_grads: tuple[float, ...] = (),
    ) -> None:
        self.data = data
        self.grad = 0.0
        self._operands = operands
        self._local_grads = local_grads

    def __repr__(self) -> str:
        return f"Value(data={self.data}, grad={self.grad})"

    def __add__(self, other: "Value | float") -> "Value":
        if not isinstance(other, Value):
            return Value(self.data + other, (self,), (1.0,))
        return Value(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other: "Value | float") -> "Value":
        if not isinstance(other, Value):
            return Value(self.data * other, (self,), (other,))
        return Value(self.data * other.data, (self, other), (other.data, self.data))

    def __pow__(self, exponent: float) -> "Value":
        """Raise to a constant power."""
        return Value(self.data**exponent, (self,), (exponent * self.data ** (exponent - 1),))

    def exp(self) -> "Value":
        """Return e to the power of this value."""
        e = math.exp(self.data)
        return Value(e, (self,), (e,))

    def log(self) -> "Value":
        """Return the natural logarithm; this value must be positive."""
        return Value(math.log(self.data), (self,), (1.0 / self.data,))

    def relu(self) -> "Value":
        """Return this value where it is positive, else 0; the derivative at 0 is taken as 0."""
        return Value(max(0.0, self.data), (self,), (float(self.data > 0),))

    def __neg__(self) -> "Value":
        return self * -1.0

    def __sub__(self, other: "Value | float") -> "Value":
        return self + (-other)

    def __truediv__(self, other: "Value | float") -> "Value":
        return self * other**-1

    def __radd__(self, other: float) -> "Value":
        return self + other

    def __rmul__(self, other: float) -> "Value":
        return self * other

    def __rsub__(self, other: float) -> "Value":
        return -self + other

    def __rtruediv__(self, other: float) -> "Value":
        return self**-1 * other

    def backward(self) -> None:
        """Set the `grad` of inner values to d(self)/d(value), and add it to that of leaves.

        Leaves, the values without operands, thus accumulate over calls. Nothing here recurses.
        """
        order = _topological_order(self)
        for value in order:
            if value._operands:  # else an earlier call's gradient would flow on once more
                value.grad = 0.0
        self.grad += 1.0
        for value in reversed(order):
            for operand, local_grad in zip(value._operands, value._local_grads, strict=True):
                operand.grad += local_grad * value.grad


def _topological_order(root: Value) -> list[Value]:
    """Return the graph of `root`, depth first, every value after its operands."""
    order: list[Value] = []
    seen = {root}
    # Of our own, for graphs beyond Python's recursion limit; iterators keep the next operand.
    stack: list[tuple[Value, Iterator[Value]]] = [(root, iter(root._operands))]
    while stack:
        value, operands = stack[-1]
        for operand in operands:
            if operand not in seen:
                seen.add(operand)
                stack.append((operand, iter(operand._operands)))
                break
        else:
            order.append(value)
            stack.pop()
    return order


Scalar = TypeVar("Scalar", Value, float)  # Value in training, float in inference


def exp(x: Scalar) -> Scalar:
    """Return e to the power of `x`."""
    return x.exp() if isinstance(x, Value) else math.exp(x)


def log(x: Scalar) -> Scalar:
    """Return the natural logarithm of `x`, which must be positive."""
    return x.log() if isinstance(x, Value) else math.log(x)


def relu(x: Scalar) -> Scalar:
    """Return `x` where it is positive, else 0."""
    return x.relu() if isinstance(x, Value) else max(0.0, x)


def number(x: Value | float) -> float:
    """Return the plain number behind `x`."""
    return x.data if isinstance(x, Value) else x
