"""What POSIX and Windows do not have in common: signals, and sockets that processes share."""

import signal
import socket
import sys

__all__ = ["HAS_WORKERS", "LISTEN_OPTION", "MAX_SOCKETS", "RELOADS", "STOPS", "unblock_reloads"]

RELOADS: tuple[signal.Signals, ...]  # signals that reload the models
MAX_SOCKETS: int | None
if sys.platform == "win32":
    STOPS, RELOADS = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK), ()
    HAS_WORKERS = False  # more than one
    # With SO_REUSEADDR another program could take the port.
    LISTEN_OPTION = socket.SO_EXCLUSIVEADDRUSE
    MAX_SOCKETS = 512  # that `select` waits for; one more ends the event loop
else:
    STOPS, RELOADS = (signal.SIGINT, signal.SIGTERM), (signal.SIGHUP,)
    HAS_WORKERS = True
    LISTEN_OPTION = socket.SO_REUSEADDR
    MAX_SOCKETS = None  # as many as the process may open


def unblock_reloads() -> None:
    """Receive the signals that reload: the supervisor blocks them while it starts a worker."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, RELOADS)
