"""Request bodies: their largest size, and a deadline for their arrival."""

import asyncio
import math
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from microgpt_serve.serving.errors import ApiError, counted

__all__ = ["MAX_BODY_BYTES", "TOO_LARGE", "BodyReader"]

MAX_BODY_BYTES = 1 << 20
TOO_LARGE = f"the body has more than {MAX_BODY_BYTES} bytes"
POLLS_PER_DEADLINE = 16


class BodyReader:
    """Reads request bodies, and cancels reads that miss their deadline.

    The deadlines are polled, because a timer per request costs as much as generating a name.

    Args:
        seconds: a body may take to arrive.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadlines: dict[asyncio.Task[Any], float] = {}  # infinite once a read is cancelled

    async def read(self, receive: Receive) -> bytearray:
        """Return a body.

        Raises:
            ApiError: the body is too large (413) or missed its deadline (408).
            ClientDisconnect: the client has closed the connection.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task, "an application runs in a task"
        if self._loop is not loop:
            self._loop = loop
            self._cancel_overdue_reads(loop)
        self._deadlines[task] = loop.time() + self._seconds
        try:
            return await _read(receive)
        except asyncio.CancelledError:
            is_overdue = self._deadlines[task] == math.inf
            if not is_overdue or task.uncancel() > 0:  # the server cancelled the request, too
                raise
            seconds = counted(self._seconds, "second")
            raise ApiError(408, f"the body took longer than {seconds}") from None
        finally:
            del self._deadlines[task]

    def _cancel_overdue_reads(self, loop: asyncio.AbstractEventLoop) -> None:
        for task, deadline in self._deadlines.items():
            if deadline <= loop.time():
                self._deadlines[task] = math.inf
                task.cancel()
        loop.call_later(self._seconds / POLLS_PER_DEADLINE, self._cancel_overdue_reads, loop)


async def _read(receive: Receive) -> bytearray:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, TOO_LARGE)
        if not message.get("more_body", False):
            return body
