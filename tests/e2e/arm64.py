"""An arm64 Python with the wheels of a release, which qemu emulates on another processor."""

import sys
from pathlib import Path

from e2e.debian import unpack_packages
from e2e.environments import DISTRIBUTIONS, ROOT, Installation, program, uv

__all__ = ["emulated"]

PYTHON = "3.11"
PROCESSOR = "cortex-a72"  # qemu's default has SVE and SME: products of NumPy come out wrong there
LAUNCHER = """#!/bin/sh
export QEMU_CPU={processor} PYTHONHOME="{root}/usr" PYTHONPATH="{site}" PYTHONNOUSERSITE=1
exec qemu-aarch64 -L "{root}" -0 "$0" "{root}/usr/bin/python{version}" {script}"$@"
"""


def emulated(folder: Path, release: Path) -> Installation:
    """Install the wheels of a release, and what their tests need, for an emulated Python."""
    program("qemu-aarch64")  # which the launchers call
    root = unpack_packages(folder, "arm64", f"python{PYTHON}", "libstdc++6")  # NumPy's C++
    site = folder / "site"
    uv(
        *("pip", "install", "--python", sys.executable, "--target", site),
        *("--python-platform", "aarch64-manylinux_2_28", "--python-version", PYTHON),
        *("--only-binary", ":all:", "--constraint", ROOT / ".ci/requirements.lock"),
        *("--find-links", release, "--find-links", release / "others"),
        *(*DISTRIBUTIONS, "pytest", "hypothesis"),
    )
    made = Installation(folder)
    made.bin.mkdir()
    for name in ("python", "microgpt-cli", "microgpt-serve"):
        script = "" if name == "python" else f'"{site}/bin/{name}" '
        launcher = made.bin / name
        paths = {"root": root, "site": site, "script": script}
        launcher.write_text(LAUNCHER.format(version=PYTHON, processor=PROCESSOR, **paths))
        launcher.chmod(0o755)
    return made
