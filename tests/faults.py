"""Strikes a save at each of its system calls in turn: strace kills it there or makes the call fail.

strace counts the calls of a process and strikes at the N-th. So a child is forked for every k, and
made to do N - k idle calls of that kind before it saves: then the k-th call of its save is the one.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["CALLS", "FAULTS", "MAX_CALLS", "needs_strace", "strike_each_call"]

CALLS = ("openat", "write", "fsync", "rename", "unlink", "mkdir", "flock")
FAULTS = ("signal=KILL", "error=ENOSPC", "error=EIO")
MAX_CALLS = 16  # of one kind that a save makes
STRUCK = dict.fromkeys(CALLS, 100) | {"openat": 1000}  # more than starting makes

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

SAVER = """
import fcntl, os, sys
call, n, setup = sys.argv[1], int(sys.argv[2]), sys.argv[3]
exec(setup)  # defines save(directory)
null = os.open("/dev/null", os.O_RDWR)

def quietly(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        pass

idle = {
    "openat": lambda: quietly(os.open, "/nowhere/a", os.O_RDONLY),
    "write": lambda: os.write(null, b"."),
    "fsync": lambda: quietly(os.fsync, null),
    "rename": lambda: quietly(os.rename, "/nowhere/a", "/nowhere/b"),
    "unlink": lambda: quietly(os.unlink, "/nowhere/a"),
    "mkdir": lambda: quietly(os.mkdir, "/nowhere/a"),
    "flock": lambda: fcntl.flock(null, fcntl.LOCK_SH),
}[call]
for k, directory in enumerate(sys.argv[4:], 1):
    child = os.fork()
    if child == 0:
        for _ in range(n - k):
            idle()
        try:
            save(directory)
        except Exception as error:
            print(type(error).__name__, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def strike_each_call(
    setup: str, call: str, fault: str, directories: list[Path], log: Path
) -> list[str]:
    """Save into each directory, the k-th save with a fault at its k-th call of a kind.

    Args:
        setup: Python source that defines `save(directory)`.
        call: one of CALLS.
        fault: one of FAULTS.
        directories: more than there are calls, so that the last saves meet no fault.
        log: file for what strace says.

    Returns:
        Names of the errors that saves ended with.
    """
    program = [os.path.realpath(sys.executable), "-c", SAVER, call, str(STRUCK[call]), setup]
    inject = f"inject={call}:{fault}:when={STRUCK[call]}"
    strace = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", inject, "-o", str(log)]
    search_path = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run(
        [*strace, *program, *directories],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": search_path, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    lines = log.read_text()
    killed = set(re.findall(r"^(\d+) +\+\+\+ killed by SIGKILL", lines, re.MULTILINE))
    killed &= set(re.findall(rf"^(\d+) +{call}\(", lines, re.MULTILINE))  # not its other threads
    n_strikes = len(killed) or lines.count("(INJECTED)")
    assert 0 < n_strikes < len(directories), "every call of the save was to be struck once"
    return run.stdout.split()
