"""Texts longer than the block: the newest half of the context is kept and encoded anew."""

import random
from collections.abc import Iterator, Sequence

import microgpt
import pytest
from engine_cases import Case, sizes
from microgpt import LanguageModel, SamplingConfig, StopSignal, Tokenizer
from microgpt.engines.base import Engine
from microgpt.engines.decoding import ChosenToken, choose_token, slid
from microgpt.inference.batch import GrowingText, grown_tokens
from microgpt.inference.prompt import Prompt
from microgpt.inference.samples import draw_texts, logits_of_text

N_SHAPES = 50


def random_case(seed: int) -> tuple[Case, Prompt, SamplingConfig]:
    """Return a small model, a prompt of any length, and options for a text of several blocks."""
    rng = random.Random(seed)
    n_head = rng.choice([1, 2, 3])
    block_size = rng.randint(1, 12)
    vocab_size = rng.randint(2, 9)
    config = sizes(vocab_size, n_head * rng.randint(1, 5), n_head, rng.randint(1, 2), block_size)
    bos = vocab_size - 1
    first = rng.choice([(), (bos,)])
    token_ids = [rng.randrange(vocab_size) for _ in range(rng.randint(1, block_size))]
    token_ids[: len(first)] = first
    prompt = Prompt(
        token_ids,
        stop_token=rng.choice([-1, bos, 0]),
        forbidden=rng.choice([(), (bos,)]),
        first=first,
    )
    options = SamplingConfig(
        temperature=rng.choice([0, 0.7, 1.5]),
        top_k=rng.choice([None, 2]),
        top_p=rng.choice([1.0, 0.8]),
        max_tokens=rng.randint(1, 5 * block_size + 3),
        seed=seed,
    )
    return Case(config, [1], seed=seed), prompt, options


