"""The compiled engine: widths of vectors, threads, processes, memory."""

import gc
import hashlib
import math
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import microgpt
import numpy as np
import pytest
from engine_cases import RAGGED, Case, assert_same_loss_and_grads, sizes
from faults import needs_linux
from hypothesis import given, settings
from hypothesis import strategies as st
from microgpt import EngineError, SamplingConfig, SamplingError, ShapeError, StopSignal
from microgpt.corpus.batches import Batches
from microgpt.engines import library, select
from microgpt.engines.native import NativeEngine
from microgpt.parameters import DTYPES, Parameters

pytestmark = pytest.mark.skipif(
    library.why_unavailable() is not None, reason=f"no native engine: {library.why_unavailable()}"
)

SHORT = Case(sizes(27, 16, 4, 1, 16), [7, 16, 1, 12, 16])  # whole heads fill a vector
# A seed by which no ReLU's input is so near 0 that float32 might round it to the other side.
LONG = Case(sizes(90, 48, 3, 2, 150), [150, 17, 40, 1, 99], share_hidden=0.1, seed=52)


# ---------------------------------------------------------------- every width of vectors


@pytest.fixture(params=library.VECTOR_BYTES)
def vector_bytes(request: pytest.FixtureRequest) -> int:
    """A width that this processor has."""
    try:
        NativeEngine(RAGGED.parameters(), vector_bytes=request.param)
    except EngineError as error:
        pytest.skip(str(error))
    return int(request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [RAGGED, SHORT, LONG], ids=["ragged", "short", "long"])
def test_every_width_computes_the_same(case: Case, dtype: str, vector_bytes: int) -> None:
    weights = case.parameters(dtype)
    oracle = select("vectorized", Parameters(case.config, weights.flat.astype(np.float64)))
    nll, n_targets = oracle.loss_and_grads(case.batch())
    engine = NativeEngine(weights, vector_bytes=vector_bytes)
    assert_same_loss_and_grads(engine, case.batch(), nll, n_targets, dict(oracle.grads))
    token_ids = [7 * i % case.config.vocab_size for i in range(case.config.block_size)]
    expected = oracle.logits(token_ids)
    cache = engine.new_cache()
    decoded = [engine.decode(token_id, cache) for token_id in token_ids]
    tolerance = (1e-12 if dtype == "float64" else 1e-4) * np.abs(expected).max()
    for logits in (engine.logits(token_ids), decoded):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [RAGGED, SHORT, LONG], ids=["ragged", "short", "long"])
def test_every_width_shows_a_weight_that_is_not_finite(
    case: Case, dtype: str, vector_bytes: int
) -> None:
    engine = NativeEngine(case.parameters(dtype), vector_bytes=vector_bytes)
    batch = case.batch()
    expected = engine.loss_and_grads(batch)
    for parameter, matrix in engine.parameters.items():
        for spoilt in (math.nan, math.inf, -math.inf):
            row = batch.inputs[0] if parameter == "wte" else 0  # one that is looked at
            before = matrix[row, -1]
            matrix[row, -1] = spoilt
            assert not math.isfinite(engine.loss(batch)[0]), (parameter, spoilt)
            if spoilt == math.inf:  # with a gradient, after the same loss
                assert not math.isfinite(engine.loss_and_grads(batch)[0])
            matrix[row, -1] = before
    assert engine.loss_and_grads(batch) == expected  # nothing is left of it


def test_unknown_width_is_refused() -> None:
    with pytest.raises(EngineError, match="vector_bytes is 24, expected 16, 32 or 64"):
        NativeEngine(RAGGED.parameters(), vector_bytes=24)


# ---------------------------------------------------------------- many at once


def trained(seed: int, threads: int = 2) -> str:
    """Return a hash of what a few steps and a few samples come to."""
    case = LONG._replace(seed=seed)
    engine = case.engine("native", "float32", threads)
    engine.train_steps([case.batch(step) for step in range(3)], [0.01] * 3, clip=1.0)
    uniforms = np.random.default_rng(seed).random((3, 20))
    texts = engine.sample([1], uniforms, SamplingConfig(), stop=0)
    return hashlib.sha256(engine.parameters.flat.tobytes() + repr(texts).encode()).hexdigest()


