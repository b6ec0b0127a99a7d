"""Every engine computes what the scalar one and PyTorch compute, and keeps what `Engine` says."""

import copy
import math
import pickle
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from engine_cases import (
    RAGGED,
    TOLERANCES,
    Case,
    assert_same_loss_and_grads,
    float64_weights,
    norms_by_document,
    sizes,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from microgpt import (
    ENGINES,
    Batch,
    ContextLengthError,
    EngineError,
    InferenceGPT,
    MicrogptError,
    ModelConfig,
    NonFiniteLossError,
    ShapeError,
    TokenError,
    unavailable_engines,
)
from microgpt.engines import select
from microgpt.engines.base import Engine
from microgpt.parameters import DTYPES, FloatArray, Parameters
from numpy.typing import DTypeLike, NDArray

FLOAT32_ROUNDING = 2e-6  # of numbers of order 1, after some hundred operations


def skip_unless_it_runs(name: str) -> str:
    try:
        select(name, Parameters.zeros(ModelConfig(vocab_size=1), "float64"))
    except EngineError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture(scope="module", params=[name for name in ENGINES if name != "auto"])
def name(request: pytest.FixtureRequest) -> str:
    """Name of any engine."""
    return skip_unless_it_runs(request.param)


@pytest.fixture(scope="module", params=[name for name in ENGINES if name not in {"auto", "scalar"}])
def fast(request: pytest.FixtureRequest) -> str:
    """Name of an engine to compare with the scalar one or with PyTorch."""
    return skip_unless_it_runs(request.param)


@st.composite
def small_cases(draw: st.DrawFn) -> Case:
    n_head, head_dim = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    config = sizes(
        vocab_size=draw(st.integers(1, 6)),
        n_embd=n_head * head_dim,
        n_head=n_head,
        n_layer=draw(st.integers(1, 3)),
        block_size=draw(st.integers(1, 6)),
    )
    lengths = draw(st.lists(st.integers(1, config.block_size), min_size=1, max_size=3))
    return Case(config, lengths, draw(st.sampled_from([0, 0.5, 1])), draw(st.integers(0, 9999)))


# ---------------------------------------------------------------- loss and gradients


@given(case=small_cases())
@example(case=RAGGED)
@example(case=Case(sizes(4, 6, 1, 3, 5), [5]))  # one head, T = block_size
@example(case=Case(sizes(3, 6, 2, 1, 1), [1]))  # T = 1
@example(case=Case(sizes(3, 6, 2, 2, 4), [2, 4], share_hidden=1))
@example(case=Case(sizes(4096, 2, 1, 1, 2), [2]))  # a vocabulary of subwords
@settings(max_examples=80, deadline=None)
def test_loss_and_gradients_are_those_of_the_scalar_engine(case: Case) -> None:
    batch, weights = case.batch(), case.parameters("float32")
    as_float64 = Parameters(case.config, weights.flat.astype(np.float64))  # the same numbers
    scalar = select("scalar", as_float64)
    nll, n_targets = scalar.loss_and_grads(batch)
    for fast in {"vectorized", "native"} - unavailable_engines().keys():
        for parameters in (weights, as_float64):
            engine = select(fast, parameters)
            assert_same_loss_and_grads(engine, batch, nll, n_targets, dict(scalar.grads))


class Expected(NamedTuple):
    """What an engine should compute."""

    nll: float
    n_targets: int
    grads: dict[str, FloatArray]
    nearest_kink: float  # smallest distance of a ReLU's input from 0


def with_torch(torch: Any, weights: Parameters, batch: Batch) -> Expected:
    """Return the summed loss of a batch, and its gradients, as PyTorch finds them."""
    torch.set_num_threads(1)  # such small products gain nothing from more
    nearest_kink = math.inf
    functional = torch.nn.functional
    n_embd, n_head = weights.config.n_embd, weights.config.n_head
    state = {name: torch.tensor(view, requires_grad=True) for name, view in weights.items()}
    ends = np.cumsum(batch.lengths)[:-1]
    nll = torch.zeros((), dtype=torch.float64)
    for ids, targets in zip(
        np.split(batch.inputs, ends), np.split(batch.targets, ends), strict=True
    ):
        x = state["wte"][torch.tensor(ids)] + state["wpe"][: len(ids)]  # (T, C)
        x = functional.rms_norm(x, (n_embd,), eps=1e-5)
        for i in range(weights.config.n_layer):
            normed = functional.rms_norm(x, (n_embd,), eps=1e-5)
            q, k, v = (
                (normed @ state[f"layer{i}.attn_w{kind}"].T).view(len(ids), n_head, -1)
                for kind in "qkv"
            )  # (T, H, D)
            scores = torch.einsum("qhd,khd->hqk", q, k) / (n_embd // n_head) ** 0.5
            ahead = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
            probs = scores.masked_fill(ahead, -torch.inf).softmax(-1)  # (H, T, T)
            mixed = torch.einsum("hqk,khd->qhd", probs, v).reshape(len(ids), n_embd)
            x = x + mixed @ state[f"layer{i}.attn_wo"].T
            normed = functional.rms_norm(x, (n_embd,), eps=1e-5)
            hidden = normed @ state[f"layer{i}.mlp_fc1"].T  # (T, 4C)
            nearest_kink = min(nearest_kink, hidden.detach().abs().min().item())
            x = x + hidden.relu() @ state[f"layer{i}.mlp_fc2"].T
        logits = x @ state["lm_head"].T  # (T, V)
        nll = nll + functional.cross_entropy(
            logits, torch.tensor(targets).long(), ignore_index=-1, reduction="sum"
        )
    nll.backward()
    grads = {name: tensor.grad.numpy() for name, tensor in state.items()}
    return Expected(nll.item(), int((batch.targets >= 0).sum()), grads, nearest_kink)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        Case(sizes(27, 16, 4, 1, 16), [16]),
        Case(sizes(27, 16, 4, 1, 16), [1]),
        Case(sizes(11, 20, 1, 2, 9), [9, 3, 8, 1], share_hidden=0.3),
        Case(sizes(65, 33, 3, 3, 40), [40, 17, 1, 39]),
        Case(sizes(98, 64, 8, 2, 100), [100, 90, 7, 100, 33], share_hidden=0.1),
        Case(sizes(13, 34, 2, 1, 300), [300]),
        Case(sizes(4096, 32, 4, 2, 40), [40, 7]),
    ],
    ids=lambda case: "-".join(map(str, case.lengths)),
)
def test_loss_and_gradients_are_those_of_pytorch(fast: str, dtype: str, case: Case) -> None:
    torch = pytest.importorskip("torch")
    engine, batch = case.engine(fast, dtype), case.batch()
    expected = with_torch(torch, float64_weights(engine), batch)
    assert_same_loss_and_grads(engine, batch, *expected[:3])