def plain(engine: Engine, prompt: Prompt, config: SamplingConfig) -> Iterator[int]:
    """Yield the tokens of a text, every context computed from nothing: the rule, as it is said."""
    block_size = engine.config.block_size
    rng = random.Random(config.seed)
    context = list(prompt.token_ids)
    assert config.max_tokens
    for _ in range(config.max_tokens):
        if len(context) > block_size:
            n_newest = max(1, block_size // 2 - len(prompt.first))
            context = [*prompt.first, *context[-n_newest:]][-block_size:]
        logits = engine.logits(context)[-1].tolist()
        token_id = choose_token(logits, config, rng, prompt.forbidden)
        if token_id == prompt.stop_token:
            return
        yield token_id
        context.append(token_id)


def whole(engine: Engine, prompt: Prompt, config: SamplingConfig) -> list[int]:
    (text,) = draw_texts(engine, prompt, [random.Random(config.seed)], config, None)
    return text


def streamed(engine: Engine, prompt: Prompt, config: SamplingConfig) -> list[ChosenToken]:
    rng = random.Random(config.seed)
    return list(grown_tokens(GrowingText(engine, prompt, rng, config, keep_logits=True), engine))


@pytest.mark.parametrize("name", ["scalar", "vectorized", "native"])
def test_every_engine_writes_the_text_of_the_rule(name: str) -> None:
    n_slid = 0
    for seed in range(N_SHAPES):
        case, prompt, config = random_case(seed)
        engine = case.engine(name)
        expected = list(plain(engine, prompt, config))
        n_slid += len(prompt.token_ids) + len(expected) > case.config.block_size + 1
        assert whole(engine, prompt, config) == expected, seed
        assert [token.token_id for token in streamed(engine, prompt, config)] == expected, seed
    assert n_slid > N_SHAPES // 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_streams_and_threads_change_no_bit(dtype: str) -> None:
    for seed in range(N_SHAPES):
        case, prompt, config = random_case(seed)
        engines = [case.engine("native", dtype, threads) for threads in (1, 2)]
        texts = [streamed(engine, prompt, config) for engine in engines]
        assert texts[0] == texts[1], seed  # logits and all
        for engine in engines:
            assert whole(engine, prompt, config) == [token.token_id for token in texts[0]], seed


def test_logits_of_a_whole_text_are_those_that_its_tokens_were_chosen_from() -> None:
    for seed in range(N_SHAPES):
        case, prompt, config = random_case(seed)
        engine = case.engine("native")
        tokens = streamed(engine, prompt, config)
        logits = logits_of_text(engine, prompt, [token.token_id for token in tokens])
        assert logits.shape == (len(tokens), case.config.vocab_size)
        assert logits.tolist() == [token.logits for token in tokens]


def test_texts_of_one_call_are_those_of_single_calls() -> None:
    for seed in range(N_SHAPES):
        case, prompt, config = random_case(seed)
        engine = case.engine("native")
        together = draw_texts(engine, prompt, map(random.Random, range(5)), config, None)
        alone = [draw_texts(engine, prompt, [random.Random(i)], config, None)[0] for i in range(5)]
        assert together == alone, seed


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("first", [(), (7,)])
def test_context_fits_and_leaves_room(block_size: int, first: Sequence[int]) -> None:
    context = slid(list(range(block_size + 1)), block_size, first)
    assert 1 <= len(context) <= max(1, block_size // 2, min(block_size, len(first) + 1))
    assert context[-1] == block_size
    if block_size > 1:
        assert tuple(context[: len(first)]) == tuple(first)


# ---------------------------------------------------------------- from outside


@pytest.fixture(scope="module")
def scenes() -> LanguageModel:
    """A model of one text of several lines, in windows."""
    text = "ROMEO:\nHark, a lark!\n\nJULIET:\nNo, no: a nightingale.\n\n" * 6
    dataset = microgpt.Dataset.from_documents([text])
    config = microgpt.TrainConfig(
        steps=150, block_size=16, n_embd=32, batch_size=4, long="window", dtype="float64"
    )
    model, trainer = microgpt.prepare(dataset, config)
    trainer.advance(config.steps)
    return model


def test_scene_of_500_characters_is_the_same_everywhere(scenes: LanguageModel) -> None:
    (text,) = scenes.generate(prompt="ROMEO:\n", max_tokens=500, seed=3, temperature=1.0)
    assert len(text) == len("ROMEO:\n") + 500
    assert text.count("\n") > 20
    config = SamplingConfig(1.0, max_tokens=500, seed=3)
    reply = scenes.reply(scenes.prompt("ROMEO:\n"), config)
    assert (reply.content, reply.finish_reason, reply.n_tokens) == (text[7:], "length", 500)
    stream = scenes.stream("ROMEO:\n", config)
    assert "".join(stream) == text[7:]
    assert stream.finish_reason == "length"
    assert text.startswith(scenes.generate(prompt="ROMEO:\n", seed=3, temperature=1.0)[0])


def test_without_max_tokens_a_text_ends_at_the_block(scenes: LanguageModel) -> None:
    (text,) = scenes.generate(prompt="ROMEO:\n", seed=3)
    assert len(text) == 17


def test_generator_is_left_as_if_drawn_one_by_one(scenes: LanguageModel) -> None:
    ahead, behind = random.Random(1), random.Random(1)
    (text,) = scenes.generate(prompt="JU", max_tokens=100, rng=ahead)
    for _ in range(len(text) - 2):
        behind.random()
    assert ahead.getstate() == behind.getstate()


def test_limit_of_any_size_needs_no_memory() -> None:
    model = microgpt.fit(["ab", "abab"], steps=200, block_size=4)
    (text,) = model.generate(max_tokens=10**18)
    assert set(text) == {"a", "b"}
    assert "".join(model.stream(max_tokens=10**18)) == text


def test_signal_ends_a_text_without_an_end(scenes: LanguageModel) -> None:
    signal = StopSignal()
    signal.set()
    assert scenes.generate(2, prompt="R", max_tokens=10**9, signal=signal) == ["R", "R"]


@pytest.mark.parametrize("windows", [False, True])
def test_models_of_whole_documents_begin_every_context_with_bos(*, windows: bool) -> None:
    tokenizer = Tokenizer.from_texts(["ab"])
    parameters = Case(sizes(3, 4, 1, 1, 6), [1]).parameters()
    model = LanguageModel(tokenizer, parameters, windows=windows)
    assert model.prompt("a").first == (() if windows else (tokenizer.bos,))
    assert model.prompt("").first == (() if windows else (tokenizer.bos,))


def test_chat_goes_on_past_the_block() -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "la" * 40}]
    dataset = microgpt.Dataset.from_conversations([talk])
    config = microgpt.TrainConfig(steps=200, block_size=16, long="split", n_embd=24)
    model, trainer = microgpt.prepare(dataset, config)
    trainer.advance(config.steps)
    reply = model.chat(talk[:1], max_tokens=60, temperature=0)
    assert reply.n_tokens == len(reply.content) > 16
    assert "".join(model.stream_chat(talk[:1], max_tokens=60, temperature=0)) == reply.content
    assert reply.content.startswith(model.chat(talk[:1], temperature=0).content)
