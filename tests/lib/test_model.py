import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from microgpt import (
    GPT,
    ConfigError,
    ContextLengthError,
    InferenceGPT,
    ModelConfig,
    ShapeError,
    TokenError,
    Value,
)
from microgpt.model import (
    attention,
    cross_entropy,
    init_weights,
    linear,
    parameter_shapes,
    rmsnorm,
    softmax,
)

SMALL = ModelConfig(vocab_size=5, n_embd=6, n_head=2, n_layer=2, block_size=7)
IDS = [4, 0, 3, 1, 1, 4]


@pytest.fixture
def model() -> GPT:
    return GPT.init(SMALL, random.Random(7))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", ["vocab_size", "n_embd", "n_head", "n_layer", "block_size"])
@pytest.mark.parametrize("size", [0, -1, 2.0, True, "4", None])
def test_size_that_is_no_positive_integer_is_refused(name: str, size: Any) -> None:
    sizes: dict[str, Any] = {"vocab_size": 27, name: size}
    with pytest.raises(ConfigError, match=f"{name} is .*, expected an integer of at least 1"):
        ModelConfig(**sizes)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"^n_embd \(10\) must be divisible by n_head \(4\)$"):
        ModelConfig(vocab_size=27, n_embd=10, n_head=4)


@pytest.mark.parametrize("sizes", [{"block_size": 10**20}, {"n_embd": 10**12}])
def test_model_beyond_any_memory_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"has [\d,]+ parameters, expected at most 281,474,976"):
        ModelConfig(vocab_size=27, **sizes)


def test_default_model_on_names_has_4192_parameters() -> None:
    assert ModelConfig(vocab_size=27).n_params == 4192


def test_shapes_are_those_of_the_files_in_order() -> None:
    shapes = parameter_shapes(SMALL)
    assert list(shapes)[:5] == ["wte", "wpe", "lm_head", "layer0.attn_wq", "layer0.attn_wk"]
    assert list(shapes)[-2:] == ["layer1.mlp_fc1", "layer1.mlp_fc2"]
    assert shapes["wte"] == shapes["lm_head"] == (5, 6)
    assert shapes["wpe"] == (7, 6)
    assert (shapes["layer1.mlp_fc1"], shapes["layer1.mlp_fc2"]) == ((24, 6), (6, 24))
    assert sum(rows * columns for rows, columns in shapes.values()) == SMALL.n_params


def test_initial_weights_are_drawn_row_by_row(model: GPT) -> None:
    rng = random.Random(7)
    drawn = [rng.gauss(0.0, 0.08) for _ in range(SMALL.n_params)]
    assert [weight.data for weight in model.parameters()] == drawn
    assert list(init_weights(SMALL, random.Random(7))) == drawn
    assert model.weights["wpe"][0][0].data == drawn[5 * 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("wpe"), "got parameters"),
        (lambda weights: weights.update(bias=[[0.0]]), "got parameters"),
        (lambda weights: weights["wte"].pop(), r"wte is not a matrix of shape \(5, 6\)"),
        (lambda weights: weights["layer1.mlp_fc1"][3].pop(), r"layer1.mlp_fc1 .* \(24, 6\)"),
    ],
)
def test_weights_of_another_shape_are_refused(model: GPT, change: Any, message: str) -> None:
    weights: dict[str, Any] = {
        name: [[weight.data for weight in row] for row in matrix]
        for name, matrix in model.weights.items()
    }
    change(weights)
    with pytest.raises(ShapeError, match=message):
        InferenceGPT(SMALL, weights)


# ---------------------------------------------------------------- parts, restated plainly


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(-500, 500))
def test_softmax_sums_to_one_and_ignores_a_shift(logits: list[float], shift: float) -> None:
    probs = softmax(logits)
    assert sum(probs) == pytest.approx(1.0)
    shifted = softmax([z + shift for z in logits])
    assert shifted == pytest.approx(probs, rel=1e-9)  # z + shift loses 500 / 2**52 of z


def test_softmax_of_huge_logits_is_finite() -> None:
    assert softmax([1e300, 1e300, -1e300]) == [0.5, 0.5, 0.0]


@settings(deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=9), st.data())
def test_cross_entropy_is_minus_the_log_of_softmax(
    logits: list[float], data: st.DataObject
) -> None:
    target = data.draw(st.integers(0, len(logits) - 1))
    expected = -math.log(softmax(logits)[target])
    assert cross_entropy(logits, target) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_cross_entropy_of_the_all_but_impossible_is_finite() -> None:
    assert cross_entropy([0.0, -1000.0], 1) == 1000.0


@pytest.mark.parametrize("x", [[3.0, -4.0], [1e-3, 2e-3, 5e-3], [0.0, 0.0]])
def test_rmsnorm_scales_to_unit_root_mean_square(x: list[float]) -> None:
    scale = 1.0 / math.sqrt(sum(a * a for a in x) / len(x) + 1e-5)
    assert rmsnorm(x) == pytest.approx([a * scale for a in x])