@st.composite
def any_cases(draw: st.DrawFn) -> Case:
    """Shapes of every kind: heads of odd widths, documents cut at the block, many tokens."""
    n_head, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 64))
    config = sizes(
        vocab_size=draw(st.integers(2, 70) | st.integers(2, 5000)),
        n_embd=n_head * head_dim,
        n_head=n_head,
        n_layer=draw(st.integers(1, 2)),
        block_size=draw(st.integers(1, 20) | st.integers(1, 70)),
    )
    lengths = draw(st.lists(st.integers(1, config.block_size + 3), min_size=1, max_size=4))
    return Case(config, lengths, draw(st.sampled_from([0, 0.3])), draw(st.integers(0, 9999)))


@given(case=any_cases())
@settings(max_examples=200, deadline=None)
def test_every_shape_agrees_with_pytorch(case: Case) -> None:
    torch = pytest.importorskip("torch")
    batch = case.batch()
    weights = case.parameters("float32")
    as_float64 = Parameters(case.config, weights.flat.astype(np.float64))  # the same numbers
    expected = with_torch(torch, as_float64, batch)
    # Rounding may put a ReLU's input on the other side of 0: then the gradient is another one.
    grads = expected.grads if expected.nearest_kink > FLOAT32_ROUNDING else {}
    norms = norms_by_document(select("vectorized", as_float64), batch)
    for fast in {"vectorized", "native"} - unavailable_engines().keys():
        assert_same_loss_and_grads(select(fast, as_float64), batch, *expected[:3])
        engine = select(fast, weights)
        assert_same_loss_and_grads(engine, batch, expected.nll, expected.n_targets, grads, norms)


