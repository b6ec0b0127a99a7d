"""An imitation of Windows, elsewhere, for programs of ours: what it lacks is taken away.

It shows that a program does without what POSIX has, not that it runs on Windows.
"""

import ctypes
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = [
    "BREAK",
    "NEW_GROUP",
    "PRESS_BREAK",
    "Console",
    "command",
    "fake_msvcrt",
    "imitate",
    "windll",
]

# `send_signal(PRESS_BREAK)` reaches a program of a new group as the signal BREAK.
if sys.platform == "win32":
    NEW_GROUP = subprocess.CREATE_NEW_PROCESS_GROUP
    BREAK, PRESS_BREAK = signal.SIGBREAK, signal.CTRL_BREAK_EVENT
else:
    import fcntl

    NEW_GROUP = 0
    BREAK = PRESS_BREAK = signal.SIGUSR1  # in the place of SIGBREAK
# Packages of others that look at the platform when they are imported.
OTHERS = {
    "microgpt_cli": ("rich.console", "rich.progress", "typer", "typer.rich_utils"),
    "microgpt_serve": ("hypercorn.asyncio", "prometheus_client", "starlette.applications"),
}
OF_ALL = ("asyncio", "safetensors.numpy", "subprocess", "tempfile")
ABSENT = {
    signal: ("SIGHUP", "SIGKILL", "SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK", "pthread_sigmask"),
    os: ("fork", "register_at_fork", "sched_getaffinity", "set_blocking", "statvfs", "sysconf"),
}


def command(program: str, *arguments: object) -> list[str]:
    """Return the command line of `program`, such as "microgpt_cli", as on Windows."""
    if sys.platform == "win32":
        return [sys.executable, "-m", program, *map(str, arguments)]
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        f"import windows; windows.imitate({program!r}); import {program}.main as main; "
        f"sys.argv[0] = {program!r}; main.run()"
    )
    return [sys.executable, "-c", code, *map(str, arguments)]


def imitate(program: str) -> None:
    """Take away from this process what Windows lacks, and add what it has."""
    for name in OF_ALL + OTHERS[program]:
        importlib.import_module(name)
    _handle_signals_elsewhere()
    for place, names in ABSENT.items():
        for name in names:
            delattr(place, name)
    asyncio = sys.modules["asyncio"]
    asyncio.SelectorEventLoop.add_signal_handler = _refuse
    # The default loop of Windows no longer accepts after a client's reset: python/cpython#93821.
    asyncio.runners.events.new_event_loop = _refuse
    vars(signal)["SIGBREAK"] = BREAK
    vars(socket)["SO_EXCLUSIVEADDRUSE"] = socket.SO_REUSEADDR
    sys.modules["fcntl"] = None  # type: ignore[assignment]  # an import fails
    sys.modules["msvcrt"] = fake_msvcrt()
    vars(ctypes).update(windll=windll(Console()), WINFUNCTYPE=ctypes.CFUNCTYPE)
    sys.platform = "win32"


def _handle_signals_elsewhere() -> None:
    """Let signals arrive in a thread of their own: none ends a system call of the main thread."""
    signals = (signal.SIGINT, signal.SIGTERM, BREAK)
    change = signal.pthread_sigmask
    change(signal.SIG_BLOCK, signals)

    def receive() -> None:
        change(signal.SIG_UNBLOCK, signals)
        threading.Event().wait()

    threading.Thread(target=receive, daemon=True).start()


def _refuse(*_: object) -> None:
    raise NotImplementedError


def fake_msvcrt() -> types.ModuleType:
    """Return the part of `msvcrt` that locks the bytes of a file, and that knows handles."""
    module = types.ModuleType("msvcrt")
    vars(module).update(LK_UNLCK=0, LK_LOCK=1, LK_NBLCK=2, locking=_locking)
    vars(module).update(get_osfhandle=lambda number: number + 1000)
    return module


def _locking(descriptor: int, mode: int, n_bytes: int) -> None:
    assert (mode, n_bytes) == (2, 1)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PermissionError(13, "Permission denied") from error


class Console:
    """The part of kernel32 that is about consoles; stream 2 is one."""

    def __init__(self) -> None:
        self.mode, self.handlers = 3, list[Callable[[int], int]]()

    def GetConsoleMode(self, handle: ctypes.c_void_p, mode: Any) -> int:  # noqa: N802
        mode._obj.value = self.mode
        return int(handle.value == 1002)

    def SetConsoleMode(self, handle: ctypes.c_void_p, mode: int) -> int:  # noqa: N802
        self.mode = mode
        return int(handle.value == 1002)

    def SetConsoleCtrlHandler(self, handler: Callable[[int], int], add: int) -> None:  # noqa: N802
        (self.handlers.append if add else self.handlers.remove)(handler)


def windll(console: Console) -> types.SimpleNamespace:
    """Return the part of `ctypes.windll` that is about consoles."""
    return types.SimpleNamespace(kernel32=console)
