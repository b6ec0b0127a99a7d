"""The reports of a run as a sequence, in few words, and as a picture."""

import pickle

import microgpt
import pytest
from markup import parsed, shown_in
from microgpt import History, StepReport


def reports(n: int, *, every: int | None = None) -> list[StepReport]:
    return [
        StepReport(i, 1 + 2 / i, 0.01, 7, None, 1 + 4 / i if every and i % every == 0 else None)
        for i in range(1, n + 1)
    ]


def test_history_is_a_sequence_of_reports() -> None:
    made = reports(5)
    history = History(iter(made))
    assert list(history) == made
    assert (len(history), history[0], history[-1]) == (5, made[0], made[4])
    assert isinstance(history[1:3], History)
    assert list(history[1:3]) == made[1:3]
    assert made[3] in history


def test_losses_and_validation_losses_are_plain_lists() -> None:
    history = History(reports(4, every=2))
    assert history.losses == [3.0, 2.0, 1 + 2 / 3, 1.5]
    assert history.val_losses == [(2, 3.0), (4, 2.0)]
    assert History([StepReport(1, 1.0, 0.1, 7, None, 0.0)]).val_losses == [(1, 0.0)]


@pytest.mark.parametrize(
    ("history", "text"),
    [
        (History(), "<History: no steps>"),
        (History(reports(1)), "<History: 1 step, loss 3.00>"),
        (History(reports(1000)), "<History: 1,000 steps, loss 3.00 to 1.00>"),
        (
            History([*reports(4, every=2), StepReport(5, 7.0, 0.01, 7, None, 9.0)]),
            "<History: 5 steps, loss 3.00 to 7.00, validation 2.00 at step 4>",
        ),
    ],
)
def test_history_is_described_on_one_line(history: History, text: str) -> None:
    assert repr(history) == text


def test_last_loss_is_the_mean_of_the_last_tenth() -> None:
    losses = [5.0] * 18 + [1.0, 2.0]
    history = History([StepReport(i, loss, 0.01, 7) for i, loss in enumerate(losses, 1)])
    assert "5.00 to 1.50" in repr(history)


def curves_of(history: History) -> list[int]:
    """Return the number of points of each curve."""
    lines = [each for each in parsed(history._repr_html_()).iter() if each.tag.endswith("polyline")]
    return [len(line.attrib["points"].split()) for line in lines]


def test_picture_has_a_curve_for_each_kind_of_loss() -> None:
    assert curves_of(History()) == []
    assert curves_of(History(reports(7))) == [7]
    history = History(reports(7, every=3))
    assert curves_of(history) == [7, 2]
    assert {"training loss", "validation loss"} < {*shown_in(history._repr_html_())}


def test_picture_of_a_long_run_stays_small() -> None:
    history = History(reports(100_000, every=100))
    assert all(100 < n_points <= 120 for n_points in curves_of(history))
    assert len(history._repr_html_()) < 6000


def test_report_shows_what_it_knows() -> None:
    shown = shown_in(StepReport(1200, 2.5, 0.01, 7)._repr_html_())
    rows = [("step", "1,200"), ("loss", "2.5"), ("learning_rate", "0.01"), ("n_tokens", "7")]
    assert shown == ["StepReport", *(text for row in rows for text in row)]


def test_history_is_pickled() -> None:
    assert list(pickle.loads(pickle.dumps(History(reports(3))))) == reports(3)  # noqa: S301 - ours


def test_fit_keeps_the_reports_that_it_gives() -> None:
    given: list[StepReport] = []
    options = {"steps": 25, "val_fraction": 0.5, "eval_every": 10}
    model = microgpt.fit(["anna", "bob", "hannah", "otto"], on_step=given.append, **options)  # type: ignore[arg-type]
    assert list(model.history) == given
    assert [report.step for report in given] == [*range(1, 26)]
    assert [step for step, _ in model.history.val_losses] == [10, 20, 25]
