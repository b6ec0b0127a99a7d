"""`tools/learn.py`, and the recipes that it compares."""

import importlib
from pathlib import Path

import microgpt
import pytest


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))


def test_recipes_of_both_optimizers_are_options_of_a_run() -> None:
    recipes = importlib.import_module("recipes")
    for name, flags in recipes.ADAM.items():
        adam = recipes.config_of(flags, microgpt.TrainConfig, seed=7)
        muon = recipes.config_of(recipes.RECIPES[name], microgpt.TrainConfig, seed=7)
        assert (adam.optimizer, muon.optimizer, muon.seed) == ("adam", "muon", 7), name
        assert muon.steps < adam.steps, name  # a step of Muon takes longer


def test_loss_is_that_of_a_validated_run() -> None:
    learn = importlib.import_module("learn")
    dataset = microgpt.Dataset.from_documents(["anna", "bob", "hannah", "otto"] * 10)
    config = microgpt.TrainConfig(steps=45, optimizer="muon", dtype="float64")
    outcome = learn.trained(dataset, config, threads=1)
    _, trainer = microgpt.prepare(dataset, config, val_fraction=0.1, threads=1)
    last = list(trainer)[-1]
    assert outcome.loss == pytest.approx(last.val_loss, rel=1e-12)
    averaged = learn.trained(dataset, config, threads=1, average=0.9)
    assert averaged.loss != pytest.approx(outcome.loss, rel=1e-3)
