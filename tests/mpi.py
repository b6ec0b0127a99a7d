"""Starts the MPI jobs of tests: several processes on this machine."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

__all__ = ["mpirun", "needs_mpi"]

MPIRUN = shutil.which(
    "mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)

needs_mpi = pytest.mark.skipif(
    MPIRUN is None or importlib.util.find_spec("mpi4py") is None,
    reason="mpi4py or mpirun is not installed",
)


def mpirun(n_processes: int, *program: object) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs a Python program on so many processes, and its environment."""
    options = ["--oversubscribe", "-n", str(n_processes)]  # more than there are cores
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = [str(MPIRUN), *options, sys.executable, *map(str, program)]
    # Shared memory alone: looking for networks takes a second.
    settings = {"OMPI_MCA_btl": "self,sm", "OPENBLAS_NUM_THREADS": "1"}
    return command, os.environ | as_root | settings
