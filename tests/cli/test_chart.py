import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microgpt_cli.chart import Curve, chart, loss_ticks, step_ticks

curves = st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 100)), min_size=1, max_size=9).map(
    lambda points: Curve(*map(list, zip(*sorted(points), strict=True)))
)


def assert_is_round(ticks: list[float]) -> None:
    """Ticks are all multiples of 1, 2, 2.5 or 5 times a power of ten."""
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - factor) for factor in (1, 2, 2.5, 5)) < 1e-6
    assert ticks == pytest.approx([(ticks[0] / step + i) * step for i in range(len(ticks))])
    assert ticks[0] / step == pytest.approx(round(ticks[0] / step), abs=1e-6)


@given(curves, st.integers(1, 12))
def test_losses_lie_between_round_ticks_that_are_not_negative(curve: Curve, most: int) -> None:
    ticks = loss_ticks([curve], most)
    rounding = 1e-6 * (ticks[-1] - ticks[0])
    assert 0 <= ticks[0] <= min(curve.losses) + rounding
    assert ticks[-1] >= max(curve.losses) - rounding  # the last tick is a product too
    assert 2 <= len(ticks) <= most + 1
    assert_is_round(ticks)


@given(curves, st.integers(2, 12))
def test_steps_have_round_whole_ticks_from_zero(curve: Curve, most: int) -> None:
    ticks = step_ticks([curve], most)
    assert ticks[0] == 0
    assert max(1, curve.steps[-1]) / 3 < ticks[-1] <= max(1, curve.steps[-1])
    assert all(tick == int(tick) for tick in ticks)
    assert len(ticks) <= most + 1
    assert_is_round(ticks)


@pytest.mark.parametrize(
    ("losses", "most", "expected"),
    [
        ([2.0, 3.5], 5, [2, 2.5, 3, 3.5]),
        ([0.001, 5.6], 5, [0, 2, 4, 6]),
        ([1.9, 2.1], 5, [1.9, 1.95, 2, 2.05, 2.1]),
        ([2.0, 2.0], 5, [2, 2.0005, 2.001, 2.0015, 2.002]),
    ],
)
def test_ticks_are_those_that_a_person_would_choose(
    losses: list[float], most: int, expected: list[float]
) -> None:
    curve = Curve([1.0] * len(losses), losses)
    assert loss_ticks([curve], most) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("end", "expected"), [(10, [0, 5, 10]), (100, [0, 25, 50, 75, 100]), (7, [0, 2, 4, 6])]
)
def test_half_a_step_has_no_tick(end: float, expected: list[float]) -> None:
    assert step_ticks([Curve([end], [1.0])], 4) == expected


@given(curves, st.none() | curves, st.integers(40, 120), st.integers(16, 32))
def test_chart_keeps_its_size_and_labels_every_tick(
    training: Curve, validation: Curve | None, width: int, height: int
) -> None:
    lines = chart(training, validation, width=width, height=height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    both = [training, validation] if validation else [training]
    rows = [line for line in lines if "┤" in line or "│" in line]
    labels = [float(line.partition("┤")[0]) for line in rows if "┤" in line]
    assert labels == pytest.approx(loss_ticks(both, (height - 5) // 3)[::-1], rel=1e-9, abs=1e-9)
    axis, numbers = (line for line in lines[len(rows) + 1 : len(rows) + 3])
    ticks = [match.start() for match in re.finditer("┬", axis)]
    assert len(numbers.split()) == len(ticks)
    for match, tick in zip(re.finditer(r"\d+", numbers), ticks, strict=True):
        assert match.start() <= tick <= match.end()
    assert all(re.fullmatch(r"[ \u2801-\u28ffo*\u00b7]*", re.split("[┤│]", row)[1]) for row in rows)


def test_best_model_is_the_first_of_the_least_loss() -> None:
    validation = Curve([10, 20, 30, 40], [3.0, 2.0, 2.0, 2.5])
    assert validation.best == (20, 2.0)
    lines = chart(Curve([1, 40], [3.5, 3.5]), validation, width=40, height=16)
    (row,) = (line for line in lines[:-1] if "*" in line)
    assert row.startswith(" 2.0")
    assert row.index("*") < row.index("o")


def test_marks_are_joined_where_the_line_is_not_near() -> None:
    training = Curve([1, 40], [3.5, 2.0])
    near, far = (Curve([10, 40], [loss, 2.02]) for loss in (3.1, 9.0))
    assert "\N{MIDDLE DOT}" not in "".join(chart(training, near, width=40, height=16))
    assert "\N{MIDDLE DOT}" in "".join(chart(training, far, width=40, height=16))


def test_labels_have_as_many_decimals_as_they_need() -> None:
    lines = chart(Curve([1, 40], [1.9, 2.1]), None, width=40, height=20)
    labels = [line.partition("┤")[0].strip() for line in lines if "┤" in line]
    assert labels == ["2.10", "2.05", "2.00", "1.95", "1.90"]