def threads_of(work: Callable[[], object]) -> int:
    """Return the number of threads that `work` keeps busy, counted while it runs."""
    tasks = Path("/proc/self/task")
    n_before, most = len(list(tasks.iterdir())), 0
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        while not done.done():
            most = max(most, len(list(tasks.iterdir())))
    return most - n_before


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@pytest.mark.parametrize(("threads", "used"), [(None, 2), (1, 1), (2, 2), (10**6, 2)])
def test_no_more_threads_run_than_there_are_cores(
    threads: int | None, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microgpt.engines.native_inference._usable_cores", lambda: 2)
    engine, n_steps = NativeEngine(LONG.parameters("float32"), threads), 50
    batches = [LONG.batch()] * n_steps
    assert threads_of(lambda: engine.train_steps(batches, [0.01] * n_steps)) == min(
        used, library.max_members()
    )


def test_eight_threads_at_once_compute_what_they_do_alone() -> None:
    alone = [trained(seed) for seed in range(8)]
    assert len(set(alone)) == 8
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(trained, range(8))) == alone


PROGRAM = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parents[2])]!r}
from lib.engines.test_native import trained
before = trained(3)
if "fork" in sys.argv:
    child = os.fork()
    if child == 0:
        os._exit(0 if trained(3) == before else 7)
    assert os.waitpid(child, 0)[1] == 0
    assert trained(3) == before