def test_scalar_engine_itself_agrees_with_pytorch() -> None:
    torch = pytest.importorskip("torch")
    engine, batch = RAGGED.engine("scalar"), RAGGED.batch()
    assert_same_loss_and_grads(engine, batch, *with_torch(torch, engine.parameters, batch)[:3])


@pytest.mark.parametrize("parameter", ["wpe", "layer1.attn_wk", "layer0.mlp_fc1"])
def test_comparison_notices_a_gradient_that_is_slightly_wrong(parameter: str) -> None:
    engine, batch = RAGGED.engine("vectorized"), RAGGED.batch()
    nll, n_targets = engine.loss_and_grads(batch)
    wrong = {name: view.copy() for name, view in engine.grads.items()}
    wrong[parameter] *= 1 + 1e-9
    with pytest.raises(AssertionError, match=parameter):
        assert_same_loss_and_grads(engine, batch, nll, n_targets, wrong)


@pytest.fixture(scope="module")
def gradients(name: str) -> Parameters:
    """Gradients of the ragged batch."""
    engine = RAGGED.engine(name)
    engine.loss_and_grads(RAGGED.batch())
    return engine.grads


@pytest.mark.parametrize("parameter", RAGGED.parameters())
def test_gradient_is_what_the_loss_differs_by(
    name: str, gradients: Parameters, parameter: str
) -> None:
    engine, batch = RAGGED.engine(name), RAGGED.batch()
    weights = engine.parameters[parameter]
    direction = np.random.default_rng(42).normal(size=weights.shape)
    expected = float(np.vdot(gradients[parameter], direction))
    step = 1e-5  # balances truncation, step**2, against the rounding of a loss of 20, 1e-15 / step
    losses = []
    for sign in (1, -2):
        weights += sign * step * direction
        losses.append(engine.loss(batch)[0])
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_loss_alone_is_the_same_loss(name: str) -> None:
    engine = RAGGED.engine(name)
    assert engine.loss(RAGGED.batch()) == engine.loss_and_grads(RAGGED.batch())


def test_batch_without_targets_has_no_loss_and_no_gradient(name: str) -> None:
    case = RAGGED._replace(share_hidden=1)
    engine = case.engine(name)
    engine.grads.flat[:] = 7.0
    assert engine.loss_and_grads(case.batch()) == (0.0, 0)
    assert not engine.grads.flat.any()


def test_gradients_do_not_remember_the_batch_before(name: str) -> None:
    short = RAGGED._replace(lengths=[2])
    engine, fresh = RAGGED.engine(name), RAGGED.engine(name)
    engine.loss_and_grads(RAGGED.batch())
    assert engine.loss_and_grads(short.batch()) == fresh.loss_and_grads(short.batch())
    np.testing.assert_array_equal(engine.grads.flat, fresh.grads.flat)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, ">i4"])
