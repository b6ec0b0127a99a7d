"""Models and scores in few words, and as tables of a notebook."""

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import microgpt
import pytest
from markup import shown_in
from microgpt import Dataset, History, LanguageModel, Reply, Score, TrainConfig
from small_models import DOCUMENTS, SIZES, untrained
from texts import TALK

SHAPE = "n_embd 6, n_head 3, n_layer 2, block_size 8"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return microgpt.fit(DOCUMENTS, steps=1100, engine="native", seed=5, **SIZES)


def rows_of(shown: Any) -> dict[str, str]:
    _, *cells = shown_in(shown._repr_html_())
    return dict(zip(cells[::2], cells[1::2], strict=True))


def test_model_is_described_on_one_line(model: LanguageModel) -> None:
    n_weights = f"{model.config.n_params:,}"
    made = model.training
    assert made is not None
    loss = f"last loss {made.loss:.3f}"
    expected = f"<LanguageModel: {SHAPE}; 7 tokens, {n_weights} weights; 1,100 steps, {loss}>"
    assert repr(model) == expected
    assert repr(untrained(4)).endswith("block_size 4; 5 tokens, 516 weights>")


def test_model_shows_sizes_vocabulary_engine_and_training(model: LanguageModel) -> None:
    made = model.training
    assert made is not None
    assert rows_of(model) == {
        "sizes": SHAPE,
        "vocabulary": "7 tokens: abhnot",
        "weights": f"{model.config.n_params:,} of type float32",
        "engine": "native",
        "training": "1,100 steps, learning_rate 0.02667, batch_size 1, schedule linear, "
        "optimizer adam, seed 5",
        "loss": f"last loss {made.loss:.3f} (nats per token)",
    }
    assert len(model._repr_html_()) < 1500


def test_validation_loss_comes_before_that_of_the_last_step() -> None:
    model = microgpt.fit(DOCUMENTS, steps=6, val_fraction=0.25, eval_every=3, **SIZES)
    assert model.training is not None
    expected = f"validation loss {model.training.val_loss:.3f}"
    assert rows_of(model)["loss"].startswith(expected)
    assert expected in repr(model)


def test_model_without_a_record_shows_what_is_known() -> None:
    assert [*rows_of(untrained(4))] == ["sizes", "vocabulary", "weights", "engine"]


def test_model_shows_strange_characters_and_chat_and_subwords() -> None:
    strange = microgpt.fit(["<b>", "&amp;"], steps=1)
    assert rows_of(strange)["vocabulary"] == "9 tokens: &;<>abmp"
    config = TrainConfig(steps=1)
    chatty, trainer = microgpt.prepare(Dataset.from_conversations([TALK]), config)
    trainer.advance(1)
    assert rows_of(chatty)["vocabulary"].endswith(" for chat")
    words = microgpt.fit(["banana"], steps=1, tokenizer="bpe", vocab_size=259)
    assert rows_of(words)["vocabulary"] == "259 tokens: subwords"
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 500)))
    shown = rows_of(microgpt.fit([many], steps=1))["vocabulary"]
    assert shown == f"501 tokens: {many[:80]} …"


def test_history_is_of_the_model_and_its_copies_and_not_in_its_files(
    model: LanguageModel, tmp_path: Path
) -> None:
    assert len(model.history) == 1100
    pickled = pickle.loads(pickle.dumps(model))  # noqa: S301 - ours
    for made in (copy.copy(model), copy.deepcopy(model), pickled):
        assert list(made.history) == list(model.history)
    model.save(tmp_path)
    loaded = microgpt.load(tmp_path)
    assert isinstance(loaded.history, History)
    assert list(loaded.history) == []


def test_score_shows_its_loss_in_every_unit() -> None:
    rows = rows_of(Score(1234, 0.6931471805599453, 617, 3))
    assert rows == {
        "tokens": "1,234",
        "nats per token": "0.6931",
        "bits per token": "1",
        "bits per byte": "2",
        "perplexity": "2",
        "unknown characters": "3",
    }


def test_reply_is_printed_without_token_ids(model: LanguageModel) -> None:
    reply = Reply("hello", "stop", 5, model.prompt("bob"), [0, 1, 2, 3, 4])
    assert repr(reply) == "Reply(content='hello', finish_reason='stop', n_tokens=5)"


def test_trainer_is_described_on_one_line() -> None:
    _, trainer = microgpt.prepare(Dataset.from_documents(DOCUMENTS), TrainConfig(steps=1200))
    assert repr(trainer) == "<Trainer: step 0 of 1,200>"
    trainer.advance(3)
    assert re.fullmatch(r"<Trainer: step 3 of 1,200, loss \d\.\d{3}>", repr(trainer))
