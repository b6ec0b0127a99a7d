"""Clients that leave before they have read their response."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from microgpt_serve.api.http import EventStream, cancel_on_disconnect
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message


def test_stream_of_a_client_that_leaves_is_closed_at_once() -> None:
    async def scenario() -> list[str]:
        log, is_sending = list[str](), asyncio.Event()

        async def events() -> AsyncIterator[bytes]:
            try:
                yield b"first"
                yield b"second"
            finally:
                await asyncio.sleep(0)  # closing takes a turn of the loop, as it does in the pool
                log.append("closed")

        async def send(message: Message) -> None:
            if message.get("body"):
                is_sending.set()
                await asyncio.Event().wait()  # the client reads no more

        stream = events()  # held here: the collector does not close it
        response = asyncio.create_task(EventStream(stream).stream_response(send))
        await is_sending.wait()
        response.cancel()
        await asyncio.wait((response,))
        log.append("left")
        return log

    assert asyncio.run(scenario()) == ["closed", "left"]


@pytest.mark.parametrize("fails", [False, True], ids=["a result", "an error"])
def test_client_that_leaves_just_when_there_is_a_result_has_left(*, fails: bool) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def work() -> str:
        if fails:
            raise ValueError("an error that nobody hears of")
        return "a result"

    async def scenario() -> None:
        reported = list[object]()
        asyncio.get_running_loop().set_exception_handler(lambda _, about: reported.append(about))
        with pytest.raises(ClientDisconnect):
            await cancel_on_disconnect(Request({"type": "http"}, receive), work())
        gc.collect()
        assert not reported

    asyncio.run(scenario())
