"""Models of subwords from training to use: the same as models of characters, in other tokens."""

import copy
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import microgpt
import numpy as np
import pytest
from microgpt import (
    CheckpointError,
    ConfigError,
    DataError,
    Dataset,
    LanguageModel,
    SamplingConfig,
    SubwordTokenizer,
    TokenError,
    TrainConfig,
)
from microgpt.parameters import Parameters
from texts import assistant, user

WORDS = ["banana", "ananas", "größe", "bananas", "grün 👍"] * 3
OPTIONS: dict[str, Any] = {"tokenizer": "bpe", "vocab_size": 270, "n_embd": 16, "block_size": 16}
BPE = TrainConfig(steps=60, batch_size=4, **OPTIONS)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return microgpt.fit(WORDS, steps=200, batch_size=4, **OPTIONS)


@pytest.fixture
def saved(model: LanguageModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


# ---------------------------------------------------------------- use


def test_model_learns_and_writes_words(model: LanguageModel) -> None:
    assert model.config.vocab_size == 270
    assert set(model.generate(20, temperature=0.3)) <= {word.strip() for word in WORDS}
    assert model.training
    assert model.training.options["tokenizer"] == "bpe"
    assert model.training.options["vocab_size"] == 270


@pytest.mark.parametrize("stop", [[], ["na"], ["ö", "s"]])
def test_ways_to_a_text_agree(model: LanguageModel, stop: list[str]) -> None:
    config = SamplingConfig(seed=3, stop=stop)
    for prompt in ("", "ban", "zzz 👍"):
        (whole,) = model.generate(prompt=prompt, seed=3, stop=stop)
        reply = model.reply(model.prompt(prompt), config)
        assert whole == prompt + reply.content == prompt + "".join(model.stream(prompt, config))
        assert model.reply_logits(reply).shape == (len(reply.token_ids), 270)
        if not stop:
            assert model.tokenizer.decode(reply.token_ids) == reply.content
            assert reply.n_tokens == len(reply.token_ids)


def test_logits_of_a_reply_are_those_of_the_tokens_that_were_chosen(model: LanguageModel) -> None:
    reply = model.reply(model.prompt("ba"), SamplingConfig(temperature=0))
    logits = model.reply_logits(reply)
    chosen = list(reply.token_ids)
    assert chosen == logits.argmax(axis=1).tolist()
    stream = model.stream("ba", temperature=0)
    streamed = [token for _ in stream for token in stream.tokens]
    assert [token.token_id for token in streamed] == chosen


def test_no_text_is_unknown(model: LanguageModel) -> None:
    prompt = model.prompt("любой 文 \0", unknown="skip")
    assert prompt.n_unknown == 0
    assert model.tokenizer.decode(prompt.token_ids) == "любой 文 \0"
    with pytest.raises(TokenError, match="half of a character"):
        model.prompt("a\ud800")
    assert model.prompt("a\ud800b", unknown="skip").n_unknown == 1


def test_bits_per_byte_are_those_of_the_summed_loss(model: LanguageModel) -> None:
    documents = ["banana", "größe"]
    score = model.measure(Dataset.from_documents(documents))
    n_bytes = len("bananagröße".encode())
    assert score.n_bytes == n_bytes
    nats = sum(
        mean * (len(model.tokenizer.encode(text)) + 1)
        for mean, text in zip(model.score(documents), documents, strict=True)
    )
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)
    characters = microgpt.fit(WORDS, steps=5).measure(Dataset.from_documents(["größe"]))
    assert characters.n_bytes == len("größe".encode())
    assert math.isnan(microgpt.Score(1, 1.0).bits_per_byte)


def test_chat_with_a_system_turn() -> None:
    talks: list[Any] = [
        [{"role": "system", "content": "loud"}, user("hello"), assistant("HELLO")],
        [user("hello"), assistant("hello there")],
    ]
    config = TrainConfig(steps=250, batch_size=2, n_embd=24, block_size=48, loss_on="assistant")
    model, trainer = microgpt.prepare(
        Dataset.from_conversations(talks), config, tokenizer="bpe", vocab_size=275
    )
    trainer.advance(config.steps)
    for talk in talks:
        assert model.chat(talk[:-1], temperature=0).content == talk[-1]["content"]
    assert model.tokenizer.vocab_size == 275
    assert copy.deepcopy(model).tokenizer == model.tokenizer


# ---------------------------------------------------------------- training


def test_dataset_of_subwords_is_taken_as_it_is() -> None:
    dataset = Dataset.from_documents(WORDS).with_subwords(262)
    model, trainer = microgpt.prepare(dataset, TrainConfig(steps=1))
    assert model.tokenizer is dataset.tokenizer
    assert (trainer.config.tokenizer, trainer.config.vocab_size) == ("bpe", 262)


