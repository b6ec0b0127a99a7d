"""What POSIX and Windows do not have in common: signals, terminals, and pipes without a reader."""

import errno
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = [
    "END_OF_INPUT",
    "HANGUP",
    "REQUESTS",
    "asked_before_closing",
    "obeys_escapes",
    "reader_has_left",
]

if sys.platform == "win32":
    REQUESTS, HANGUP = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK), None
    END_OF_INPUT = "Ctrl-Z and Enter end it"
else:
    REQUESTS, HANGUP = (signal.SIGINT, signal.SIGTERM), signal.SIGHUP
    END_OF_INPUT = "Ctrl-D ends it"
# Of the console of Windows: a flag of its mode, and the events of its window.
VIRTUAL_TERMINAL = 4
CLOSED, LOGGED_OFF, SHUT_DOWN = 2, 5, 6
MOST_SECONDS = 60.0  # Windows itself waits for 5 s


def obeys_escapes(number: int) -> bool:
    """Return whether a terminal obeys escape sequences; that of Windows does if it is asked to.

    Args:
        number: of a standard stream that is a terminal.
    """
    if sys.platform != "win32":
        return True
    import ctypes  # noqa: PLC0415 - for terminals of Windows only
    import msvcrt  # noqa: PLC0415 - exists on Windows only

    console, mode = ctypes.c_void_p(msvcrt.get_osfhandle(number)), ctypes.c_uint32()
    kernel32 = ctypes.windll.kernel32
    return bool(
        kernel32.GetConsoleMode(console, ctypes.byref(mode))
        and kernel32.SetConsoleMode(console, mode.value | VIRTUAL_TERMINAL)
    )


def reader_has_left(error: OSError) -> bool:
    """Return whether writing failed because the reader of a pipe has closed it."""
    # Windows often reports an invalid argument (python/cpython#79935); of a path, with its name.
    is_odd = sys.platform == "win32" and error.errno == errno.EINVAL and error.filename is None
    return is_odd or isinstance(error, BrokenPipeError)


@contextmanager
def asked_before_closing(ask: Callable[[], None]) -> Iterator[None]:
    """Call `ask` in a thread when the window of a terminal is closed; POSIX sends SIGHUP instead.

    Windows ends the process as soon as its handler returns: the handler waits for the process to
    end by itself.
    """
    if sys.platform != "win32":
        yield
        return
    import ctypes  # noqa: PLC0415 - for training on Windows only

    def handle(event: int) -> bool:
        if event not in {CLOSED, LOGGED_OFF, SHUT_DOWN}:
            return False  # Ctrl-C and Ctrl-Break are signals
        ask()
        time.sleep(MOST_SECONDS)
        return True

    handler = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint32)(handle)
    ctypes.windll.kernel32.SetConsoleCtrlHandler(handler, 1)
    try:
        yield
    finally:
        ctypes.windll.kernel32.SetConsoleCtrlHandler(handler, 0)
