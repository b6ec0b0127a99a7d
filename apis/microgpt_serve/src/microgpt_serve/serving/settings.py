"""Settings of the service, read from the environment and checked once."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from microgpt_serve.serving.system import HAS_WORKERS
from microgpt_serve.serving.validation import expectation, shown

__all__ = ["DEFAULT_MODEL", "LISTEN_FD", "READY_FD", "Settings", "SettingsError", "describe"]

# Environment variables from the supervisor to its workers.
LISTEN_FD = "MICROGPT_SERVE_FD"  # file descriptor of the listening socket
READY_FD = "MICROGPT_SERVE_READY_FD"  # and of the pipe for a byte once the model is loaded
DEFAULT_MODEL = "MICROGPT_SERVE_DEFAULT"  # name of the model that was the first at the start

SWITCH = ("0", "1", "false", "true")
PATH_PREFIX = re.compile(r"(/[\w~-][\w.~-]*)*", re.ASCII)
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+")  # as browsers send them

Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class SettingsError(ValueError):
    """An environment variable has an invalid value."""


def _chosen(field: str, value: str, choices: Sequence[str]) -> str:
    if value.lower() not in choices:
        expected = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise SettingsError(f"{field.upper()} is {shown(value)}, expected {expected}")
    return value.lower()


def _prefix(value: str) -> str:
    prefix = value.rstrip("/")
    if not PATH_PREFIX.fullmatch(prefix):
        raise SettingsError(f"PATH_PREFIX is {shown(value)}, expected a path such as /gpt")
    return prefix


def _read_key(path: str) -> str:
    try:
        key = Path(path).read_text(encoding="utf-8-sig").strip()  # Notepad may add a mark
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise SettingsError(f"API_KEY_FILE: cannot read {path}: {cause}") from error
    if not key:
        raise SettingsError(f"API_KEY_FILE: {path} is empty")
    return key


def _with_key(settings: "Settings") -> "Settings":
    """Return the settings with the key of `api_key_file`, if there is one."""
    if settings.api_key and settings.api_key_file:
        raise SettingsError("API_KEY and API_KEY_FILE are both set, expected one of them")
    if settings.api_key_file:
        key = _read_key(settings.api_key_file)
        settings = msgspec.structs.replace(settings, api_key=key, api_key_file="")
    if not settings.api_key.isprintable():
        raise SettingsError("API_KEY contains a line end or another character no header can carry")
    if settings.api_key != settings.api_key.strip():
        raise SettingsError("API_KEY starts or ends with a space, which no header can carry")
    return settings


class Settings(msgspec.Struct, frozen=True):
    """Settings of the service: environment variables named like the fields, in capitals."""

    model_dir: Annotated[
        str,
        Meta(
            description="Model directory, several with commas, or a directory that holds several."
        ),
    ] = "output"
    port: Annotated[
        int, Meta(ge=0, le=65535, description="Port to listen on; 0 for any free port.")
    ] = 8080
    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    workers: Annotated[
        int, Meta(ge=1, le=256, description="Number of processes that share the port.")
    ] = 1
    threads: Annotated[
        int,
        Meta(ge=0, le=256, description="Texts generated at once per worker and model; 0 for 64."),
    ] = 0
    max_queue: Annotated[
        int,
        Meta(
            ge=0, description="Waiting requests per worker and model; more are rejected with 503."
        ),
    ] = 64
    prefix_mb: Annotated[
        int,
        Meta(
            ge=0,
            description="Memory per worker and model for what prompts share, in MiB; 0 for none.",
        ),
    ] = 64
    models_mb: Annotated[
        int,
        Meta(ge=0, description="Most memory per worker for all weights, in MiB; 0 for no limit."),
    ] = 4096
    rate_limit: Annotated[
        int, Meta(ge=0, description="Requests per minute, client and worker; 0 for no limit.")
    ] = 0
    request_timeout: Annotated[
        Seconds, Meta(description="Deadline of a request in seconds, time in the queue included.")
    ] = 60.0
    max_tokens: Annotated[
        int, Meta(ge=1, description="Most tokens of a text; a request for more is cut there.")
    ] = 4096
    grace_period: Annotated[
        Seconds, Meta(description="Seconds for requests in flight to finish after SIGTERM.")
    ] = 10.0
    path_prefix: Annotated[
        str, Meta(description="Path below which a proxy shows the service, such as /gpt.")
    ] = ""
    api_key: Annotated[
        str, Meta(description="API key that clients must send as Authorization: Bearer KEY.")
    ] = ""
    api_key_file: Annotated[str, Meta(description="File with the API key.")] = ""
    cors_origins: Annotated[
        str, Meta(description="Comma-separated origins allowed to call the service (CORS).")
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="Minimum level of log lines: debug, info, warning or error."),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Meta(description="Format of log lines: text or json.")
    ] = "text"
    docs: Annotated[bool, Meta(description="Serve /docs and /openapi.json.")] = True
    metrics: Annotated[bool, Meta(description="Serve /metrics.")] = True
    page: Annotated[bool, Meta(description="Serve the page at /.")] = True

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Return the settings of an environment, whose other variables are ignored.

        Raises:
            SettingsError: a value has the wrong type or is out of range.
        """
        given = {
            field: environment[field.upper()]
            for field in cls.__struct_fields__
            if environment.get(field.upper())
        }
        for field, kind in get_type_hints(cls).items():
            if field in given and (choices := SWITCH if kind is bool else get_args(kind)):
                given[field] = _chosen(field, given[field], choices)
        if "host" in given:
            given["host"] = given["host"].removeprefix("[").removesuffix("]")  # as in a URL
        if "path_prefix" in given:
            given["path_prefix"] = _prefix(given["path_prefix"])
        try:
            settings = msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            field, expected = expectation(error)
            value = shown(given[field])
            raise SettingsError(f"{field.upper()} is {value}, expected {expected}") from error
        if settings.workers > 1 and not HAS_WORKERS:
            raise SettingsError(
                f"WORKERS is {settings.workers}, expected 1: "
                "on Windows processes cannot share a port"
            )
        settings = _with_key(settings)
        for origin in settings.origins:
            if not ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"CORS_ORIGINS contains {origin!r}, expected *, or origins such as "
                    "https://a.example"
                )
        return settings

    @property
    def origins(self) -> list[str]:
        """The origins in `cors_origins`."""
        return [origin for part in self.cors_origins.split(",") if (origin := part.strip())]

    @property
    def is_exposed(self) -> bool:
        """Whether other machines can send requests without an API key."""
        if self.api_key or self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True


def describe() -> str:
    """Return one line per environment variable: name, description, default."""
    hints = get_type_hints(Settings, include_extras=True)
    defaults = msgspec.to_builtins(Settings())
    lines = []
    for field in Settings.__struct_fields__:
        description = hints[field].__metadata__[-1].description
        default = defaults[field]
        shown = {True: "1", False: "0"}.get(default, default) if default != "" else "none"
        lines.append(f"  {field.upper():<16}{description} [{shown}]")
    return "\n".join(lines)
