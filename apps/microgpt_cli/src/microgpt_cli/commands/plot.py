"""`microgpt-cli plot`: the learning curve of a run, in the terminal and as a picture."""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import microgpt
import typer

from microgpt_cli.metrics import METRICS, read_metrics
from microgpt_cli.writing import write_whole

__all__ = ["command"]

FORMATS = ("svg", "png")
MAX_POINTS = 100  # of the training loss, averaged because single steps are noisy
MARGIN = 26  # columns beside the curve in the terminal
MAX_WIDTH, MIN_WIDTH, HEIGHT = 100, 20, 16  # of the curve in the terminal
PICTURE_INCHES = (8, 4.5)


@dataclass(frozen=True)
class Curve:
    """A loss in nats per token, by step."""

    steps: list[float]
    losses: list[float]


def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a trained model.")],
    *,
    output: Annotated[
        Path | None, typer.Option(help="Also write a picture: NAME.svg or NAME.png.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUTPUT.")] = False,
) -> None:
    """Draw the learning curve of a training run."""
    if output and output.suffix.removeprefix(".") not in FORMATS:
        raise typer.BadParameter(f"{output} ends in neither .svg nor .png.", param_hint="--output")
    if output and output.exists() and not force:
        raise microgpt.DataError(
            f"{output} exists", hint="use --force to overwrite it, or name another file"
        )
    lines = read_metrics(directory)
    if not lines:
        raise microgpt.DataError(
            f"nothing to draw: {directory / METRICS} does not exist or is empty",
            hint="is this a directory that microgpt-cli train has written?",
        )
    training = _smoothed([(line["step"], line["loss"]) for line in lines])
    validated = [(line["step"], line["val_loss"]) for line in lines if line["val_loss"] is not None]
    validation = Curve(*map(list, zip(*validated, strict=True))) if validated else None
    drawing = _drawn(training, validation)
    if output:  # before the first line, because a reader that leaves ends the command
        _write_picture(training, validation, output)
    typer.echo(drawing)
    if output:
        typer.echo(f"\npicture saved to {output}")


def _smoothed(points: list[tuple[float, float]]) -> Curve:
    """Return the mean of at most MAX_POINTS groups of neighbouring points."""
    size = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [[sum(column) / len(group) for column in zip(*group, strict=True)] for group in groups]
    return Curve([step for step, _ in means], [loss for _, loss in means])


def _drawn(training: Curve, validation: Curve | None) -> str:
    """Return the curves as text, as wide as the terminal allows."""
    try:
        import plotille  # type: ignore[import-untyped] # noqa: PLC0415 - optional
    except ImportError:
        _refuse("plotille")
    figure = plotille.Figure()
    columns = shutil.get_terminal_size().columns
    figure.width = min(max(columns - MARGIN, MIN_WIDTH), MAX_WIDTH)
    figure.height = HEIGHT
    figure.with_colors = False
    figure.x_label, figure.y_label = "step", "nats"
    last_steps = [curve.steps[-1] for curve in (training, validation) if curve]
    figure.set_x_limits(min_=0, max_=max(1, *last_steps))
    figure.x_ticks_fkt = lambda step, _: f"{step:.0f}"
    figure.y_ticks_fkt = lambda loss, _: f"{loss:.2f}"
    figure.plot(training.steps, training.losses, label="loss")
    if validation:
        figure.scatter(validation.steps, validation.losses, label="val loss", marker="o")
    text: str = figure.show(legend=True)
    return "\n".join(line.rstrip("\N{BRAILLE PATTERN BLANK} ") for line in text.splitlines())


def _write_picture(training: Curve, validation: Curve | None, path: Path) -> None:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - optional, and takes a second
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        _refuse("matplotlib")
    figure = Figure(figsize=PICTURE_INCHES, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss in nats per token")
    axes.plot(training.steps, training.losses, label="training")
    if validation:
        axes.plot(validation.steps, validation.losses, marker=".", label="validation")
        axes.legend()
    axes.grid(alpha=0.3)
    picture = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "microgpt"}):  # the same curve gives the same file
        figure.savefig(
            picture,
            format=path.suffix.removeprefix("."),
            metadata={"Date": None} if path.suffix == ".svg" else None,
        )
    write_whole(path, picture.getvalue())


def _refuse(package: str) -> NoReturn:
    raise microgpt.DataError(
        f"cannot draw: {package} is not installed", hint='pip install "microgpt-cli[plot]"'
    )
