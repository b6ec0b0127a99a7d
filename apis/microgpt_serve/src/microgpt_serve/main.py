"""The command `microgpt-serve`."""

import asyncio
import os
import signal
import sys
from typing import NoReturn

from microgpt_serve.settings import Settings, SettingsError

__all__ = ["run"]

USAGE_ERROR = 2


async def _serve(settings: Settings) -> None:
    from hypercorn.asyncio import serve  # noqa: PLC0415 - after the settings are known to be good
    from hypercorn.config import Config  # noqa: PLC0415

    from microgpt_serve.app import create_app  # noqa: PLC0415

    config = Config()
    config.bind = [f"{settings.host}:{settings.port}"]
    config.include_server_header = False
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await serve(create_app(), config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]


def _fail(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(status)


def run() -> None:
    """Serve until SIGINT or SIGTERM."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        _fail(str(error), USAGE_ERROR)
    try:
        asyncio.run(_serve(settings))
    except OSError as error:
        _fail(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}", 1)
