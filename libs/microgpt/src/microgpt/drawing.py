"""The graph behind a `Value`, as DOT for graphviz and as SVG for a notebook or a file.

A `Value` keeps its operands and the local derivatives, but no name of its operation: the name is
inferred from operands and derivatives.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from microgpt.autograd import Value, _topological_order
from microgpt.checks import is_number
from microgpt.errors import ConfigError, ShapeError
from microgpt.notebook import printable

__all__ = ["Drawing", "draw"]

MAX_VALUES = 300  # of a graph that can still be read
MAX_OPERANDS = 2 * MAX_VALUES

COLUMN_GAP, ROW_GAP, MARGIN = 72, 14, 8  # pixels
LINE_HEIGHT, CHARACTER = 15, 7.2  # of a box's text; the width is a mean, and boxes have room
LEAF, INNER, RESULT = "#fdf0d5", "#dceaf7", "#e2f2e3"
INK, LINE = "#1f2933", "#767676"  # lines and their numbers are readable on white and on black
SWEEPS = 4  # over the columns, to shorten and untangle lines


class Node(NamedTuple):
    """The box of one value: name and operation, if any, data and grad."""

    title: str
    data: float
    grad: float
    is_leaf: bool

    @property
    def lines(self) -> list[str]:
        """Lines of text in the box."""
        numbers = [f"data {self.data:.4g}", f"grad {self.grad:.4g}"]
        return [self.title, *numbers] if self.title else numbers

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the box, in pixels."""
        longest = max(map(len, self.lines))
        return CHARACTER * longest + 16, LINE_HEIGHT * len(self.lines) + 10


class Edge(NamedTuple):
    """From an operand to the result, with d(result)/d(operand); nodes are given by position."""

    operand: int
    result: int
    local_grad: float


class Drawing:
    """The graph of a value, made by `draw`: `str()` is DOT, `svg` a picture, as notebooks show it.

    Args:
        nodes: operands before results; the last is the value that was drawn.
        edges: from operands to results.

    Attributes:
        nodes: as given.
        edges: as given.
    """

    def __init__(self, nodes: Sequence[Node], edges: Sequence[Edge]) -> None:
        self.nodes, self.edges = nodes, edges

    def __repr__(self) -> str:
        return f"<Drawing: {len(self.nodes)} values, {len(self.edges)} operands>"

    def __str__(self) -> str:
        boxes = [f"  {i} [label={_quoted(node.lines)}]" for i, node in enumerate(self.nodes)]
        arrows = [
            f'  {edge.operand} -> {edge.result} [label="{edge.local_grad:.4g}"]'
            for edge in self.edges
        ]
        return "\n".join(["digraph {", "  rankdir=LR", "  node [shape=box]", *boxes, *arrows, "}"])

    @property
    def svg(self) -> str:
        """The picture as SVG, in pixels: operands on the left, the result on the right."""
        return _picture(self.nodes, self.edges)

    def _repr_svg_(self) -> str:
        return self.svg


