"""The library from outside: save, load, generate, logits."""

import copy
import json
import math
import pickle
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

import microgpt
import numpy as np
import pytest
from microgpt import (
    ENGINES,
    Batch,
    CheckpointError,
    ConfigError,
    ContextLengthError,
    Dataset,
    EngineError,
    LanguageModel,
    MicrogptError,
    ModelConfig,
    SamplingConfig,
    SamplingError,
    ShapeError,
    TokenError,
    Tokenizer,
    TrainConfig,
)
from microgpt.parameters import Parameters
from small_models import DOCUMENTS, SIZES, learned, plain, untrained

MISSING = "no such directory"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return learned()


def test_model_refuses_a_tokenizer_of_another_vocabulary() -> None:
    parameters = Parameters.zeros(ModelConfig(vocab_size=7), "float32")
    with pytest.raises(ConfigError, match="tokenizer has 4 token ids, expected vocab_size=7"):
        LanguageModel(Tokenizer(tuple("abc")), parameters)


# ---------------------------------------------------------------- save and load


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("chat", [False, True])
def test_loaded_model_is_the_saved_one(tmp_path: Path, dtype: str, *, chat: bool) -> None:
    turns = [{"role": role, "content": role[:4]} for role in ("user", "assistant")]
    dataset = Dataset.from_conversations([turns]) if chat else Dataset.from_documents(DOCUMENTS)
    saved, _ = microgpt.prepare(dataset, TrainConfig(), random.Random(42), dtype=dtype, **SIZES)
    saved.save(tmp_path / "new" / "model")
    loaded = microgpt.load(tmp_path / "new" / "model")
    assert (loaded.config, loaded.tokenizer, loaded.dtype) == (saved.config, saved.tokenizer, dtype)
    np.testing.assert_array_equal(loaded.parameters.flat, saved.parameters.flat)
    assert loaded.generate(3) == saved.generate(3)


@pytest.mark.parametrize("engine", ENGINES)
def test_copied_or_pickled_model_is_one_of_its_own(engine: str) -> None:
    trained = learned()
    model = LanguageModel(trained.tokenizer, trained.parameters, engine=engine, threads=1)
    expected = model.generate(3)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - ours
        assert (made.generate(3), made.engine.name) == (expected, model.engine.name)
        made.parameters["wte"][:] = 0
        assert made.parameters.flat[0] == 0
        assert made.generate(3) != expected
    assert model.generate(3) == expected


def test_model_of_windows_stays_one_and_continues_texts_without_bos(tmp_path: Path) -> None:
    model = microgpt.fit(["abcabc" * 9], steps=30, long="window", block_size=6)
    model.save(tmp_path)
    pickled = pickle.loads(pickle.dumps(model))  # noqa: S301 - ours
    greedy = SamplingConfig(temperature=0)
    for made in (model, copy.copy(model), pickled, microgpt.load(tmp_path)):
        assert made.windows
        assert made.prompt("ab").token_ids == [0, 1]
        assert made.reply(made.prompt("ab"), greedy).content == "cabca"
        assert made.generate(prompt="ab", temperature=0) == ["abcabca"]
        assert "".join(made.stream("ab", temperature=0)) == "cabca"


def test_model_of_windows_predicts_what_follows_better_without_bos() -> None:
    rng = random.Random(1)
    text = "".join(rng.choices(["anna ", "bobs ", "otto "], k=2000))
    model = microgpt.fit([text], steps=400, batch_size=8, long="window", block_size=16)
    ids = model.tokenizer.encode(text)

    def loss(before: list[int], part: list[int]) -> float:
        """Return the summed loss of a text but its first character."""
        batch = np.array([*before, *part])
        targets = np.where(np.arange(1, len(batch)) > len(before), batch[1:], -1)
        nll, _ = model.engine.loss(Batch(batch[:-1], targets, np.array([len(targets)])))
        return nll

    parts = [ids[start : start + 12] for start in range(0, 1400, 7)]  # anywhere in a word
    without, with_bos = (
        sum(loss(before, part) for part in parts) / (11 * len(parts))
        for before in ([], [model.tokenizer.bos])
    )
    assert without < with_bos - 0.03  # nats per character


def test_load_chooses_engine_and_type_of_numbers(model: LanguageModel, tmp_path: Path) -> None:
    model.save(str(tmp_path))
    assert microgpt.load(tmp_path, engine="scalar").engine.name == "scalar"
    as_float32 = microgpt.load(tmp_path, dtype="float32")
    assert as_float32.dtype == "float32"
    expected = model.parameters.flat.astype(np.float32)
    np.testing.assert_array_equal(as_float32.parameters.flat, expected)


@pytest.mark.parametrize(
    ("where", "options", "error", "message"),
    [
        (MISSING, {}, CheckpointError, MISSING),
        (".", {"engine": "gpu"}, EngineError, "engine is 'gpu', expected one of auto, "),
        (".", {"dtype": "int8"}, ConfigError, "dtype is 'int8', expected one of float32, float64"),
    ],
)
def test_load_refuses_what_it_cannot_do(
    model: LanguageModel,
    tmp_path: Path,
    where: str,
    options: dict[str, Any],
    error: type[MicrogptError],
    message: str,
) -> None:
    model.save(tmp_path)
    with pytest.raises(error, match=message):
        microgpt.load(tmp_path / where, **options)


