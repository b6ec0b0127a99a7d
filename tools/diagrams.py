"""Diagrams of boxes and arrows; places and style of all pictures of the documentation."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parents[1]
LIBRARY, COMMAND_LINE, SERVICE = (
    ROOT / folder / "docs"
    for folder in ("libs/microgpt", "apps/microgpt_cli", "apis/microgpt_serve")
)
WING = "autograd, data, model, train, sampling"

INK, LINE = "#1f2933", "#52606d"
PLAIN, WARM, COOL, FRESH = "#f5f7fa", "#fdf0d5", "#dceaf7", "#e2f2e3"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",  # letters stay letters: small files, and text that can be searched
    "svg.hashsalt": "microgpt",  # the same picture, the same file
    "text.color": INK,
    "axes.edgecolor": LINE,
}


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the same one gives the same file."""
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    # matplotlib ends lines with blanks.
    lines = path.read_text(encoding="utf-8").splitlines()
    content = "".join(f"{line.rstrip()}\n" for line in lines)
    path.write_text(content, encoding="utf-8", newline="\n")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


class Board:
    """Boxes and arrows on a grid of the given width and height; one unit is 0.1 inch."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width / 10, height / 10))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def box(
        self,
        x: float,
        y: float,
        text: str,
        width: float = 16,
        height: float = 5,
        color: str = PLAIN,
    ) -> None:
        """Draw a box around a middle, with text in it."""
        corner = (x - width / 2, y - height / 2)
        shape = "round,pad=0,rounding_size=0.8"
        self.axes.add_patch(
            FancyBboxPatch(
                corner, width, height, shape, facecolor=color, edgecolor=LINE, linewidth=1
            )
        )
        self.axes.text(x, y, text, ha="center", va="center", linespacing=1.35)

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0
    ) -> None:
        """Draw an arrow, straight or bent."""
        look = {"arrowstyle": "-|>", "color": LINE, "connectionstyle": f"arc3,rad={bend}"}
        self.axes.annotate("", end, start, arrowprops=look | {"shrinkA": 0, "shrinkB": 0})

    def note(self, x: float, y: float, text: str, **how: Any) -> None:
        """Write beside the boxes."""
        self.axes.text(
            x, y, text, color=LINE, fontsize=9, linespacing=1.35, **({"va": "center"} | how)
        )

    def save(self, path: Path) -> None:
        """Write the picture."""
        save(self.figure, path)


def draw_model() -> None:
    """Draw the transformer: what happens to one token."""
    board = Board(64, 78)
    x = 28
    for y, text, color in [
        (4, "token id, position", PLAIN),
        (12, "wte[token] + wpe[position]", WARM),
        (19, "rmsnorm", COOL),
        (28, "rmsnorm", COOL),
        (34, "attention: wq, wk, wv, wo", WARM),
        (47, "rmsnorm", COOL),
        (53, "mlp_fc1, relu, mlp_fc2", WARM),
        (67, "lm_head", WARM),
        (74, "logits of the next token", PLAIN),
    ]:
        board.box(x, y, text, width=25, height=4.4, color=color)
    for y in (40, 59):
        board.box(x, y, "+", width=4, height=3.6)
    for low, high in [
        *((6.2, 9.8), (14.2, 16.8), (21.2, 25.8), (30.2, 31.8), (36.2, 38.2), (41.8, 44.8)),
        *((49.2, 50.8), (55.2, 57.2), (60.8, 64.8), (69.2, 71.8)),
    ]:
        board.arrow((x, low), (x, high))
    for low, high in [(23.5, 40), (43.3, 59)]:  # the residual stream goes around
        board.axes.plot([x, 10, 10], [low, low, high], color=LINE, linewidth=1)
        board.arrow((10, high), (x - 2, high))
    board.axes.plot([6, 6, 7], [61.5, 22.7, 22.7], color=LINE, linewidth=1, linestyle=":")
    board.axes.plot([6, 7], [61.5, 61.5], color=LINE, linewidth=1, linestyle=":")
    board.note(4, 42, "block, n_layer times", rotation=90, ha="center")
    for y, text in [
        (12, "(C,) each; C = n_embd"),
        (34, "H heads of D = C / H;\nkeys and values of every\nposition so far are kept"),
        (53, "4 C wide inside"),
        (67, "(V,); V = vocab_size"),
        (74, "softmax gives probabilities;\n-log of the right one is the loss"),
    ]:
        board.note(43, y, text)
    board.save(LIBRARY / "model.svg")


def draw_rooms() -> None:
    """Draw the distributions, and the rooms of the library; arrows point at what is imported."""
    board = Board(92, 64)
    board.box(24, 59, "microgpt-cli\ncommands of the terminal", 34, 7, FRESH)
    board.box(68, 59, "microgpt-serve\nHTTP: OpenAI's, our own, a page", 34, 7, FRESH)
    board.axes.add_patch(
        FancyBboxPatch((2, 2), 88, 48, "round,pad=0", facecolor="white", edgecolor=LINE)
    )
    board.note(4, 47.6, "microgpt-lib: applications see only what microgpt.__all__ lists")
    board.arrow((24, 55.5), (24, 50.2))
    board.arrow((68, 55.5), (68, 50.2))
    rooms = {
        "training": (46, 42, "training: options, trainer,\nsnapshots, fit", 30, WARM),
        "inference": (46, 33, "inference: LanguageModel,\nprompts, streams, scores", 30, FRESH),
        "storage": (15, 24, "storage\nthe model directory", 22, PLAIN),
        "engines": (46, 24, "engines: scalar, vectorized,\nnative; filters, optimizers", 30, WARM),
        "corpus": (77, 24, "corpus: files,\ndocuments, batches", 22, PLAIN),
        "parameters": (30, 15, "parameters\none flat buffer", 22, PLAIN),
        "wing": (46, 6, f"the algorithm, in plain Python: {WING}", 84, COOL),
    }
    for x, y, text, width, color in rooms.values():
        board.box(x, y, text, width, 6 if "\n" in text else 4, color)
    for above, below in [
        *(("training", "inference"), ("inference", "engines"), ("inference", "storage")),
        *(("inference", "corpus"), ("engines", "corpus"), ("engines", "parameters")),
        ("storage", "parameters"),
    ]:
        board.arrow(*edges(rooms[above], rooms[below]))
    for x, y in [(30, 12), (46, 21), (77, 21)]:
        board.arrow((x, y), (x, 8))
    board.save(LIBRARY / "architecture.svg")


def edges(
    above: tuple[float, float, str, float, str], below: tuple[float, float, str, float, str]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return where an arrow leaves one room and enters another."""
    (x1, y1, _, w1, _), (x2, y2, _, w2, _) = above, below
    if y1 == y2:
        side = 1 if x2 > x1 else -1
        return (x1 + side * w1 / 2, y1), (x2 - side * w2 / 2, y2)
    reach = max(min(x2, x1 + w1 / 2 - 2), x1 - w1 / 2 + 2)
    return (reach, y1 - 3), (max(min(reach, x2 + w2 / 2 - 2), x2 - w2 / 2 + 2), y2 + 3)