def draw(value: Value, labels: Mapping[str, Value] | None = None) -> Drawing:
    r"""Return the graph of a value: a box for each value, a line to each result that it is part of.

    A box shows name, operation, data and grad. A line ends with the local derivative: the chain
    rule multiplies these along a path and adds the products of all paths. `Value` does not keep its
    operation: the name is inferred from the numbers, before an optimizer changes these. It is "="
    for `* 1.0` and `** 1`, and "?" where no operation fits or more than one, such as `* 0.0` and
    `** 2` at 0.

    Args:
        value: the result, with at most 300 values and 600 operands in its graph.
        labels: names of some of these values; characters that are not printed are shown as \n.

    Returns:
        A drawing: `str()` is DOT, `svg` a picture, which notebooks show.

    Raises:
        ShapeError: `value` is no Value, or its graph is larger.
        ConfigError: a label is no string or of no value of this graph, or a value or derivative is
            no real number.

    Example:
        >>> x = Value(3.0)
        >>> y = x * x + x
        >>> y.backward()
        >>> print(draw(y, {"x": x, "y": y}))
        digraph {
          rankdir=LR
          node [shape=box]
          0 [label="x\ndata 3\ngrad 7"]
          1 [label="*\ndata 9\ngrad 1"]
          2 [label="y: +\ndata 12\ngrad 1"]
          0 -> 1 [label="3"]
          0 -> 1 [label="3"]
          1 -> 2 [label="1"]
          0 -> 2 [label="1"]
        }
    """
    values = _values_of(value)
    numbers = {each: i for i, each in enumerate(values)}
    names = _names({} if labels is None else labels, numbers)
    edges = [
        Edge(numbers[operand], i, _real(local_grad))
        for i, each in enumerate(values)
        for operand, local_grad in zip(each._operands, each._local_grads, strict=True)
    ]
    figures = [(_real(each.data), _real(each.grad)) for each in values]
    nodes = [
        Node(": ".join(filter(None, (names.get(each), _operation(each)))), *own, not each._operands)
        for each, own in zip(values, figures, strict=True)
    ]
    return Drawing(nodes, edges)


def _values_of(result: Value) -> list[Value]:
    """Return the values of a graph, operands before results; raise ShapeError if there are many."""
    if not isinstance(result, Value):
        raise ShapeError(f"value is of type {type(result).__name__}, expected a microgpt.Value")
    values = _topological_order(result)
    n_operands = sum(len(each._operands) for each in values)
    for what, n, most in (
        ("values", len(values), MAX_VALUES),
        ("operands", n_operands, MAX_OPERANDS),
    ):
        if n > most:
            raise ShapeError(
                f"the graph has {n:,} {what}, expected at most {most}; "
                "draw an inner value, or the result of a smaller computation"
            )
    return values


def _names(labels: Mapping[str, Value], values: Collection[Value]) -> dict[Value, str]:
    """Return the labels of each value, joined."""
    if not isinstance(labels, Mapping):
        raise ConfigError(f"labels is {labels!r:.80}, expected a mapping of names to values")
    names: dict[Value, str] = {}
    for name, named in labels.items():
        if not isinstance(name, str):
            raise ConfigError(f"label {name!r:.80}, expected a string")
        if not isinstance(named, Value) or named not in values:
            raise ConfigError(
                f"label {name!r} is of {named!r}, expected a Value of this graph; leave it out"
            )
        names[named] = ", ".join(filter(None, (names.get(named), printable(name))))
    return names


def _real(figure: float) -> float:
    if not is_number(figure) and not isinstance(figure, bool):
        raise ConfigError(f"the graph holds {figure!r:.80}, expected real numbers that fit a float")
    return float(figure)


# ---------------------------------------------------------------- names of operations

# `+ 1` at 0 and exp have the same numbers, and so have `+ 0` and relu; their objects differ: sums
# share a constant, relu returns its operand or a constant 0.0, exp is its own derivative.
OF_SUMS = [(Value(0.0) + other)._local_grads for other in (0.0, Value(0.0))]
RELU_OF_NEGATIVE = Value(-1.0).relu().data
TINY = 1e-290  # smaller results have lost digits


def _operation(value: Value) -> str:
    """Return the operation that has made `value`: "" for none, "?" where that is not certain."""
    operands = [operand.data for operand in value._operands]
    if any(value._local_grads is each for each in OF_SUMS):
        return "+" if len(operands) > 1 else f"+ {_addend(operands[0], value.data)}"
    if len(operands) == 1:
        return _of_one(operands[0], value.data, value._local_grads[0])
    if len(operands) == 2:  # noqa: PLR2004 - binary
        a, b = operands
        return "*" if value._local_grads == (b, a) and _same(value.data, a * b) else "?"
    return "?" if operands else ""


def _addend(x: float, y: float) -> str:
    """Return the shortest number that makes `y` of `x`."""
    if not math.isfinite(x):
        return "?"
    by = float(y) - float(x)
    rounded = (float(f"{by:.{n_digits}g}") for n_digits in range(1, 17))
    return f"{next((number for number in rounded if x + number == y), by):.4g}"


