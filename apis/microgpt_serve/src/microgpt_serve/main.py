"""The command `microgpt-serve`."""

import io
import logging
import os
import signal
import socket
import sys
from importlib.metadata import version
from typing import Any, NoReturn

from microgpt_serve.serving.limits import DEFAULT_LIMITS, Limits
from microgpt_serve.serving.log import configure_logging, log, log_what_python_prints
from microgpt_serve.serving.settings import LISTEN_FD, Settings, SettingsError, describe
from microgpt_serve.serving.system import HAS_WORKERS, LISTEN_OPTION, RELOADS, unblock_reloads

__all__ = ["run"]

USAGE_ERROR = 2
BACKLOG = 2048
HELP = """\
usage: microgpt-serve [--help] [--version]

Serve a microgpt model over HTTP. Settings are environment variables:

{}

{}"""
STOP_AND_RELOAD = (
    "SIGTERM stops the service once requests in flight are answered; SIGHUP reloads all models."
    if HAS_WORKERS
    else "A variable is set by $env:MODEL_DIR = 'out' in PowerShell, by set MODEL_DIR=out in cmd.\n"
    "Ctrl-C or Ctrl-Break stops the service once requests in flight are answered; on Windows\n"
    "a changed model needs a restart."
)


def _is_json() -> bool:
    """Whether log lines are JSON; the settings are checked later, which may fail."""
    return os.environ.get("LOG_FORMAT", "").lower() == "json"


def _report(level: int, event: str, text: str, **details: Any) -> None:
    """Write a line to stderr: the event as JSON, or the text."""
    if _is_json():
        log(level, event, **details)
    else:
        sys.stderr.write(f"{text}\n")


def _fail(message: str, status: int) -> NoReturn:
    _report(logging.ERROR, message, f"error: {message}")
    sys.exit(status)


def _print(text: str) -> NoReturn:
    """Print `text` and exit with status 0, also if the reader of a pipe has closed it."""
    try:
        print(text, flush=True)  # noqa: T201
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed again at exit
        if not isinstance(error, BrokenPipeError):
            _fail(f"cannot write to stdout: {error.strerror}", 1)
    sys.exit(0)


def _parse_arguments(arguments: list[str]) -> None:
    if arguments in (["--help"], ["-h"]):
        _print(HELP.format(describe(), STOP_AND_RELOAD))
    if arguments == ["--version"]:
        library, service = version("microgpt-lib"), version("microgpt-serve")
        _print(f"microgpt-serve {service} (microgpt-lib {library})")
    if arguments:
        _fail(f"unexpected argument {arguments[0]!r}; see microgpt-serve --help", USAGE_ERROR)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(settings: Settings) -> socket.socket:
    """Return a socket that listens on the host and port of the settings; print its address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, LISTEN_OPTION, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can have this name
        cause = getattr(error, "strerror", None) or error
        place = _address(settings.host, settings.port)
        _fail(f"cannot listen on {place}: {cause}; choose another HOST or PORT", 1)
    host, port = listening.getsockname()[:2]
    url = f"http://{_address(host, port)}"
    _report(logging.INFO, "listening", f"microgpt-serve listens on {url}", url=url)
    if settings.is_exposed:
        warning = f"anyone who reaches {host} can use this service; set API_KEY"
        _report(logging.WARNING, warning, f"warning: {warning}")
    return listening


def run(limits: Limits = DEFAULT_LIMITS) -> None:
    """Serve until SIGINT or SIGTERM."""
    if isinstance(sys.stderr, io.TextIOWrapper) and not sys.stderr.isatty():
        sys.stderr.reconfigure(encoding="utf-8")  # JSON is, whatever the locale
    if _is_json():
        configure_logging("info", "json")
        log_what_python_prints()
    _parse_arguments(sys.argv[1:])
    # No model is loaded yet that SIGHUP could reload; its default action would end the process.
    for number in RELOADS:
        signal.signal(number, signal.SIG_IGN)
    unblock_reloads()
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        _fail(str(error), USAGE_ERROR)
    # After the checks, so that --help and wrong settings take no import of the server.
    from microgpt_serve.app import create_app  # noqa: PLC0415
    from microgpt_serve.serving.worker import CANNOT_LOAD, run_worker  # noqa: PLC0415

    if LISTEN_FD in os.environ:  # a worker of the supervisor
        listening = socket.socket(fileno=int(os.environ[LISTEN_FD]))
        sys.exit(run_worker(create_app(settings, limits), settings, listening, limits))
    listening = _listen(settings)
    if sys.platform != "win32" and settings.workers > 1:
        from microgpt_serve.serving.supervisor import supervise  # noqa: PLC0415

        sys.exit(supervise(settings, listening, limits))
    status = run_worker(create_app(settings, limits), settings, listening, limits)
    sys.exit(1 if status == CANNOT_LOAD else status)
