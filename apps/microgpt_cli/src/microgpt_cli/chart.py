"""Loss curves as text: braille dots, marks, and axes with round ticks."""

import math
from collections.abc import Iterator, Sequence
from itertools import count, pairwise
from typing import NamedTuple

__all__ = ["Curve", "chart", "last_step", "loss_ticks", "step_ticks"]

FACTORS = (1, 2, 2.5, 5)  # of a power of ten
LEAST_RANGE = 1e-3  # of the losses, so that a flat curve has an axis
ROWS_PER_TICK, COLUMNS_PER_TICK = 3, 12  # at least
ROUNDING = 1e-9  # 1.9 / 0.1 is less than 19
LONGEST = 1e9  # numbers from here on have an exponent
BRAILLE = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # 2 x 4 of a character, by row
VALIDATION, BETWEEN, BEST = "o", "\N{MIDDLE DOT}", "*"
LEGEND = f"{2 * chr(BRAILLE + 0x12)} training   {VALIDATION} validation   {BEST} best"


class Curve(NamedTuple):
    """Losses in nats per token, by step."""

    steps: list[float]
    losses: list[float]

    @property
    def best(self) -> tuple[float, float]:
        """The first step of the least loss, and that loss."""
        loss, step = min(zip(self.losses, self.steps, strict=True))
        return step, loss


def last_step(curves: Sequence[Curve]) -> float:
    """Return where the axis of steps ends, at least 1."""
    return max(1, *(step for curve in curves for step in curve.steps))


def step_ticks(curves: Sequence[Curve], most: int) -> list[float]:
    """Return round whole steps from 0 to the last step, with at most so many intervals."""
    end = last_step(curves)
    return [step for step in _round_ticks(0, end, most, whole=True) if step <= end]


def loss_ticks(curves: Sequence[Curve], most: int) -> list[float]:
    """Return round losses that enclose those of curves, with at most so many intervals."""
    losses = [loss for curve in curves for loss in curve.losses]
    low, high = min(losses), max(losses)
    return _round_ticks(low, max(high, low + LEAST_RANGE * max(1, low)), most)


def _round_ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Return multiples of 1, 2, 2.5 or 5 times a power of ten that enclose a range."""
    exponents = count(math.floor(math.log10((high - low) / most)))
    for step in (factor * 10.0**exponent for exponent in exponents for factor in FACTORS):
        first, last = math.floor(low / step + ROUNDING), math.ceil(high / step)
        if last - first <= most and not (whole and step % 1):
            return [step * i for i in range(first, last + 1)]
    raise AssertionError("a large step encloses every range")


def _labels(ticks: Sequence[float]) -> list[str]:
    """Return ticks as text, all with as many decimals as one of them needs."""
    if ticks[-1] >= LONGEST:
        return [f"{tick:.4g}" for tick in ticks]
    tolerance = (ticks[-1] - ticks[0]) * 1e-6
    decimals = next(n for n in count() if all(abs(round(t, n) - t) <= tolerance for t in ticks))
    return [f"{tick:.{decimals}f}" for tick in ticks]


def chart(training: Curve, validation: Curve | None, *, width: int, height: int) -> list[str]:
    """Return lines of text that show a training curve and the marks of a validation curve.

    Args:
        training: at least one step.
        validation: its least loss has a mark of its own.
        width: columns, at most; at least 40.
        height: lines, at most; at least 12.
    """
    curves = [training, validation] if validation else [training]
    n_rows = height - 4  # a title, the axis of steps and its labels, a legend
    losses = loss_ticks(curves, (n_rows - 1) // ROWS_PER_TICK)
    rows_per_tick = (n_rows - 1) // (len(losses) - 1)
    labels = {i * rows_per_tick: label for i, label in enumerate(reversed(_labels(losses)))}
    margin = max(map(len, labels.values())) + 1
    cells = [[" "] * (width - margin - 1) for _ in range(max(labels) + 1)]
    _draw(curves, losses, cells)
    lines = ["loss in nats per token, by step"]
    for row, characters in enumerate(cells):
        axis = "┤" if row in labels else "│"
        lines.append(f"{labels.get(row, ''):>{margin}}{axis}{''.join(characters)}")
    return lines + _axis_of_steps(curves, margin, len(cells[0])) + [LEGEND] * len(curves[1:])


def _draw(curves: Sequence[Curve], losses: Sequence[float], cells: list[list[str]]) -> None:
    """Draw into rows of characters: a line for the first curve, marks for the second."""
    end, low, high = last_step(curves), losses[0], losses[-1]
    last_row, last_column = len(cells) - 1, len(cells[0]) - 1
    training, *others = (
        [
            (max(step, 0) / end * last_column, (high - loss) / (high - low) * last_row)
            for step, loss in zip(*curve, strict=True)
        ]
        for curve in curves
    )
    for x, y in _joined([(2 * column + 0.5, 4 * row + 1.5) for column, row in training]):
        before = cells[y // 4][x // 2]
        dots = 0 if before == " " else ord(before) - BRAILLE
        cells[y // 4][x // 2] = chr(BRAILLE + (dots | DOTS[y % 4][x % 2]))
    for points in others:
        for column, row in _joined(points):
            near = {line[column] for line in cells[max(row - 1, 0) : row + 2]}
            if near <= {" ", BETWEEN}:
                cells[row][column] = BETWEEN
        best = max(points, key=lambda point: point[1])  # the lowest, the first of several
        for mark, marked in ((VALIDATION, points), (BEST, [best])):
            for x_of, y_of in marked:
                cells[round(y_of)][round(x_of)] = mark


def _joined(points: Sequence[tuple[float, float]]) -> Iterator[tuple[int, int]]:
    """Yield the whole points on the lines between neighbours."""
    for (x, y), (next_x, next_y) in pairwise([points[0], *points]):
        n = math.ceil(max(abs(next_x - x), abs(next_y - y), 1))
        for i in range(n + 1):
            yield round(x + (next_x - x) * i / n), round(y + (next_y - y) * i / n)


def _axis_of_steps(curves: Sequence[Curve], margin: int, n_columns: int) -> list[str]:
    """Return the axis and its labels."""
    ticks = step_ticks(curves, n_columns // COLUMNS_PER_TICK)
    axis, numbers = ["─"] * n_columns, ""
    for tick, label in zip(ticks, _labels(ticks), strict=True):
        column = round(tick / last_step(curves) * (n_columns - 1))
        axis[column] = "┬"
        start = margin + 1 + min(column - len(label) // 2, n_columns - len(label))
        numbers = f"{numbers:<{start}}{label}"
    return [f"{' ' * margin}└{''.join(axis)}", numbers]