def draw_request() -> None:
    """Draw what a request to the service passes."""
    board = Board(104, 40)
    board.box(10, 20, "client", 14, 6, FRESH)
    board.box(30, 20, "socket\nopened once", 15, 7)
    board.box(30, 33, "supervisor\nreplaces workers\nthat die", 17, 8)
    board.axes.add_patch(
        FancyBboxPatch((42, 3), 60, 34, "round,pad=0", facecolor="white", edgecolor=LINE)
    )
    board.note(44, 34.6, "worker: one process of WORKERS")
    board.box(54, 28, "admission, id, log,\nmetrics, key, rate limit", 21, 6.5, COOL)
    board.box(54, 18, "table of routes:\n/v1, /microgpt/v1", 21, 6.5, COOL)
    board.box(54, 7.5, "prompt, sampling\noptions, usage", 21, 6.5, COOL)
    board.box(87, 18, "bounded queue,\ndeadline, one batch", 23, 6.5, WARM)
    board.box(87, 7.5, "turns: all texts grow\nin the engine in C", 23, 6.5, WARM)
    board.box(87, 28, "model\nshared by all texts", 23, 6.5, FRESH)
    board.arrow((17, 20), (22.5, 20))
    board.arrow((37.5, 20), (43.5, 26.5))
    board.arrow((30, 29), (30, 23.5))
    board.arrow((54, 24.7), (54, 21.3))
    board.arrow((54, 14.7), (54, 10.8))
    board.arrow((64.5, 9.5), (75.5, 16))
    board.arrow((87, 14.7), (87, 10.8))
    board.arrow((75.5, 6), (64.5, 6))
    board.note(70, 3.8, "pieces of text", ha="center")
    board.arrow((98.5, 8.5), (97.5, 24.7), bend=0.2)
    board.save(SERVICE / "request.svg")


DIAGRAMS = {"rooms": draw_rooms, "model": draw_model, "request": draw_request}
