"""Request bodies: how large they may be, and how long they may take."""

import asyncio
import math
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from microgpt_serve.serving.errors import ApiError, counted

__all__ = ["MAX_BODY_BYTES", "TOO_LARGE", "BodyReader"]

MAX_BODY_BYTES = 1 << 20
TOO_LARGE = f"the body has more than {MAX_BODY_BYTES} bytes"
BODY_SECONDS = 8.0  # that a body may take to arrive
LOOK_SECONDS = 0.5  # between looks for late ones


class BodyReader:
    """Reads bodies, and ends those that come too slowly.

    It looks for late ones now and then: a timer for each would cost as much as a name.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ends: dict[asyncio.Task[Any], float] = {}  # when each is late; never, once it is

    async def read(self, receive: Receive) -> bytearray:
        """Return a body.

        Raises:
            ApiError: it is too large (413) or late (408).
            ClientDisconnect: it does not come any more.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task, "an application runs in one"
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(LOOK_SECONDS, self._look, loop)
        self._ends[task] = loop.time() + BODY_SECONDS
        try:
            return await _read(receive)
        except asyncio.CancelledError:
            is_late = self._ends[task] == math.inf
            if not is_late or task.uncancel() > 0:  # cancelled by somebody else, too
                raise
            seconds = counted(BODY_SECONDS, "second")
            raise ApiError(408, f"the body took longer than {seconds}") from None
        finally:
            del self._ends[task]

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        for task, end in self._ends.items():
            if end <= loop.time():
                self._ends[task] = math.inf
                task.cancel()
        loop.call_later(LOOK_SECONDS, self._look, loop)


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