def _of_one(x: float, y: float, slope: float) -> str:
    """Return the operation, other than a sum, that has made `y` of `x`, with dy/dx = `slope`."""
    if y is RELU_OF_NEGATIVE or (y is x and slope == 1 and isinstance(slope, float)):
        return "relu"
    if y is slope and isinstance(y, float):
        return "exp"
    factor = f"* {slope:.4g}" * _same(y, x * slope)
    if isinstance(x, float) and isinstance(slope, int):  # other derivatives of a float are floats
        return factor or "?"
    if y == x and slope == 1:
        return "="
    if not math.isfinite(x) or not math.isfinite(y):
        return "?"
    fitting = [name for name in (factor, _logarithm(x, y, slope), _power(x, y, slope)) if name]
    return fitting[0] if len(fitting) == 1 else "?"


def _logarithm(x: float, y: float, slope: float) -> str:
    return "log" * (x > 0 and slope == 1 / x and y == math.log(x))


def _power(x: float, y: float, slope: float) -> str:
    if abs(y) < TINY:  # the exponent is lost
        return "?" * (slope == 0 if x == 0 else abs(x) != 1)
    exponent = float(f"{slope * x / y:.9g}")  # without errors of rounding
    if exponent == 1 or abs(slope) < TINY:
        return ""
    try:
        power, its_slope = math.pow(x, exponent), exponent * math.pow(x, exponent - 1)
    except (OverflowError, ValueError):
        return ""
    return f"** {exponent:.4g}" * (math.isclose(power, y) and math.isclose(its_slope, slope))


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


# ---------------------------------------------------------------- pictures


def _quoted(lines: Sequence[str]) -> str:
    """Return lines as a string of DOT."""
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'


def _picture(nodes: Sequence[Node], edges: Sequence[Edge]) -> str:
    """Return the SVG of a graph: columns by distance from the result, and lines between them.

    A line across several columns has a place in each; lines have the places after the nodes.
    """
    paths, columns = _columns(len(nodes), edges)
    sizes = [node.size for node in nodes]
    sizes += [(0.0, 0.0)] * (sum(map(len, columns)) - len(nodes))
    middles = _rows(columns, paths, [height for _, height in sizes])
    left = float(MARGIN)
    corners = [(0.0, 0.0)] * len(sizes)  # x of both sides
    for column in columns:
        width = max(sizes[place][0] for place in column)
        for place in column:
            own = sizes[place][0] or width
            corners[place] = (left, left + own)
        left += width + COLUMN_GAP
    width = left - COLUMN_GAP + MARGIN
    height = max(m + size[1] / 2 for m, size in zip(middles, sizes, strict=True)) + MARGIN
    marks = [
        _line(path, edge, corners, middles, ends)
        for path, edge, ends in zip(paths, edges, _ports(paths, middles, sizes), strict=True)
    ]
    for i, node in enumerate(nodes):
        color = RESULT if i == len(nodes) - 1 else LEAF if node.is_leaf else INNER
        marks.append(_box(node, corners[i][0], middles[i], color))
    title = f"graph of {nodes[-1].title or 'a value'}: {len(nodes)} values"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(title)}" '
        f'style="font:12px sans-serif">{"".join(marks)}</svg>'
    )


