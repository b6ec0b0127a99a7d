"""Texts that are continued together: each has the tokens that it has alone, bit for bit."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from engine_cases import RAGGED, Case, sizes
from microgpt import SamplingConfig, ShapeError, StopSignal
from microgpt.engines import ENGINES, native_inference, unavailable_engines
from microgpt.engines.base import Engine
from microgpt.engines.native import NativeEngine
from microgpt.engines.texts import Text
from microgpt.parameters import DTYPES

NAMES = [name for name in ENGINES if name != "auto" and name not in unavailable_engines()]
needs_native = pytest.mark.skipif("native" not in NAMES, reason="no native engine")
GREEDY = SamplingConfig(temperature=0)
N_SHAPES = [50, pytest.param(200, marks=pytest.mark.long)]


def begin(engine: Engine, prompt: Sequence[int], draws: Any, **given: Any) -> Text:
    options: dict[str, Any] = {"config": SamplingConfig(), "stop": -1} | given
    return engine.begin(prompt, engine.new_cache(), np.asarray(draws), **options)


def ids_of(text: Text) -> list[int]:
    ids: list[int] = text.tokens[: text.n_tokens].tolist()
    return ids


def random_engine(rng: random.Random) -> NativeEngine:
    """Return an engine of random sizes: short and long blocks, narrow and wide heads."""
    n_head = rng.choice((1, 2, 3, 4, 8))
    width = rng.choice((1, 2, 4, 5, 8, 16, 17, 32))
    config = sizes(
        vocab_size=rng.choice((2, 7, 27, 64, 100)),
        n_embd=n_head * width,
        n_head=n_head,
        n_layer=rng.randint(1, 2),
        block_size=rng.choice((1, 4, 16, 17, 40, 150)),
    )
    parameters = Case(config, [1], seed=rng.getrandbits(32)).parameters(rng.choice(DTYPES))
    return NativeEngine(parameters, rng.randint(1, 3))


def random_texts(engine: Engine, seed: int) -> list[Text]:
    """Begin 1 to 64 texts of random prompts, limits and options."""
    rng = random.Random(seed)
    vocab_size, block_size = engine.config.vocab_size, engine.config.block_size
    texts = []
    for _ in range(rng.choice((1, 2, 3, 5, 8, 17, 64))):
        prompt = [rng.randrange(vocab_size) for _ in range(rng.randint(1, block_size))]
        draws = [rng.random() for _ in range(rng.randint(0, min(block_size - len(prompt) + 1, 20)))]
        config = SamplingConfig(
            temperature=rng.choice((0.0, 0.5, 1.0)), top_k=rng.choice((None, 3)), top_p=0.95
        )
        stop, forbidden = (
            rng.randrange(-1, vocab_size),
            rng.sample(range(vocab_size), rng.randint(0, vocab_size // 2)),
        )
        texts.append(
            begin(
                engine,
                prompt,
                draws,
                config=config,
                stop=stop,
                forbidden=forbidden,
                keep_logits=rng.random() < 0.8,
            )
        )
    return texts


def shuffled_rounds(texts: list[Text], rng: random.Random) -> Iterator[tuple[list[Text], int]]:
    """Yield some of the texts, and a number of steps, until all are finished."""
    while going_on := [text for text in texts if not text.is_finished]:
        yield rng.sample(going_on, rng.randint(1, len(going_on))), rng.randint(1, 5)


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small models use several threads too."""
    monkeypatch.setattr(native_inference, "FLOPS_PER_THREAD", 1.0)
    monkeypatch.setattr(native_inference, "_usable_cores", lambda: 3)


@needs_native
@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("n_shapes", N_SHAPES)
def test_text_is_the_same_alone_in_any_company_and_on_any_threads(n_shapes: int) -> None:
    for number in range(n_shapes):
        rng = random.Random(number)
        engine = random_engine(rng)
        alone, together = random_texts(engine, number), random_texts(engine, number)
        for text in alone:
            engine.advance([text], len(text.draws) + 1)
        for some, n_steps in shuffled_rounds(together, rng):
            engine.advance(some, n_steps)
        for one, other in zip(alone, together, strict=True):
            assert ids_of(one) == ids_of(other), engine.config
            if one.chosen_from is not None and other.chosen_from is not None:
                n = one.n_tokens
                assert one.chosen_from[:n].tobytes() == other.chosen_from[:n].tobytes()


