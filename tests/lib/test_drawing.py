"""Graphs of values: the right names of operations, pictures without overlap, clear refusals."""

import math
import re
import time
from collections.abc import Callable
from itertools import combinations
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markup import parsed, shown_in
from microgpt import ConfigError, Drawing, ShapeError, Value, draw
from microgpt.model import cross_entropy

SVG = "{http://www.w3.org/2000/svg}"
STRANGE = '<script>"\\n&'

Box = tuple[float, float, float, float]  # left, top, right, bottom


def boxes_of(picture: ET.Element) -> list[Box]:
    boxes = []
    for rect in picture.iter(f"{SVG}rect"):
        x, y, width, height = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        boxes.append((x, y, x + width, y + height))
    return boxes


def touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def numbers_in(path: ET.Element) -> list[float]:
    return list(map(float, re.findall(r"-?[\d.]+", path.attrib["d"])))


@st.composite
def graphs(draws: st.DrawFn) -> Value:
    values = [Value(draws(st.floats(-9, 9)))]
    for _ in range(draws(st.integers(0, 30))):
        a, b = (values[draws(st.integers(0, len(values) - 1))] for _ in "ab")
        c = draws(st.floats(-9, 9))
        values.append(draws(st.sampled_from([Value(c), a + b, a * 0.5, a.relu(), a * c + b])))
    result = sum(values, start=Value(0.0))
    result.backward()
    return result


# ---------------------------------------------------------------- what is said of each value


@pytest.mark.parametrize(
    ("operation", "at", "title"),
    [
        (lambda x: x + x, 0.7, "+"),
        (lambda x: x + x, 1.0, "+"),
        (lambda x: x * x, 0.7, "*"),
        (lambda x: x * x, 1.0, "*"),
        (lambda x: x + 2.5, 0.7, "+ 2.5"),
        (lambda x: 2.5 + x, -1.0, "+ 2.5"),
        (lambda x: x - 2.0, 1.0, "+ -2"),
        (lambda x: sum([x]), 0.7, "+ 0"),
        (lambda x: x * 2.5, 0.7, "* 2.5"),
        (lambda x: x * 2.5, 1.0, "* 2.5"),
        (lambda x: x * 0, -0.7, "* 0"),
        (lambda x: x * 2.5, 0.0, "* 2.5"),
        (lambda x: x / 4, 3.0, "* 0.25"),
        (lambda x: -x, 0.7, "* -1"),
        (lambda x: x**2, 3.0, "** 2"),
        (lambda x: x**2, 0.5, "** 2"),
        (lambda x: x - 0.25, 0.5, "+ -0.25"),
        (lambda x: x + 1.0, 0.0, "+ 1"),
        (lambda x: x - 1.0, 1.0, "+ -1"),
        (lambda x: x + 1e-6, 1e5, "+ 1e-06"),
        (lambda x: x**2, 1.0, "** 2"),
        (lambda x: x**3, -1.3, "** 3"),
        (lambda x: x**0.5, 1.3, "** 0.5"),
        (lambda x: x**-0.5, 0.7, "** -0.5"),
        (lambda x: x**-1, -0.7, "** -1"),
        (lambda x: x.exp(), 0.7, "exp"),
        (lambda x: x.exp(), 0.0, "exp"),
        (lambda x: x.exp(), -30.0, "exp"),
        (lambda x: x.log(), 0.7, "log"),
        (lambda x: x.log(), 1.0, "log"),
        (lambda x: x.relu(), 0.7, "relu"),
        (lambda x: x.relu(), -0.7, "relu"),
        (lambda x: x.relu(), 0.0, "relu"),
        (lambda x: x.relu(), 2, "relu"),
        (lambda x: x * 1, 2, "="),
        (lambda x: x * 1.0, 0.7, "="),
        (lambda x: x**1, 0.7, "="),
        (lambda x: x * 0.0, 0.7, "?"),  # or ** 3000
        (lambda x: x**2, 0.0, "?"),  # or * 0.0
        (lambda x: x + 2.5, math.nan, "+ ?"),
        (lambda x: x + 2.5, math.inf, "+ ?"),
        (lambda x: x * 2.5, math.inf, "?"),
        (lambda x: x * x, math.inf, "*"),
        (lambda x: x * x, math.nan, "*"),
        (lambda x: Value(math.sin(x.data), (x,), (math.cos(x.data),)), 0.7, "?"),
        (lambda x: Value(-1e-300, (x,), (math.nan,)), -3.5, "?"),
        (lambda x: Value(1e-300, (x,), (1.0,)), 1e9, "?"),
        (lambda x: Value(0.7, (x,), (2,)), 0.7, "?"),
        (lambda x: Value(1.0, (x,), (math.nan,)), 1.0, "?"),
        (lambda x: Value(0.5, (x, x), (0.7, 0.7)), 0.7, "?"),
        (lambda x: Value(0.7, (x, x, x), (1.0, 1.0, 1.0)), 0.7, "?"),
    ],
)
def test_operation_is_inferred(operation: Callable[[Value], Value], at: float, title: str) -> None:
    drawing = draw(operation(Value(at)))
    assert [node.title for node in drawing.nodes] == ["", title]


