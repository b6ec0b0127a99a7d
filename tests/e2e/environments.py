"""Environments that hold built wheels, and nothing of this checkout."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = [
    "DISTRIBUTIONS",
    "PYTHONS",
    "ROOT",
    "Installation",
    "build_tree",
    "clean_environment",
    "program",
    "python_of",
    "uv",
]

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = ("microgpt-lib", "microgpt-cli", "microgpt-serve")
PYTHONS = ("3.11", "3.12", "3.13")
UV = str(Path(sys.executable).with_name("uv"))


def clean_environment() -> dict[str, str]:
    """Return this environment without what would lead back to the checkout or to locked tools."""
    unwanted = {
        "MODEL_DIR",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPATH",
        "UV_CONSTRAINT",
        "VIRTUAL_ENV",
    }
    return {name: value for name, value in os.environ.items() if name not in unwanted}


def program(*names: str) -> str:
    """Return the path of a program by the first of its names that is here, or skip the test."""
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"{names[0]} is not installed")


def uv(*arguments: str | Path, **environment: str) -> None:
    """Run uv, in an environment with these changes, and show what it said where it fails."""
    command = [UV, *map(str, arguments)]
    changed = clean_environment() | environment
    done = subprocess.run(command, env=changed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Installation:
    """An environment that distributions are installed in."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def run(
        self, program: str, *arguments: str, cwd: Path, stdin: str = "", timeout: float = 120
    ) -> str:
        """Return what a program prints; it must succeed, and say nothing on stderr."""
        done = subprocess.run(
            [self.bin / program, *arguments],
            cwd=cwd,
            env=clean_environment(),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return done.stdout

    def install(self, *requirements: str, dist: Path, **environment: str) -> None:
        uv(
            *("pip", "install", "--python", self.bin / "python", "--find-links", dist),
            *requirements,
            **environment,
        )


def python_of(version: str) -> str:
    """Return an interpreter of this version; skip the test where there is none."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    of_pyenv = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin"))
    path = os.pathsep.join([*map(str, of_pyenv), os.environ["PATH"]])
    find = [UV, "python", "find", "--no-python-downloads", "--system", version]
    done = subprocess.run(
        find,
        env=clean_environment() | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no Python {version} on this machine")
    return done.stdout.strip()


def build_tree(output: Path, *options: str, **variables: str) -> Path:
    """Build the checkout as it stands into a folder."""
    command = [sys.executable, str(ROOT / "tools/release.py"), "build", "--worktree", *options]
    done = subprocess.run(
        [*command, "--output", str(output)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output