def _columns(n_nodes: int, edges: Sequence[Edge]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the places that each edge passes, and the places of each column, left to right."""
    steps = [0] * n_nodes  # the most that lead from a node to the result
    for edge in reversed(edges):  # results before their operands
        steps[edge.operand] = max(steps[edge.operand], steps[edge.result] + 1)
    columns: list[list[int]] = [[] for _ in range(max(steps) + 1)]
    for node, n_steps in enumerate(steps):
        columns[-1 - n_steps].append(node)
    paths, n_places = [], n_nodes
    for edge in edges:
        between = range(-steps[edge.operand], -1 - steps[edge.result])
        inner = list(range(n_places, n_places + len(between)))
        for column, place in zip(between, inner, strict=True):
            columns[column].append(place)
        n_places += len(inner)
        paths.append([edge.operand, *inner, edge.result])
    return paths, columns


def _rows(
    columns: list[list[int]], paths: Sequence[Sequence[int]], heights: Sequence[float]
) -> list[float]:
    """Order each column, in place, and return the vertical middle of each place, in pixels."""
    neighbours: list[list[int]] = [[] for _ in heights]
    for path in paths:
        for a, b in pairwise(path):
            neighbours[a].append(b)
            neighbours[b].append(a)
    middles = [0.0] * len(heights)
    for column in columns:
        _stack(column, middles, heights)
    for _ in range(SWEEPS):
        for column in (*columns, *reversed(columns)):
            for place in column:
                middles[place] = _mean([middles[each] for each in neighbours[place] or [place]])
            column.sort(key=middles.__getitem__)
            _stack(column, middles, heights)
    top = min(middle - height / 2 for middle, height in zip(middles, heights, strict=True))
    return [middle - top + MARGIN for middle in middles]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _stack(column: Sequence[int], middles: list[float], heights: Sequence[float]) -> None:
    """Move the places of a column apart, in their order and around the same mean."""
    wanted = _mean([middles[place] for place in column])
    for above, below in pairwise(column):
        room = (heights[above] + heights[below]) / 2 + ROW_GAP
        middles[below] = max(middles[below], middles[above] + room)
    shift = wanted - _mean([middles[place] for place in column])
    for place in column:
        middles[place] += shift


def _ports(
    paths: Sequence[Sequence[int]], middles: Sequence[float], sizes: Sequence[tuple[float, float]]
) -> list[float]:
    """Return the height at which each edge meets its result: one below the other, untangled."""
    of_result: dict[int, list[int]] = {}
    for i, path in enumerate(paths):
        of_result.setdefault(path[-1], []).append(i)
    ports = [0.0] * len(paths)
    for result, incoming in of_result.items():
        incoming.sort(key=lambda i: middles[paths[i][-2]])
        for row, i in enumerate(incoming, start=1):
            share = row / (len(incoming) + 1) - 0.5
            ports[i] = middles[result] + share * sizes[result][1]
    return ports


def _line(
    path: Sequence[int],
    edge: Edge,
    corners: Sequence[tuple[float, float]],
    middles: Sequence[float],
    end: float,
) -> str:
    """Return the line of an edge and its number."""
    first, *inner, last = path
    x, y = corners[first][1], middles[first]
    line = f"M{x:.1f} {y:.1f}"
    stops = [(*corners[place], middles[place]) for place in inner]
    left, _ = corners[last]
    for start, stop, row in [*stops, (left, left, end)]:
        bend = (x + start) / 2
        line += f"C{bend:.1f} {y:.1f} {bend:.1f} {row:.1f} {start:.1f} {row:.1f}H{stop:.1f}"
        x, y = stop, row
    number = f'<text x="{left - 5:.1f}" y="{end - 4:.1f}" text-anchor="end" '
    return (
        f'<path d="{line}" fill="none" stroke="{LINE}"/>'
        f'{number}style="fill:{LINE};font-size:11px">{edge.local_grad:.4g}</text>'
    )


def _box(node: Node, left: float, middle: float, color: str) -> str:
    """Return the box of a value."""
    width, height = node.size
    top = middle - height / 2
    x = left + width / 2
    texts = "".join(
        f'<text x="{x:.1f}" y="{top + LINE_HEIGHT * row + 1:.1f}" text-anchor="middle" '
        f'style="fill:{INK}{";font-weight:bold" if line == node.title else ""}">'
        f"{escape(line)}</text>"
        for row, line in enumerate(node.lines, start=1)
    )
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="5" '
        f'fill="{color}" stroke="{LINE}"/>{texts}'
    )
