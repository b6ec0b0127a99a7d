"""The shared library: builds that are refused, and what it imports."""

import ctypes
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import microgpt
import pytest
from engine_cases import RAGGED
from kernel_builds import opened, sign
from microgpt import EngineError
from microgpt.engines import library, select

pytestmark = pytest.mark.skipif(
    library.why_unavailable() is not None, reason=f"no native engine: {library.why_unavailable()}"
)

STRUCTURES = (library.Model, library.Training, library.Stream, library.Generation)
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
    path.write_text("not a library")
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
    assert "install a C compiler and reinstall microgpt-lib" in str(caught.value.hint)
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
