"""Errors that clients are sent, and what errors of the library say."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `--help` takes no import of the library
    from microgpt import MicrogptError

__all__ = [
    "CLIENT_CLOSED",
    "ApiError",
    "BusyError",
    "DeadlineError",
    "ShuttingDownError",
    "UnavailableError",
    "counted",
    "explained",
]

CLIENT_CLOSED = 499  # nginx's status for a client that disconnected; only logged


def counted(n: float, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1."""
    return f"{n:,g} {noun}{'s' * (n != 1)}"


def explained(error: "MicrogptError") -> str:
    """Return the message of an error of the library with what to do, where it says so."""
    return f"{error}; {error.hint}" if error.hint else str(error)


class ApiError(Exception):
    """An error that the client is sent.

    Args:
        status: HTTP status of the response.
        message: what was received, what was expected, what to do.
        param: the invalid field of the request.
        code: identifier for programs.
        retry_after: seconds after which the client may retry.
        reason: for the log, where the message quotes a value of the request; otherwise the code,
            or else the message.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.param, self.code, self.retry_after = param, code, retry_after
        self.reason = reason or code or message


class UnavailableError(ApiError):
    """The service cannot answer at the moment; status 503."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(503, message, code=code, retry_after=1)


class BusyError(UnavailableError):
    """The queue is full."""

    def __init__(self) -> None:
        super().__init__("too many requests are waiting; try again later", "busy")


class DeadlineError(UnavailableError):
    """The request missed its deadline."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the request took longer than {counted(seconds, 'second')}", "deadline")


class ShuttingDownError(UnavailableError):
    """The service is shutting down."""

    def __init__(self) -> None:
        super().__init__("the service is shutting down", "shutting_down")
