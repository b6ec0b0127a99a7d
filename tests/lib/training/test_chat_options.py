"""Options that are chosen for conversations, where they are open."""

from typing import Any

import microgpt
import pytest
from microgpt import ConfigError, DataError, Dataset, TrainConfig, chat_setup


def talks(n: int, length: int = 20) -> Dataset:
    return Dataset.from_conversations(
        [
            {"role": "user", "content": f"{number:0{length}}"},
            {"role": "assistant", "content": f"{number * 7919:0{length}}"},
        ]
        for number in range(n)
    )


def config_of(dataset: Dataset, **options: Any) -> TrainConfig:
    return chat_setup(dataset, **options)[0]


def test_given_options_are_kept() -> None:
    given: dict[str, Any] = {
        "n_embd": 8, "n_layer": 1, "block_size": 24, "steps": 7, "warmup_steps": 2,
        "batch_size": 3, "optimizer": "adam", "learning_rate": 0.5, "loss_on": "all",
        "weight_decay": 0.5,
    }  # fmt: skip
    assert config_of(talks(40), **given) == TrainConfig(**given)


def test_block_holds_all_but_one_in_twenty() -> None:
    lengths = [20] * 95 + [400] * 5
    dataset = Dataset.from_conversations(
        [{"role": "user", "content": "a" * n}, {"role": "assistant", "content": "b"}]
        for n in lengths
    )
    block_size = config_of(dataset).block_size
    assert 25 < block_size < 50
    assert int((dataset.lengths <= block_size).sum()) == 95


def test_block_holds_all_where_that_costs_little() -> None:
    dataset = Dataset.from_conversations(
        [{"role": "user", "content": "a" * n}, {"role": "assistant", "content": "b"}]
        for n in [100] * 98 + [117] * 2
    )
    assert config_of(dataset).block_size >= dataset.lengths.max()


def test_more_to_learn_takes_a_larger_model_and_more_steps() -> None:
    configs = [config_of(talks(n, length)) for n, length in ((40, 20), (400, 40), (1_000, 60))]
    assert [config.n_embd for config in configs] == [64, 96, 128]
    assert [config.steps for config in configs] == sorted({c.steps for c in configs})
    assert all(0 < config.warmup_steps < config.steps for config in configs)


def test_much_to_learn_is_learned_by_subwords_unless_sizes_are_given() -> None:
    large = talks(1_000, 60)
    config, dataset = chat_setup(large)
    assert config.tokenizer == "bpe"
    assert isinstance(dataset.tokenizer, microgpt.SubwordTokenizer)
    assert config.block_size < 100  # of 125 characters
    assert chat_setup(large, n_embd=32) == (config_of(large, n_embd=32), large)
    assert config_of(large, tokenizer="characters").tokenizer == "characters"
    assert config_of(talks(40)).tokenizer == "characters"
    few, dataset = chat_setup(large, vocab_size=270, tokenizer="bpe", n_embd=32)
    assert (few.vocab_size, dataset.tokenizer.vocab_size) == (270, 270)


def test_long_work_is_cut_short() -> None:
    steps = [config_of(talks(n, 150), tokenizer="characters").steps for n in (1_000, 4_000)]
    assert steps == [pytest.approx(6_000_000 / 303 / 32, rel=0.01)] * 2


TALKS = [
    [{"role": "user", "content": f"{word}?"}, {"role": "assistant", "content": f"{word}, {word}!"}]
    for word in ("anna", "bob", "otto", "eve")
]


@pytest.mark.parametrize("options", [{}, {"tokenizer": "bpe", "vocab_size": 265}], ids=str)
def test_conversations_are_fitted_with_the_chosen_options(options: dict[str, Any]) -> None:
    reports: list[microgpt.StepReport] = []
    model = microgpt.fit_chat(TALKS, on_step=reports.append, threads=1, **options)
    for asked, told in TALKS:
        assert model.chat([asked], temperature=0).content == told["content"]
    config, dataset = chat_setup(Dataset.from_conversations(TALKS), **options)
    assert len(reports) == config.steps
    assert model.training
    assert model.training.options["block_size"] == config.block_size
    assert model.config.vocab_size == dataset.tokenizer.vocab_size


def test_more_conversations_continue_a_model() -> None:
    model = microgpt.fit_chat(TALKS[:2])
    more = microgpt.fit_chat(TALKS, init_from=model, extend_vocab=True)
    assert [more.chat(talk[:1], temperature=0).content for talk in TALKS] == [
        talk[1]["content"] for talk in TALKS
    ]
    assert more.config.block_size == model.config.block_size


def test_larger_batches_take_fewer_steps() -> None:
    whole, half = (config_of(talks(500), batch_size=size).steps for size in (8, 16))
    assert whole == pytest.approx(2 * half, abs=1)


def test_few_conversations_leave_some_to_hold_out() -> None:
    assert [config_of(talks(n)).batch_size for n in (1, 3, 20, 200)] == [1, 1, 10, 16]


def test_sizes_are_those_of_the_model_to_start_from() -> None:
    dataset = talks(40)
    model, _ = microgpt.prepare(dataset, TrainConfig(n_embd=4, block_size=64))
    config = config_of(dataset, init_from=model)
    continued, _ = microgpt.prepare(dataset, config, init_from=model)
    assert continued.config == model.config


def test_documents_and_faulty_options_are_refused() -> None:
    with pytest.raises(DataError, match="got plain documents, expected conversations"):
        config_of(Dataset.from_documents(["anna"]))
    with pytest.raises(ConfigError, match="steps is 0"):
        config_of(talks(4), steps=0)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        config_of(talks(4), batch_size=0)


def test_given_options_fit_what_is_chosen() -> None:
    assert config_of(talks(40), muon_learning_rate=0.01).muon_learning_rate == 0.01
    assert config_of(talks(40), n_head=32).n_head == 32
    assert config_of(talks(400, 30), warmup_steps=1500).warmup_steps == 1500
    config, dataset = chat_setup(talks(1_000, 60), vocab_size=300)
    assert (config.tokenizer, dataset.tokenizer.vocab_size) == ("bpe", 300)


def test_batch_fits_what_validation_leaves() -> None:
    config, dataset = chat_setup(talks(40), val_fraction=0.7)
    _, trainer = microgpt.prepare(dataset, config)
    assert (config.batch_size, len(trainer.order)) == (6, 12)


def test_result_of_reading_a_file_can_be_fitted(tmp_path: Any) -> None:
    path = tmp_path / "faq.jsonl"
    path.write_text('{"question": "hi?", "answer": "ho"}\n' * 2)
    model = microgpt.fit_chat(microgpt.read_conversations(path), steps=60)
    assert model.chat([{"role": "user", "content": "hi?"}], temperature=0).content == "ho"
