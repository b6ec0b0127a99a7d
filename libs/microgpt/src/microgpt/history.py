"""The reports of a run, step by step, and their curve."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, overload

from microgpt.notebook import curves, table

__all__ = ["History", "StepReport"]

MAX_POINTS = 120  # of a curve: more are not seen, and a notebook keeps them all


class StepReport(NamedTuple):
    """Result of one training step.

    Args:
        step: counted from 1.
        loss: mean over the predicted tokens, in nats, before the update.
        learning_rate: of this step.
        n_tokens: predicted tokens.
        grad_norm: of the gradient before clipping; None without clipping.
        val_loss: mean validation loss per token, in nats, after the update; None between
            validations.
    """

    step: int
    loss: float
    learning_rate: float
    n_tokens: int
    grad_norm: float | None = None
    val_loss: float | None = None

    def _repr_html_(self) -> str:
        rows = {
            name: f"{value:,.6g}"
            for name, value in zip(self._fields, self, strict=True)
            if value is not None
        }
        return table("StepReport", rows)


class History(Sequence[StepReport]):
    """The reports of all steps of a run, in their order; a notebook shows them as a curve.

    Args:
        reports: for instance of a `Trainer`.

    Example:
        >>> import microgpt
        >>> model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100)
        >>> model.history
        <History: 100 steps, loss 2.08 to 0.28>
        >>> model.history[0].step, len(model.history.losses)
        (1, 100)
    """

    def __init__(self, reports: Iterable[StepReport] = ()) -> None:
        self._reports = tuple(reports)

    def __len__(self) -> int:
        return len(self._reports)

    @overload
    def __getitem__(self, index: int) -> StepReport: ...
    @overload
    def __getitem__(self, index: slice) -> "History": ...
    def __getitem__(self, index: int | slice) -> "StepReport | History":
        """Return the report at an index, counted from 0, or a history of some."""
        return History(self._reports[index]) if isinstance(index, slice) else self._reports[index]

    @property
    def losses(self) -> list[float]:
        """The loss of each step, in nats per token."""
        return [report.loss for report in self]

    @property
    def val_losses(self) -> list[tuple[int, float]]:
        """The step and the loss of each validation, in nats per token."""
        return [(each.step, each.val_loss) for each in self if each.val_loss is not None]

    def __repr__(self) -> str:
        return f"<History: {self._summary()}>"

    def _summary(self) -> str:
        """Return the number of steps, the first loss, the mean of the last tenth, and the best."""
        if not self:
            return "no steps"
        losses, n_last = self.losses, -(-len(self) // 10)
        text = f"{len(self):,} step{'s'[: len(self) > 1]}, loss {losses[0]:.2f}"
        if len(losses) > 1:
            text += f" to {sum(losses[-n_last:]) / n_last:.2f}"
        if self.val_losses:
            step, loss = min(self.val_losses, key=lambda each: each[1])
            text += f", validation {loss:.2f} at step {step:,}"
        return text

    def _repr_html_(self) -> str:
        if not self:
            return table("History", {"steps": 0})
        series = {"training loss": [(report.step, report.loss) for report in self]}
        if self.val_losses:
            series["validation loss"] = self.val_losses
        title = f"History: {self._summary()}"
        return curves(
            title,
            "nats per token by step",
            {name: _thinned(points) for name, points in series.items()},
        )


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Return means of points that follow each other, at most `MAX_POINTS` of them."""
    n = -(-len(points) // MAX_POINTS)
    parts = [points[i : i + n] for i in range(0, len(points), n)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts
    ]
