"""From logits to tokens, against slow and plain re-statements of the rules."""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from microgpt import (
    GPT,
    ConfigError,
    ContextLengthError,
    InferenceGPT,
    ModelConfig,
    SamplingConfig,
    SamplingError,
    ShapeError,
    StopSignal,
    generate,
    generate_from_prompt,
)
from microgpt.engines.decoding import choose_token

# Steps of 0.1, so that hypothesis finds equals, and rounding does not decide which is likelier.
logit_lists = st.lists(st.integers(-200, 200).map(lambda n: n / 10), min_size=1, max_size=8)
seeds = st.integers(0, 2**32)


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp((z - max(logits)) / temperature) for z in logits]
    return [weight / math.fsum(weights) for weight in weights]


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1, expected a finite number of at least 0"),
        ({"temperature": math.nan}, "temperature is nan, expected a finite number"),
        ({"temperature": math.inf}, "temperature is inf, expected a finite number"),
        ({"temperature": 10**400}, "temperature is 10+, expected a finite number"),
        ({"top_k": 0}, "top_k is 0, expected an integer of at least 1"),
        ({"top_k": -3}, "top_k is -3, expected an integer of at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0, expected above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01, expected above 0 and at most 1"),
        ({"top_p": math.nan}, "top_p is nan, expected above 0 and at most 1"),
    ],
)
def test_option_out_of_its_domain_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**options)  # type: ignore[arg-type]  # ints and floats by name


# ---------------------------------------------------------------- one token


@given(logit_lists, seeds)
def test_temperature_0_takes_the_first_of_the_likeliest_and_draws_nothing(
    logits: list[float], seed: int
) -> None:
    rng = random.Random(seed)
    before = rng.getstate()
    chosen = choose_token(logits, SamplingConfig(temperature=0), rng)
    assert chosen == logits.index(max(logits))
    assert rng.getstate() == before


@given(logit_lists, st.floats(0.05, 5), seeds)
def test_token_and_draws_are_those_of_random_choices(
    logits: list[float], temperature: float, seed: int
) -> None:
    rng, reference = random.Random(seed), random.Random(seed)
    chosen = choose_token(logits, SamplingConfig(temperature=temperature), rng)
    expected = reference.choices(range(len(logits)), weights=softmax(logits, temperature))
    assert [chosen] == expected
    assert rng.getstate() == reference.getstate()


@given(logit_lists, st.floats(0.05, 5), st.integers(1, 9), st.floats(0.01, 1), seeds)
@settings(max_examples=300)
def test_filters_are_temperature_then_top_k_then_top_p(
    logits: list[float], temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    likeliest = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    probs = softmax([logits[i] for i in likeliest], temperature)
    reached = [math.fsum(probs[: n + 1]) for n in range(len(probs))]
    assume(all(abs(total - top_p) > 1e-9 for total in reached[:-1]))  # else rounding decides
    n_kept = sum(total < top_p for total in reached[:-1]) + 1
    kept = dict(zip(likeliest[:n_kept], probs, strict=False))

    weights = [kept.get(i, 0.0) for i in range(len(logits))]
    expected = random.Random(seed).choices(range(len(logits)), weights=weights)
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    rng, one_draw = random.Random(seed), random.Random(seed)
    assert [choose_token(logits, config, rng)] == expected
    one_draw.random()
    assert rng.getstate() == one_draw.getstate()


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": 1}, {3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.39}, {3}),
        ({"top_p": 0.41}, {2, 3}),
        ({"top_p": 0.69}, {2, 3}),
        ({"top_p": 0.71}, {1, 2, 3}),
        ({"top_k": 2, "top_p": 0.55}, {3}),  # of two, 4/7 and 3/7
        ({"top_k": 2, "top_p": 0.6}, {2, 3}),
        ({"temperature": 0.5, "top_p": 0.53}, {3}),  # squared: 16 of 30
        ({"temperature": 0.5, "top_p": 0.54}, {2, 3}),
    ],
)
def test_worked_example_of_the_filters(options: dict[str, float], possible: set[int]) -> None:
    logits = [math.log(probability) for probability in (0.1, 0.2, 0.3, 0.4)]
    config = SamplingConfig(**({"temperature": 1} | options))  # type: ignore[arg-type]
    rng = random.Random(42)
    assert {choose_token(logits, config, rng) for _ in range(300)} == possible


