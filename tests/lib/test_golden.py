"""Figures written by other implementations: microgpt.py and the Rust system."""

import json
import random
from pathlib import Path
from typing import Any

import microgpt
import numpy as np
import pytest
from microgpt import GPT, Adam, Dataset, TrainConfig, train_step


@pytest.fixture(scope="module")
def original(shared: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((shared / "golden/microgpt_py/default.json").read_text())
    return figures


@pytest.fixture(scope="module")
def names(shared: Path) -> Dataset:
    return Dataset.from_documents(microgpt.read_documents(shared / "data/names.txt"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_default_run_equals_the_original(
    original: dict[str, Any], names: Dataset, dtype: str, tolerance: float
) -> None:
    rng = random.Random(42)
    model, trainer = microgpt.prepare(names, TrainConfig(learning_rate=0.01), rng, dtype=dtype)
    losses = [report.loss for report in trainer]
    np.testing.assert_allclose(losses, original["losses"], rtol=0, atol=tolerance)
    assert model.generate(20, rng=rng) == original["samples"]


def test_draws_begin_as_in_the_original(original: dict[str, Any], names: Dataset) -> None:
    rng = random.Random(42)
    _, trainer = microgpt.prepare(names, TrainConfig(), rng, dtype="float64")
    first = names.tokenizer.decode(names[trainer.order[0]].tolist())
    assert first == original["first_doc"]
    weights = original["first_weights_of_wte_row0"]
    np.testing.assert_array_equal(trainer.engine.parameters["wte"][0, : len(weights)], weights)


def test_first_gradients_and_twenty_steps_of_the_reference_equal_the_original(
    original: dict[str, Any], names: Dataset
) -> None:
    rng = random.Random(42)
    order = names.shuffled(rng)
    model = GPT.init(microgpt.ModelConfig(vocab_size=27), rng)
    model.loss(names[order[0]].tolist()).backward()
    for name, grads in original["grad_after_step1_backward"].items():
        found = [[weight.grad for weight in row] for row in model.weights[name]]
        np.testing.assert_allclose(found, grads, rtol=0, atol=1e-12, err_msg=name)
    for parameter in model.parameters():
        parameter.grad = 0.0
    adam = Adam(model.parameters())
    losses = [
        train_step(model, adam, names[order[i]].tolist(), 0.01 * (1 - i / 1000)) for i in range(20)
    ]
    np.testing.assert_allclose(losses, original["losses"][:20], rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ["scalar", "vectorized", "native"])
def test_engines_begin_with_the_gradients_of_the_original(
    original: dict[str, Any], names: Dataset, engine: str
) -> None:
    rng = random.Random(42)
    _, trainer = microgpt.prepare(names, TrainConfig(), rng, dtype="float64", engine=engine)
    batch = names.batch([trainer.order[0]], 16)
    _, n_tokens = trainer.engine.loss_and_grads(batch)
    for name, grads in original["grad_after_step1_backward"].items():
        found = trainer.engine.grads[name] / n_tokens
        np.testing.assert_allclose(found, grads, rtol=0, atol=1e-12, err_msg=name)


# ---------------------------------------------------------------- a model of the Rust system


@pytest.mark.parametrize("engine", ["scalar", "vectorized", "native"])
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


def test_training_in_file_order_follows_the_rust_system(shared: Path, names: Dataset) -> None:
    # Its first weights are not known; that its losses fall as ours do is all there is to compare.
    expected = json.loads((shared / "golden/seed_rust/expected.json").read_text())
    config = TrainConfig(learning_rate=0.01)
    _, trainer = microgpt.prepare(names, config, random.Random(42), shuffle=False)
    losses = [report.loss for report in trainer]
    ours, theirs = (np.array(x)[-200:].mean() for x in (losses, expected["losses"]))
    assert ours == pytest.approx(theirs, abs=0.1)  # two seeds differ by some 0.03
