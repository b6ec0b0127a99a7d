"""Strikes a save at each of its system calls in turn: strace kills it there or makes the call fail.

strace counts the calls of each kind and process, and strikes at the N-th. So a child is forked for
every k, and made to do N - k idle calls of that kind before it saves: then the k-th call of that
save is the one. One program forks the children of all kinds: starting it takes longer than saves.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import pytest

__all__ = ["CALLS", "FAULTS", "MAX_CALLS", "needs_strace", "strike_each_call"]

CALLS = ("openat", "write", "fsync", "rename", "unlink", "mkdir", "flock")
FAULTS = ("signal=KILL", "error=ENOSPC", "error=EIO")
MAX_CALLS = 16  # of one kind that a save makes
STRUCK = dict.fromkeys(CALLS, 100) | {"openat": 1000}  # more than starting makes

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

SAVER = """
import fcntl, json, os, sys
exec(sys.argv[1])  # defines save(directory)
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
}

def save_in_child(call, n_idle, directory):
    child = os.fork()
    if child == 0:
        os.dup2(null, 1)
        for _ in range(n_idle):
            idle[call]()
        try:
            save(directory)
        except Exception:
            pass
        os._exit(0)
    return os.waitpid(child, 0)[1]

killed = [
    call
    for call, n, directories in json.loads(sys.argv[2])
    for k, directory in enumerate(directories, 1)
    if os.WIFSIGNALED(save_in_child(call, n - k, directory))
]
sys.stdout.write(" ".join(killed))
"""


def strike_each_call(
    setup: str,
    fault: str,
    folder: Path,
    before: Callable[[Path], object],
    calls: Sequence[str] = CALLS,
    max_calls: int = MAX_CALLS,
) -> list[Path]:
    """Save into many directories, the k-th save for a call with a fault at its k-th such call.

    Args:
        setup: Python source that defines `save(directory)`.
        fault: one of FAULTS.
        folder: for the directories, and for what strace says.
        before: makes a directory as it is before the save.
        calls: some of CALLS.
        max_calls: more than a save makes of any of these, so that the last saves meet no fault.

    Returns:
        The directories.
    """
    directories = {call: [folder / call / str(k + 1) for k in range(max_calls)] for call in calls}
    for directory in chain(*directories.values()):
        directory.parent.mkdir(exist_ok=True)
        before(directory)
    plan = [(call, STRUCK[call], list(map(str, paths))) for call, paths in directories.items()]
    program = [os.path.realpath(sys.executable), "-c", SAVER, setup, json.dumps(plan)]
    log = folder / "log"
    strace = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={','.join(calls)}"]
    for call in calls:
        strace += ["-e", f"inject={call}:{fault}:when={STRUCK[call]}"]
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONDONTWRITEBYTECODE": "1",  # its calls would be counted
        "OPENBLAS_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [*strace, *program],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert run.returncode == 0, run.stderr
    failed = re.findall(r"^\d+ +(\w+)\(.*\(INJECTED\)$", log.read_text(), re.MULTILINE)
    n_strikes = Counter(run.stdout.split() or failed)
    for call in calls:
        assert 0 < n_strikes[call] < max_calls, f"each {call} of the save was to be struck once"
    return list(chain(*directories.values()))
