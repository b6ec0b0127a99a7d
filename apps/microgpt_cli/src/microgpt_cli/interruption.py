"""Signals that end training after its current step, with a save."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from microgpt_cli.system import HANGUP, REQUESTS, asked_before_closing
from microgpt_cli.terminal import discard

__all__ = ["interruptible"]

SHOW_CURSOR = b"\x1b[?25h"  # the progress bar hides it


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yield a list that collects the signals received.

    A second SIGINT, SIGTERM or SIGBREAK (Windows) ends the process. A second SIGHUP does not,
    because shell and kernel may send one each. Under nohup SIGHUP is ignored. A window of Windows
    that is closed counts as SIGBREAK.
    """
    received: list[int] = []
    numbers = [*REQUESTS]
    if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:
        numbers.append(HANGUP)
    previous = {number: signal.getsignal(number) for number in numbers}
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def receive(number: int, _: object) -> None:
        received.append(number)
        _discard_closed(terminals)

    for number in numbers:
        signal.signal(number, receive)
    # Python runs handlers between two steps only, and a step may be long: a thread reads at once.
    reader, writer = socket.socketpair()  # Windows wakes up sockets only
    writer.setblocking(False)  # noqa: FBT003 - as the method takes it
    previous_writer = signal.set_wakeup_fd(writer.fileno())
    threading.Thread(target=_exit_on_second, args=(reader,), daemon=True).start()
    try:
        with asked_before_closing(lambda: received.append(REQUESTS[-1])):
            yield received
    finally:
        signal.set_wakeup_fd(previous_writer)
        writer.close()  # ends the thread
        for number, handler in previous.items():
            signal.signal(number, handler)


def _discard_closed(terminals: list[int]) -> None:
    """Discard the output to terminals that are closed, because writing to them would fail."""
    for number in terminals:
        if not os.isatty(number):
            discard(number)


def _exit_on_second(reader: socket.socket) -> None:
    """Read the numbers of signals until their writer is closed; exit at the second request."""
    n_received = 0
    with reader:
        while number := reader.recv(1):
            n_received += number[0] in REQUESTS
            if n_received > 1:
                if sys.stderr.isatty():
                    os.write(sys.stderr.fileno(), SHOW_CURSOR)
                os._exit(128 + number[0])
