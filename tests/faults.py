"""Strikes a save at each of its system calls in turn: strace kills it there or makes the call fail.

strace counts the calls of each kind and process, and strikes at the N-th. So a child is forked for
every k, and made to do N - k idle calls of that kind before it saves: then the k-th call of that
save is the one. One program forks the children of all kinds, because starting it takes longer than
saves, and has itself traced when it has started, because its calls until then are many.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

__all__ = ["FAULTS", "needs_linux", "needs_strace", "strike_each_call"]

STRUCK = 50  # the N: more calls of a kind than a save makes, with its messages
FAULTS = ("signal=KILL", "error=ENOSPC", "error=EIO")

needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="uses /proc, /dev/full or prlimit of Linux"
)
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

SAVER = """
import ctypes, fcntl, json, os, subprocess, sys, time
from pathlib import Path
exec(sys.argv[1])  # defines save(directory)
null = os.open("/dev/null", os.O_RDWR)
PR_SET_PTRACER = 0x59616D61

def traced(strace):
    any_process = ctypes.c_ulong(-1)
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, any_process, 0, 0, 0)  # some systems refuse a child
    tracer = subprocess.Popen([*strace, "-p", str(os.getpid())])
    while f"TracerPid:\\t{tracer.pid}\\n" not in Path("/proc/self/status").read_text():
        assert tracer.poll() is None
        time.sleep(0.001)
    return tracer

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

tracer = traced(json.loads(sys.argv[2]))
killed = [
    call
    for call, directories in json.loads(sys.argv[3]).items()
    for k, directory in enumerate(directories, 1)
    if os.WIFSIGNALED(save_in_child(call, int(sys.argv[4]) - k, directory))
]
tracer.terminate()
tracer.wait()
sys.stdout.write(" ".join(killed))
"""


def strike_each_call(
    setup: str,
    fault: str,
    folder: Path,
    before: Callable[[Path], object],
    calls: dict[str, int],
) -> list[Path]:
    """Save into many directories, the k-th save for a call with a fault at its k-th such call.

    Args:
        setup: Python source that defines `save(directory)`.
        fault: one of FAULTS.
        folder: for the directories, and for what strace says.
        before: makes a directory as it is before the save.
        calls: how many saves for each call, more than a save makes of it, so that the last of
            them meets no fault.

    Returns:
        The directories.
    """
    directories = {
        call: [folder / call / str(k + 1) for k in range(n)] for call, n in calls.items()
    }
    for directory in chain(*directories.values()):
        directory.parent.mkdir(exist_ok=True)
        before(directory)
    log = folder / "log"
    strace = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={','.join(calls)}"]
    for call in calls:
        strace += ["-e", f"inject={call}:{fault}:when={STRUCK}"]
    plan = {call: list(map(str, paths)) for call, paths in directories.items()}
    arguments = (setup, json.dumps(strace), json.dumps(plan), str(STRUCK))
    program = [os.path.realpath(sys.executable), "-c", SAVER, *arguments]
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONDONTWRITEBYTECODE": "1",  # its calls would be counted
        "OPENBLAS_NUM_THREADS": "1",
    }
    run = subprocess.run(
        program, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert run.returncode == 0, run.stderr
    failed = re.findall(r"^\d+ +(\w+)\(.*\(INJECTED\)$", log.read_text(), re.MULTILINE)
    n_strikes = Counter(run.stdout.split() or failed)
    for call, n in calls.items():
        assert 0 < n_strikes[call] < n, f"each {call} of the save was to be struck once"
    return list(chain(*directories.values()))
