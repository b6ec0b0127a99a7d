import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microgpt import GPT, InferenceGPT, ModelConfig, SamplingConfig
from microgpt import generate as generate_with_filters
from microgpt.model import softmax
from microgpt.sampling import generate, sample_token

logit_lists = st.lists(st.floats(-30, 30), min_size=1, max_size=9)


@given(logit_lists, st.sampled_from([0.3, 1.0, 2.0]), st.integers(0, 2**32))
def test_token_is_what_choices_draws_from_softmax(
    logits: list[float], temperature: float, seed: int
) -> None:
    rng, reference = random.Random(seed), random.Random(seed)
    probs = softmax([z / temperature for z in logits])
    expected = reference.choices(range(len(logits)), weights=probs)[0]
    assert sample_token(logits, temperature, rng) == expected
    assert rng.getstate() == reference.getstate()


def test_temperature_0_takes_the_most_likely_token_and_draws_nothing() -> None:
    rng = random.Random(42)
    before = rng.getstate()
    assert sample_token([0.1, 2.0, -1.0, 2.0], 0.0, rng) == 1
    assert rng.getstate() == before


def test_higher_temperature_spreads_the_choices() -> None:
    def most(temperature: float) -> int:
        rng = random.Random(7)
        draws = Counter(sample_token([0.0, 1.0, 2.0], temperature, rng) for _ in range(500))
        return draws.most_common(1)[0][1]

    assert most(0.2) > most(1.0) > most(5.0)


@pytest.fixture(scope="module")
def model() -> InferenceGPT:
    config = ModelConfig(vocab_size=5, n_embd=6, n_head=2, n_layer=2, block_size=7)
    rng = random.Random(42)
    numbers = iter([rng.gauss(0, 0.2) for _ in range(config.n_params)])
    return InferenceGPT.from_gpt(GPT.from_numbers(config, numbers))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.5])
def test_documents_are_those_of_the_engines_without_filters(
    model: InferenceGPT, temperature: float
) -> None:
    bos, config = 4, SamplingConfig(temperature=temperature)
    for seed in range(30):
        rng, reference = random.Random(seed), random.Random(seed)
        document = generate(model, bos, rng, temperature)
        assert document == generate_with_filters(model, bos, reference, config)
        assert rng.getstate() == reference.getstate()
        assert bos not in document
        assert len(document) <= model.config.block_size