def test_weights_that_are_not_numbers_are_not_saved(tmp_path: Path) -> None:
    model = untrained(block_size=4)
    model.save(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    model.parameters["wpe"][1, 2] = math.nan
    with pytest.raises(CheckpointError, match=r"wpe.*finite"):
        model.save(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_model_is_not_saved_where_a_file_is(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="file"):
        model.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# ---------------------------------------------------------------- generate


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.0}, {"temperature": 1.5}, {"top_k": 2}, {"top_p": 0.6}],
    ids=str,
)
@pytest.mark.parametrize("prompt", ["", "bo"])
def test_sample_i_is_what_the_plain_model_draws_with_seed_plus_i(
    model: LanguageModel, options: dict[str, Any], prompt: str
) -> None:
    tokenizer = model.tokenizer
    expected = []
    for seed in range(10, 18):
        token_ids = microgpt.generate_from_prompt(
            plain(model),
            [tokenizer.bos, *tokenizer.encode(prompt)],
            random.Random(seed),
            SamplingConfig(**options),
            stop=tokenizer.bos,
        )
        expected.append(prompt + tokenizer.decode(token_ids))
    assert model.generate(8, seed=10, prompt=prompt, **options) == expected
    assert model.generate(1, seed=13, prompt=prompt, **options) == expected[3:4]


def test_one_sample_with_seed_42_is_the_default(model: LanguageModel) -> None:
    assert model.generate() == model.generate(1, seed=42, temperature=0.5)
    assert model.generate(0) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_from_one_generator_continue_its_stream(
    model: LanguageModel, temperature: float
) -> None:
    rng, expected = random.Random(5), random.Random(5)
    samples = model.generate(6, rng=rng, temperature=temperature)
    config = SamplingConfig(temperature=temperature)
    bos, decode = model.tokenizer.bos, model.tokenizer.decode
    texts = [microgpt.generate(plain(model), bos, expected, config) for _ in range(6)]
    assert samples == [decode(text) for text in texts]
    assert rng.getstate() == expected.getstate()


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "auto"])
def test_every_engine_writes_the_same_texts(model: LanguageModel, engine: str) -> None:
    try:
        other = LanguageModel(model.tokenizer, model.parameters, engine=engine)
    except EngineError as error:
        pytest.skip(str(error))
    for options in ({}, {"top_k": 3, "top_p": 0.8, "temperature": 1.2, "prompt": "a"}):
        samples = model.generate(20, **options)  # type: ignore[arg-type]
        assert other.generate(20, **options) == samples  # type: ignore[arg-type]


def test_one_call_of_the_engine_is_short_enough_to_be_interrupted(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.generate(5)
    monkeypatch.setattr(
        "microgpt.inference.samples.WORK_TOGETHER",
        2 * model.config.n_params * SIZES["block_size"],
    )
    sizes = []
    draw = model.engine.draw

    def counted(prompt: Any, uniforms: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(uniforms))
        return draw(prompt, uniforms, *args, **options)

    monkeypatch.setattr(model.engine, "draw", counted)
    assert model.generate(5) == expected
    assert sizes == [2, 2, 1]


def test_texts_hold_at_most_block_size_characters(model: LanguageModel) -> None:
    lengths = [len(text) for text in model.generate(40, temperature=2.0)]
    assert min(lengths) < 8 == max(lengths)
    assert {len(text) for text in model.generate(30, temperature=2.0, prompt="hannaha")} == {7, 8}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": -1}, ConfigError, "num_samples is -1, expected an integer of at least 0"),
        ({"temperature": -0.5}, ConfigError, "temperature is -0.5, expected a finite number"),
        ({"temperature": math.nan}, ConfigError, "temperature is nan, expected a finite number"),
        ({"top_k": 0}, ConfigError, "top_k is 0, expected an integer of at least 1"),
        ({"top_p": 0.0}, ConfigError, "top_p is 0.0, expected above 0"),
        ({"prompt": "xbz"}, TokenError, "characters that the model does not know: 'x', 'z'"),
        ({"prompt": "b" * 8}, ContextLengthError, "prompt has 9 tokens, .* most block_size=8"),
    ],
)
@pytest.mark.parametrize("rng", [None, random.Random(1)], ids=["seed", "rng"])
def test_generate_refuses_what_it_cannot_do(
    model: LanguageModel,
    rng: random.Random | None,
    options: dict[str, Any],
    error: type[MicrogptError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        model.generate(**options, rng=rng)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "auto"])
def test_generate_says_when_logits_are_not_finite(engine: str) -> None:
    try:
        model = untrained(block_size=4, engine=engine)
    except EngineError as error:
        pytest.skip(str(error))
    model.parameters["lm_head"][2, 3] = math.nan
    with pytest.raises(SamplingError, match="logits are not finite"):
        model.generate()


# ---------------------------------------------------------------- logits


