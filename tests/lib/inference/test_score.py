import dataclasses
import math
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import microgpt
import numpy as np
import pytest
from microgpt import (
    ENGINES,
    Batch,
    Batches,
    ConfigError,
    DataError,
    Dataset,
    InferenceGPT,
    LanguageModel,
    Score,
    TokenError,
)
from small_models import DOCUMENTS, SIZES, in_float32, learned, plain, untrained
from texts import TALK


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return learned()


def surprise(model: InferenceGPT, token_ids: list[int], start: int, position: int) -> float:
    """Return -log p of the token after `position`, read from `start` on."""
    logits = model.logits(token_ids[start : position + 1])[-1]
    probabilities = [math.exp(z) for z in logits]
    return -math.log(probabilities[token_ids[position + 1]] / sum(probabilities))


@pytest.mark.parametrize("text", ["", "a", "hannah", "anbotha"])
def test_score_is_the_mean_surprise_at_each_character_and_the_end(
    model: LanguageModel, text: str
) -> None:
    token_ids = model.tokenizer.encode_document(text)
    each = [surprise(plain(model), token_ids, 0, i) for i in range(len(text) + 1)]
    assert model.score([text]) == pytest.approx([sum(each) / len(each)], rel=1e-12)


@pytest.mark.parametrize(
    ("block_size", "starts"),  # starts[i] is where the window begins that predicts token i + 1
    [
        (4, [0, 0, 0, 0, 1]),
        (4, [0, 0, 0, 0, 2, 2]),
        (4, [0, 0, 0, 0, 2, 2, 3]),
        (4, [0, 0, 0, 0, 2, 2, 4, 4, 6, 6, 7]),
        (5, [0, 0, 0, 0, 0, 3, 3, 3, 4]),
        (2, [0, 0, 1, 2, 3]),
        (1, [0, 1, 2, 3]),
    ],
)
def test_long_documents_are_scored_in_windows_that_overlap_by_half(
    block_size: int, starts: list[int]
) -> None:
    model = untrained(block_size)
    text = "abdcacbdab"[: len(starts) - 1]
    token_ids = model.tokenizer.encode_document(text)
    each = [surprise(plain(model), token_ids, start, i) for i, start in enumerate(starts)]
    assert model.score([text]) == pytest.approx([sum(each) / len(each)], rel=1e-12)