def test_any_integers_will_do_for_token_ids(name: str, dtype: DTypeLike) -> None:
    case = RAGGED._replace(share_hidden=0)
    engine, batch = case.engine(name), case.batch()
    expected = engine.loss_and_grads(batch)
    doubled = (np.repeat(ids, 2).astype(dtype) for ids in batch)
    assert engine.loss_and_grads(Batch(*(ids[::2] for ids in doubled))) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(
    fast: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microgpt.engines.native_inference._usable_cores", lambda: 4)
    case = Case(sizes(30, 64, 4, 2, 200), [200, 40, 90, 13, 9, 90])
    trained = []
    for threads in (1, 2, 4):
        engine = case.engine(fast, dtype, threads)
        engine.train_steps([case.batch()], [0.01], clip=0.5)
        trained.append((engine.grads.flat, engine.parameters.flat, engine.logits([7] * 200)))
    for arrays in zip(*trained, strict=True):
        np.testing.assert_array_equal(arrays[0], arrays[1])
        np.testing.assert_array_equal(arrays[0], arrays[2])


# ---------------------------------------------------------------- the optimizer


def adamw(
    weights: Sequence[float],
    grads: Sequence[Sequence[float]],
    learning_rates: Sequence[float],
    clip: float | None,
    weight_decay: float,
) -> tuple[list[float], list[float]]:
    """Return weights after all updates, and the norms of the gradients; as in the papers."""
    w = list(weights)
    m, v = [0.0] * len(w), [0.0] * len(w)
    norms = []
    for step, (gradient, rate) in enumerate(zip(grads, learning_rates, strict=True), 1):
        norms.append(math.sqrt(math.fsum(g * g for g in gradient)))
        shrink = 1.0 if clip is None else min(1.0, clip / norms[-1])
        for i, g in enumerate(gradient):
            m[i] = 0.85 * m[i] + 0.15 * g * shrink
            v[i] = 0.99 * v[i] + 0.01 * (g * shrink) ** 2
            m_hat, v_hat = m[i] / (1 - 0.85**step), v[i] / (1 - 0.99**step)
            w[i] -= rate * weight_decay * w[i]
            w[i] -= rate * m_hat / (math.sqrt(v_hat) + 1e-8)
    return w, norms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("clip", [None, 20.0, 1e-7, 1e9])  # never, sometimes, always, never
def test_update_is_adam_with_decoupled_decay_on_the_clipped_gradient(
    name: str, dtype: str, weight_decay: float, clip: float | None
) -> None:
    engine = RAGGED.engine(name, dtype)
    rates = [0.1, 0.02, 0.3, 0.01]
    rng = np.random.default_rng(42)
    n_params = engine.config.n_params
    grads = [rng.normal(0, std, n_params).astype(dtype) for std in (0.1, 3.0, 0.5, 0.01)]
    grads[2][::3] = 0.0
    expected, norms = adamw(
        engine.parameters.flat.tolist(),
        [gradient.tolist() for gradient in grads],
        rates,
        clip,
        weight_decay,
    )
    got = []
    for gradient, rate in zip(grads, rates, strict=True):
        engine.grads.flat[:] = gradient
        got.append(engine.update(rate, clip, weight_decay))
    assert engine.n_updates == len(rates)
    # A few roundings per number and step; the weights and the steps are of order 1.
    tolerance = 20 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(engine.parameters.flat, expected, rtol=tolerance, atol=tolerance)
    if clip is None:
        assert got == [None] * len(rates)
    else:
        assert got == pytest.approx(norms, rel=1e-12 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_step_is_a_mean_gradient_and_an_update(name: str, dtype: str) -> None:
    fused, by_hand = RAGGED.engine(name, dtype), RAGGED.engine(name, dtype)
    loss_tolerance, grad_tolerance = TOLERANCES[dtype]
    for step in range(3):
        batch = RAGGED.batch(step)
        nll, n_targets = by_hand.loss_and_grads(batch)
        by_hand.grads.flat[:] /= n_targets
        norm = by_hand.update(0.01, 0.8, 0.1)
        (result,) = fused.train_steps([batch], [0.01], 0.8, 0.1)
        assert result.n_tokens == n_targets < sum(RAGGED.lengths)
        assert result.loss == pytest.approx(nll / n_targets, rel=loss_tolerance)
        assert result.grad_norm == pytest.approx(norm, rel=grad_tolerance)
    np.testing.assert_allclose(
        fused.parameters.flat, by_hand.parameters.flat, rtol=0, atol=grad_tolerance
    )


@pytest.mark.parametrize(("dtype", "clip"), [("float32", 0.5), ("float64", None)])
def test_many_steps_in_one_call_are_bit_for_bit_the_same_steps_one_by_one(
    name: str, dtype: str, clip: float | None
) -> None:
    batches = [
        RAGGED._replace(lengths=lengths).batch(seed)
        for seed, lengths in enumerate([[3, 5, 1], [5], [1], [4, 4], [2, 5, 5]])
    ]
    rates = [0.05, 0.04, 0.03, 0.02, 0.01]
    together, one_by_one = RAGGED.engine(name, dtype), RAGGED.engine(name, dtype)
    results = together.train_steps(batches, rates, clip, 0.1)
    assert results == [
        one_by_one.train_steps([batch], [rate], clip, 0.1)[0]
        for batch, rate in zip(batches, rates, strict=True)
    ]
    assert len({result.loss for result in results}) == len(batches)
    assert together.n_updates == one_by_one.n_updates == len(batches)
    for buffer in ("parameters", "adam_m", "adam_v"):
        np.testing.assert_array_equal(
            getattr(together, buffer).flat, getattr(one_by_one, buffer).flat
        )


def through_pickle(engine: Engine) -> Engine:
    twin = pickle.loads(pickle.dumps(engine))  # noqa: S301 - written by the same line
    assert isinstance(twin, Engine)
    return twin


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_copy_trains_on_like_the_original_and_apart_from_it(
    name: str, duplicate: Callable[[Engine], Engine]
) -> None:
    batches, rates = [RAGGED.batch(step) for step in range(2)], [0.1] * 2
    engine = RAGGED.engine(name)
    engine.train_steps(batches, rates)
    twin = duplicate(engine)
    expected = engine.train_steps(batches, rates)
    assert twin.train_steps(batches, rates) == expected
    np.testing.assert_array_equal(twin.parameters.flat, engine.parameters.flat)
    assert twin.n_updates == engine.n_updates == 4
    assert not np.shares_memory(twin.parameters.flat, engine.parameters.flat)


def test_no_steps_change_nothing(name: str) -> None:
    engine = RAGGED.engine(name)
    assert engine.train_steps([], []) == []
    assert engine.n_updates == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_that_is_not_finite_stops_before_its_update(name: str, dtype: str) -> None:
    short, long = RAGGED._replace(lengths=[4, 2]).batch(), RAGGED._replace(lengths=[5]).batch()
    stopped, expected = RAGGED.engine(name, dtype), RAGGED.engine(name, dtype)
    for engine in (stopped, expected):
        engine.parameters["wpe"][4] = math.nan  # only the fifth token meets it
    (before,) = expected.train_steps([short], [0.1])
    assert math.isfinite(before.loss)
    message = r"loss is nan at step 2 \(learning rate 0.0625\), .* training stopped there"
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        stopped.train_steps([short, long, short], [0.1, 0.0625, 0.05])
    assert (caught.value.step, caught.value.learning_rate) == (2, 0.0625)
    assert caught.value.hint == "try a smaller learning rate"
    assert stopped.n_updates == 1
    for buffer in ("parameters", "adam_m", "adam_v"):
        np.testing.assert_array_equal(getattr(stopped, buffer).flat, getattr(expected, buffer).flat)


@pytest.mark.parametrize("dtype", DTYPES)
def test_diverging_training_ends_in_its_error_and_without_warnings(name: str, dtype: str) -> None:
    engine = RAGGED.engine(name, dtype)
    with pytest.raises(NonFiniteLossError):
        engine.train_steps([RAGGED.batch()] * 5, [1e300] * 5)


# ---------------------------------------------------------------- batches that do not fit


def int32(*ids: int) -> NDArray[np.int32]:
    return np.array(ids, np.int32)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"inputs": [0, 1, 2]}, ShapeError, "inputs is a list, expected a 1-D array of integers"),
        ({"targets": np.zeros((1, 3), np.int32)}, ShapeError, r"targets is .* shape \(1, 3\)"),
        ({"lengths": np.array([2.0, 1.0])}, ShapeError, "lengths is .* type float64, expected"),
        ({"lengths": int32()}, ShapeError, "lengths .* at least one document"),
        ({"lengths": int32(3, 0)}, ShapeError, "length.* at least 1"),
        ({"lengths": int32(4, -1)}, ShapeError, "length.* at least 1"),
        (
            {"lengths": int32(2, 2)},
            ShapeError,
            r"inputs of shape \(3,\) and targets of shape \(3,\), expected \(4,\)",
        ),
        (
            {"targets": int32(1, 2)},
            ShapeError,
            r"inputs of shape \(3,\) and targets of shape \(2,\), expected \(3,\)",
        ),
        (
            {"inputs": int32(0, 1, 2, 3)},
            ShapeError,
            r"inputs of shape \(4,\) and targets of shape \(3,\), expected \(3,\)",
        ),
        ({"inputs": int32(0, 5, 2)}, TokenError, "token id 5, expected 0 to 4"),
        ({"inputs": int32(0, -1, 2)}, TokenError, "token id -1, expected 0 to 4"),
        ({"targets": int32(0, 5, 2)}, TokenError, "token id 5, expected -1 to 4"),
        ({"targets": int32(0, -2, 2)}, TokenError, "token id -2, expected -1 to 4"),
        (
            {name: int32(1, 1, 1, 1, 1) for name in ("inputs", "targets")} | {"lengths": int32(5)},
            ContextLengthError,
            "got 5 tokens, expected at most block_size=4; shorten the text or",
        ),
    ],
)
def test_batch_that_does_not_fit_is_refused(
    name: str, changed: dict[str, Any], error: type[MicrogptError], message: str
) -> None:
    engine = Case(sizes(5, 6, 2, 1, block_size=4), []).engine(name)
    before = engine.parameters.flat.copy()
    good = Batch(int32(0, 1, 2), int32(1, 2, -1), int32(2, 1))
    assert engine.loss_and_grads(good)[1] == 2
    with pytest.raises(error, match=message):
        engine.loss_and_grads(good._replace(**changed))
    with pytest.raises(error, match=message):
        engine.train_steps([good._replace(**changed)], [0.1])
    np.testing.assert_array_equal(engine.parameters.flat, before)


