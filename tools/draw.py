"""Draw the pictures of the documentation, as SVG in each distribution's docs/.

hatch run pictures                   # all, from the figures measured last
hatch run pictures ladder growth     # measures this machine first; the ladder's table too
hatch run pictures model rooms ...   # some
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from diagrams import (
    COMMAND_LINE,
    COOL,
    DIAGRAMS,
    FRESH,
    INK,
    LIBRARY,
    LINE,
    ROOT,
    STYLE,
    WARM,
    save,
)
from explore import BUDGETS, RATES, RESULTS, TABLES, WIDTHS, rates_of
from lesson_pictures import FIGURES, LESSONS, graph
from matplotlib.figure import Figure
from microgpt_cli.commands.bench import Shape, peak_gflop_per_second, prepare

LADDER, GROWTH = LIBRARY / "ladder.json", LIBRARY / "growth.json"
CHAPTER = LIBRARY / "ladder.md"
LEARNING = LIBRARY / "learning.md"
MEASURED = re.compile(r"(<!-- measured -->\n).*(<!-- end -->)", re.DOTALL)  # written by us
KERNEL = LIBRARY.parent / "src/microgpt/engines/kernel"
ENGINES = ("scalar", "vectorized", "native")
GROWING = {  # series: shapes, each step of 1,024 or of 4,096 tokens
    "wider and deeper": (
        Shape(16, 4, 1, 16, 64, 16),
        Shape(64, 4, 3, 64, 16, 64),
        Shape(128, 8, 4, 256, 4, 256),
        Shape(256, 8, 6, 256, 4, 256),
        Shape(384, 6, 6, 256, 4, 256),
        Shape(512, 8, 8, 256, 4, 256),
        Shape(768, 12, 12, 256, 4, 256),
    ),
    "longer context": tuple(
        Shape(128, 8, 4, n_tokens, 4096 // n_tokens, n_tokens)
        for n_tokens in (256, 512, 1024, 2048, 4096)
    ),
}
MIN_STEPS, MEASURE_SECONDS = 5, 2.0  # of a shape; the fastest step counts
NAMES = {"n_params": "parameters", "block_size": "block_size of 128/8/4"}


def draw_curve() -> None:
    """Train on the sample names, and draw the curve with the command that users have."""
    program = str(Path(sys.executable).with_name("microgpt-cli"))
    picture = COMMAND_LINE / "loss_curve.svg"
    picture.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        names = f"{directory}/names.txt"
        train = (
            f"--steps 5000 --batch-size 8 --val-fraction 0.1 --eval-every 250 --output {directory}"
        )
        for command in (
            ["data", "names", "--output", names],
            ["train", "--input", names, *train.split(), "--quiet"],
            ["plot", directory, "--output", str(picture), "--force"],
        ):
            subprocess.run([program, *command], check=True, stdout=subprocess.PIPE)
    print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size:,} bytes")


def measure_ladder() -> None:
    """Write what the engines do here."""
    program = str(Path(sys.executable).with_name("microgpt-cli"))
    measure = [program, "bench", "--json", "--threads", "1"]
    one_core = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # NumPy's products too
    done = subprocess.run(measure, env=one_core, check=True, capture_output=True, encoding="utf-8")
    LADDER.parent.mkdir(exist_ok=True)
    content = json.dumps(json.loads(done.stdout), indent=1) + "\n"
    LADDER.write_text(content, encoding="utf-8", newline="\n")


def ladder_rows() -> dict[tuple[str, str], dict[str, Any]]:
    """Return what was measured: by model and batch, by engine."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for result in json.loads(LADDER.read_text(encoding="utf-8"))["results"]:
        rows.setdefault((result["model"], result["batch"]), {})[result["engine"]] = result
    return rows


