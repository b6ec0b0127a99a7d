"""What a model computes while it reads a text, as lines for a terminal."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import microgpt
from rich.cells import cell_len, set_cell_size

from microgpt_cli.terminal import printable

__all__ = ["lines_of", "looks_at", "named"]

MOST_NEXT = 5  # likeliest next tokens in the table
LONGEST_NAME, LONGEST_LABEL = 10, 6  # columns, in the table and beside a head
BETWEEN = 3  # columns between two heads
LEAST_HEAD = 16  # columns, for its title
UNPOOLED = 32  # tokens that have a cell each, if the terminal has the columns
SHADES = "\N{MIDDLE DOT}░▒▓█"  # each from that share of attention on
SHARES = (0, 0.05, 0.2, 0.4, 0.7)
LEGEND = "from " + ", ".join(
    f"{share:.0%} {shade}" for shade, share in zip(SHADES, SHARES, strict=True)
)


def named(token: dict[str, Any]) -> str:
    """Return a token of `Trace.to_json` for display: on one line, and a special one as <bos>."""
    if "special" in token:
        return f"<{token['text']}>"
    return printable(token["text"].replace("\n", "↵").replace(" ", "␣"), one_line=True)


def looks_at(head: Any) -> str:
    """Return the place that a head looks at most, with its mean share of attention there.

    Args:
        head: attention of each position, a row, to each: an array of shape (T, T).
    """
    first = min(2, len(head) - 1)  # before, places are the same
    previous = head.diagonal(-1)[first - 1 :] if first else head
    places = {
        "itself": head.diagonal()[first:].mean(),
        "previous": previous.mean(),
        "first": head[first:, 0].mean(),
    }
    place = max(places, key=places.__getitem__)
    return f"{place} {places[place]:.0%}"


def lines_of(trace: microgpt.Trace, width: int) -> Iterator[str]:
    """Yield a table of tokens, then the heads of each block as shaded squares.

    Args:
        trace: of a text.
        width: columns, at least 40.
    """
    figures = json.loads(trace.to_json(MOST_NEXT, attention=False))
    yield from _table(figures, width)
    names = [named(token) for token in figures["tokens"]]
    for i, block in enumerate(trace.attention, 1):
        yield ""
        yield from _heads(f"block {i}", block, names, width)


def _fitted(text: str, width: int) -> str:
    """Return a text of so many columns: cut, or with spaces after it."""
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width)


def _nats(figure: float) -> str:
    """Return a surprise in eight columns."""
    return f"{figure:8.2f}" if figure < 1e5 else f"{figure:8.1e}"  # noqa: PLR2004


def _share(probability: float | None) -> str:
    """Return a probability in four columns."""
    return "   ?" if probability is None else f"{probability:4.0%}"


# ---------------------------------------------------------------- the table


def _table(figures: dict[str, Any], width: int) -> Iterator[str]:
    shown = [*figures["tokens"], *(t for row in figures["next"] for t in row)]
    shown += [token for stage in figures["lens"] for token in stage]
    n_name = min(LONGEST_NAME, max(cell_len(named(token)) for token in shown))
    n_token = max(n_name, len("token"))
    n_cell = n_name + 7  # a space, four columns of probability, and two between
    n_cells = max(1, (width - n_token - len("  surprise") - 2) // n_cell)
    n_next = len(figures["next"][0])
    stages = _spread(len(figures["lens"]) - 1, n_cells - 1)  # the last is that of `next`
    n_next = min(n_next, n_cells - len(stages))
    lens = "".join(_fitted(f"lens {i}", n_cell) for i in stages)  # after block i
    following = _fitted("next", n_cell * n_next)
    yield f"{_fitted('token', n_token)}  surprise  {following}{lens}".rstrip()
    for t, token in enumerate(figures["tokens"]):
        surprise = figures["surprise"][t]
        cells = [*figures["next"][t][:n_next], *(figures["lens"][i][t] for i in stages)]
        row = "".join(
            f"{_fitted(named(each), n_name)} {_share(each['probability'])}  " for each in cells
        )
        cost = " " * 8 if surprise is None else _nats(surprise)
        yield f"{_fitted(named(token), n_token)}  {cost}  {row}".rstrip()
    loss = figures["loss"]
    if loss is not None:
        yield f"{_fitted('mean', n_token)}  {_nats(loss)}  nats per token"


def _spread(n: int, most: int) -> list[int]:
    """Return the numbers below `n`; where these are too many, some of them, with equal steps."""
    if n <= most:
        return list(range(n))
    return sorted({i * (n - 1) // max(1, most - 1) for i in range(most)})


# ---------------------------------------------------------------- the heads


def _heads(title: str, block: Any, names: Sequence[str], width: int) -> Iterator[str]:
    """Yield the heads of a block, side by side."""
    n_tokens, most = len(names), max(UNPOOLED, (width + BETWEEN) // len(block) - BETWEEN)
    n_label = min(LONGEST_LABEL, max(map(cell_len, names)))
    n_together = -(-n_tokens // min(most, width - n_label - 1))  # tokens of one cell
    labels = [_fitted(name, n_label) for name in names[::n_together]]
    n_columns = 2 if 2 * len(labels) <= LEAST_HEAD else 1  # of a cell
    n_head = max(LEAST_HEAD, n_columns * len(labels))
    per_line = max(1, (width - n_label - 1 + BETWEEN) // (n_head + BETWEEN))
    about = f", a cell is {n_together} tokens" * (n_together > 1)
    yield f"{title}{about}: rows attend to columns, {LEGEND}"[:width]
    numbered = list(enumerate(block, 1))
    gap = " " * BETWEEN
    for line in range(0, len(numbered), per_line):
        together = numbered[line : line + per_line]
        titles = [_fitted(f"{number} {looks_at(head)}", n_head) for number, head in together]
        yield f"{' ' * n_label} {gap.join(titles)}".rstrip()
        squares = [_pooled(head, n_together) for _, head in together]
        for row, label in enumerate(labels):
            cells = ["".join(mark * n_columns for mark in square[row]) for square in squares]
            yield f"{label} {gap.join(f'{each:<{n_head}}' for each in cells)}".rstrip()


def _pooled(head: Any, n: int) -> list[str]:
    """Return the lower triangle of a head in shades, the darkest for n rows and n columns."""
    marks = f"{SHADES}?"  # for NaN, of weights that are too large
    levels = sum(head >= least for least in SHARES[1:]) + (head != head) * len(SHADES)  # noqa: PLR0124
    if n == 1:
        return [
            "".join(map(marks.__getitem__, row[: i + 1])) for i, row in enumerate(levels.tolist())
        ]
    starts = range(0, len(head), n)
    return [
        "".join(
            marks[levels[row : row + n, column : column + n].max()] for column in starts[: i + 1]
        )
        for i, row in enumerate(starts)
    ]
