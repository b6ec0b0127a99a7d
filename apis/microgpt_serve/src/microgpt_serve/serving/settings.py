"""Settings of the service, read once from the environment and checked."""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import msgspec

__all__ = ["LISTEN_FD", "READY_FD", "Settings", "SettingsError", "describe"]

LISTEN_FD = "MICROGPT_SERVE_FD"  # tells a worker which file descriptor is the socket
READY_FD = "MICROGPT_SERVE_READY_FD"  # and where to say that its model is loaded

ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+")  # as browsers write them

Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class SettingsError(ValueError):
    """A variable of the environment has a value that cannot be used."""


def _read_key(path: str) -> str:
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise SettingsError(f"API_KEY_FILE: cannot read {path}") from error
    if not key:
        raise SettingsError(f"API_KEY_FILE: {path} is empty")
    return key


class Settings(msgspec.Struct, frozen=True):
    """What the service can be told, by variables named like the fields, in capitals."""

    model_dir: Annotated[str, msgspec.Meta(description="directory of the model")] = "output"
    port: Annotated[
        int, msgspec.Meta(ge=0, le=65535, description="port to listen on; 0 for any free one")
    ] = 8080
    host: Annotated[str, msgspec.Meta(description="address to listen on")] = "127.0.0.1"
    workers: Annotated[Count, msgspec.Meta(le=256, description="processes that share the port")] = 1
    threads: Annotated[
        int,
        msgspec.Meta(
            ge=0, le=256, description="texts that a worker generates at once; 0 for one per core"
        ),
    ] = 0
    max_queue: Annotated[
        int, msgspec.Meta(ge=0, description="requests that may wait in a worker; then 503")
    ] = 64
    rate_limit: Annotated[
        int,
        msgspec.Meta(ge=0, description="requests per minute, client and worker; 0 for any number"),
    ] = 0
    request_timeout: Annotated[
        Seconds, msgspec.Meta(description="seconds that a request may take")
    ] = 60.0
    grace_period: Annotated[
        Seconds, msgspec.Meta(description="seconds that requests have to end after SIGTERM")
    ] = 10.0
    api_key: Annotated[
        str, msgspec.Meta(description="what clients must send as Authorization: Bearer ...")
    ] = ""
    api_key_file: Annotated[str, msgspec.Meta(description="file that holds it, in its place")] = ""
    cors_origins: Annotated[
        str, msgspec.Meta(description="origins of other pages that may ask, with commas between")
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], msgspec.Meta(description="the least to log")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], msgspec.Meta(description="how log lines look")
    ] = "text"
    docs: Annotated[bool, msgspec.Meta(description="serve /docs and /openapi.json")] = True
    metrics: Annotated[bool, msgspec.Meta(description="serve /metrics")] = True
    page: Annotated[bool, msgspec.Meta(description="serve the page at /")] = True

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Return the settings that variables named like the fields, in capitals, ask for.

        Raises:
            SettingsError: a value is not of its type, or out of its domain.
        """
        given = {
            field: environment[field.upper()]
            for field in cls.__struct_fields__
            if environment.get(field.upper())
        }
        try:
            settings = msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            message, _, field = str(error).rpartition(" - at `$.")
            name = field.rstrip("`")
            raise SettingsError(f"{name.upper()} is {given[name]!r}: {message}") from error
        if settings.api_key and settings.api_key_file:
            raise SettingsError("API_KEY and API_KEY_FILE are both set, expected one of them")
        if settings.api_key_file:
            key = _read_key(settings.api_key_file)
            settings = msgspec.structs.replace(settings, api_key=key, api_key_file="")
        if not settings.api_key.isprintable():
            raise SettingsError("API_KEY holds a line end or another character no header can carry")
        if settings.api_key != settings.api_key.strip():
            raise SettingsError("API_KEY begins or ends with a space, which no header can carry")
        for origin in settings.origins:
            if not ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"CORS_ORIGINS holds {origin!r}: expected origins like https://a.example, or *"
                )
        return settings

    @property
    def origins(self) -> list[str]:
        """The origins of `cors_origins`, one by one."""
        return [origin for part in self.cors_origins.split(",") if (origin := part.strip())]

    @property
    def is_exposed(self) -> bool:
        """Whether others than this machine can ask, and need no key."""
        if self.api_key or self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True


def describe() -> str:
    """Return a line for each variable."""
    hints = get_type_hints(Settings, include_extras=True)
    defaults = msgspec.to_builtins(Settings())
    lines = []
    for field in Settings.__struct_fields__:
        description = hints[field].__metadata__[-1].description
        default = defaults[field]
        shown = {True: "1", False: "0"}.get(default, default) if default != "" else "none"
        lines.append(f"  {field.upper():<16}{description} [{shown}]")
    return "\n".join(lines)
