import math

import pytest
from microgpt import Batch, InferenceGPT, LanguageModel, TokenError
from small_models import DOCUMENTS, in_float32, learned, plain, untrained


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

    monkeypatch.setattr(model.engine, "loss", count)
    (expected,) = model.score(["hannah" * 100])
    assert n_positions == [pytest.approx(1200, abs=20)]
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


def test_training_data_scores_better_than_what_was_never_seen(model: LanguageModel) -> None:
    seen, unseen = model.score(["hannah", "ttnnoo"])
    assert seen < unseen


def test_score_of_what_is_all_but_impossible_is_finite() -> None:
    (score,) = untrained(block_size=8, scale=30.0).score(["abcd"])
    assert 800 < score < math.inf  # exp(-800) is 0


def test_score_names_unknown_characters(model: LanguageModel) -> None:
    with pytest.raises(TokenError, match="characters that the model does not know: 'q', 'z'"):
        model.score(["anna", "zaq"])
