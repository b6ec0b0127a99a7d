"""Packages of Debian for any processor, unpacked and not installed."""

import subprocess
from pathlib import Path

import pytest
from e2e.environments import program

__all__ = ["unpack_packages"]


def unpack_packages(folder: Path, architecture: str, *packages: str) -> Path:
    """Unpack packages and all they depend on into a folder, and return their root directory.

    Lists, cache and status are in the folder, so that those of this machine do not change. The
    test is skipped where apt-get is missing or its sources do not have the packages.
    """
    downloader, unpacker = program("apt-get"), program("dpkg-deb")
    state, root = folder / "apt", folder / "root"
    for name in ("lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True)
    status = state / "status"
    status.touch()  # no package is installed
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::Cache": state,
        "Dir::State": state,
        "Dir::State::status": status,
    }
    apt_get = [downloader, "-qq", *(f"--option={name}={value}" for name, value in settings.items())]
    download = ["install", "--download-only", "--no-install-recommends", *packages]
    said = ""
    for command in (["update"], download):
        done = subprocess.run([*apt_get, *command], capture_output=True, text=True, check=False)
        said += done.stderr
        if done.returncode:
            pytest.skip(f"apt-get cannot download {packages} for {architecture}: {said}")
    for package in (state / "archives").glob("*.deb"):
        subprocess.run([unpacker, "--extract", package, root], check=True)
    return root
