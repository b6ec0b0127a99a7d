"""HTML for notebooks: tables, curves, tinted texts and shaded squares.

All are without scripts, and in the text colour of the page.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["curves", "printable", "shades", "table", "tints", "visible"]

Points: TypeAlias = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 480, 240  # of a picture, in pixels
LEFT, RIGHT, TOP, BOTTOM = 48, 28, 26, 24  # its margins, with the numbers of the axes
COLORS = ("#3b82f6", "#f97316")  # readable on white and on black

MOST_TINT, OPACITY = 8.0, 0.6  # a figure that has the full tint; with it, text is readable
SQUARE, GAP, PER_ROW = 112, 12, 4  # of shaded squares: pixels, between two, and side by side
MAX_CELLS = 20_000  # of all squares together, to keep a notebook small
N_SHADES = 8


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


def printable(text: str) -> str:
    r"""Return a text with characters that are not printed shown, such as \n."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def visible(text: str) -> str:
    """Return a text with spaces and characters that are not printed shown."""
    return printable(text).replace(" ", "␣")


def tints(title: str, words: Sequence[str], figures: Sequence[float]) -> str:
    """Return words, each the more tinted the larger its figure, which a pointer shows.

    Args:
        title: what the figures are.
        words: not escaped yet.
        figures: from 0 on, one for each; NaN for none.
    """
    spans = []
    for word, figure in zip(words, figures, strict=True):
        known = not math.isnan(figure)
        tint = OPACITY * min(figure, MOST_TINT) / MOST_TINT if known else 0.0
        about = f"{title}: {figure:.2f}" if known else title
        spans.append(
            f'<span title="{escape(about)}" style="background:rgba(249,115,22,{tint:.2f});'
            f'padding:2px 1px;margin-right:1px">{escape(word)}</span>'
        )
    style = "font-family:monospace;line-height:1.8;overflow-wrap:anywhere"
    return f'<p style="{style}">{"".join(spans)}</p>'


def shades(title: str, squares: Mapping[str, NDArray[np.floating[Any]]]) -> str:
    """Return named squares, side by side, of cells that are the stronger the nearer to 1, as SVG.

    Where there are too many cells, one stands for several neighbours: the strongest of them.

    Args:
        title: the name of the picture for screen readers.
        squares: at least one; figures from 0 to 1 each, shape (T, T), nothing above the diagonal.
    """
    n_cells = max(1, math.isqrt(2 * MAX_CELLS // len(squares)))
    marks = []
    for i, (name, square) in enumerate(squares.items()):
        x, y = (SQUARE + GAP) * (i % PER_ROW), (SQUARE + GAP + 8) * (i // PER_ROW)
        pooled = _pooled(square, n_cells)
        size = SQUARE / len(pooled)
        marks.append(
            f'<text x="{x}" y="{y + 12}">{escape(name)}</text>'
            f'<g transform="translate({x},{y + 16}) scale({size:.4g})" stroke="currentColor">'
            f"{_shaded(pooled)}</g>"
        )
    n_rows = -(-len(squares) // PER_ROW)
    width, height = (SQUARE + GAP) * min(len(squares), PER_ROW), (SQUARE + GAP + 8) * n_rows
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'role="img" aria-label="{escape(title)}" fill="currentColor" '
        f'style="font:11px sans-serif">{"".join(marks)}</svg>'
    )


def _pooled(square: NDArray[np.floating[Any]], n_cells: int) -> NDArray[np.floating[Any]]:
    """Return at most so many rows and columns; each cell is the largest of some neighbours."""
    starts = np.arange(0, len(square), -(-len(square) // n_cells))
    return np.maximum.reduceat(np.maximum.reduceat(square, starts, axis=0), starts, axis=1)


def _shaded(square: NDArray[np.floating[Any]]) -> str:
    """Return the outline of a lower triangle and a path per shade, in units of a cell."""
    n = len(square)
    levels = np.rint(np.nan_to_num(square) * N_SHADES).astype(int)
    paths = [f'<path d="M0 0V{n}H{n}" fill="none" stroke-width=".2" opacity=".4"/>']
    for level in range(1, N_SHADES + 1):
        cells = "".join(f"M{x} {y}.5h1" for y, x in np.argwhere(levels == level).tolist())
        if cells:
            paths.append(f'<path d="{cells}" opacity="{level / N_SHADES:.3g}"/>')
    return "".join(paths)


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