def write_ladder_table(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Put what was measured, the result of `ladder_rows`, into the chapter."""
    lines = [
        "| model | documents x tokens | scalar | vectorized | native | gain | of the best rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, batch), row in rows.items():
        times = {engine: each["us_per_step"] for engine, each in row.items()}
        cells = [duration(times[engine]) if engine in times else "" for engine in ENGINES]
        ratio = f"{times['vectorized'] / times['native']:.2g} x"
        share = f"{row['native']['share_of_peak']:.0%}"
        lines.append(f"| {' | '.join([model, batch, *cells, ratio, share])} |")
    first = next(iter(rows.values()))
    scalar, vectorized, native = (first[engine]["us_per_step"] for engine in ENGINES)
    n_lines = sum(
        len(path.read_text(encoding="utf-8").splitlines()) for path in KERNEL.glob("*.[ch]")
    )
    gains = (
        f"In the first row NumPy is {scalar / vectorized:,.0f} times as fast as plain Python, and\n"
        f"the kernel, {n_lines:,} lines of C, {scalar / native:,.0f} times."
    )
    write_measured(CHAPTER, [*lines, "", gains])


def write_measured(chapter: Path, lines: list[str]) -> None:
    """Put lines into a chapter, between the comments that mark what is measured."""
    content = chapter.read_text(encoding="utf-8")
    block = "\n".join(lines)
    chapter.write_text(MEASURED.sub(rf"\1\n{block}\n\n\2", content), encoding="utf-8", newline="\n")


def draw_ladder() -> None:
    """Draw the time of one training step on each engine, as `microgpt-cli bench` measured it."""
    rows = ladder_rows()
    colors = dict(zip(ENGINES, (WARM, COOL, FRESH), strict=True))
    shapes = list(rows)
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for row, engine in enumerate(colors):
        of_engine = {
            shape: of_shape[engine]["us_per_step"]
            for shape, of_shape in rows.items()
            if engine in of_shape
        }
        places = [shapes.index(shape) + 0.27 * (row - 1) for shape in of_engine]
        times = list(of_engine.values())
        bars = axes.barh(places, times, 0.25, color=colors[engine], edgecolor=LINE, label=engine)
        axes.bar_label(bars, [duration(time) for time in times], padding=4, fontsize=9)
    labels = [f"{model}\n{batch} tokens" for model, batch in shapes]
    axes.set_yticks(range(len(shapes)), labels)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="microseconds per training step", xlim=(5, 1e7))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", frameon=False, ncols=len(ENGINES))
    save(figure, LIBRARY / "ladder.svg")
    write_ladder_table(rows)


def learning_rows() -> dict[str, dict[int, dict[str, Any]]]:
    """Return the results of tools/explore.py: by flags, by seed."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for row in json.loads(RESULTS.read_text(encoding="utf-8")):
        rows.setdefault(row["flags"], {})[row["seed"]] = row
    return rows


def mean_of(runs: dict[int, dict[str, Any]], name: str) -> float:
    """Return the mean over the seeds."""
    return statistics.mean(float(run[name]) for run in runs.values())


def learning_table(
    variants: dict[str, str], rows: dict[str, dict[int, dict[str, Any]]]
) -> list[str]:
    """Return a table of one experiment: differences are from its base, or its first variant."""
    base = rows[variants.get("base", next(iter(variants.values())))]
    lines = ["| variant | loss | difference | processor time |", "|---|---|---|---|"]
    for label, flags in variants.items():
        runs = rows[flags]
        cells = ["diverges", "", ""]
        if None not in [run["loss"] for run in runs.values()]:
            gaps = [run["loss"] - base[seed]["loss"] for seed, run in runs.items()]
            spread = f"{min(gaps):+.4f} to {max(gaps):+.4f}" if any(gaps) else ""
            seconds = mean_of(runs, "processor_seconds")
            cells = [f"{mean_of(runs, 'loss'):.4f}", spread, f"{seconds:.2g} s"]
        lines.append(f"| `{label}` | {' | '.join(cells)} |")
    return lines


def draw_learning() -> None:
    """Draw the results of tools/explore.py, and write them into the chapter."""
    rows = learning_rows()
    figure = Figure(figsize=(9, 4), layout="constrained")
    times, widths = figure.subplots(1, 2)
    for (name, runs), color in zip(BUDGETS.items(), (LINE, "#c2571a"), strict=True):
        seconds = [mean_of(rows[flags], "processor_seconds") for flags in runs]
        for seed in rows[runs[0]]:
            losses = [rows[flags][seed]["loss"] for flags in runs]
            label = name if seed == min(rows[runs[0]]) else None
            times.plot(seconds, losses, "o-", color=color, markersize=3, linewidth=1, label=label)
    times.set(xscale="log", xlabel="processor seconds of training", ylabel="held-out loss, nats")
    times.set_xticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
    times.minorticks_off()
    times.set_title("names, 48/4/2/16, three seeds", fontsize=10)
    times.legend(frameon=False)
    measured = [width for width in WIDTHS if {*rates_of(width).values()} <= rows.keys()]
    for width in measured:
        losses = [mean_of(rows[flags], "loss") for flags in rates_of(width).values()]
        gaps = [loss - min(losses) for loss in losses]
        widths.plot(RATES, gaps, "o-", markersize=3, linewidth=1, label=f"{width} wide")
    widths.set(xscale="log", xlabel="rate of Muon", ylabel="loss above the best rate, nats")
    widths.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    widths.minorticks_off()
    widths.set_title("names, one layer, 400 steps", fontsize=10)
    widths.legend(frameon=False)
    for axes in (times, widths):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, LIBRARY / "learning.svg")
    lines = [
        f"| width | {' | '.join(f'`--muon-lr {rate}`' for rate in RATES)} |",
        "|---" * (1 + len(RATES)) + "|",
    ]
    for width in measured:
        losses = [f"{mean_of(rows[flags], 'loss'):.4f}" for flags in rates_of(width).values()]
        lines.append(f"| {width} | {' | '.join(losses)} |")
    for name, variants in TABLES.items():
        if {*variants.values()} <= rows.keys():
            lines += ["", f"**{name[0].upper()}{name[1:]}**", "", *learning_table(variants, rows)]
    write_measured(LEARNING, lines)


