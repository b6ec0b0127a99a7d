"""`microgpt-cli plot`: the learning curve of a run, in the terminal and as a picture."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import microgpt
import typer

from microgpt_cli.chart import Curve, chart, last_step, loss_ticks, step_ticks
from microgpt_cli.metrics import METRICS, read_metrics
from microgpt_cli.options import Directory, Force, ModelDir, chosen_directory
from microgpt_cli.writing import refuse_to_replace

__all__ = ["command"]

FORMATS = (".svg", ".png")
POINTS_OF_TEXT, POINTS_OF_PICTURE = 50, 100  # at most; means, because single steps are noisy
MIN_SIZE, MAX_SIZE = (40, 16), (120, 32)  # columns and lines of the chart in the terminal
LINES_BESIDE = 4  # of the terminal: the command, what is below the chart, the next prompt
PICTURE_INCHES, TICKS_OF_PICTURE = (8, 4.5), 8


def command(
    directory: Directory = None,
    *,
    model_dir: ModelDir = None,
    output: Annotated[
        Path | None, typer.Option(help="Also write a picture: NAME.svg or NAME.png.")
    ] = None,
    force: Force = False,
) -> None:
    """Draw the learning curve of a training run."""
    if output and output.suffix not in FORMATS:
        message = f"{output} ends in none of {', '.join(FORMATS)}."
        raise typer.BadParameter(message, param_hint="--output")
    if output:
        refuse_to_replace(output, force=force)
    path = chosen_directory(directory, model_dir)
    lines = read_metrics(path)
    if not lines:
        raise microgpt.DataError(
            f"nothing to draw: {path / METRICS} does not exist or is empty",
            hint="is this a directory that microgpt-cli train has written?",
        )
    steps = [(line["step"], line["loss"]) for line in lines]
    validated = [(line["step"], line["val_loss"]) for line in lines if line["val_loss"] is not None]
    validation = Curve(*map(list, zip(*validated, strict=True))) if validated else None
    if output:  # before the first line, because a reader that leaves ends the command
        _write_picture(_smoothed(steps, POINTS_OF_PICTURE), validation, output)
    for line in chart(_smoothed(steps, POINTS_OF_TEXT), validation, **_size()):
        typer.echo(line.rstrip())
    if validation:
        typer.echo(_named(validation))
    if output:
        typer.echo(f"\npicture saved to {output}")


def _size() -> dict[str, int]:
    """Return the size of a chart that fits the terminal."""
    columns, lines = shutil.get_terminal_size()
    (min_width, min_height), (max_width, max_height) = MIN_SIZE, MAX_SIZE
    return {
        "width": min(max(columns, min_width), max_width),
        "height": min(max(lines - LINES_BESIDE, min_height), max_height),
    }


def _named(validation: Curve) -> str:
    step, loss = validation.best
    return f"best model: step {step}, val loss {loss:.4f}"


def _smoothed(points: Sequence[tuple[float, float]], most: int) -> Curve:
    """Return the mean losses of at most so many groups of points, each at its last step."""
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [sum(loss for _, loss in group) / len(group) for group in groups]
    return Curve([group[-1][0] for group in groups], means)


def _write_picture(training: Curve, validation: Curve | None, path: Path) -> None:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - optional, and takes a second
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise microgpt.DataError(
            "cannot draw a picture: matplotlib is not installed",
            hint="pip install matplotlib; without --output the curve needs nothing more",
        ) from None
    figure = Figure(figsize=PICTURE_INCHES, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss in nats per token")
    axes.plot(*training, label="training")
    curves = [training]
    if validation:
        curves.append(validation)
        axes.plot(*validation, marker=".", label="validation")
        star: dict[str, Any] = {"color": "black", "markersize": 10, "zorder": 3, "clip_on": False}
        axes.plot(*validation.best, "*", label=_named(validation), **star)
        axes.legend()
    losses = loss_ticks(curves, TICKS_OF_PICTURE)
    axes.set(xlim=(0, last_step(curves)), xticks=step_ticks(curves, TICKS_OF_PICTURE))
    axes.set(ylim=(losses[0], losses[-1]), yticks=losses)
    axes.grid(alpha=0.3)
    picture = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "microgpt"}):  # the same curve gives the same file
        figure.savefig(
            picture,
            format=path.suffix.removeprefix("."),
            metadata={"Date": None} if path.suffix == ".svg" else None,
        )
    microgpt.write_file(path, picture.getvalue())
