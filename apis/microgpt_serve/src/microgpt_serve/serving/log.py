"""Log lines on stderr, one event each, as text or JSON; never the content of requests."""

import logging
import sys
import threading
from datetime import datetime
from types import TracebackType
from typing import Any

import msgspec

__all__ = ["configure_logging", "log", "log_what_python_prints"]

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
            return _json({"time": time, "level": level, "event": event, **details})
        shown = "".join(f" {key}={_quoted(value)}" for key, value in details.items())
        return f"{time} {level:<7} {event}{shown}"


def _json(line: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=str).decode()
    except UnicodeEncodeError:  # a path whose name is not UTF-8
        return _json({key: _as_utf8(value) for key, value in line.items()})


def _as_utf8(value: object) -> object:
    if isinstance(value, int | float | None):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def _quoted(value: object) -> str:
    text = str(value)
    return repr(text) if " " in text or not text.isprintable() else text


def configure_logging(level: str, style: str) -> None:
    """Send the log of the service, and warnings of Hypercorn and asyncio, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter(as_json=style == "json"))
    for logger in (_logger, *map(logging.getLogger, ("hypercorn.error", "asyncio", "py.warnings"))):
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING)
    # asyncio warns of every write to a connection that the client has just closed.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    _logger.setLevel(level.upper())


def log_what_python_prints() -> None:
    """Log warnings and uncaught exceptions, which Python prints to stderr."""
    logging.captureWarnings(True)  # noqa: FBT003 - as the function takes it
    sys.excepthook = _log_uncaught

    def log_in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit and args.exc_value:
            _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)

    def log_unraisable(args: "sys.UnraisableHookArgs") -> None:
        if args.exc_value:
            _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)

    threading.excepthook = log_in_thread
    sys.unraisablehook = log_unraisable


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    _logger.critical("uncaught exception", exc_info=(kind, error, traceback))
