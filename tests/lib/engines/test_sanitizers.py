"""The kernel under AddressSanitizer, UndefinedBehaviorSanitizer and, in the long run, valgrind."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from kernel_builds import ROOT, build

PROGRAM = """
import json, sys
from pathlib import Path
from microgpt.engines import draws, library, native, native_inference

library.PATH = Path(sys.argv[1])

import random
import numpy as np
from engine_cases import Case, sizes
from microgpt import SamplingConfig
from microgpt.engines.muon import Muon

numbers, rng = json.loads(sys.argv[2]), random.Random(42)
for number in range(max(numbers) + 1):
    n_head = rng.randint(1, 4)
    config = sizes(rng.randint(2, 70), n_head * rng.randint(1, 20), n_head, rng.randint(1, 3),
                   rng.choice((1, 2, 5, 16, 33, 70)))
    lengths = [rng.randint(1, config.block_size + 3) for _ in range(rng.randint(1, 9))]
    case = Case(config, lengths, rng.choice((0.0, 0.3)), seed=number)
    if number not in numbers:
        continue
    for dtype in ("float32", "float64"):
        for width in library.VECTOR_BYTES:
            if width > library.open_library().microgpt_vector_bytes():
                continue
            for threads in (1, 3):
                native_inference.FLOPS_PER_THREAD = 1.0  # several threads for small models too
                native_inference._usable_cores = lambda: 3
                engine = native.NativeEngine(case.parameters(dtype), threads, vector_bytes=width)
                batch = case.batch()
                engine.loss_and_grads(batch)
                engine.update(0.01, clip=1.0, weight_decay=0.1)
                engine.train_steps([batch, case.batch(1)], [0.01, 0.01], clip=0.5)
                engine.train_steps([batch, case.batch(1)], [0.01, 0.01], 0.5, 0.1, Muon(2.0))
            ids = batch.inputs[: config.block_size - 1].tolist() or [0]
            engine.logits(ids)
            cache = engine.new_cache()
            engine.prefill(ids, cache)
            if cache.length < config.block_size:
                engine.decode(0, cache)
            n_tokens = config.block_size - len(ids) + 1
            uniforms = np.random.default_rng(number).random((3, n_tokens))
            for how in (SamplingConfig(), SamplingConfig(top_k=2, top_p=0.7)):
                engine.sample(ids, uniforms, how, stop=config.vocab_size - 1, forbidden=[0])
            texts = [
                engine.begin([0], engine.new_cache(), uniforms[0, :1], SamplingConfig(), stop=-1,
                             keep_logits=i > 0)
                for i in range(3)
            ]
            engine.advance(texts[1:], 1)
            engine.advance(texts, 1)
for width in library.VECTOR_BYTES:
    if width <= library.open_library().microgpt_vector_bytes():
        functions = library.functions_for("float32", width)
        draws.functions_for = lambda *_: functions
        for n_seeds, n_draws in ((0, 3), (1, 0), (5, 700), (33, 9), (64, 312)):
            found = draws.uniforms([2**31 * seed + 7 for seed in range(n_seeds)], n_draws)
            assert np.all((0 <= found) & (found < 1))
print("checked", len(numbers))
"""
# Cases of few weights and tokens, with every size of a block, and a model 36 wide.
SMALL = (0, 1, 2, 5, 16, 24, 25, 107, 120)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None,
    reason="needs gcc, with its sanitizers, on Linux",
)


def run(library: Path, numbers: Sequence[int], *before: str, **variables: str) -> str:
    """Run the program for some cases, perhaps under another one; return what it complains of."""
    arguments = (str(library), json.dumps([*numbers]))
    command = [*before, os.path.realpath(sys.executable), "-c", PROGRAM, *arguments]
    paths = os.pathsep.join(path for path in (str(ROOT / "tests"), *sys.path) if path)
    environment = os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == f"checked {len(numbers)}\n"
    return done.stderr


def sanitized(folder: Path, *flags: str) -> Path:
    library = folder / "libmicrogpt.so"
    return build(library, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *flags)


def sanitizer_variables() -> dict[str, str]:
    """Return what the environment needs for sanitized code in a plain interpreter."""
    shown = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    return {
        "LD_PRELOAD": shown.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter keeps much until its end
        "PYTHONMALLOC": "malloc",  # arrays apart, so that a step beyond one is seen
    }


def run_sanitized(library: Path, numbers: Sequence[int]) -> str:
    return run(library, numbers, **sanitizer_variables())


def test_kernel_stays_within_its_memory_and_the_language(tmp_path: Path) -> None:
    # -O0 compiles in a quarter of the time of -O1, which runs many shapes in half the time; in half
    # of that where it may leave functions as they are.
    library = sanitized(tmp_path, "-O0", "-Dalways_inline=unused")
    assert "ERROR" not in run_sanitized(library, SMALL)


def test_sanitizers_see_what_they_should(tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text("int at(int *x, int i) { return x[i]; }\n")
    library = tmp_path / "wrong.so"
    flags = ["-shared", "-fPIC", "-g", "-fsanitize=address,undefined"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(library)], check=True)
    program = "import ctypes, sys; x = (ctypes.c_int * 4)(); ctypes.CDLL(sys.argv[1]).at(x, 400)"
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-c", program, str(library)],
        env=os.environ | sanitizer_variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "AddressSanitizer" in done.stderr


@pytest.mark.long
def test_kernel_stays_within_its_memory_on_many_shapes(tmp_path: Path) -> None:
    assert "ERROR" not in run_sanitized(sanitized(tmp_path, "-O1"), range(200))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_kernel_reads_nothing_that_was_not_written(tmp_path: Path) -> None:
    library = build(tmp_path / "libmicrogpt.so", "-O1", "-g")
    complaints = run(library, range(3), "valgrind", "--quiet", PYTHONMALLOC="malloc")
    assert "libmicrogpt" not in complaints, complaints[-4000:]