@pytest.mark.parametrize(("dividend", "title"), [(1, "* 1"), (1.0, "="), (2.5, "* 2.5")])
def test_quotient_is_a_power_and_a_product(dividend: float, title: str) -> None:
    drawing = draw(dividend / Value(4.0))
    assert [node.title for node in drawing.nodes] == ["", "** -1", title]


def operations(x: Value, c: float) -> dict[str, Callable[[], Value]]:
    return {
        f"* {c:.4g}": lambda: x * c,
        f"** {c:.4g}": lambda: x**c,
        f"+ {c:.4g}": lambda: x + c,
        "exp": x.exp,
        "log": x.log,
        "relu": x.relu,
        "+": lambda: x + Value(c),
        "*": lambda: x * Value(c),
    }


numbers = st.one_of(
    st.sampled_from(
        [0, -0.0, 1, -1, 1.0, 0.5, 2, math.e, 1 / math.e, math.e**math.e, 1e-200, math.inf]
    ),
    st.floats(-4, 4),
    st.floats(-1e300, 1e300),
    st.integers(-9, 9),
)


@settings(max_examples=100, deadline=None)
@given(numbers, numbers, st.integers(0, 7))
def test_name_of_an_operation_is_right_or_neutral(at: float, c: float, which: int) -> None:
    title, make = [*operations(Value(at), c).items()][which]
    try:
        y = make()
        shown = draw(y).nodes[-1].title
    except (ArithmeticError, ValueError):  # of no real number
        return
    if title.startswith("+ "):
        assert (shown == "+ ?") == (not math.isfinite(at))
        if shown != "+ ?":
            by = pytest.approx(y.data - at, rel=5e-4, abs=math.ulp(at), nan_ok=True)
            assert float(shown.removeprefix("+ ")) == by
    elif shown == "=":
        assert (y.data, y._local_grads) == (at, (1,))
    else:
        assert shown in ({title, "?"} if title == "log" or "* " in title else {title})


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 0.9), st.floats(2, 9), st.integers(0, 7))
def test_operation_on_plain_numbers_is_named(at: float, c: float, which: int) -> None:
    title, make = [*operations(Value(at), c := round(c, 2)).items()][which]
    assert draw(make()).nodes[-1].title == title


def test_loss_is_named_step_by_step() -> None:
    logits = [Value(1.0), Value(2.0)]
    loss = cross_entropy(logits, 0)
    loss.backward()
    drawing = draw(loss, {"a": logits[0], "b": logits[1], "loss": loss})
    titles = [node.title for node in drawing.nodes]
    exps = ["a", "+ -2", "exp", "b", "+ -2", "exp"]
    assert titles == [*exps, "+", "log", "+ -2", "* -1", "loss: +"]
    grads = {node.title: node.grad for node in drawing.nodes}
    share = 1 / (1 + math.e)  # the probability of a
    assert (grads["a"], grads["b"]) == pytest.approx((share - 1, 1 - share))


def test_drawing_changes_no_number() -> None:
    x = Value(3.0)
    y = x * x
    y.backward()
    draw(y, {"x": x})
    assert (x.data, x.grad, y.data, y.grad) == (3.0, 6.0, 9.0, 1.0)


def test_dot_escapes_labels() -> None:
    x = Value(3.0)
    assert '0 [label="<script>\\"\\\\n&\\ndata 3\\ngrad 0"]' in str(draw(x, {STRANGE: x}))


def test_label_stays_on_one_line_and_in_xml() -> None:
    x = Value(3.0)
    drawing = draw(x, {"a\n\0\x1b\ud800\ufffe b": x})
    shown = r"a\n\x00\x1b\ud800\ufffe b"
    assert str(drawing).count("\n") == str(draw(x)).count("\n")
    assert shown_in(drawing.svg) == [shown, "data 3", "grad 0"]


def test_value_may_have_several_names() -> None:
    x = Value(3.0)
    assert draw(x, {"x": x, "y": x}).nodes[0].title == "x, y"


def test_drawing_is_short_where_it_is_printed_and_a_picture_in_notebooks() -> None:
    x = Value(3.0)
    drawing = draw(x * x + x)
    assert isinstance(drawing, Drawing)
    assert repr(drawing) == "<Drawing: 3 values, 4 operands>"
    assert drawing._repr_svg_() == drawing.svg


# ---------------------------------------------------------------- the picture


