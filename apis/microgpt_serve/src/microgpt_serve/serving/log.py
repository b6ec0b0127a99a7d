"""Log lines on stderr, one event each, as text or JSON; never the content of requests."""

import logging
import sys
from datetime import datetime
from typing import Any

import msgspec

__all__ = ["configure_logging", "log"]

_logger = logging.getLogger("microgpt_serve")


def log(level: int, event: str, failure: Exception | None = None, **details: Any) -> None:
    """Log one event, with the traceback of `failure` if there is one."""
    if _logger.isEnabledFor(level):
        _logger.log(level, event, exc_info=failure, extra={"details": details})


class _LineFormatter(logging.Formatter):
    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        details: dict[str, Any] = getattr(record, "details", {})
        if record.exc_info:
            details = details | {"traceback": self.formatException(record.exc_info)}
        time = (
            datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        )
        level, event = record.levelname.lower(), record.getMessage()
        if self._as_json:
            line = {"time": time, "level": level, "event": event, **details}
            return msgspec.json.encode(line, enc_hook=str).decode()
        shown = "".join(f" {key}={_quoted(value)}" for key, value in details.items())
        return f"{time} {level:<7} {event}{shown}"


def _quoted(value: object) -> str:
    text = str(value)
    return repr(text) if " " in text or not text.isprintable() else text


def configure_logging(level: str, style: str) -> None:
    """Send the log of the service, and warnings of Hypercorn and asyncio, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter(as_json=style == "json"))
    for logger in (_logger, logging.getLogger("hypercorn.error"), logging.getLogger("asyncio")):
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING)
    # asyncio warns of every write to a connection that the client has just closed.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    _logger.setLevel(level.upper())