def test_of_equally_likely_tokens_top_k_keeps_the_first() -> None:
    rng = random.Random(42)
    config = SamplingConfig(temperature=1, top_k=2)
    chosen = {choose_token([0.0, 1.0, 1.0, 1.0], config, rng) for _ in range(100)}
    assert chosen == {1, 2}


def test_tokens_are_as_frequent_as_softmax_says() -> None:
    logits, n_draws = [1.0, -0.5, 0.3, 2.0, -3.0], 20_000
    rng = random.Random(42)
    config = SamplingConfig(temperature=0.8)
    draws = [choose_token(logits, config, rng) for _ in range(n_draws)]
    for token_id, probability in enumerate(softmax(logits, 0.8)):
        # Four standard deviations of a binomial share: one run in 3,000 strays so far.
        allowed = 4 * math.sqrt(probability * (1 - probability) / n_draws)
        assert draws.count(token_id) / n_draws == pytest.approx(probability, abs=allowed)


@given(logit_lists.filter(lambda logits: len(logits) > 1), st.sampled_from([0, 0.3, 2]), seeds)
def test_forbidden_tokens_are_never_chosen(
    logits: list[float], temperature: float, seed: int
) -> None:
    likeliest = logits.index(max(logits))
    config = SamplingConfig(temperature=temperature)
    assert choose_token(logits, config, random.Random(seed), {likeliest}) != likeliest


def test_forbidding_a_token_leaves_the_others_their_odds() -> None:
    config = SamplingConfig(temperature=1)
    forbidding, without = random.Random(42), random.Random(42)
    for _ in range(200):
        chosen = choose_token([0.2, 9.0, 0.5, -1.0], config, forbidding, [1])
        assert chosen == [0, 2, 3][choose_token([0.2, 0.5, -1.0], config, without)]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300])
@pytest.mark.parametrize("logits", [[-700.0, 3.0, 700.0], [-1e300, 0.0, 1e300], [-9.0, 0.0, 1e-9]])
def test_tiny_temperature_is_the_greedy_choice(logits: list[float], temperature: float) -> None:
    config = SamplingConfig(temperature=temperature)
    assert choose_token(logits, config, random.Random(42)) == 2


@pytest.mark.parametrize("temperature", [0, 0.5])
@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_numbers_are_an_error(strange: float, temperature: float) -> None:
    with pytest.raises(SamplingError, match="logits are not finite"):
        choose_token([0.1, strange, 0.3], SamplingConfig(temperature=temperature), random.Random(1))


class Always(random.Random):
    """Draws the same number each time."""

    def __init__(self, draw: float) -> None:
        super().__init__()
        self.draw = draw

    def random(self) -> float:
        return self.draw


@pytest.mark.parametrize("logits", [[0.3, 0.2, 0.1], [3.0, 2.9, -50.0], [0.7, -0.1, -900.0]])
def test_extreme_draws_take_a_token_that_has_weight(logits: list[float]) -> None:
    config = SamplingConfig(temperature=1, top_k=2)
    highest = Always(math.nextafter(1.0, 0.0))
    assert choose_token(logits, config, highest) == 1
    assert choose_token(logits[::-1], config, Always(0.0)) == 1


# ---------------------------------------------------------------- many tokens

STOP = 4


@pytest.fixture(scope="module")
def model() -> InferenceGPT:
    """Return a model that is sure enough of itself to write texts of every length."""
    config = ModelConfig(vocab_size=5, n_embd=6, n_head=2, n_layer=2, block_size=7)
    rng = random.Random(42)
    numbers = iter([rng.gauss(0, 0.2) for _ in range(config.n_params)])
    return InferenceGPT.from_gpt(GPT.from_numbers(config, numbers))


