"""Limits that are no settings: users need not choose them, and tests lower them."""

from dataclasses import dataclass

__all__ = ["DEFAULT_LIMITS", "Limits"]


@dataclass(frozen=True)
class Limits:
    """Deadlines and other limits.

    Args:
        header_seconds: deadline for the headers of a request; idle connections are closed, too.
        body_seconds: deadline for the body of a request.
        short_life_seconds: a worker that dies sooner counts as unable to start.
        restart_seconds: pause before a worker that could not start is started again.
        kill_seconds: time after the grace period until the supervisor kills a worker.
        max_clients: clients whose request rates are remembered.
    """

    header_seconds: float = 5.0
    body_seconds: float = 8.0
    short_life_seconds: float = 1.0
    restart_seconds: float = 1.0
    kill_seconds: float = 3.0
    max_clients: int = 10_000


DEFAULT_LIMITS = Limits()
