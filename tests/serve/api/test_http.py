"""Streams that end before their client has read them."""

import asyncio
from collections.abc import AsyncIterator

from microgpt_serve.api.http import EventStream
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
