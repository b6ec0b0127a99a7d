"""Runs that start from another model, and runs that end before their last step."""

import math
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import microgpt
import numpy as np
import pytest
from microgpt import ConfigError, DataError, Dataset, LanguageModel, TokenError, TrainConfig

WORDS = ["anna", "bob", "hannah", "otto"]
SIZES = {"n_embd": 8, "n_head": 2, "n_layer": 2, "block_size": 8}


@pytest.fixture(scope="module")
def base() -> LanguageModel:
    return microgpt.fit(WORDS, steps=50, **SIZES, dtype="float64")  # type: ignore[arg-type]


def prepared(documents: list[str], base: LanguageModel, **options: Any) -> tuple[Any, Any]:
    dataset = Dataset.from_documents(documents)
    return microgpt.prepare(dataset, TrainConfig(steps=20), init_from=base, **options)


def test_training_starts_from_a_copy_of_the_weights(base: LanguageModel) -> None:
    before = base.parameters.flat.copy()
    model, trainer = prepared(["bob", "otto"], base)
    assert model.config == base.config
    assert model.dtype == "float64"
    assert model.tokenizer == base.tokenizer
    np.testing.assert_array_equal(model.parameters.flat, before)
    assert model.score(WORDS) == base.score(WORDS)
    assert not model.engine.adam_m.flat.any()
    trainer.advance(20)
    assert model.score(["bob"]) < base.score(["bob"])
    np.testing.assert_array_equal(base.parameters.flat, before)


def test_only_the_shuffle_is_drawn(base: LanguageModel) -> None:
    rng, other = random.Random(3), random.Random(3)
    prepared(["anna", "bob", "zoe"], base, rng=rng, extend_vocab=True)
    Dataset.from_documents(["a", "b", "c"]).shuffled(other)
    assert rng.getstate() == other.getstate()


def test_type_may_change(base: LanguageModel) -> None:
    model = microgpt.fit(WORDS, steps=1, dtype="float32", init_from=base)
    assert model.dtype == "float64"  # the default is no choice
    single = LanguageModel(
        base.tokenizer,
        microgpt.fit(WORDS, steps=1, **SIZES).parameters,  # type: ignore[arg-type]
    )
    assert microgpt.fit(WORDS, steps=1, dtype="float64", init_from=single).dtype == "float64"


def test_default_rate_is_a_fifth_of_that_of_a_new_model(base: LanguageModel) -> None:
    _, trainer = prepared(["bob"], base)
    assert trainer.learning_rate == pytest.approx(0.01 * 16 / 8 / 5)
    _, trainer = prepared(["bob"], base, learning_rate=0.03)
    assert trainer.learning_rate == 0.03


def test_default_rates_of_muon_are_a_fifth_too(base: LanguageModel) -> None:
    _, trainer = prepared(["bob"], base, optimizer="muon")
    rates = [trainer.learning_rate, trainer.config.muon_learning_rate]
    assert rates == pytest.approx([0.01 * math.sqrt(16 / 8) / 5, 0.02 / 5])
    _, trainer = prepared(["bob"], base, optimizer="muon", muon_learning_rate=0.03)
    assert trainer.config.muon_learning_rate == 0.03


@pytest.mark.parametrize("name", SIZES)
def test_another_size_is_named(base: LanguageModel, name: str) -> None:
    size = SIZES[name]
    other = {name: 4 * size}
    with pytest.raises(ConfigError, match=f"^{name} is {4 * size}, expected {size} as in the"):
        microgpt.fit(WORDS, steps=1, init_from=base, **other)  # type: ignore[arg-type]
    assert microgpt.fit(WORDS, steps=1, init_from=base, **{name: size}).config == base.config  # type: ignore[arg-type]


def test_unknown_characters_are_named(base: LanguageModel) -> None:
    with pytest.raises(TokenError, match=r"hold 2 characters .*: 'x', 'é'$") as e:
        microgpt.fit(["anna", "xé"], steps=1, init_from=base)
    assert e.value.hint == "extend_vocab (--extend-vocab) adds them"
    with pytest.raises(TokenError, match=r"'0', .*'9', \.\.\.$"):
        microgpt.fit(["0123456789z"], steps=1, init_from=base)


def test_added_rows_change_no_logit_of_known_characters(base: LanguageModel) -> None:
    model, _ = prepared(["anna", "Zoé"], base, extend_vocab=True)
    assert model.tokenizer.chars == tuple(sorted({*base.tokenizer.chars, *"Zoé"}))
    new_ids = model.tokenizer.encode("".join(base.tokenizer.chars))
    new_ids.append(model.tokenizer.bos)
    for word in WORDS:
        old = base.logits(base.tokenizer.encode_document(word)[:8])
        new = model.logits(model.tokenizer.encode_document(word)[:8])
        np.testing.assert_array_equal(new[:, new_ids], old)
    rows = model.tokenizer.encode("Zé")
    assert np.abs(model.parameters["wte"][rows]).min() > 0
    assert np.abs(model.parameters["lm_head"][rows]).min() > 0