def measure_growth() -> None:
    """Write the time of a training step at sizes far apart, here and on all cores."""
    results = []
    for series, shapes in GROWING.items():
        for shape in shapes:
            model, trainer = prepare(shape, "native", None)
            moments = [time.perf_counter()]
            while len(moments) < MIN_STEPS or moments[-1] - moments[0] < MEASURE_SECONDS:
                trainer.advance(1)
                moments.append(time.perf_counter())
            seconds = min(end - start for start, end in pairwise(moments))
            n_tokens = shape.batch_size * shape.n_tokens
            results.append(
                {
                    "series": series,
                    "model": shape.model,
                    "n_params": model.config.n_params,
                    "block_size": shape.block_size,
                    "mflop_per_token": round(1e3 * shape.gflop(vocab_size=27) / n_tokens, 4),
                    "us_per_token": round(1e6 * seconds / n_tokens, 3),
                }
            )
    content = {"peak_gflop_per_second": round(peak_gflop_per_second(None), 1), "results": results}
    GROWTH.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")


def draw_growth() -> None:
    """Draw the time of a token in training against its arithmetic, as `measure_growth` did."""
    content = json.loads(GROWTH.read_text(encoding="utf-8"))
    peak = content["peak_gflop_per_second"]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, width_ratios=[3, 2])
    for axes, series, size in zip(panels, GROWING, ("n_params", "block_size"), strict=True):
        points = [each for each in content["results"] if each["series"] == series]
        x = [each[size] for each in points]
        flops = [each["mflop_per_token"] for each in points]
        times = [each["us_per_token"] for each in points]
        axes.plot(x, times, "o-", color=INK, label="measured")
        axes.plot(x, [1e3 * each / peak for each in flops], "--", color=LINE, label="arithmetic")
        for i, each in enumerate(points):
            text = f"{1e3 * flops[i] / times[i]:.0f} GFLOP/s"
            place: Any = {"xytext": (-6, 3), "ha": "right"}
            if size == "n_params":
                text = f"{each['model']}: {text}"
                if i < len(points) // 2:
                    place = {"xytext": (6, -10), "ha": "left"}
            axes.annotate(text, (x[i], times[i]), textcoords="offset points", fontsize=8, **place)
        axes.set(xscale="log", xlabel=NAMES[size])
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(yscale="log", ylabel="microseconds per token in training")
    panels[1].set(xlim=(90, 5000), ylim=(0, None))
    panels[1].set_xticks(x, x, minor=False)
    panels[1].minorticks_off()
    handles, labels = panels[0].get_legend_handles_labels()
    labels[1] = f"its arithmetic at {peak:.0f} GFLOP/s, the rate of NumPy's products"
    figure.legend(handles, labels, loc="outside upper center", frameon=False, ncols=2)
    save(figure, LIBRARY / "growth.svg")


def draw_lessons() -> None:
    """Draw the pictures of the lessons."""
    (LESSONS / "1-numbers.svg").write_text(graph() + "\n", encoding="utf-8", newline="\n")
    for name, figure in FIGURES.items():
        save(figure(), LESSONS / f"{name}.svg")


def duration(microseconds: float) -> str:
    """Return a time with its unit."""
    if microseconds < 1e3:  # noqa: PLR2004 - units
        return f"{float(f'{microseconds:.3g}'):g} µs"  # 1000, not 1e+03
    return f"{microseconds / 1e3:.3g} ms"


PICTURES: dict[str, Callable[[], None]] = {
    **DIAGRAMS,
    "curve": draw_curve,
    "ladder": draw_ladder,
    "learning": draw_learning,
    "growth": draw_growth,
    "lessons": draw_lessons,
}


def main() -> None:
    """Draw the pictures that are named, or all."""
    wanted = sys.argv[1:]
    if unknown := set(wanted) - PICTURES.keys():
        sys.exit(f"error: unknown: {', '.join(sorted(unknown))}; pictures: {', '.join(PICTURES)}")
    for name, measure in {"ladder": measure_ladder, "growth": measure_growth}.items():
        if name in wanted:
            measure()
    with mpl.rc_context(STYLE):
        for name in wanted or PICTURES:
            PICTURES[name]()


if __name__ == "__main__":
    main()