def test_logits_are_those_of_the_plain_model(model: LanguageModel) -> None:
    token_ids = model.tokenizer.encode_document("hannah")
    logits = model.logits(token_ids)
    assert logits.shape == (8, model.config.vocab_size)
    np.testing.assert_allclose(logits, plain(model).logits(token_ids), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("token_ids", "error", "message"),
    [
        ([], ShapeError, "got no tokens, expected at least one"),
        ([0, 5], TokenError, "token id 5, expected 0 to 4"),
        ([0] * 5, ContextLengthError, "got 5 tokens, expected at most block_size=4"),
    ],
)
def test_logits_refuse_what_the_model_cannot_read(
    token_ids: list[int], error: type[MicrogptError], message: str
) -> None:
    with pytest.raises(error, match=message):
        untrained(block_size=4).logits(token_ids)


# ---------------------------------------------------------------- one way to answer


def test_other_things_than_prompts_and_replies_are_refused(model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="prompt is 'h', expected a Prompt"):
        model.reply("h")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="reply is 'anna', expected a Reply"):
        model.reply_logits("anna")  # type: ignore[arg-type]


def test_generate_stream_and_reply_give_the_same_text(model: LanguageModel) -> None:
    config = SamplingConfig(temperature=0.7, top_k=5, max_tokens=6, stop=["tt"], seed=3)
    prompt = model.prompt("an")
    options: dict[str, Any] = {
        "temperature": 0.7,
        "top_k": 5,
        "max_tokens": 6,
        "stop": ["tt"],
        "seed": 3,
    }
    reply = model.reply(prompt, config)
    assert model.generate(1, prompt="an", **options) == ["an" + reply.content]
    assert model.generate(1, prompt=prompt, **options) == ["an" + reply.content]
    for stream in (model.stream(prompt, config), model.stream("an", **options)):
        assert "".join(stream) == reply.content
        assert (stream.finish_reason, stream.n_tokens) == (reply.finish_reason, reply.n_tokens)
    assert reply.prompt is prompt


def test_chat_is_the_reply_to_the_prompt_of_its_messages() -> None:
    talk = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]
    dataset = Dataset.from_conversations([talk])
    model, trainer = microgpt.prepare(dataset, TrainConfig(steps=5))
    trainer.advance(5)
    reply = model.chat(talk[:1], seed=5)
    prompt = model.prompt(talk[:1])
    assert model.reply(prompt, SamplingConfig(seed=5)) == reply
    assert "".join(model.stream_chat(talk[:1], seed=5)) == reply.content


def test_unknown_characters_of_a_prompt_are_refused_unless_skipped(model: LanguageModel) -> None:
    with pytest.raises(TokenError, match="does not know: 'x'"):
        model.prompt("ax")
    assert model.prompt("ax", unknown="skip").n_unknown == 1


@pytest.mark.parametrize("engine", ["scalar", "vectorized", "native"])
def test_stream_tells_the_tokens_of_each_piece_and_their_logits(engine: str) -> None:
    model = untrained(block_size=8, engine=engine)
    prompt = model.prompt("ab")
    stream = model.stream(prompt, SamplingConfig(temperature=1.0, seed=7, stop=["cd", "da"]))
    token_ids, rows = [], []
    for piece in stream:
        assert model.tokenizer.decode([token.token_id for token in stream.tokens]) == piece
        token_ids += [token.token_id for token in stream.tokens]
        rows += [token.logits for token in stream.tokens]
    assert token_ids
    expected = model.logits([*prompt.token_ids, *token_ids[:-1]])[len(prompt.token_ids) - 1 :]
    np.testing.assert_allclose(rows, expected, rtol=1e-9)


# ---------------------------------------------------------------- how it was made


def test_model_keeps_how_it_was_made(tmp_path: Path) -> None:
    model = microgpt.fit(DOCUMENTS, steps=6, seed=5, val_fraction=0.25, eval_every=3, **SIZES)
    made = model.training
    assert made is not None
    assert (made.steps, made.seed, made.options["n_embd"]) == (6, 5, SIZES["n_embd"])
    assert made.options["learning_rate"] == pytest.approx(0.01 * 16 / SIZES["n_embd"])
    assert made.val_loss is not None
    assert made.library_version == version("microgpt-lib")
    model.save(tmp_path)
    assert microgpt.load(tmp_path).training == made
    assert copy.deepcopy(model).training == made
    keys = list(json.loads((tmp_path / "meta.json").read_text()))
    assert keys[-1] == "training"


def test_model_that_does_not_say_how_it_was_made_loads(tmp_path: Path) -> None:
    model = untrained(block_size=4)
    model.save(tmp_path)
    assert microgpt.load(tmp_path).training is None


@pytest.mark.parametrize("training", ["5", '{"steps": "x"}', "[]"])
def test_foreign_training_key_does_not_keep_a_model_from_loading(
    tmp_path: Path, training: str
) -> None:
    untrained(block_size=4).save(tmp_path)
    meta = (tmp_path / "meta.json").read_text().rstrip().removesuffix("}").rstrip()
    (tmp_path / "meta.json").write_text(f'{meta}, "training": {training}}}')
    assert microgpt.load(tmp_path).training is None
