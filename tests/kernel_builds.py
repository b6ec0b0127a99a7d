"""Builds of the kernel with other compilers and flags, and engines that use them."""

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from microgpt.engines import library

ROOT = Path(__file__).parents[1]
KERNEL = ROOT / "libs/microgpt/src/microgpt/engines/kernel"


def sign(path: Path) -> None:
    """Write the digest that a library is opened with."""
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())


def hatch_build() -> ModuleType:
    """Return the module that compiles the kernel when a distribution is built."""
    path = ROOT / "libs/microgpt/hatch_build.py"
    spec = importlib.util.spec_from_file_location("hatch_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(to: Path, *flags: str) -> Path:
    """Compile the kernel as the distribution does, by $CC and with more flags."""
    hatch_build().compile_kernel(KERNEL / "kernel.c", to, list(flags))
    sign(to)
    return to


def forget_library() -> None:
    """Make the next engine open the library anew."""
    library.open_library.cache_clear()
    library.functions_for.cache_clear()
    library.max_members.cache_clear()


@contextmanager
def opened(path: Path) -> Iterator[None]:
    """Let engines use another build; those made before keep theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "PATH", path)
        forget_library()
        yield
    forget_library()
