"""The shared library: builds that are refused, what it imports, other compilers."""

import ctypes
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import microgpt
import numpy as np
import pytest
from engine_cases import RAGGED, TOLERANCES, Case, sizes
from kernel_builds import build, opened, sign
from microgpt import EngineError, SamplingConfig
from microgpt.engines import library, select
from microgpt.engines.native import NativeEngine
from microgpt.parameters import DTYPES

pytestmark = pytest.mark.skipif(
    library.why_unavailable() is not None, reason=f"no native engine: {library.why_unavailable()}"
)

STRUCTURES = (library.Model, library.Training, library.Stream, library.Text)
EXPECTED = {f"sizeof({s.__name__})": ctypes.sizeof(s) for s in STRUCTURES} | {"LINE_BYTES": 64}


def test_kernel_allocates_nothing() -> None:
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library.PATH], capture_output=True, text=True, check=True
    ).stdout
    assert "pthread_create" in symbols
    assert not {"malloc", "calloc", "realloc", "aligned_alloc", "posix_memalign"} & {
        name.partition("@")[0] for name in symbols.split()
    }


# ---------------------------------------------------------------- libraries that are refused


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """A copy of the shared library, to be damaged before it is opened."""
    path = tmp_path / "libmicrogpt.so"
    path.write_bytes(library.PATH.read_bytes())
    sign(path)
    with opened(path):
        yield path


def compile_to(path: Path, source: str) -> None:
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)
    sign(path)


def make_missing(path: Path) -> None:
    path.unlink()


def make_truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def make_damaged(path: Path) -> None:
    path.with_suffix(".sha256").write_bytes(b"\xff\xfe")


def make_text(path: Path) -> None:
    path.write_text("not a library", encoding="utf-8")
    sign(path)


def make_foreign(path: Path) -> None:
    compile_to(path, "int something_else;")


def make_stale(path: Path) -> None:
    compile_to(path, "long microgpt_abi(void) { return 2; }")


def test_copy_of_the_library_that_is_not_damaged_serves(copy: Path) -> None:
    assert copy.exists()
    assert select("auto", RAGGED.parameters()).name == "native"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (make_missing, "the native engine is not built: .*libmicrogpt.so cannot be read"),
        (make_truncated, "libmicrogpt.so is damaged: its digest differs from libmicrogpt.sha256"),
        (make_damaged, "libmicrogpt.so is damaged: its digest differs from libmicrogpt.sha256"),
        (make_text, "libmicrogpt.so cannot be loaded: .*"),
        (make_foreign, "libmicrogpt.so cannot be loaded: .*undefined symbol: microgpt_abi"),
        (make_stale, f"libmicrogpt.so is of another version: its ABI is 2, expected {library.ABI}"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_library_is_refused_and_the_next_engine_serves(
    copy: Path, damage: object, message: str
) -> None:
    assert callable(damage)
    damage(copy)
    with pytest.raises(EngineError, match=message) as caught:
        select("native", RAGGED.parameters())
    assert "reinstall microgpt-lib, from a wheel for this system" in str(caught.value.hint)
    assert microgpt.unavailable_engines() == {"native": str(caught.value)}
    engine = select("auto", RAGGED.parameters())
    assert engine.name == "vectorized"
    assert math.isfinite(engine.loss(RAGGED.batch())[0])


@pytest.mark.parametrize("wrong", [None, *EXPECTED])
def test_library_whose_structures_differ_is_refused_by_their_name(
    copy: Path, wrong: str | None
) -> None:
    values = EXPECTED | ({wrong: 8888} if wrong else {})
    rows = "".join(f'if (!strcmp(n, "{name}")) return {value};' for name, value in values.items())
    source = f"""
        #include <string.h>
        long microgpt_abi(void) {{ return {library.ABI}; }}
        long microgpt_constant(const char *n) {{ {rows} return -1; }}
    """
    compile_to(copy, source)
    reason = library.why_unavailable()
    if wrong is None:
        assert reason is None
    else:
        expected = f"its {wrong} is 8888, expected {EXPECTED[wrong]}"
        assert reason == f"{copy} is of another version: {expected}"


# ---------------------------------------------------------------- other compilers


CASES = [  # whole heads fill a vector; several panels of queries; odd sizes
    Case(sizes(27, 16, 4, 1, 16), [7, 16, 1, 12, 16]),
    Case(sizes(90, 48, 3, 2, 150), [150, 17, 40, 1, 99], share_hidden=0.1, seed=52),
    RAGGED,
]


def results(case: Case, dtype: str, width: int) -> list[np.ndarray]:
    """Return the numbers of an engine: training, both ways of inference, draws, samples."""
    engine = NativeEngine(case.parameters(dtype), threads=2, vector_bytes=width)
    loss = engine.loss_and_grads(case.batch())[0]
    grads = engine.grads.flat.copy()
    steps = engine.train_steps([case.batch(i) for i in range(3)], [0.01] * 3, clip=1.0)
    ids = [7 * i % case.config.vocab_size for i in range(case.config.block_size)]
    cache = engine.new_cache()
    decoded = [engine.decode(token_id, cache) for token_id in ids]
    seeds, uniforms = np.arange(5, dtype=np.uint64), np.empty((5, len(ids)))
    engine.functions["draws"](library.address(seeds), *uniforms.shape, library.address(uniforms))
    samples = engine.sample([1], uniforms, SamplingConfig(top_k=3), stop=0)
    tokens = [token for sample in samples for token in sample]
    numbers = [[loss], grads, steps, engine.logits(ids), decoded, uniforms, tokens]
    return [np.array(array, np.float64) for array in numbers]


def all_results() -> dict[tuple[int, str, int], list[np.ndarray]]:
    widest = library.open_library().microgpt_vector_bytes()
    return {
        (number, dtype, width): results(case, dtype, width)
        for number, case in enumerate(CASES)
        for dtype in DTYPES
        for width in library.VECTOR_BYTES
        if width <= widest
    }


@pytest.mark.long
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_other_compilers_warn_of_nothing_and_compute_the_same(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    expected = all_results()
    monkeypatch.setenv("CC", compiler)
    strict = ("-Werror", "-Wconversion", "-Wshadow")
    with opened(build(tmp_path / "libmicrogpt.so", *strict)):
        for kind, arrays in all_results().items():
            _, tolerance = TOLERANCES[kind[1]]
            for array, other in zip(arrays, expected[kind], strict=True):
                largest = np.abs(other).max(initial=0.0)
                np.testing.assert_allclose(array, other, rtol=0, atol=tolerance * largest)


@pytest.mark.long
def test_build_without_threads_computes_the_same_numbers(tmp_path: Path) -> None:
    expected = all_results()
    path = build(tmp_path / "libmicrogpt.so", "-DMICROGPT_THREADS=0")
    assert b"pthread_create" not in path.read_bytes()
    with opened(path):
        assert library.max_members() == 1
        for kind, arrays in all_results().items():
            for array, other in zip(arrays, expected[kind], strict=True):
                np.testing.assert_array_equal(array, other)