@needs_native
@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("n_shapes", N_SHAPES)
def test_logits_are_the_same_however_tokens_are_read(n_shapes: int) -> None:
    for number in range(n_shapes):
        rng = random.Random(number)
        engine = random_engine(rng)
        vocab_size, block_size = engine.config.vocab_size, engine.config.block_size
        token_ids = [rng.randrange(vocab_size) for _ in range(rng.randint(1, block_size))]
        one_by_one, at_once, in_parts = (engine.new_cache() for _ in range(3))
        expected = [engine.decode(token_id, one_by_one) for token_id in token_ids][-1]
        assert engine.prefill(token_ids, at_once) == expected, engine.config
        middle = rng.randint(0, len(token_ids) - 1)
        if middle:
            engine.prefill(token_ids[:middle], in_parts)
        assert engine.prefill(token_ids[middle:], in_parts) == expected, engine.config
        assert engine.logits(token_ids)[-1].tolist() == expected, engine.config


@needs_native
@pytest.mark.parametrize("n_embd", [64, 136, 528])  # sums of more numbers than one pass takes
def test_wide_model_reads_rows_together_as_it_reads_them_alone(n_embd: int) -> None:
    case = Case(sizes(11, n_embd, 1, 1, 530), [1])
    engine = NativeEngine(case.parameters("float32"), 1)
    token_ids = [i * i % 11 for i in range(525)]
    one_by_one, at_once = engine.new_cache(), engine.new_cache()
    expected = [engine.decode(token_id, one_by_one) for token_id in token_ids][-1]
    assert engine.prefill(token_ids, at_once) == expected


@needs_native
@pytest.mark.usefixtures("many_cores")
def test_many_samples_are_those_of_one_at_a_time() -> None:
    for number in range(20):
        rng = random.Random(number)
        engine = random_engine(rng)
        prompt = [rng.randrange(engine.config.vocab_size)]
        uniforms = np.random.default_rng(number).random((rng.choice((1, 65, 200)), 5))
        uniforms = uniforms[:, : engine.config.block_size]
        options: dict[str, Any] = {"config": SamplingConfig(), "stop": 0}
        expected = [ids for row in uniforms for ids in engine.sample(prompt, row[None], **options)]
        assert engine.sample(prompt, uniforms, **options) == expected


@pytest.mark.parametrize("name", NAMES)
def test_text_ends_at_its_stop_token_and_after_its_last_draw(name: str) -> None:
    engine = RAGGED.engine(name)
    text = begin(engine, [1], [0.5] * 3, config=GREEDY, keep_logits=True)
    engine.advance([text], 2)
    assert (text.n_tokens, text.is_finished) == (2, False)
    engine.advance([text], 2)
    assert (text.n_tokens, text.is_finished) == (3, True)
    engine.advance([text], 2)
    assert text.n_tokens == 3
    assert text.chosen_from is not None
    assert text.chosen_from.argmax(axis=1).tolist() == ids_of(text)
    other = begin(engine, [1], [0.5] * 3, config=GREEDY, stop=ids_of(text)[0])
    engine.advance([other], 1)
    assert (other.n_tokens, other.is_finished) == (0, True)


@pytest.mark.parametrize("name", NAMES)
def test_engines_choose_the_same_tokens(name: str) -> None:
    draws = np.random.default_rng(42).random((6, 4))
    engines = RAGGED.engine("scalar"), RAGGED.engine(name)
    first, second = ([begin(engine, [2, 3], row) for row in draws] for engine in engines)
    for engine, texts in zip(engines, (first, second), strict=True):
        engine.advance(texts, 2)
        engine.advance(texts[::2], 1)
    assert list(map(ids_of, first)) == list(map(ids_of, second))
    assert [len(ids_of(text)) for text in first] == [3, 2] * 3


