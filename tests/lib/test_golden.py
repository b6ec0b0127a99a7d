"""Figures written by other implementations: microgpt.py and the Rust system."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import microgpt
import numpy as np
import pytest
from microgpt import GPT, Adam, Dataset, TrainConfig, train_step

ROOT = Path(__file__).parents[2]
SAMPLE_NAMES = ROOT / "apps/microgpt_cli/src/microgpt_cli/sample_data/names.txt"


class Run(NamedTuple):
    """A run of microgpt.py: the file it read, and the figures it computed."""

    input: Path
    figures: dict[str, Any]

    @classmethod
    def read(cls, input_path: Path, figures: Path) -> "Run":
        return cls(input_path, json.loads(figures.read_text(encoding="utf-8")))

    def dataset(self) -> Dataset:
        return Dataset.from_documents(microgpt.read_documents(self.input))

    def printed_steps(self) -> list[str]:
        return [
            f"step {step:4d} / 1000 | loss {loss:.4f}"
            for step, loss in enumerate(self.figures["losses"], start=1)
        ]

    def printed_samples(self) -> list[str]:
        return [
            f"sample {number:2d}: {sample}"
            for number, sample in enumerate(self.figures["samples"], start=1)
        ]


@pytest.fixture(scope="module")
def of_shared_names(shared: Path) -> Run:
    return Run.read(shared / "data/names.txt", shared / "golden/microgpt_py/default.json")


@pytest.fixture(scope="module")
def of_sample_names() -> Run:
    return Run.read(SAMPLE_NAMES, ROOT / "tests/golden/sample_names.json")


@pytest.fixture(scope="module", params=["of_sample_names", "of_shared_names"])
def original(request: pytest.FixtureRequest) -> Run:
    run: Run = request.getfixturevalue(request.param)
    return run


# ---------------------------------------------------------------- engines


def skip_unless_available(engine: str) -> str:
    if reason := microgpt.unavailable_engines().get(engine):
        pytest.skip(reason)
    return engine


@pytest.fixture(params=["scalar", "vectorized", "native"])
def engine(request: pytest.FixtureRequest) -> str:
    return skip_unless_available(request.param)


@pytest.fixture(params=["vectorized", "native"])
def fast_engine(request: pytest.FixtureRequest) -> str:
    return skip_unless_available(request.param)


def trained(original: Run, engine: str, dtype: str) -> tuple[list[float], list[str]]:
    """Return the losses and the samples of a run with the default options."""
    rng = random.Random(42)
    model, trainer = microgpt.prepare(
        original.dataset(), TrainConfig(), rng, dtype=dtype, engine=engine
    )
    return [report.loss for report in trainer], model.generate(20, rng=rng)


def test_float64_run_equals_the_original_digit_for_digit(original: Run, fast_engine: str) -> None:
    losses, samples = trained(original, fast_engine, "float64")
    ours = Run(original.input, {"losses": losses, "samples": samples})
    assert ours.printed_steps() == original.printed_steps()
    assert ours.printed_samples() == original.printed_samples()
    np.testing.assert_allclose(losses, original.figures["losses"], rtol=1e-12, atol=0)


def test_float32_run_of_shared_names_has_the_samples_of_the_original(
    of_shared_names: Run, fast_engine: str
) -> None:
    losses, samples = trained(of_shared_names, fast_engine, "float32")
    assert samples == of_shared_names.figures["samples"]
    np.testing.assert_allclose(losses, of_shared_names.figures["losses"], rtol=0, atol=1e-6)


def test_float32_run_of_sample_names_follows_the_original(
    of_sample_names: Run, fast_engine: str
) -> None:
    # One gradient of the first step is 4e-9, smaller than Adam's eps: float32 keeps one digit of it
    # and moves that weight differently, which later changes losses and samples.
    losses, _ = trained(of_sample_names, fast_engine, "float32")
    expected = of_sample_names.figures["losses"]
    np.testing.assert_allclose(losses[:100], expected[:100], rtol=0, atol=1e-4)
    assert np.mean(losses) == pytest.approx(np.mean(expected), abs=0.01)


def test_draws_begin_as_in_the_original(original: Run) -> None:
    names = original.dataset()
    _, trainer = microgpt.prepare(names, TrainConfig(), random.Random(42), dtype="float64")
    first = names.tokenizer.decode(names[trainer.order[0]].tolist())
    assert first == original.figures["first_doc"]
    weights = original.figures["first_weights_of_wte_row0"]
    np.testing.assert_array_equal(trainer.engine.parameters["wte"][0, : len(weights)], weights)


def test_first_gradients_and_twenty_steps_of_the_reference_equal_the_original(
    of_shared_names: Run,
) -> None:
    names, figures = of_shared_names.dataset(), of_shared_names.figures
    rng = random.Random(42)
    order = names.shuffled(rng)
    model = GPT.init(microgpt.ModelConfig(vocab_size=27), rng)
    model.loss(names[order[0]].tolist()).backward()
    for name, grads in figures["grad_after_step1_backward"].items():
        found = [[weight.grad for weight in row] for row in model.weights[name]]
        np.testing.assert_allclose(found, grads, rtol=0, atol=1e-12, err_msg=name)
    for parameter in model.parameters():
        parameter.grad = 0.0
    adam = Adam(model.parameters())
    losses = [
        train_step(model, adam, names[order[i]].tolist(), 0.01 * (1 - i / 1000)) for i in range(20)
    ]
    np.testing.assert_allclose(losses, figures["losses"][:20], rtol=0, atol=1e-12)


def test_engines_begin_with_the_gradients_of_the_original(
    of_shared_names: Run, engine: str
) -> None:
    names, rng = of_shared_names.dataset(), random.Random(42)
    _, trainer = microgpt.prepare(names, TrainConfig(), rng, dtype="float64", engine=engine)
    batch = names.batch([trainer.order[0]], 16)
    _, n_tokens = trainer.engine.loss_and_grads(batch)
    for name, grads in of_shared_names.figures["grad_after_step1_backward"].items():
        found = trainer.engine.grads[name] / n_tokens
        np.testing.assert_allclose(found, grads, rtol=0, atol=1e-12, err_msg=name)


# ---------------------------------------------------------------- the algorithm as a program


@contextmanager
def figures_printed(path: Path) -> Iterator[Iterator[str]]:
    """Run `python -m microgpt` on a file, yield the lines with figures, and end the program."""
    command = [sys.executable, "-W", "error", "-m", "microgpt", str(path)]
    is_figure = re.compile(r"(num|vocab|step|sample) ").match
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            yield filter(is_figure, map(str.rstrip, program.stdout))
        finally:
            program.terminate()


def expected_lines(original: Run) -> list[str]:
    figures = original.figures
    sizes = [
        f"num docs: {figures['num_docs']}",
        f"vocab size: {figures['vocab_size']}",
        f"num params: {figures['num_params']}",
    ]
    return [*sizes, *original.printed_steps(), *original.printed_samples()]


def test_program_begins_as_the_original(of_sample_names: Run) -> None:
    expected = expected_lines(of_sample_names)[:8]
    with figures_printed(of_sample_names.input) as lines:
        assert list(islice(lines, 8)) == expected


@pytest.mark.long
def test_program_prints_every_figure_of_the_original(original: Run) -> None:
    with figures_printed(original.input) as lines:
        assert list(lines) == expected_lines(original)


# ---------------------------------------------------------------- a model of the Rust system


def test_model_of_the_rust_system_gives_its_logits(shared: Path, engine: str) -> None:
    expected = json.loads((shared / "golden/seed_rust/expected.json").read_text())
    model = microgpt.load(shared / "golden/seed_rust", engine=engine)
    assert model.dtype == "float64"
    token_ids = model.tokenizer.encode_document("marianna")
    assert token_ids == expected["tokens"]
    np.testing.assert_allclose(model.logits(token_ids[:-1]), expected["logits"], rtol=0, atol=1e-12)


def test_model_of_the_rust_system_is_saved_again_with_the_same_numbers(
    shared: Path, tmp_path: Path
) -> None:
    microgpt.load(shared / "golden/seed_rust").save(tmp_path)
    for name in ("weights.json", "meta.json"):
        theirs = json.loads((shared / "golden/seed_rust" / name).read_text())
        ours = json.loads((tmp_path / name).read_text())
        assert ours.keys() >= theirs.keys()
        if name == "meta.json":  # in weights.json their order is that of a hash table
            assert list(ours)[: len(theirs)] == list(theirs)
        assert {key: ours[key] for key in theirs} == theirs


def test_training_in_file_order_follows_the_rust_system(shared: Path, of_shared_names: Run) -> None:
    # Its first weights are not known; that its losses fall as ours do is all there is to compare.
    expected = json.loads((shared / "golden/seed_rust/expected.json").read_text())
    config = TrainConfig(learning_rate=0.01)
    names = of_shared_names.dataset()
    _, trainer = microgpt.prepare(names, config, random.Random(42), shuffle=False)
    losses = [report.loss for report in trainer]
    ours, theirs = (np.array(x)[-200:].mean() for x in (losses, expected["losses"]))
    assert ours == pytest.approx(theirs, abs=0.1)  # two seeds differ by some 0.03