def test_chat_tokens_keep_their_rows() -> None:
    talk = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]
    base, _ = microgpt.prepare(Dataset.from_conversations([talk]), TrainConfig(**SIZES))  # type: ignore[arg-type]
    more = [[{"role": "user", "content": "a-"}, {"role": "assistant", "content": "b"}]]
    model, _ = microgpt.prepare(
        Dataset.from_conversations(more), TrainConfig(), init_from=base, extend_vocab=True
    )
    for name in model.tokenizer.special_tokens:
        old, new = (each.tokenizer.special_id(name) for each in (base, model))
        np.testing.assert_array_equal(model.parameters["wte"][new], base.parameters["wte"][old])
    with pytest.raises(DataError, match="got documents, expected conversations as the model"):
        microgpt.fit(["ab"], steps=1, init_from=base)


def test_conversations_do_not_go_on_from_documents(base: LanguageModel) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match="got conversations, expected documents as the model"):
        microgpt.prepare(Dataset.from_conversations([talk]), TrainConfig(), init_from=base)


def test_record_names_the_model_that_training_started_from(
    base: LanguageModel, tmp_path: Path
) -> None:
    second = microgpt.fit(WORDS, steps=3, init_from=base)
    third = microgpt.fit(WORDS, steps=4, init_from=second)
    third.save(tmp_path)
    record = microgpt.load(tmp_path).training
    assert record is not None
    assert record.init_from is not None
    assert record.init_from.training == second.training
    assert record.init_from.training is not None
    assert record.init_from.training.init_from is not None
    assert record.init_from.training.init_from.training == base.training
    assert base.training is not None
    assert base.training.init_from is None


def test_snapshot_of_a_continued_run_restores(base: LanguageModel, tmp_path: Path) -> None:
    options: dict[str, Any] = {"init_from": base, "extend_vocab": True}
    dataset = Dataset.from_documents(["anna", "zoe"])
    whole, trainer = microgpt.prepare(dataset, TrainConfig(steps=6), **options)
    trainer.advance(3)
    microgpt.write_snapshot(tmp_path, trainer, {})
    trainer.advance(3)
    snapshot = microgpt.read_snapshot(tmp_path)
    resumed, again = microgpt.prepare(dataset, snapshot.train_config, init_from=snapshot.model())
    microgpt.restore(again, snapshot)
    again.advance(3)
    np.testing.assert_array_equal(resumed.parameters.flat, whole.parameters.flat)
    assert again.record() == trainer.record()


def test_model_of_names_learns_those_of_another_language() -> None:
    names = (files("microgpt_cli") / "sample_data/names.txt").read_text().split()
    others = (Path(__file__).parents[2] / "japanese_names.txt").read_text().split()
    unseen = [name for name in others if name not in names]
    random.Random(1).shuffle(unseen)
    shown, held_out = unseen[:200], unseen[200:]
    assert len(held_out) >= 40
    base = microgpt.fit(names, steps=3000, batch_size=8, n_embd=32)
    continued = microgpt.fit(shown, steps=1000, batch_size=8, init_from=base, weight_decay=0.1)
    gain = np.mean(base.score(held_out)) - np.mean(continued.score(held_out))
    assert gain > 0.3


# ---------------------------------------------------------------- patience


def patient(patience: int | None, **options: Any) -> microgpt.Trainer:
    config = TrainConfig(steps=400, eval_every=10, patience=patience, learning_rate=0.05)
    _, trainer = microgpt.prepare(Dataset.from_documents(WORDS * 3), config, **options)
    return trainer


def test_training_ends_after_validations_that_are_not_better() -> None:
    validation = Dataset.from_documents(["hanna", "bobo"])
    trainer = patient(3, val_dataset=validation)
    losses = [report.val_loss for report in trainer if report.val_loss is not None]
    assert trainer.step < 400
    assert trainer.step == 10 * len(losses)
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3
    assert trainer.best is not None
    assert trainer.best.step == 10 * (best + 1)
    assert trainer.is_finished
    assert trainer.has_lost_patience
    assert trainer.advance(5) == []
    without = patient(None, val_dataset=validation)
    assert [report.val_loss for report in without if report.val_loss][: len(losses)] == losses
    assert not without.has_lost_patience


def test_fit_ends_early_with_the_best_model() -> None:
    model = microgpt.fit(
        WORDS * 3, steps=2000, learning_rate=0.1, val_fraction=0.2, eval_every=5, patience=2
    )
    assert model.training is not None
    assert model.training.steps < 2000


def test_patience_needs_validation() -> None:
    with pytest.raises(ConfigError, match="patience is 3 without validation, expected val_frac"):
        patient(3)
