import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from microgpt.autograd import Value, exp, log, number, relu

Function = Callable[..., Value]

H = 1e-6  # balances truncation, H**2, against float64 rounding, 1e-16 / H


def difference(function: Function, at: list[float], i: int) -> float:
    """Return the central difference of `function` by its i-th argument."""

    def shifted(by: float) -> float:
        return function(*(Value(x + by * (j == i)) for j, x in enumerate(at))).data

    return (shifted(H) - shifted(-H)) / (2 * H)


OPERATIONS: list[tuple[str, Function, list[float]]] = [
    ("add", lambda x, y: x + y, [0.7, -1.3]),
    ("add number", lambda x: x + 2.5, [0.7]),
    ("number add", lambda x: 2.5 + x, [0.7]),
    ("subtract", lambda x, y: x - y, [0.7, -1.3]),
    ("number subtract", lambda x: 2.5 - x, [0.7]),
    ("multiply", lambda x, y: x * y, [0.7, -1.3]),
    ("number multiply", lambda x: -3.5 * x, [0.7]),
    ("divide", lambda x, y: x / y, [0.7, -1.3]),
    ("number divide", lambda x: 2.5 / x, [-0.7]),
    ("divide by number", lambda x: x / 4.0, [0.7]),
    ("negate", lambda x: -x, [0.7]),
    ("square", lambda x: x**2, [-1.3]),
    ("root", lambda x: x**0.5, [1.3]),
    ("inverse root", lambda x: x**-0.5, [1.3]),
    ("exp", exp, [-0.7]),
    ("log", log, [1.3]),
    ("relu above 0", relu, [0.4]),
    ("relu below 0", relu, [-0.4]),
    ("operand twice", lambda x: x * x + x, [0.7]),
    ("one operand on both sides", lambda x, y: (x + y) * (x - y) / x, [0.7, -1.3]),
]


@pytest.mark.parametrize(
    ("function", "at"), [op[1:] for op in OPERATIONS], ids=[op[0] for op in OPERATIONS]
)
def test_gradient_matches_central_difference(function: Function, at: list[float]) -> None:
    leaves = list(map(Value, at))
    function(*leaves).backward()
    for i, leaf in enumerate(leaves):
        assert leaf.grad == pytest.approx(difference(function, at, i), rel=1e-6)


@pytest.mark.parametrize(
    ("function", "at"), [op[1:] for op in OPERATIONS], ids=[op[0] for op in OPERATIONS]
)
def test_result_is_the_one_of_floats(function: Callable[..., Any], at: list[float]) -> None:
    assert function(*map(Value, at)).data == pytest.approx(function(*at), rel=1e-15)


def test_central_difference_notices_a_wrong_derivative() -> None:
    def wrong_square(x: Value) -> Value:
        return Value(x.data**2, (x,), (2.001 * x.data,))

    leaf = Value(1.3)
    wrong_square(leaf).backward()
    assert leaf.grad != pytest.approx(difference(wrong_square, [1.3], 0), rel=1e-6)


def test_relu_has_no_slope_at_zero() -> None:
    leaf = Value(0.0)
    result = leaf.relu()
    result.backward()
    assert (result.data, leaf.grad) == (0.0, 0.0)


@pytest.mark.parametrize("start", [Value.exp, Value.relu, lambda x: x + 0.0])
def test_graph_of_fifty_thousand_steps_is_differentiated(start: Function) -> None:
    leaf = Value(0.5)
    result = start(leaf)
    for _ in range(50_000):
        result = result * 1.0
    result.backward()
    assert leaf.grad == pytest.approx(math.exp(0.5) if start is Value.exp else 1.0)


def test_value_shared_by_many_paths_is_visited_once() -> None:
    leaf = Value(1.0)
    result = leaf
    for _ in range(60):  # 2**60 paths from result to leaf
        result = result + result
    result.backward()
    assert leaf.grad == 2.0**60


def test_gradients_of_leaves_add_up_over_calls() -> None:
    leaf = Value(3.0)
    inner = leaf * leaf
    result = inner * 2.0
    result.backward()
    result.backward()
    assert leaf.grad == 2 * 12.0
    leaf.grad = 0.0
    (inner + leaf).backward()
    assert leaf.grad == 7.0


def test_gradient_of_a_leaf_by_itself_is_one() -> None:
    leaf = Value(3.0)
    leaf.backward()
    assert leaf.grad == 1.0
    leaf.backward()
    assert leaf.grad == 2.0


def test_operand_without_a_derivative_is_an_error() -> None:
    x, y = Value(1.0), Value(2.0)
    with pytest.raises(ValueError, match="shorter"):
        Value(3.0, (x, y), (1.0,)).backward()


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.floats(-2, 2))
def test_gradient_is_linear(xs: list[float], factor: float) -> None:
    def f(values: list[Value]) -> Value:
        total = values[0] * values[0]
        for x in values[1:]:
            total = total + x.exp() * values[0]
        return total

    plain, scaled = list(map(Value, xs)), list(map(Value, xs))
    f(plain).backward()
    (f(scaled) * factor).backward()
    for p, s in zip(plain, scaled, strict=True):
        assert s.grad == pytest.approx(factor * p.grad, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("function", "x", "expected"),
    [(exp, 1.7, math.exp(1.7)), (log, 1.7, math.log(1.7)), (relu, 0.4, 0.4), (relu, -0.4, 0.0)],
)
def test_functions_take_values_and_floats_alike(
    function: Callable[..., Any], x: float, expected: float
) -> None:
    assert number(function(Value(x))) == expected
    assert function(x) == expected
    assert number(1.7) == 1.7


def test_value_shows_number_and_gradient() -> None:
    assert repr(Value(2.0)) == "Value(data=2.0, grad=0.0)"