# ---------------------------------------------------------------- inference

LONG = Case(sizes(vocab_size=9, n_embd=12, n_head=3, n_layer=2, block_size=21), [21])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case", [LONG, RAGGED, Case(sizes(3, 5, 1, 1, 1), [1])], ids=["long", "short", "one"]
)
def test_logits_prefill_and_decode_agree_with_the_plain_model(
    name: str, dtype: str, case: Case
) -> None:
    engine = case.engine(name, dtype)
    weights = {parameter: view.tolist() for parameter, view in engine.parameters.items()}
    block_size = case.config.block_size
    token_ids = [7 * i % case.config.vocab_size for i in range(block_size)]
    expected = np.array(InferenceGPT(case.config, weights).logits(token_ids))  # (T, V)
    tolerance = 1e-12 if dtype == "float64" else 1e-4  # as the loss

    def assert_same(got: Any, rows: Any) -> None:
        np.testing.assert_allclose(got, rows, rtol=0, atol=tolerance * np.abs(expected).max())

    logits = engine.logits(token_ids)
    assert logits.shape == (block_size, case.config.vocab_size)
    assert_same(logits, expected)
    for end in range(1, block_size + 1):
        cache = engine.new_cache()
        middle = (end + 1) // 2
        assert_same(engine.prefill(token_ids[:middle], cache), expected[middle - 1])
        if middle < end:  # a second prefill goes on where the first ended
            assert_same(engine.prefill(token_ids[middle:end], cache), expected[end - 1])
        for position in range(end, block_size):
            assert_same(engine.decode(token_ids[position], cache), expected[position])


