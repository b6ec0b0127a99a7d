"""The flat buffer and the matrices that look into it."""

import random

import numpy as np
import pytest
from microgpt import ConfigError, ModelConfig, ShapeError
from microgpt.parameters import DTYPES, Parameters
from numpy.typing import DTypeLike

CONFIG = ModelConfig(vocab_size=5, n_embd=6, n_head=2, n_layer=2, block_size=3)
SHAPES = {  # (out, in), in the order of draws
    "wte": (5, 6),
    "wpe": (3, 6),
    "lm_head": (5, 6),
    "layer0.attn_wq": (6, 6),
    "layer0.attn_wk": (6, 6),
    "layer0.attn_wv": (6, 6),
    "layer0.attn_wo": (6, 6),
    "layer0.mlp_fc1": (24, 6),
    "layer0.mlp_fc2": (6, 24),
    "layer1.attn_wq": (6, 6),
    "layer1.attn_wk": (6, 6),
    "layer1.attn_wv": (6, 6),
    "layer1.attn_wo": (6, 6),
    "layer1.mlp_fc1": (24, 6),
    "layer1.mlp_fc2": (6, 24),
}
N_PARAMS = sum(rows * columns for rows, columns in SHAPES.values())


def numbered() -> Parameters:
    """Return weights 0, 1, 2, ... in the order of the buffer."""
    return Parameters(CONFIG, np.arange(N_PARAMS, dtype=np.float64))


def test_matrices_come_in_the_order_of_draws_with_shape_out_in() -> None:
    shapes = {name: view.shape for name, view in numbered().items()}
    assert list(shapes.items()) == list(SHAPES.items())
    assert len(numbered()) == len(SHAPES)


def test_matrices_lie_row_by_row_one_after_another() -> None:
    rows = [view.reshape(-1) for view in numbered().values()]
    assert np.concatenate(rows).tolist() == list(range(N_PARAMS))


def test_buffer_and_matrices_are_the_same_memory() -> None:
    flat = np.zeros(N_PARAMS, np.float32)
    parameters = Parameters(CONFIG, flat)
    assert parameters.flat is flat
    parameters["wpe"][0, 1] = 7.0
    assert flat.nonzero()[0].tolist() == [5 * 6 + 1]
    flat[:] = 2.0
    assert all((view == 2.0).all() for view in parameters.values())


def test_stacked_matrices_are_one_view_of_the_buffer() -> None:
    parameters = numbered()
    w_qkv = parameters.stacked("layer1.attn_wq", "layer1.attn_wv")  # (3C, C)
    each = [parameters[f"layer1.attn_w{kind}"] for kind in "qkv"]
    np.testing.assert_array_equal(w_qkv, np.concatenate(each))
    w_qkv[:] = -1.0
    assert (parameters.flat == -1.0).sum() == 3 * 6 * 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_initial_weights_are_drawn_one_by_one_in_order(dtype: str) -> None:
    parameters = Parameters.init(CONFIG, random.Random(42), dtype)
    rng = random.Random(42)
    for view in parameters.values():
        drawn = [[rng.gauss(0, 0.08) for _ in row] for row in view]
        np.testing.assert_array_equal(view, np.array(drawn).astype(dtype))


def test_initial_weights_leave_the_generator_after_the_last_draw() -> None:
    rng, expected = random.Random(42), random.Random(42)
    Parameters.init(CONFIG, rng, "float32")
    for _ in range(N_PARAMS):
        expected.gauss(0, 0.08)
    assert rng.getstate() == expected.getstate()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_are_zeros_of_the_type_asked_for(dtype: str) -> None:
    parameters = Parameters.zeros(CONFIG, dtype)
    assert parameters.dtype == dtype
    assert parameters.flat.dtype == dtype
    assert not parameters.flat.any()


@pytest.mark.parametrize("dtype", ["float16", "int32", "double", ""])
def test_other_types_are_refused_by_name(dtype: str) -> None:
    message = rf"dtype is '{dtype}', expected one of float32, float64"
    with pytest.raises(ConfigError, match=message):
        Parameters.zeros(CONFIG, dtype)
    with pytest.raises(ConfigError, match=message):
        Parameters.init(CONFIG, random.Random(42), dtype)


@pytest.mark.parametrize(
    ("shape", "dtype", "step"),
    [
        (N_PARAMS - 1, np.float64, 1),
        (N_PARAMS + 1, np.float64, 1),
        ((1, N_PARAMS), np.float64, 1),
        (N_PARAMS, np.float16, 1),
        (N_PARAMS, np.int64, 1),
        (N_PARAMS, ">f8", 1),  # the other byte order
        (2 * N_PARAMS, np.float64, 2),  # the right shape, but not contiguous
    ],
)
def test_buffer_of_another_shape_type_or_layout_is_refused(
    shape: int | tuple[int, int], dtype: DTypeLike, step: int
) -> None:
    expected = rf"expected a contiguous one of shape \({N_PARAMS},\) and type float32 or float64"
    with pytest.raises(ShapeError, match=expected):
        Parameters(CONFIG, np.zeros(shape, dtype)[::step])


def test_assigned_values_are_written_into_the_flat_buffer() -> None:
    parameters = Parameters.zeros(ModelConfig(vocab_size=3, n_embd=4), "float32")
    parameters["lm_head"] = np.arange(12.0).reshape(3, 4)
    parameters["lm_head"] *= 2
    parameters["wte"] = 7
    assert parameters["lm_head"].dtype == np.float32
    assert parameters.flat.sum() == 2 * 66 + 7 * 12
    with pytest.raises(ShapeError, match=r"shape \(4,\) for wte, expected \(3, 4\)"):
        parameters["wte"] = np.ones(4)
    with pytest.raises(KeyError):
        parameters["wtf"] = 1