def test_long_document_is_scored_in_parts_that_an_interrupt_may_wait_for(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, n_positions = model.engine.loss, list[int]()

    def count(batch: Batch) -> tuple[float, int]:
        n_positions.append(batch.inputs.size)
        return loss(batch)

    (expected,) = model.score(["hannah" * 100])
    monkeypatch.setattr(model.engine, "loss", count)
    assert model.score(["hannah" * 5000]) == pytest.approx([expected], rel=1e-2)
    assert max(n_positions) <= 4096


def test_scores_come_in_order_and_do_not_depend_on_neighbours(model: LanguageModel) -> None:
    scores = model.score(iter(DOCUMENTS))
    assert scores == [model.score([text])[0] for text in DOCUMENTS]
    assert len(set(scores)) == len(DOCUMENTS)
    assert model.score([]) == []


def test_scores_in_float32_are_those_in_float64_rounded(model: LanguageModel) -> None:
    texts = [*DOCUMENTS, "hannah" * 5]
    assert in_float32(model).score(texts) == pytest.approx(model.score(texts), rel=1e-5)


@pytest.mark.parametrize("engine", [*sorted(set(ENGINES) - {"auto"}), "float32"])
def test_each_text_has_the_score_that_it_has_alone(model: LanguageModel, engine: str) -> None:
    if engine == "float32":
        model = in_float32(model)
    else:
        model = LanguageModel(model.tokenizer, model.parameters, engine=engine)
    rng = random.Random(1)
    n_texts, longest = (5, 9) if engine == "scalar" else (100, 200)
    texts = ["".join(rng.choices("anhoZ", k=rng.randint(0, longest))) for _ in range(n_texts)]
    if engine != "scalar":
        texts[5] = "hannah" * 2000  # longer than one call of the engine
    each = list(model.measure_each(iter(texts), unknown="worst"))
    assert each == [next(model.measure_each([text], unknown="worst")) for text in texts]
    for score, text in zip(each, texts, strict=True):
        alone = model.measure([text], unknown="worst")
        assert score == alone  # one loss of the engine, to the bit
    assert model.score(texts, unknown="worst") == [score.nats_per_token for score in each]


def test_each_text_is_scored_in_a_few_calls_and_read_little_ahead(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, n_positions, n_read = model.engine.losses, list[int](), 0

    def count(batches: Batches) -> list[float]:
        n_positions.append(batches.together.inputs.size)
        return losses(batches)

    def read() -> Iterator[str]:
        nonlocal n_read
        while True:
            n_read += 1
            yield "hannah" * 5

    monkeypatch.setattr(model.engine, "losses", count)
    scores = model.measure_each(read())
    (alone,) = model.measure_each(["hannah" * 5])
    assert list(islice(scores, 1000)) == [alone] * 1000
    assert n_read < 1200
    assert len(n_positions) < 12
    assert max(n_positions) < 3 * 4096


def test_training_data_scores_better_than_what_was_never_seen(model: LanguageModel) -> None:
    seen, unseen = model.score(["hannah", "ttnnoo"])
    assert seen < unseen


def test_score_of_what_is_all_but_impossible_is_finite() -> None:
    (score,) = untrained(block_size=8, scale=30.0).score(["abcd"])
    assert 800 < score < math.inf  # exp(-800) is 0


def test_score_names_unknown_characters(model: LanguageModel) -> None:
    with pytest.raises(TokenError, match="characters that the model does not know: 'q', 'z'"):
        model.score(["anna", "zaq"])


def same(one: Score, other: Score) -> bool:
    pairs = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return all(math.isclose(a, b, rel_tol=1e-9) for a, b in pairs)


def test_texts_measure_as_their_dataset_does(model: LanguageModel) -> None:
    texts = [*DOCUMENTS, "hannah" * 5]
    dataset = Dataset.from_documents(texts)
    for documents in (texts, iter(texts), dict.fromkeys(texts)):
        assert same(model.measure(documents), model.measure(dataset))
    for bad in ("anna", None, 5):
        with pytest.raises(DataError, match="expected a list of strings"):
            model.measure(bad)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="dataset is empty"):
        model.measure([])
    with pytest.raises(ConfigError, match="unknown of a dataset is 'skip'"):
        model.measure(dataset, unknown="skip")


@pytest.mark.parametrize("block_size", [8, 64])
def test_only_tokens_of_a_dataset_that_count_are_measured(block_size: int) -> None:
    talks = [TALK, TALK[:2]]
    sizes: dict[str, Any] = {**SIZES, "block_size": block_size, "dtype": "float64"}
    model = microgpt.fit_chat(talks, steps=3, **sizes)
    dataset = Dataset.from_conversations(talks)
    answers = dataset.only_assistant()
    assert answers.counted is not None
    others = dataclasses.replace(dataset, counted=~answers.counted)
    both, learned, left = map(model.measure, (dataset, answers, others))
    assert both.n_tokens == learned.n_tokens + left.n_tokens
    assert both.n_bytes == learned.n_bytes + left.n_bytes
    assert learned.n_bytes == len("hellosee youhello")
    summed = [score.nats_per_token * score.n_tokens for score in (both, learned, left)]
    assert summed[0] == pytest.approx(summed[1] + summed[2], rel=1e-9)
    if block_size == 64:
        ids = dataset[1].tolist()
        answer = range(ids.index(dataset.tokenizer.special_id("assistant")), len(ids) - 2)
        each = [surprise(plain(model), ids, 0, i) for i in answer]
        alone = model.measure(answers.only(1))
        assert alone.n_tokens == len(each) == len("hello") + 1
        assert alone.nats_per_token == pytest.approx(sum(each) / len(each), rel=1e-9)


def test_dataset_in_which_nothing_counts_is_refused(model: LanguageModel) -> None:
    dataset = Dataset.from_documents(DOCUMENTS)
    nothing = dataclasses.replace(dataset, counted=np.zeros(len(dataset.tokens), np.bool_))
    with pytest.raises(DataError, match="no token of the dataset counts"):
        model.measure(nothing)


@pytest.mark.parametrize("bad", [None, math.nan, 3])
def test_document_that_is_no_string_is_named_by_its_position(
    model: LanguageModel, bad: object
) -> None:
    for use in (model.score, model.measure):
        with pytest.raises(DataError, match=rf"^documents\[1\] is {bad!r}, expected a string"):
            use(["anna", bad])  # type: ignore[list-item]


def test_unknown_characters_are_left_out_or_cost_twice_log_v(model: LanguageModel) -> None:
    (known,) = model.score(["anna"])
    assert model.score(["azQnna", "anna"], unknown="skip") == [known, known]
    per_unknown = 2 * math.log(model.config.vocab_size)
    (worst,) = model.score(["azQnna"], unknown="worst")
    assert worst == pytest.approx((5 * known + 2 * per_unknown) / 7, rel=1e-12)
    skipped = model.measure(["azQnna"], unknown="skip")
    assert (skipped.n_tokens, skipped.n_unknown, skipped.n_bytes) == (5, 2, 4)
    score = model.measure(["azQnna"], unknown="worst")
    assert (score.n_tokens, score.n_unknown, score.nats_per_token) == (7, 2, worst)
    assert score.n_bytes == len("azQnna")
    with pytest.raises(
        ConfigError, match="unknown is 'ignore', expected one of error, skip, worst"
    ):
        model.score(["a"], unknown="ignore")  # type: ignore[arg-type]


def test_many_texts_are_measured_together(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, n_calls = model.engine.loss, [0]

    def count(batch: Batch) -> tuple[float, int]:
        n_calls[0] += 1
        return loss(batch)

    monkeypatch.setattr(model.engine, "loss", count)
    one = model.measure(["hannah"])
    many = dataclasses.replace(one, n_tokens=35_000, n_bytes=30_000)
    assert same(model.measure(["hannah"] * 5000), many)
    assert n_calls[0] < 25  # of the engine, for 5,000 texts