def test_full_cache_takes_no_more_and_keeps_what_it_has(name: str) -> None:
    engine = RAGGED.engine(name)
    cache = engine.new_cache()
    engine.prefill([0, 1, 2, 3], cache)
    with pytest.raises(ContextLengthError, match="got 6 tokens, expected at most block_size=5"):
        engine.prefill([4, 5], cache)
    expected = engine.logits([0, 1, 2, 3, 4])[-1]
    np.testing.assert_allclose(engine.decode(4, cache), expected, rtol=1e-12)
    with pytest.raises(ContextLengthError, match="got 6 tokens, expected at most block_size=5"):
        engine.decode(5, cache)
    with pytest.raises(ContextLengthError, match="got 6 tokens, expected at most block_size=5"):
        engine.logits([0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_too_large_weights_show_in_the_figures_and_not_as_warnings(fast: str, dtype: str) -> None:
    engine = RAGGED.engine(fast, dtype)
    for parameter in ("layer0.mlp_fc1", "lm_head"):
        engine.parameters[parameter][:] *= np.finfo(dtype).max / 4
    cache = engine.new_cache()
    assert not np.isfinite(engine.prefill([0, 1], cache)).all()
    assert not np.isfinite(engine.decode(2, cache)).all()
    assert not np.isfinite(engine.logits([0, 1, 2])[-1]).all()
    assert not np.isfinite(engine.loss(RAGGED.batch())[0])


@pytest.mark.parametrize(
    ("token_ids", "error", "message"),
    [
        ([], ShapeError, "got no tokens, expected at least one"),
        ([0, 7], TokenError, "token id 7, expected 0 to 6"),
        ([-1, 0], TokenError, "token id -1, expected 0 to 6"),
        ([0.5, 1.5], ShapeError, "token ids are .* type float64, expected a list of integers"),
        ([[0, 1]], ShapeError, r"token ids are .* shape \(1, 2\)"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(
    name: str, token_ids: list[int], error: type[MicrogptError], message: str
) -> None:
    engine = RAGGED.engine(name)
    cache = engine.new_cache()
    expected = engine.prefill([3], engine.new_cache())
    with pytest.raises(error, match=message):
        engine.prefill(token_ids, cache)
    with pytest.raises(error, match=message):
        engine.logits(token_ids)
    assert engine.prefill([3], cache) == expected


@pytest.mark.parametrize("token_id", [-1, 7])
def test_decode_refuses_a_token_out_of_the_vocabulary(name: str, token_id: int) -> None:
    engine = RAGGED.engine(name)
    with pytest.raises(TokenError, match=f"token id {token_id}, expected 0 to 6"):
        engine.decode(token_id, engine.new_cache())


def test_caches_in_use_at_once_do_not_touch_each_other(name: str) -> None:
    engine = RAGGED.engine(name)
    texts = [[0, 1, 2, 3], [6, 5, 4, 3], [3, 3, 3, 3]]
    alone = []
    for text in texts:
        cache = engine.new_cache()
        alone.append([engine.decode(token_id, cache) for token_id in text])
    caches = [engine.new_cache() for _ in texts]
    in_turns = [
        [engine.decode(text[i], cache) for text, cache in zip(texts, caches, strict=True)]
        for i in range(4)
    ]
    assert [list(rows) for rows in zip(*in_turns, strict=True)] == alone


# ---------------------------------------------------------------- choice


def test_memory_grows_with_the_documents_and_not_with_the_square_of_the_block(name: str) -> None:
    case = Case(sizes(vocab_size=3, n_embd=2, n_head=1, n_layer=1, block_size=4000), [9, 4])
    tracemalloc.start()
    try:
        case.engine(name).loss_and_grads(case.batch())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < case.config.block_size**2  # bytes


def test_unknown_engine_is_refused_and_the_known_ones_named() -> None:
    parameters = Parameters.zeros(ModelConfig(vocab_size=1), "float32")
    with pytest.raises(EngineError, match=f"engine is 'gpu', expected one of {', '.join(ENGINES)}"):
        select("gpu", parameters)


@pytest.mark.parametrize("dtype", DTYPES)
def test_engine_uses_the_weights_in_place(name: str, dtype: str) -> None:
    parameters = Parameters.zeros(RAGGED.config, dtype)
    engine = select(name, parameters)
    assert (engine.name, engine.config) == (name, RAGGED.config)
    assert engine.parameters is parameters
    assert engine.grads.dtype == engine.adam_m.dtype == engine.adam_v.dtype == dtype


def test_auto_takes_an_engine_that_is_not_the_slow_one() -> None:
    parameters = Parameters.zeros(ModelConfig(vocab_size=1), "float32")
    assert select("auto", parameters).name in set(ENGINES) - {"auto", "scalar"}
