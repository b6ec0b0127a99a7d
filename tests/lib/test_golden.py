"""Figures written by other implementations: microgpt.py and the Rust system."""

import json
import random
from pathlib import Path
from typing import Any

import microgpt
import numpy as np
import pytest
from microgpt import Dataset, TrainConfig


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
