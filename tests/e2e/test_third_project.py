"""A project of somebody else, which pins the library and meets a later patch release of it."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.environments import ROOT, Installation, uv

LIBRARY = ROOT / "libs/microgpt"
VERSION = tomllib.loads((LIBRARY / "pyproject.toml").read_text())["project"]["version"]
MAJOR, MINOR, PATCH = map(int, VERSION.split("."))
LATER = f"{MAJOR}.{MINOR}.{PATCH + 1}"

PROJECT = f"""
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "name-maker"
version = "1.0"
dependencies = ["microgpt-lib=={MAJOR}.{MINOR}.*"]

[project.scripts]
name-maker = "name_maker:main"
"""

PROGRAM = '''
"""Makes names: by the facade, and by the parts below it."""

import random
import tempfile

import microgpt

NAMES = ["anna", "bob", "carla", "dora", "emil", "hannah", "otto"] * 10


def by_facade() -> list[str]:
    model = microgpt.fit(NAMES, steps=200, seed=1, dtype="float64")
    with tempfile.TemporaryDirectory() as directory:
        model.save(directory)
        model = microgpt.load(directory)
    assert model.score(["anna"]) < model.score(["zqx".replace("z", "b").replace("q", "d")[:2]])
    return model.generate(num_samples=4, temperature=0.5, seed=1)


def by_parts() -> list[float]:
    dataset = microgpt.Dataset.from_documents(NAMES)
    rng = random.Random(1)
    config = microgpt.TrainConfig(steps=20, batch_size=2)
    _, trainer = microgpt.prepare(dataset, config, rng, n_embd=8, n_head=2, dtype="float64")
    return [report.loss for report in trainer]


def by_scalars() -> float:
    x = microgpt.Value(3.0)
    (x * x + x.exp().log()).backward()
    return x.grad


def main() -> None:
    print(by_facade())
    print([round(loss, 9) for loss in by_parts()])
    print(round(by_scalars(), 9))
    try:
        microgpt.load("nowhere")
    except microgpt.MicrogptError as error:
        print(type(error).__name__)
'''


@pytest.fixture(scope="session")
def later_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of the library's next patch release."""
    folder = tmp_path_factory.mktemp("later")
    copy = folder / "source"
    built = shutil.ignore_patterns("*.so", "*.sha256", "__pycache__")
    shutil.copytree(LIBRARY, copy, ignore=built)
    project = copy / "pyproject.toml"
    released = project.read_text()
    bumped = released.replace(f'version = "{VERSION}"', f'version = "{LATER}"')
    assert bumped != released
    project.write_text(bumped)
    hatchling = Path(sys.executable).with_name("hatchling")
    # Less optimised, for the sake of time.
    environment = os.environ | {"MICROGPT_REQUIRE_NATIVE": "1", "MICROGPT_CFLAGS": "-O1"}
    subprocess.run(
        [hatchling, "build", "-t", "wheel", "--directory", folder / "dist"],
        cwd=copy,
        env=environment,
        capture_output=True,
        check=True,
    )
    return folder / "dist"


def version_of_library(installation: Installation, cwd: Path) -> str:
    program = "from importlib.metadata import version; print(version('microgpt-lib'))"
    return installation.run("python", "-c", program, cwd=cwd).strip()


def test_project_outlives_a_patch_release_of_the_library(
    dist: Path,
    later_release: Path,
    new_installation: Callable[..., Installation],
    tmp_path: Path,
) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "name_maker.py").write_text(PROGRAM)
    both = new_installation()
    both.install(str(tmp_path), "microgpt-cli", "microgpt-serve", dist=dist)
    assert version_of_library(both, tmp_path) == VERSION
    before = both.run("name-maker", cwd=tmp_path)
    names, losses, gradient, error = before.splitlines()
    assert "anna" in names
    assert len(losses.split()) == 20
    assert (gradient, error) == ("7.0", "CheckpointError")

    both.install("--upgrade-package", "microgpt-lib", str(tmp_path), dist=later_release)
    assert version_of_library(both, tmp_path) == LATER
    uv("pip", "check", "--python", both.bin / "python")  # the applications take it too
    assert both.run("name-maker", cwd=tmp_path) == before
    both.run("microgpt-cli", "data", "names", "--output", "names.txt", cwd=tmp_path)
    train = "train --input names.txt --output model --steps 20 --quiet"
    both.run("microgpt-cli", *train.split(), cwd=tmp_path)
    assert (tmp_path / "model/weights.json").exists()
