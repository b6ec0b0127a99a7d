"""`microgpt-cli bench`: its figures, not their size."""

import json
from typing import TYPE_CHECKING

import microgpt
import pytest
from microgpt_cli.commands import bench

if TYPE_CHECKING:
    from cli.conftest import Cli

SMALL, LARGER = bench.Shape(8, 2, 1, 8, 1, 5), bench.Shape(12, 3, 2, 8, 3, 7)
ENGINES = [name for name in microgpt.ENGINES if name != "auto"]


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SHAPES", (SMALL, LARGER))
    monkeypatch.setattr(bench, "N_MEASUREMENTS", 1)
    monkeypatch.setattr(bench, "SECONDS_PER_MEASUREMENT", 0.001)


@pytest.fixture
def any_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no peak, which takes a process of its own."""
    monkeypatch.setattr(bench, "peak_gflop_per_second", lambda _: 1.0)


def test_json_has_each_engine_at_each_shape_but_the_scalar_one_only_at_the_first(
    cli: "Cli",
) -> None:
    result = cli("bench", "--json", "--threads", 1)
    assert (result.status, result.err) == (0, "")
    report = json.loads(result.out)
    rows = report["results"]
    assert {(row["model"], row["batch"], row["engine"]) for row in rows} == {
        *(("8/2/1/8", "1 x 5", engine) for engine in ENGINES),
        *(("12/3/2/8", "3 x 7", engine) for engine in ENGINES if engine != "scalar"),
    }
    for row in rows:
        shape = SMALL if row["model"] == SMALL.model else LARGER
        per_second = 1e6 / row["us_per_step"]
        n_tokens = shape.batch_size * shape.n_tokens
        assert row["tokens_per_second"] == pytest.approx(
            n_tokens * per_second,
            rel=0.01,
            abs=0.5,  # it is whole
        )
        expected = shape.gflop(vocab_size=27) * per_second
        assert row["gflop_per_second"] == pytest.approx(expected, rel=0.05, abs=1e-4)
        share = row["gflop_per_second"] / report["peak_gflop_per_second"]
        assert row["share_of_peak"] == pytest.approx(share, rel=0.05, abs=1e-4)
        assert row["sampled_tokens_per_second"] > 0


def test_operations_are_those_of_the_matrix_products() -> None:
    n_embd, n_layer, vocab_size, n_documents, n_tokens = 12, 2, 27, 3, 7
    per_token = n_layer * 12 * n_embd * n_embd + vocab_size * n_embd
    seen = sum(range(1, n_tokens + 1))  # keys, and as many values, over all queries
    multiplications = n_tokens * per_token + n_layer * 2 * seen * n_embd
    # One addition goes with each; backward takes two products for each one forward.
    expected = 3 * 2 * n_documents * multiplications / 1e9
    assert LARGER.gflop(vocab_size) == pytest.approx(expected)


def test_table_names_the_peak_and_has_a_line_for_each_result(cli: "Cli") -> None:
    lines = cli("bench").lines
    assert lines[1].startswith("peak: a plain matrix product (NumPy), here ")
    assert lines[3].split()[:3] == ["model", "step", "engine"]
    assert [line.split()[0] for line in lines[4:]] == ["8/2/1/8"] * len(ENGINES) + ["12/3/2/8"] * (
        len(ENGINES) - 1
    )


@pytest.mark.usefixtures("any_peak")
def test_optimizer_that_is_measured_is_the_one_asked_for(
    cli: "Cli", monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizers = []

    class Watched(microgpt.Trainer):
        def advance(self, n_steps: int) -> list[microgpt.StepReport]:
            optimizers.append(self.config.optimizer)
            return super().advance(n_steps)

    monkeypatch.setattr("microgpt.training.fit.Trainer", Watched)
    assert cli("bench", "--json", "--optimizer", "muon").status == 0
    assert set(optimizers) == {"muon"}


@pytest.mark.usefixtures("any_peak")
def test_engine_that_is_not_here_is_left_out(cli: "Cli", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microgpt, "unavailable_engines", lambda: {"native": "not built"})
    engines = {row["engine"] for row in json.loads(cli("bench", "--json").out)["results"]}
    assert engines == {"scalar", "vectorized"}