def test_picture_shows_names_numbers_and_local_derivatives() -> None:
    x = Value(3.0)
    y = x * x + x
    y.backward()
    shown = shown_in(draw(y, {STRANGE: x, "y": y}).svg)
    assert shown == [
        *("3", "3", "1", "1"),
        *(STRANGE, "data 3", "grad 7"),
        *("*", "data 9", "grad 1"),
        *("y: +", "data 12", "grad 1"),
    ]


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_boxes_do_not_touch_and_lines_join_them_from_left_to_right(result: Value) -> None:
    drawing = draw(result)
    picture = parsed(drawing.svg)
    *_, width, height = map(float, picture.attrib["viewBox"].split())
    boxes = boxes_of(picture)
    assert len(boxes) == len(drawing.nodes)
    assert not [pair for pair in combinations(boxes, 2) if touch(*pair)]
    assert all(x >= 0 and y >= 0 and r <= width and b <= height for x, y, r, b in boxes)
    paths = [numbers_in(path) for path in picture.iter(f"{SVG}path")]
    for edge, points in zip(drawing.edges, paths, strict=True):
        (_, top, right, bottom), result_box = boxes[edge.operand], boxes[edge.result]
        assert points[:2] == pytest.approx([right, (top + bottom) / 2], abs=0.11)
        assert points[-1] == pytest.approx(result_box[0], abs=0.11)
        assert result_box[1] < points[-2] < result_box[3]
        assert right < result_box[0]
    ends = [(points[-1], points[-2]) for points in paths]
    into = [
        (edge.result, points[-6], points[-2])
        for edge, points in zip(drawing.edges, paths, strict=True)
    ]
    assert sorted(into) == sorted(into, key=lambda line: (line[0], line[2]))  # lines do not cross
    assert len({*ends}) == len(ends)  # two uses of one operand are two lines


def test_line_across_a_column_passes_between_its_boxes() -> None:
    x = Value(2.0)
    y = x
    for _ in range(5):
        y = y * x
    picture = parsed(draw(y).svg)
    boxes = boxes_of(picture)
    assert max(path.attrib["d"].count("H") for path in picture.iter(f"{SVG}path")) == 5
    for path in picture.iter(f"{SVG}path"):
        for start, row, end in re.findall(r" ([\d.]+) ([\d.]+)H([\d.]+)", path.attrib["d"]):
            line = (float(start), float(row), float(end), float(row))
            assert not [box for box in boxes if touch(box, line) and line[0] < line[2]]


def test_largest_graph_is_drawn_at_once() -> None:
    x = Value(2.0)
    y = x
    for _ in range(150 - 1):
        y = (y + x) * 0.5
    start = time.thread_time()
    boxes = boxes_of(parsed(draw(y).svg))
    assert len(boxes) == 299
    assert time.thread_time() - start < 3


# ---------------------------------------------------------------- refusals


def test_large_graph_is_refused() -> None:
    y = Value(2.0)
    for _ in range(299):
        y = y + 1.0
    assert len(draw(y).nodes) == 300
    with pytest.raises(ShapeError, match=r"has 301 values, expected at most 300; draw an inner"):
        draw(y + 1.0)


def test_graph_of_too_many_operands_is_refused() -> None:
    x = Value(1.0)
    assert len(draw(Value(1.0, (x,) * 600, (1.0,) * 600)).edges) == 600
    with pytest.raises(ShapeError, match=r"has 601 operands, expected at most 600; draw an"):
        draw(Value(1.0, (x,) * 601, (1.0,) * 601))


@pytest.mark.parametrize(
    "value",
    [Value(-2.0) ** 0.5, Value(0) * 10**400, Value(1j) * 2, Value("3")],  # type: ignore[arg-type]
)
def test_graph_of_other_things_than_numbers_is_refused(value: Value) -> None:
    with pytest.raises(ConfigError, match=r"holds .*, expected real numbers"):
        draw(value)


def test_other_things_than_values_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"value is of type float, expected a microgpt\.Value"):
        draw(3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [Value(1.0), 1.0, None])
def test_labels_of_other_values_are_refused(other: Value) -> None:
    with pytest.raises(ConfigError, match=r"label 'w' is of .*, expected a Value of this graph"):
        draw(Value(3.0), {"w": other})


@pytest.mark.parametrize("name", [1, None, b"w"])
def test_labels_that_are_no_strings_are_refused(name: Any) -> None:
    x = Value(3.0)
    with pytest.raises(ConfigError, match=r"label .*, expected a string"):
        draw(x, {name: x})


@pytest.mark.parametrize("labels", ["x", [("x", Value(3.0))]])
def test_labels_that_are_no_mapping_are_refused(labels: Any) -> None:
    with pytest.raises(ConfigError, match=r"labels is .*, expected a mapping of names to values"):
        draw(Value(3.0), labels)
