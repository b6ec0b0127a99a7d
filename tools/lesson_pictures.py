"""Pictures of the lessons: numbers of the program that they write, or of its model, trained."""

import math
from itertools import pairwise
from typing import Any

import microgpt
from lessons import CHAPTERS, LESSONS, NAMES, program
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["FIGURES", "LESSONS", "graph"]

STRONG, SOFT, WARM = "#1d5fa8", "#7b8794", "#c2571a"
WORD = "christopher"  # what the heads read
START = "mar"  # of the names that are continued
TEMPERATURES = (0.2, 0.5, 1.0, 2.0)


def lessons_program() -> dict[str, Any]:
    """Return the names of gpt.py."""
    names: dict[str, Any] = {"__name__": "gpt"}
    exec(compile(program(CHAPTERS), "gpt.py", "exec"), names)  # noqa: S102 - the lessons
    return names


def graph() -> str:
    """Return the graph of chapter 1 as SVG."""
    x = microgpt.Value(3.0)
    y = x * x + x
    y.backward()
    return microgpt.draw(y, {"x": x, "y": y}).svg


def loss() -> Figure:
    """Draw the loss by the probability of the token that came."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    ps = [0.004 * 1.01**i for i in range(556)]
    axes.plot(ps, [-math.log(p) for p in ps], color=STRONG)
    for p, text in [
        (1 / 27, "1 of 27 tokens: 3.30, knowing nothing"),
        (1 / 10, "1 of 10: 2.30, after training"),
        (1 / 2, "1 of 2: 0.69"),
    ]:
        axes.plot([p], [-math.log(p)], "o", color=WARM)
        axes.annotate(text, (p, -math.log(p)), (8, 4), textcoords="offset points")
    axes.set(
        xlabel="probability of the token that came", ylabel="loss, nats", xlim=(0, 1), ylim=(0, 5.6)
    )
    return plain(figure, axes)


def bigrams() -> Figure:
    """Draw how often each token follows another."""
    chars, counts = counted()
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(counts, cmap="Blues", norm="asinh", interpolation="none")
    tokens = [*chars, "."]
    axes.set_xticks(range(27), tokens)
    axes.set_yticks(range(27), tokens)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set(ylabel="token that was read", title="token that followed")
    figure.colorbar(image, shrink=0.7, ticks=[0, 1, 10, 100, 1000], label="times", format="%d")
    return figure


def gradient() -> Figure:
    """Draw the loss of the bigram table at three rates, and that of counting."""
    names = lessons_program()
    _, counts = counted()
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    n_pairs = sum(map(sum, counts))
    for rate, color in ((1.0, SOFT), (4.0, STRONG), (8.0, WARM)):
        table = [[names["Value"](0.0) for _ in range(27)] for _ in range(27)]
        losses = []
        for _ in range(61):
            mean_loss = 0.0
            for row, row_counts in zip(table, counts, strict=True):
                total = sum(row_counts)
                probabilities = names["softmax"](row)
                row_losses = [
                    -p.log() * (n / total)
                    for p, n in zip(probabilities, row_counts, strict=True)
                    if n
                ]
                row_loss = sum(row_losses[1:], start=row_losses[0])
                names["backward"](row_loss)
                mean_loss += row_loss.data * total / n_pairs
                for z in row:
                    z.data -= rate * z.grad
                    z.grad = 0.0
            losses.append(mean_loss)
        axes.plot(losses, color=color, label=f"rate {rate:g}")
    best = -sum(n * math.log(n / sum(row)) for row in counts for n in row if n) / n_pairs
    axes.axhline(best, color="black", linestyle="--", linewidth=1, label=f"counting: {best:.3f}")
    axes.set(xlabel="steps", ylabel="loss, nats", xlim=(0, 60))
    axes.legend(frameon=False)
    return plain(figure, axes)


def attention() -> Figure:
    """Draw where three heads look: one built by hand, two learned."""
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    heads = [("built: the previous letter", built_head())]
    learned = learned_model().trace(WORD).attention[0]
    heads += [(f"learned, head {i + 1}", learned[i]) for i in (1, 2)]
    tokens = [".", *WORD]
    for axes, (title, rows) in zip(figure.subplots(1, 3), heads, strict=True):
        seen = [[*row[:i], *[math.nan] * (len(tokens) - i)] for i, row in enumerate(rows, 1)]
        axes.imshow(seen, cmap="Blues", vmin=0, vmax=1, interpolation="none")
        axes.set_xticks(range(len(tokens)), tokens)
        axes.set_yticks(range(len(tokens)), tokens)
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlabel="looks at")
        if title.startswith("built"):
            axes.set(ylabel="position that looks")
    return figure


def adam() -> Figure:
    """Draw gradient descent and Adam in the valley of chapter 7, 40 steps each."""
    names = lessons_program()
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    ticks = [-0.7 + 0.02 * i for i in range(91)]
    heights = [[10 * a**2 + 0.1 * b**2 for b in ticks] for a in ticks]
    axes.contour(ticks, ticks, heights, levels=[0.01, 0.05, 0.2, 1, 3, 8], colors="#c3cad2")
    for label, color in (("gradient descent, rate 0.09", WARM), ("Adam, rate 0.1", STRONG)):
        a, b = (names["Value"](1.0) for _ in "ab")
        optimizer = names["Adam"]([a, b])
        path = [(b.data, a.data)]
        for step in range(40):
            names["backward"](10.0 * a**2 + 0.1 * b**2)
            if label.startswith("Adam"):
                optimizer.step(0.1 * (1 - step / 40))
            else:
                for p in (a, b):
                    p.data -= 0.09 * p.grad
                    p.grad = 0.0
            path.append((b.data, a.data))
        xs, ys = zip(*path, strict=True)
        axes.plot(xs, ys, "o-", color=color, markersize=3, linewidth=1, label=label)
    axes.set(xlabel="b, the flat direction", ylabel="a, the steep one", xlim=(-0.2, 1.1))
    axes.legend(frameon=False, loc="upper left")
    return plain(figure, axes)


def temperature() -> Figure:
    """Draw the probabilities of the next letter at several temperatures."""
    trace = learned_model().trace(START)
    tokens = [*trace.tokenizer.chars, "."]
    order = trace.logits[-1].argsort()[::-1][:10]
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    panels = figure.subplots(1, len(TEMPERATURES), sharey=True)
    for axes, each in zip(panels, TEMPERATURES, strict=True):
        heights = trace.probs(each)[-1, order]
        axes.bar([tokens[i] for i in order], heights, color=STRONG)
        axes.set_title(f"temperature {each:g}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", length=0)
    panels[0].set(ylabel=f"probability after {START}")
    return figure


# ---------------------------------------------------------------- numbers


def counted() -> tuple[list[str], list[list[int]]]:
    """Return the letters, and how often each token follows another."""
    names = lessons_program()
    documents = names["read_names"](NAMES)
    chars = sorted(set("".join(documents)))
    counts = [[0] * 27 for _ in range(27)]
    for name in documents:
        for a, b in pairwise(names["encode"](name, chars)):
            counts[a][b] += 1
    return chars, counts


def learned_model() -> microgpt.LanguageModel:
    """Return the model of gpt.py, after 5,000 steps of 8 names."""
    documents = microgpt.read_documents(NAMES)
    return microgpt.fit(documents, steps=5000, batch_size=8, seed=42, dtype="float64")


def built_head() -> list[list[float]]:
    """Return where the head of chapter 5 looks, at each position of `WORD`."""
    names = lessons_program()
    value, n = names["Value"], len(WORD) + 1
    w_k = [[value(float(column == row)) for column in range(n)] for row in range(n)]
    w_q = [[value(20.0 * (column == row + 1)) for column in range(n)] for row in range(n)]
    keys, rows = [], []
    for t in range(n):
        x = [value(float(i == t)) for i in range(n)]
        keys.append(names["linear"](x, w_k))
        weights = names["attention_weights"](names["linear"](x, w_q), keys)
        rows.append([w.data for w in weights])
    return rows


def plain(figure: Figure, axes: Axes) -> Figure:
    """Leave out the frame above and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    return figure


FIGURES = {
    "2-loss": loss,
    "3-bigram": bigrams,
    "4-gradient": gradient,
    "5-attention": attention,
    "7-adam": adam,
    "8-sampling": temperature,
}