print(before)
"""


def test_two_processes_at_once_and_a_forked_one_compute_the_same() -> None:
    commands = [[sys.executable, "-c", PROGRAM], [sys.executable, "-c", PROGRAM, "fork"]]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands
    ]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == [trained(3)] * 2


def test_many_threads_decode_and_score_with_one_model() -> None:
    engine = LONG.engine("native", "float32")
    texts = [[(i * j) % 90 for j in range(40)] for i in range(8)]

    def work(text: list[int]) -> tuple[list[list[float]], float]:
        cache = engine.new_cache()
        rows = [engine.prefill(text[:20], cache)]
        rows += [engine.decode(token_id, cache) for token_id in text[20:]]
        return rows, engine.loss(LONG.batch(text[1]))[0]

    alone = [work(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, texts)) == alone


def test_kernel_leaves_subnormal_numbers_alone() -> None:
    trained(1)
    smallest = np.array([sys.float_info.min, np.finfo(np.float32).tiny])
    assert sys.float_info.min / 2 > 0
    assert (smallest / 2 > 0).all()
    assert np.float32(1e-45) * np.float32(1) > 0
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: sys.float_info.min / 2).result() > 0


# ---------------------------------------------------------------- sampling


class Given:
    """Draws that were made before."""

    def __init__(self, row: list[float]) -> None:
        self.random = iter(row).__next__


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    temperature=st.sampled_from([0.0, 1e-300, 0.1, 0.5, 1.0, 3.0, 1e6]),
    top_k=st.none() | st.integers(1, 12) | st.just(2**64 + 1),
    top_p=st.floats(0.01, 1.0),
    forbidden=st.sets(st.integers(0, 8), max_size=4),
    prompt=st.lists(st.integers(0, 8), min_size=1, max_size=20),
    seed=st.integers(0, 9999),
)
@settings(max_examples=60, deadline=None)
def test_sampling_in_c_draws_what_sampling_py_draws(
    dtype: str,
    temperature: float,
    top_k: int | None,
    top_p: float,
    forbidden: set[int],
    prompt: list[int],
    seed: int,
) -> None:
    engine = Case(sizes(9, 12, 3, 1, 21), []).engine("native", dtype)
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    uniforms = np.random.default_rng(seed).random((4, 22 - len(prompt)))
    uniforms[0] = math.nextafter(1, 0)
    uniforms[1] = 0.0
    expected = [
        list(
            microgpt.generate_from_prompt(
                engine, prompt, Given(row), config, stop=8, forbidden=forbidden
            )
        )
        for row in uniforms.tolist()
    ]
    assert engine.sample(prompt, uniforms, config, stop=8, forbidden=forbidden) == expected


def test_signal_ends_samples_from_another_thread() -> None:
    engine, signal = LONG.engine("native"), StopSignal()
    uniforms = np.random.default_rng(42).random((20_000, 100))
    threading.Timer(0.5, signal.set).start()
    texts = engine.sample([1], uniforms, SamplingConfig(), stop=-1, signal=signal)
    assert len(texts) == 20_000
    assert len(texts[0]) == 100
    assert texts[-1] == []


def test_logits_that_are_not_finite_are_an_error() -> None:
    engine = RAGGED.engine("native")
    engine.parameters["lm_head"][:] = math.nan
    with pytest.raises(SamplingError, match="the model's logits are not finite"):
        engine.sample([1], np.zeros((2, 3)), SamplingConfig(), stop=0)


def test_sampling_leaves_nothing_behind_for_the_next_call() -> None:
    """What samples are drawn in is used again."""
    engine, uniforms = LONG.engine("native"), np.random.default_rng(42).random((20, 50))
    expected = engine.sample([1], uniforms, SamplingConfig(), stop=-1)
    used = {token_id for ids in expected for token_id in ids}
    other = engine.sample([1, 2], uniforms, SamplingConfig(), stop=-1, forbidden=used)
    assert not used & {token_id for ids in other for token_id in ids}
    weight = engine.parameters["wpe"]
    before = weight[1:].copy()
    weight[1:] = math.nan  # in all keys and values but those of the prompt
    with pytest.raises(SamplingError):
        engine.sample([1], uniforms, SamplingConfig(), stop=-1)
    weight[1:] = before
    assert engine.sample([1], uniforms, SamplingConfig(), stop=-1) == expected


def test_an_engine_that_has_sampled_is_freed_at_once() -> None:
    engine = RAGGED.engine("native")
    engine.sample([1], np.zeros((1, 1)), SamplingConfig(), stop=0)
    gone = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert gone() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------- memory, and what may not cross


MEMORY_PROGRAM = """
from pathlib import Path
from microgpt_cli.commands.bench import Shape, prepare
_, trainer = prepare(Shape(128, 8, 4, 256, 8, 256), "native", 2)
for _ in range(3):
    trainer.advance(1)
    # Not ru_maxrss, which begins with that of the process that started this one.
    (peak,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    print(int(peak.split()[1]) / 1024)
"""


@needs_linux
def test_training_a_large_model_fits_into_150_megabytes_and_does_not_grow() -> None:
    command = [sys.executable, "-c", MEMORY_PROGRAM]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first, *_, last = map(float, output.split())
    assert last < 150
    assert last - first < 2


def test_cache_of_another_engine_is_refused() -> None:
    engine, other = RAGGED.engine("native"), LONG.engine("native")
    for cache in (other.new_cache(), RAGGED.engine("vectorized").new_cache()):
        with pytest.raises(ShapeError, match="the cache is not of this engine"):
            engine.prefill([1], cache)
        with pytest.raises(ShapeError, match="the cache is not of this engine"):
            engine.decode(1, cache)


@pytest.mark.parametrize("shape", [(3,), (2, 6), (1, 2, 3)])
def test_draws_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="got uniforms of shape"):
        RAGGED.engine("native").sample([1], np.zeros(shape), SamplingConfig(), stop=0)


def test_draws_may_lie_anyhow_and_be_of_another_type() -> None:
    engine, uniforms = RAGGED.engine("native"), np.random.default_rng(42).random((4, 5))
    expected = engine.sample([1], uniforms, SamplingConfig(), stop=0)
    spread = np.repeat(np.asfortranarray(uniforms), 2, axis=0)[::2]
    assert engine.sample([1], spread, SamplingConfig(), stop=0) == expected


def test_token_ids_of_several_steps_may_lie_anyhow() -> None:
    batch, engine, other = RAGGED.batch(), RAGGED.engine("native"), RAGGED.engine("native")
    spread = batch._replace(
        inputs=np.repeat(batch.inputs, 2)[::2], targets=np.repeat(batch.targets, 2)[::2]
    )
    assert not spread.inputs.flags.contiguous
    n_documents = [batch.lengths.size]
    expected = engine.train_steps(Batches(batch, n_documents), [0.1])
    assert other.train_steps(Batches(spread, n_documents), [0.1]) == expected


def test_weights_that_training_cannot_change_are_refused() -> None:
    parameters = RAGGED.parameters()
    parameters.flat.flags.writeable = False
    engine = select("native", parameters)
    assert math.isfinite(engine.loss(RAGGED.batch())[0])
    for train in (
        lambda: engine.loss_and_grads(RAGGED.batch()),
        lambda: engine.update(0.1),
        lambda: engine.train_steps([RAGGED.batch()], [0.1]),
    ):
        with pytest.raises(ShapeError, match="the weights are read-only"):
            train()


def test_weights_that_are_not_aligned_are_refused() -> None:
    memory = np.zeros(RAGGED.config.n_params * 8 + 1, np.uint8)[1:]
    with pytest.raises(ShapeError, match="the weights are not aligned"):
        select("native", Parameters(RAGGED.config, memory.view(np.float64)))