@pytest.mark.parametrize("name", NAMES)
def test_signal_ends_a_text_and_no_other(name: str) -> None:
    engine = RAGGED.engine(name)
    signal = StopSignal()
    ended = begin(engine, [1], [0.5] * 4, signal=signal)
    other = begin(engine, [1], [0.5] * 4)
    engine.advance([ended, other], 1)
    signal.set()
    engine.advance([ended, other], 2)
    assert (ended.n_tokens, ended.is_finished) == (1, True)
    assert (other.n_tokens, other.is_finished) == (3, False)


@pytest.mark.parametrize("name", NAMES)
def test_text_whose_logits_are_not_finite_is_finished(name: str) -> None:
    engine = RAGGED.engine(name)
    text = begin(engine, [1], [0.5] * 4)
    text.logits = [float("nan")] * 7
    if name == "native":
        text.cache.logits[:] = np.nan
    other = begin(engine, [1], [0.5] * 4)
    engine.advance([text, other], 2)
    assert (text.is_finished, text.has_failed, text.n_tokens) == (True, True, 0)
    assert (other.is_finished, other.has_failed, other.n_tokens) == (False, False, 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("draws", [[0.5] * 5, [[0.5]]])
def test_draws_that_do_not_fit_are_refused(name: str, draws: Any) -> None:
    with pytest.raises(ShapeError, match=r"got draws of shape .*, expected \(at most 4,\)"):
        begin(RAGGED.engine(name), [1, 2], draws)


@needs_native
def test_text_begun_after_a_change_of_weights_reads_them() -> None:
    engine = RAGGED.engine("native")
    before = engine.prefill([1, 2], engine.new_cache())
    engine.parameters["lm_head"][0, 0] += 1e-9
    after = engine.prefill([1, 2], engine.new_cache())
    assert before[0] != after[0]
    assert before[1:] == after[1:]


@needs_native
@pytest.mark.parametrize("factor", [-1.0, 2.0, 256.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_change_of_one_bit_in_each_weight_of_a_matrix_is_seen(dtype: str, factor: float) -> None:
    engine = Case(sizes(7, 64, 4, 1, 5), [3]).engine("native", dtype)
    engine.prefill([1, 2], engine.new_cache())
    engine.parameters["layer0.mlp_fc1"][:] *= factor
    after = engine.prefill([1, 2], engine.new_cache())
    other = NativeEngine(engine.parameters)
    assert after == other.prefill([1, 2], other.new_cache())


@needs_native
def test_texts_begun_before_and_after_a_change_of_weights_are_those_alone() -> None:
    def texts_of(*, together: bool) -> list[list[int]]:
        engine = RAGGED.engine("native")
        texts = []
        for seed in range(4):
            texts.append(begin(engine, [1], np.random.default_rng(seed).random(5)))
            engine.parameters["lm_head"][:] *= -3
        for each in [texts] if together else [[text] for text in texts]:
            engine.advance(each, 5)
        return [ids_of(text) for text in texts]

    assert texts_of(together=True) == texts_of(together=False)


@pytest.mark.parametrize("name", NAMES)
def test_fork_goes_on_as_its_source_would_and_leaves_it_alone(name: str) -> None:
    engine = RAGGED.engine(name)
    source, expected = engine.new_cache(), engine.new_cache()
    engine.prefill([1, 2, 3], source)
    logits = engine.prefill([1, 2, 4, 5], expected)
    fork = engine.fork(source, 2)
    assert fork.length == 2
    assert engine.prefill([4, 5], fork) == pytest.approx(logits, rel=1e-12)
    again = engine.prefill([1, 2, 3, 6], engine.new_cache())
    assert engine.decode(6, source) == pytest.approx(again, rel=1e-12)
    assert fork.n_bytes > 0


@needs_native
def test_text_of_another_engine_is_refused() -> None:
    text = begin(RAGGED.engine("native"), [1], [0.5])
    with pytest.raises(ShapeError, match="the text is not of this engine"):
        RAGGED.engine("native").advance([text], 1)