def test_vocabulary_of_the_dataset_is_no_larger_than_that_of_the_options() -> None:
    dataset = Dataset.from_documents(WORDS).with_subwords(262)
    with pytest.raises(ConfigError, match="vocab_size is 261, expected at least 262, that of the"):
        microgpt.prepare(dataset, BPE, vocab_size=261)
    assert microgpt.prepare(dataset, BPE, vocab_size=262)[0].tokenizer is dataset.tokenizer


def test_default_vocabulary_is_1024() -> None:
    _, trainer = microgpt.prepare(Dataset.from_documents(["ab"]), TrainConfig(tokenizer="bpe"))
    assert trainer.config.vocab_size == 1024  # of which the data fills 258


def test_vocab_size_needs_subwords() -> None:
    with pytest.raises(ConfigError, match="vocab_size is 300, expected None without tokenizer bpe"):
        TrainConfig(vocab_size=300)
    with pytest.raises(ConfigError, match="expected at least 257: 256 bytes and 1 special token"):
        microgpt.fit(WORDS, tokenizer="bpe", vocab_size=256)


def test_validation_documents_are_encoded_by_the_subwords_of_training() -> None:
    others = Dataset.from_documents(["größe 文", "x"])
    model, trainer = microgpt.prepare(Dataset.from_documents(WORDS), BPE, val_dataset=others)
    assert trainer.validation
    assert trainer.validation.dataset.tokenizer == model.tokenizer
    assert trainer.validation.dataset[0].tolist() == model.tokenizer.encode_document("größe 文")


def test_snapshot_resumes_to_the_same_bits(tmp_path: Path) -> None:
    dataset = Dataset.from_documents(WORDS)
    _, whole = microgpt.prepare(dataset, BPE)
    whole.advance(30)
    microgpt.write_snapshot(tmp_path, whole, {})
    whole.advance(30)
    snapshot = microgpt.read_snapshot(tmp_path)
    assert snapshot.tokenizer == whole.dataset.tokenizer
    assert snapshot.train_config == whole.config
    _, resumed = microgpt.prepare(dataset, snapshot.train_config)
    microgpt.restore(resumed, snapshot)
    resumed.advance(30)
    np.testing.assert_array_equal(resumed.engine.parameters.flat, whole.engine.parameters.flat)
    assert snapshot.model().tokenizer == snapshot.tokenizer
    with pytest.raises(CheckpointError, match="the training data is not that of"):
        microgpt.restore(microgpt.prepare(dataset, BPE, vocab_size=265)[1], snapshot)


def test_training_goes_on_from_a_model_with_its_subwords(model: LanguageModel) -> None:
    new = Dataset.from_documents(["文 banana", "größe"])
    going_on, trainer = microgpt.prepare(new, TrainConfig(steps=40), init_from=model)
    assert going_on.tokenizer == model.tokenizer
    assert (trainer.config.tokenizer, trainer.config.vocab_size) == ("bpe", 270)
    trainer.advance(40)
    assert going_on.score(["文 banana"]) < model.score(["文 banana"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"extend_vocab": True}, "extend_vocab is True, expected False with subwords"),
        (
            {"vocab_size": 300, "tokenizer": "bpe"},
            "vocab_size is 300, expected 270 as in the model",
        ),
    ],
)
def test_another_vocabulary_than_the_models_is_refused(
    model: LanguageModel, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        microgpt.fit(WORDS, init_from=model, **options)


def test_subwords_for_a_model_of_characters_are_refused() -> None:
    model = microgpt.fit(["ab", "ba"], steps=1)
    with pytest.raises(ConfigError, match="tokenizer is bpe, expected characters as in the model"):
        microgpt.fit(["ab"], init_from=model, tokenizer="bpe")
    dataset = Dataset.from_documents(["ab"]).with_subwords(258)  # encoded by characters again
    assert microgpt.prepare(dataset, TrainConfig(), init_from=model)[0].tokenizer == model.tokenizer


def test_system_turns_for_a_model_without_them_are_refused() -> None:
    talk: list[Any] = [user("a"), assistant("b")]
    dataset = Dataset.from_conversations([talk, talk])
    model, _ = microgpt.prepare(dataset, TrainConfig(), tokenizer="bpe")
    with_system = Dataset.from_conversations([[{"role": "system", "content": "c"}, *talk]])
    with pytest.raises(TokenError, match="hold system turns, which the model to start from"):
        microgpt.prepare(with_system, TrainConfig(), init_from=model)
    with pytest.raises(DataError, match="got documents, expected conversations"):
        microgpt.prepare(Dataset.from_documents(["a"]), TrainConfig(), init_from=model)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("weights_format", ["json", "safetensors"])
def test_saved_model_is_the_same(model: LanguageModel, tmp_path: Path, weights_format: Any) -> None:
    model.save(tmp_path, format=weights_format)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"meta.json", "tokenizer.json", f"weights.{weights_format}"}
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["chars"] == []
    loaded = microgpt.load(tmp_path)
    assert loaded.tokenizer == model.tokenizer
    assert loaded.generate(5) == model.generate(5)


