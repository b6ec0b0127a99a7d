"""Times that are no settings: nobody has to choose them, and tests shorten them."""

from dataclasses import dataclass

__all__ = ["DEFAULT_LIMITS", "Limits"]


@dataclass(frozen=True)
class Limits:
    """Deadlines and intervals in seconds.

    Args:
        header_seconds: deadline for the headers of a request; an idle connection is closed too.
        body_seconds: deadline for the body of a request.
        short_life_seconds: a worker that dies sooner counts as unable to start.
        restart_seconds: pause before a worker that could not start is started again.
        kill_seconds: time after the grace period until the supervisor kills a worker.
    """

    header_seconds: float = 5.0
    body_seconds: float = 8.0
    short_life_seconds: float = 1.0
    restart_seconds: float = 1.0
    kill_seconds: float = 3.0


DEFAULT_LIMITS = Limits()