def without_cache(
    model: InferenceGPT, prompt: list[int], rng: random.Random, config: SamplingConfig
) -> list[int]:
    """Read everything again for each token: what generation has to equal."""
    text: list[int] = []
    while len(prompt + text) <= model.config.block_size:
        token_id = choose_token(model.logits(prompt + text)[-1], config, rng)
        if token_id == STOP:
            break
        text.append(token_id)
    return text


@given(
    st.lists(st.integers(0, STOP), min_size=1, max_size=7),
    st.builds(
        SamplingConfig,
        temperature=st.sampled_from([0.0, 0.5, 1.0]),
        top_k=st.none() | st.integers(1, 4),
        top_p=st.sampled_from([0.7, 1.0]),
    ),
    seeds,
)
@settings(max_examples=60, deadline=None)
def test_generation_equals_generation_without_cache(
    model: InferenceGPT, prompt: list[int], config: SamplingConfig, seed: int
) -> None:
    rng, reference = random.Random(seed), random.Random(seed)
    tokens = list(generate_from_prompt(model, prompt, rng, config, stop=STOP))
    assert tokens == without_cache(model, prompt, reference, config)
    assert rng.getstate() == reference.getstate()


def test_texts_end_at_bos_or_after_block_size_tokens(model: InferenceGPT) -> None:
    texts = [generate(model, STOP, random.Random(seed)) for seed in range(60)]
    lengths = {len(text) for text in texts}
    assert not any(STOP in text for text in texts)
    assert min(lengths) < model.config.block_size == max(lengths)


@pytest.mark.parametrize(("n_prompt", "room"), [(1, 7), (2, 6), (6, 2), (7, 1)])
def test_a_text_that_never_stops_fills_the_room_after_its_prompt(
    model: InferenceGPT, n_prompt: int, room: int
) -> None:
    def length(max_tokens: int | None) -> int:
        tokens = generate_from_prompt(
            model,
            [0] * n_prompt,
            random.Random(42),
            SamplingConfig(),
            stop=STOP,
            forbidden=[STOP],
            max_tokens=max_tokens,
        )
        return len(list(tokens))

    assert [length(n) for n in (None, 99, 10**20, 1, 0, -1)] == [room, room, room, 1, 0, 0]


def test_greedy_documents_are_all_the_same(model: InferenceGPT) -> None:
    config = SamplingConfig(temperature=0)
    texts = [generate(model, STOP, random.Random(seed), config) for seed in range(5)]
    assert texts == [without_cache(model, [STOP], random.Random(0), config)] * 5


def test_tokens_are_drawn_only_as_they_are_asked_for(model: InferenceGPT) -> None:
    rng, one_by_one = random.Random(42), random.Random(42)
    tokens = generate_from_prompt(model, [1], rng, SamplingConfig(), stop=-1)
    for _ in range(3):
        next(tokens)
        one_by_one.random()
        assert rng.getstate() == one_by_one.getstate()


def test_forbidden_tokens_do_not_occur_in_a_document(model: InferenceGPT) -> None:
    texts = [generate(model, STOP, random.Random(seed), forbidden=[1, 3]) for seed in range(30)]
    assert set().union(*texts) == {0, 2}


def test_empty_prompt_is_refused_before_the_first_token_is_asked_for(model: InferenceGPT) -> None:
    with pytest.raises(ShapeError, match="prompt is empty, expected at least one token"):
        generate_from_prompt(model, [], random.Random(42), SamplingConfig(), stop=STOP)


def test_long_prompt_is_refused_before_the_first_token_is_asked_for(model: InferenceGPT) -> None:
    with pytest.raises(ContextLengthError, match=r"prompt has 8 tokens, .* at most block_size=7"):
        generate_from_prompt(model, [0] * 8, random.Random(42), SamplingConfig(), stop=STOP)


def test_share_that_is_reached_exactly_needs_no_further_token() -> None:
    config = SamplingConfig(temperature=1.0, top_p=0.5)
    rng = random.Random(1)
    assert {choose_token([0.0, 0.0], config, rng) for _ in range(50)} == {0}


def test_stop_signal_is_set_once_and_for_all() -> None:
    signal = StopSignal()
    assert not signal.is_set
    signal.set()
    assert signal.is_set
    signal.set()
    assert signal.is_set
