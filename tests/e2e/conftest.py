"""Built wheels, and environments that they are installed in: `hatch run package:test`.

MICROGPT_DIST names a folder of wheels to test in place of new ones: what a release has built is
tested before it is published.
"""

import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from e2e.arm64 import emulated
from e2e.environments import DISTRIBUTIONS, PYTHONS, Installation, build_tree, python_of, uv
from e2e.systems import LIBRARY, SYSTEMS

collect_ignore = ["harness.py"]  # a program for environments that have the library

THIS_PYTHON = "{}.{}".format(*sys.version_info)
OTHER_PYTHONS = sorted({*PYTHONS} - {THIS_PYTHON})


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdists and the wheels for this system of the checkout as it stands."""
    if given := os.environ.get("MICROGPT_DIST"):
        return Path(given).resolve()
    return build_tree(tmp_path_factory.mktemp("built") / "dist", "--here")


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all the files of a release: the wheels for other systems too."""
    if given := os.environ.get("MICROGPT_DIST"):
        return Path(given).resolve()
    return build_tree(tmp_path_factory.mktemp("released") / "dist")


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def wheel(release: Path, system: str) -> Path:
    """The library's wheel for a system."""
    (path,) = release.rglob(f"microgpt_lib-*-py3-none-{system}.whl")
    return path


@pytest.fixture
def library(wheel: Path, tmp_path: Path) -> Path:
    """The kernel in the wheel for a system."""
    return Path(zipfile.ZipFile(wheel).extract(LIBRARY, tmp_path))


@pytest.fixture(scope="session")
def new_installation(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Installation]:
    """Make an empty environment of a version of Python, by default this one."""

    def make(version: str = THIS_PYTHON) -> Installation:
        python = python_of(version)
        folder = tmp_path_factory.mktemp("installed") / f"python-{version}"
        uv("venv", "--python", python, folder)
        return Installation(folder)

    return make


@pytest.fixture(scope="session")
def arm64(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The three wheels on a Python for another processor."""
    return emulated(tmp_path_factory.mktemp("arm64"), release)


@pytest.fixture(
    scope="session",
    params=[
        THIS_PYTHON,
        "lowest",
        *(pytest.param(name, marks=pytest.mark.long) for name in (*OTHER_PYTHONS, "arm64")),
    ],
)
def installation(
    request: pytest.FixtureRequest, dist: Path, new_installation: Callable[..., Installation]
) -> Installation:
    """The three wheels, on each Python; and the lowest of all they depend on, on the oldest."""
    if request.param == "arm64":
        return cast("Installation", request.getfixturevalue("arm64"))
    if request.param == "lowest":
        made = new_installation(PYTHONS[0])
        made.install(*DISTRIBUTIONS, "--resolution", "lowest", dist=dist)
        return made
    made = new_installation(request.param)
    made.install(*DISTRIBUTIONS, dist=dist)
    return made


@pytest.fixture(scope="session")
def current(dist: Path, new_installation: Callable[..., Installation]) -> Installation:
    """The three wheels on the Python that runs the tests."""
    made = new_installation()
    made.install(*DISTRIBUTIONS, dist=dist)
    return made
