import math
from typing import Any

import numpy as np
import pytest
from engine_cases import Case, sizes
from microgpt import NonFiniteLossError
from microgpt.engines.base import Engine
from microgpt.engines.muon import Muon, muon_matrices, orthogonalized
from microgpt.engines.native import NativeEngine
from microgpt.engines.vectorized import VectorizedEngine

DTYPES = ("float32", "float64")
SHAPES = [  # vocabulary, width, heads, layers, block
    sizes(27, 64, 4, 2, 16),
    sizes(5, 6, 2, 1, 5),
    sizes(9, 33, 3, 2, 7),
    sizes(11, 130, 2, 1, 9),
    sizes(5, 1, 1, 2, 5),
]


# ---------------------------------------------------------------- the definition


@pytest.mark.parametrize("shape", [(7, 7), (20, 5), (5, 20), (1, 9), (9, 1), (1, 1)])
def test_orthogonalized_matrix_keeps_its_directions_with_lengths_near_1(
    shape: tuple[int, int],
) -> None:
    matrix = np.random.default_rng(1).normal(0, 3e-4, shape)
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonalized(matrix, 5) @ v.T
    assert values.min() > 0.01 * np.linalg.norm(matrix)
    np.testing.assert_allclose(found, np.diag(np.diag(found)), atol=1e-12)
    assert 0.68 < np.diag(found).min() <= np.diag(found).max() < 1.21


def test_each_iteration_is_the_polynomial_of_the_singular_values() -> None:
    values = np.array([0.8, 0.6, 0.0])  # of norm 1
    expected = values / (1 + 1e-7)
    for _ in range(3):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    np.testing.assert_allclose(orthogonalized(np.diag(values), 3), np.diag(expected), atol=1e-14)


# ---------------------------------------------------------------- the engines


def by_the_papers(
    before: np.ndarray[Any, Any], gradients: list[Any], rate: float, decay: float
) -> np.ndarray[Any, Any]:
    """Return a matrix after Muon's updates, by singular values instead of products."""
    w, buffer = before.copy(), np.zeros_like(before)
    for gradient in gradients:
        buffer = 0.95 * buffer + gradient
        u, values, v = np.linalg.svd(gradient + 0.95 * buffer, full_matrices=False)
        values = values / math.sqrt((values**2).sum())
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        w -= rate * decay * w
        w -= rate * math.sqrt(max(1, w.shape[0] / w.shape[1])) * (u * values) @ v
    return w


@pytest.mark.parametrize("name", ["native", "vectorized", "scalar"])
def test_update_is_muon_on_the_layers_and_adam_on_the_rest(name: str) -> None:
    case = Case(sizes(5, 6, 2, 2, 5), [5, 3])
    engine, adam = case.engine(name, "float64"), case.engine(name, "float64")
    rng = np.random.default_rng(42)
    gradients = [rng.normal(0, 1, engine.config.n_params) for _ in range(3)]
    clip = 0.5 * min(map(float, map(np.linalg.norm, gradients)))
    by_name: dict[str, list[Any]] = {name: [] for name in engine.parameters}
    for gradient in gradients:
        for each in (engine, adam):
            each.grads.flat[:] = gradient
        norm = engine.update(0.1, clip, 0.3, Muon(0.5))
        assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-12)
        adam.update(0.1, clip, 0.3)
        for matrix, values in engine.grads.items():
            by_name[matrix].append(values.copy())  # clipped
    np.testing.assert_allclose(np.linalg.norm(engine.grads.flat), clip, rtol=1e-12)
    for matrix, found in engine.parameters.items():
        if matrix.startswith("layer"):
            before = case.parameters("float64")[matrix]
            expected = by_the_papers(before, by_name[matrix], 0.05, 0.3)
            # The papers' code has no factor 1 - 0.95; 1e-7 beside a norm moves 1e-7 of an update.
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
            assert not engine.adam_v[matrix].any()
        else:
            np.testing.assert_allclose(found, adam.parameters[matrix], rtol=1e-12, atol=1e-14)


def distance(case: Case, found: Engine, expected: Engine, matrix: str) -> float:
    """Return the distance of two engines' weights, in units of the way from the initial ones."""
    way = expected.parameters[matrix] - case.parameters(expected.parameters.dtype)[matrix]
    apart = found.parameters[matrix] - expected.parameters[matrix]
    return float(np.linalg.norm(apart) / np.linalg.norm(way))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4)])
