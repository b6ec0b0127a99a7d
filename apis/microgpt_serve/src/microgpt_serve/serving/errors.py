"""Answers that are errors."""

__all__ = [
    "CLIENT_CLOSED",
    "ApiError",
    "BusyError",
    "DeadlineError",
    "ShuttingDownError",
    "UnavailableError",
    "counted",
]

CLIENT_CLOSED = 499  # as nginx logs it; nobody reads the response


def counted(n: float, noun: str) -> str:
    """Return a number and what it counts, in the plural unless it is one."""
    return f"{n:,g} {noun}{'s' * (n != 1)}"


class ApiError(Exception):
    """An error that the client is told.

    Args:
        status: of the response.
        message: what was got, what was expected.
        param: the field of the request that is at fault.
        code: a word for programs.
        retry_after: seconds after which the client may try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.param, self.code, self.retry_after = param, code, retry_after


class UnavailableError(ApiError):
    """The service cannot answer now; status 503."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(503, message, code=code, retry_after=1)


class BusyError(UnavailableError):
    """The queue is full."""

    def __init__(self) -> None:
        super().__init__("too many requests are waiting; try again later", "busy")


class DeadlineError(UnavailableError):
    """The request took longer than it may."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the request took longer than {counted(seconds, 'second')}", "deadline")


class ShuttingDownError(UnavailableError):
    """The service is about to end."""

    def __init__(self) -> None:
        super().__init__("the service is shutting down", "shutting_down")
