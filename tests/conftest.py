"""What tests of every distribution share."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing while other tests run beside it.
settings.register_profile("microgpt", deadline=None)
settings.load_profile("microgpt")

# A worker of xdist has one core: more threads of NumPy's products only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_SHARED = Path(os.environ.get("MICROGPT_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_collection_finish() -> None:
    """Leave modules and tests out of every search for garbage: a graph of Values causes many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Golden figures and real data that are not part of the repository."""
    if not (_SHARED / "golden").is_dir():
        pytest.skip(f"no golden figures in {_SHARED}; set MICROGPT_SHARED to where they are")
    return _SHARED