def test_model_of_many_long_subwords_is_read_back(tmp_path: Path) -> None:
    merges: list[tuple[int, int]] = []
    for first, last in itertools.product(range(224), (254, 255)):
        merges.append((first, last))
        merges += [(255 + len(merges) + i, last) for i in range(126)]  # 3 to 128 bytes
    tokenizer = SubwordTokenizer(tuple(merges))
    config = microgpt.ModelConfig(vocab_size=tokenizer.vocab_size, n_embd=2, n_head=1, block_size=2)
    model = LanguageModel(tokenizer, Parameters.zeros(config, "float32"))
    model.save(tmp_path, format="safetensors")
    assert (tmp_path / "tokenizer.json").stat().st_size > 16 << 20
    assert microgpt.load(tmp_path).tokenizer == tokenizer


def test_model_of_characters_leaves_no_tokenizer_of_before(saved: Path) -> None:
    microgpt.fit(["ab"], steps=1).save(saved)
    assert {path.name for path in saved.iterdir()} == {"meta.json", "weights.json"}
    assert microgpt.load(saved).tokenizer.chars == ("a", "b")


def damaged_file(content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / "tokenizer.json").write_bytes(content)


def with_matching_digest(change: Callable[[Any], object]) -> Callable[[Path], object]:
    def damage(directory: Path) -> None:
        import hashlib  # noqa: PLC0415 - here alone

        path, meta_path = directory / "tokenizer.json", directory / "meta.json"
        content, meta = json.loads(path.read_bytes()), json.loads(meta_path.read_bytes())
        change(content)
        path.write_text(json.dumps(content))
        meta["tokenizer_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        meta_path.write_text(json.dumps(meta))

    return damage


def of_another_model(directory: Path) -> None:
    microgpt.fit(["abcabc"], steps=1, tokenizer="bpe", vocab_size=258).save(directory / "other")
    shutil.copy(directory / "other/tokenizer.json", directory)


def with_characters_too(directory: Path) -> None:
    path = directory / "meta.json"
    path.write_text(path.read_text().replace('"chars": []', '"chars": ["a"]'))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), "cannot read .*tokenizer.json: "),
        (damaged_file(b""), "tokenizer.json is not what meta.json describes: its SHA-256 digest"),
        (of_another_model, "tokenizer.json is not what meta.json describes"),
        (damaged_file(b" " * 2_000_000), "its size in bytes is 2000000, expected 0 to"),
        (
            with_matching_digest(lambda content: content["model"].update(type="Unigram")),
            r'type is "Unigram", expected "BPE" in .*model',
        ),
        (
            with_matching_digest(lambda content: content["model"]["merges"].pop()),
            "expected no such token in",
        ),
        (with_characters_too, r"chars is \['a'\], expected none beside tokenizer.json"),
    ],
)
def test_damaged_tokenizer_is_refused(
    saved: Path, damage: Callable[[Path], object], problem: str
) -> None:
    damage(saved)
    with pytest.raises(CheckpointError, match=problem):
        microgpt.load(saved)


def test_vocabulary_that_does_not_fit_the_weights_is_refused(saved: Path) -> None:
    path = saved / "meta.json"
    path.write_text(path.read_text().replace('"vocab_size": 270', '"vocab_size": 271'))
    with pytest.raises(CheckpointError, match="vocab_size is 271, expected 270"):
        microgpt.load(saved)


def test_tokenizer_that_a_writer_swaps_between_two_reads_is_read_again(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes, swaps = Path.read_bytes, iter(range(2))

    def read_while_writing(path: Path) -> bytes:
        is_swapped = path.name == "tokenizer.json" and next(swaps, None) is not None
        return read_bytes(path) + b" " * is_swapped

    monkeypatch.setattr(Path, "read_bytes", read_while_writing)
    assert isinstance(microgpt.load(saved).tokenizer, SubwordTokenizer)


@pytest.mark.parametrize("name", ["meta.json", "tokenizer.json"])
def test_model_of_characters_that_a_writer_saves_between_two_reads_is_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    read_bytes, characters = Path.read_bytes, [microgpt.fit(["ab"], steps=1)]

    def read_and_let_write(path: Path) -> bytes:
        content = read_bytes(path)
        if path.name == name and characters:
            characters.pop().save(saved)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_let_write)
    assert microgpt.load(saved).tokenizer.chars == ("a", "b")