def test_linear_multiplies_by_rows_of_out_by_in() -> None:
    assert linear([1.0, 2.0], [[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]) == [11.0, 17.0, 23.0]


def test_attention_weights_values_by_the_match_of_their_keys() -> None:
    q, keys = [1.0, 0.0, 0.0, 2.0], [[1.0, 0.0, 0.0, 0.0], [0.0, 9.0, 0.0, 3.0]]
    values = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    expected = []
    for head in (slice(0, 2), slice(2, 4)):
        scores = [sum(a * b for a, b in zip(q[head], k[head], strict=True)) / 2**0.5 for k in keys]
        weights = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
        expected += [
            sum(w * v[column] for w, v in zip(weights, values, strict=True))
            for column in range(head.start, head.stop)
        ]
    assert attention(q, keys, values, n_head=2) == pytest.approx(expected)


# ---------------------------------------------------------------- the whole


def mean_loss(plain: InferenceGPT) -> float:
    """Return what `GPT.loss` computes, without a graph: in a tenth of the time."""
    logits = plain.logits(IDS[:-1])
    losses = [cross_entropy(z, t) for z, t in zip(logits, IDS[1:], strict=True)]
    return sum(losses) / len(losses)


def test_gradient_of_the_whole_model_matches_central_differences(model: GPT) -> None:
    weights = {name: [[w.data for w in row] for row in m] for name, m in model.weights.items()}
    plain = InferenceGPT(SMALL, weights)  # which reads these lists
    assert mean_loss(plain) == pytest.approx(model.loss(IDS).data, rel=1e-12)
    model.loss(IDS).backward()
    h = 1e-5  # the loss is rounded to 1e-16 and its third derivatives are of order 1
    rows = [(name, i) for name, matrix in weights.items() for i in range(len(matrix))]
    places = [(name, i, j) for name, i in rows for j in range(len(weights[name][i]))]
    for name, i, j in random.Random(3).sample(places, 60):
        before = weights[name][i][j]
        weights[name][i][j] = before + h
        above = mean_loss(plain)
        weights[name][i][j] = before - h
        difference = (above - mean_loss(plain)) / (2 * h)
        weights[name][i][j] = before
        assert model.weights[name][i][j].grad == pytest.approx(difference, rel=1e-5, abs=1e-9)


def test_tokens_that_do_not_occur_have_no_gradient_of_their_embedding(model: GPT) -> None:
    model.loss(IDS).backward()
    assert {value.grad for value in model.weights["wte"][2]} == {0.0}
    assert {value.grad for value in model.weights["wpe"][6]} == {0.0}
    assert all(value.grad for value in model.weights["wte"][3])


def test_loss_is_the_mean_surprise_of_each_token(model: GPT) -> None:
    logits = InferenceGPT.from_gpt(model).logits(IDS[:-1])
    losses = [-math.log(softmax(z)[t]) for z, t in zip(logits, IDS[1:], strict=True)]
    assert model.loss(IDS).data == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_loss_leaves_out_what_exceeds_the_block(model: GPT) -> None:
    long = [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2]
    assert model.loss(long).data == model.loss(long[:8]).data != model.loss(long[:7]).data


def test_floats_and_values_give_the_same_logits(model: GPT) -> None:
    floats = InferenceGPT.from_gpt(model).logits(IDS)
    for values, row in zip(model.logits(IDS), floats, strict=True):
        # Not equal: a Value divides by multiplying with the inverse.
        assert [z.data for z in values] == pytest.approx(row, rel=1e-12)


def test_later_tokens_do_not_change_earlier_logits(model: GPT) -> None:
    plain = InferenceGPT.from_gpt(model)
    assert plain.logits(IDS)[:3] == plain.logits([*IDS[:3], 2, 2])[:3]


def test_cache_continues_where_it_was(model: GPT) -> None:
    plain = InferenceGPT.from_gpt(model)
    cache = plain.new_cache()
    assert plain.prefill(IDS[:3], cache) == plain.logits(IDS)[2]
    assert [plain.decode(token_id, cache) for token_id in IDS[3:]] == plain.logits(IDS)[3:]
    assert cache.length == len(IDS)


@pytest.mark.parametrize("ids", [[], [3]])
def test_loss_needs_a_token_to_read_and_one_to_predict(model: GPT, ids: Sequence[int]) -> None:
    with pytest.raises(
        ShapeError, match=f"the number of tokens is {len(ids)}, expected at least 2"
    ):
        model.loss(ids)


@pytest.mark.parametrize("ids", [[0, 5], [-1, 0], [5, 0]])
def test_token_out_of_the_vocabulary_is_refused(model: GPT, ids: list[int]) -> None:
    with pytest.raises(TokenError, match="expected 0 to 4"):
        model.loss(ids)


def test_full_cache_is_refused(model: GPT) -> None:
    with pytest.raises(ContextLengthError, match="got token 8, expected at most block_size=7"):
        model.logits([0] * 8)


def test_no_tokens_have_no_logits(model: GPT) -> None:
    with pytest.raises(ShapeError, match="got no tokens"):
        model.logits([])


def test_values_share_nothing_with_the_plain_copy(model: GPT) -> None:
    plain = InferenceGPT.from_gpt(model)
    before = plain.logits(IDS)
    for parameter in model.parameters():
        parameter.data = 0.0
    assert plain.logits(IDS) == before
    assert isinstance(model.parameters()[0], Value)
