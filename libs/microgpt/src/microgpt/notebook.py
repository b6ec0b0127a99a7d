"""HTML for notebooks: tables and curves, without scripts, in the text colour of the page."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TypeAlias

__all__ = ["curves", "table"]

Points: TypeAlias = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 480, 240  # of a picture, in pixels
LEFT, RIGHT, TOP, BOTTOM = 48, 28, 26, 24  # its margins, with the numbers of the axes
COLORS = ("#3b82f6", "#f97316")  # readable on white and on black


def table(title: str, rows: Mapping[str, object]) -> str:
    """Return a table of names and values, both escaped."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table><caption>{escape(title)}</caption>{cells}</table>"


def curves(title: str, axes: str, series: Mapping[str, Points]) -> str:
    """Return a picture of one or two named curves over the same axes, as SVG.

    Args:
        title: the name of the picture for screen readers.
        axes: what the axes are.
        series: finite points (x, y) of each curve, x from 0; one point at least in all.
    """
    points = [point for each in series.values() for point in each]
    low, high = _widened(min(y for _, y in points), max(y for _, y in points))
    end = max(x for x, _ in points) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        """Return the place of a point, in pixels."""
        share_x, share_y = x / end, (high - y) / (high - low)
        return LEFT + share_x * (WIDTH - LEFT - RIGHT), TOP + share_y * (HEIGHT - TOP - BOTTOM)

    marks = [f'<text x="{WIDTH - RIGHT}" y="14" text-anchor="end">{escape(axes)}</text>']
    for tick in _ticks(low, high):
        _, y = at(0, tick)
        marks.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="currentColor" opacity=".2"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,.6g}</text>'
        )
    for tick in _ticks(0, end):
        x, _ = at(tick, low)
        marks.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{tick:,.6g}</text>')
    for i, (color, (name, each)) in enumerate(zip(COLORS, series.items(), strict=False)):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in each))
        marks.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>'
            f'<text x="{LEFT + 120 * i}" y="14" style="fill:{color}">{escape(name)}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'role="img" aria-label="{escape(title)}" fill="currentColor" '
        f'style="font:11px sans-serif">{"".join(marks)}</svg>'
    )


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return a range with room for a line where all numbers are (almost) equal."""
    room = 1e-3 * max(abs(low), abs(high), 1e-3)
    return (low, high) if high - low > room else (low - room, high + room)


def _ticks(low: float, high: float) -> list[float]:
    """Return two to six round numbers between two."""
    least = (high - low) / 5
    power: float = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