@pytest.mark.parametrize("vector_bytes", [16, None])
@pytest.mark.parametrize("config", SHAPES, ids=str)
def test_native_update_is_that_of_numpy(
    config: Any, vector_bytes: int | None, dtype: str, tolerance: float
) -> None:
    case = Case(config, [4])
    native = NativeEngine(case.parameters(dtype), vector_bytes=vector_bytes)
    numpy = VectorizedEngine(case.parameters(dtype))
    gradient = np.random.default_rng(3).normal(0, 0.01, config.n_params)
    for engine in (native, numpy):
        engine.parameters.flat[:] = 0.0  # so that the weights are the update
        engine.grads.flat[:] = gradient
        engine.update(0.01, 0.5, 0.1, Muon(2.0))
    for matrix, expected in numpy.parameters.items():
        apart = np.linalg.norm(native.parameters[matrix] - expected)
        assert apart <= tolerance * np.linalg.norm(expected), matrix
    np.testing.assert_allclose(native.adam_m.flat, numpy.adam_m.flat, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("name", ["native", "vectorized"])
@pytest.mark.parametrize("every", [2, 5, 14])
def test_shares_update_each_matrix_once_and_as_a_whole_update_does(name: str, every: int) -> None:
    case = Case(sizes(5, 6, 2, 2, 5), [4])
    engines = [case.engine(name, "float64") for _ in range(every)]
    whole = case.engine(name, "float64")
    for engine in (*engines, whole):
        engine.grads.flat[:] = np.random.default_rng(3).normal(0, 1, engine.config.n_params)
    whole.update(0.01, 0.5, 0.1, Muon(2.0))
    for first, engine in enumerate(engines):
        engine.update(0.01, 0.5, 0.1, Muon(2.0, first=first, every=every))
    matrices = muon_matrices(whole.parameters)
    assert [name.partition(".")[2] for name in matrices[:2]] == ["mlp_fc1", "mlp_fc2"]
    for i, matrix in enumerate(matrices):
        for first, engine in enumerate(engines):
            is_mine = i % every == first
            expected = whole.parameters[matrix] if is_mine else case.parameters("float64")[matrix]
            np.testing.assert_array_equal(engine.parameters[matrix], expected)
            mean = whole.adam_m[matrix] if is_mine else np.zeros_like(expected)
            np.testing.assert_array_equal(engine.adam_m[matrix], mean)


def test_fifty_native_steps_are_those_of_numpy() -> None:
    case = Case(sizes(27, 32, 4, 2, 16), [7, 3, 16, 9, 5])
    native, numpy = (case.engine(name, "float64") for name in ("native", "vectorized"))
    batches, rates = [case.batch(step) for step in range(50)], [0.005] * 50
    found, expected = (e.train_steps(batches, rates, 1.0, 0.1, Muon(2.0)) for e in (native, numpy))
    np.testing.assert_allclose(
        [result.loss for result in found], [result.loss for result in expected], rtol=1e-8
    )
    for matrix in numpy.parameters:
        assert distance(case, native, numpy, matrix) < 1e-8, matrix


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microgpt.engines.native_inference._usable_cores", lambda: 4)
    monkeypatch.setattr("microgpt.engines.native_inference.FLOPS_PER_THREAD", 1.0)
    case = Case(sizes(30, 70, 2, 3, 20), [20, 4, 9])
    trained = []
    for threads in (1, 2, 4):
        engine = case.engine("native", dtype, threads)
        engine.train_steps([case.batch(step) for step in range(5)], [0.01] * 5, 0.5, 0.1, Muon(2.0))
        trained.append((engine.parameters.flat, engine.adam_m.flat, engine.grads.flat))
    for arrays in zip(*trained, strict=True):
        np.testing.assert_array_equal(arrays[0], arrays[1])
        np.testing.assert_array_equal(arrays[0], arrays[2])


def test_threads_are_for_the_work_of_muon_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microgpt.engines.native_inference._usable_cores", lambda: 2)
    used = []
    for width in (16, 64):
        engine = NativeEngine(Case(sizes(27, width, 4, 3, 16), [7]).parameters("float32"))
        used.append([engine.n_threads(7, 3, muon) for muon in (None, Muon(1.0))])
    assert used == [[1, 1], [1, 2]]


@pytest.mark.parametrize("name", ["native", "vectorized"])
def test_many_steps_in_one_call_are_the_same_steps_one_by_one(name: str) -> None:
    case = Case(sizes(9, 12, 2, 2, 6), [5, 2, 6])
    together, apart = case.engine(name), case.engine(name)
    batches, rates = [case.batch(step) for step in range(4)], [0.04, 0.03, 0.02, 0.01]
    options = (0.5, 0.1, Muon(0.7, 0.9, 3))
    expected = [
        apart.train_steps([batch], [rate], *options)[0]
        for batch, rate in zip(batches, rates, strict=True)
    ]
    assert together.train_steps(batches, rates, *options) == expected
    np.testing.assert_array_equal(together.parameters.flat, apart.parameters.flat)


# ---------------------------------------------------------------- numbers at the edge


def rank_one(shape: tuple[int, int], scale: float) -> Any:
    return scale * np.outer(np.arange(1, shape[0] + 1), np.ones(shape[1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["native", "vectorized"])
@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-30, 1e-6, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("config", [sizes(5, 20, 2, 1, 5), sizes(5, 1, 1, 1, 5)], ids=str)
def test_finite_gradients_of_any_size_and_rank_give_finite_updates(
    config: Any, scale: float, name: str, dtype: str
) -> None:
    engine = Case(config, [4]).engine(name, dtype)
    fc1 = engine.parameters["layer0.mlp_fc1"]
    before = fc1.copy()
    with np.errstate(over="ignore"):  # of a norm; the update is 0 then
        for _ in range(3):
            for matrix, gradient in engine.grads.items():
                gradient[:] = rank_one(engine.parameters[matrix].shape, scale)
            engine.update(0.01, None, 0.0, Muon(1.0))
    assert np.isfinite(engine.parameters.flat).all()
    assert np.isfinite(engine.adam_m.flat).all()
    length = float(np.linalg.norm(fc1 - before)) / (3 * 0.01 * 2)  # the stretch of fc1 is 2
    assert length < 1.21
    if scale == 0:
        assert length == 0
    if 1e-6 <= scale <= 1e12:
        assert length > 0.68


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["native", "vectorized"])
def test_rate_too_high_ends_in_the_error_of_divergence(name: str, dtype: str) -> None:
    case = Case(sizes(9, 12, 2, 2, 6), [5, 2, 6])
    engine = case.engine(name, dtype)
    ratio = 1e30 if dtype == "float32" else 1e200
    with pytest.raises(NonFiniteLossError, match="at step 2"):
        engine.train_steps([case.batch()] * 3, [0.01] * 3, None, 0.0, Muon(ratio))
