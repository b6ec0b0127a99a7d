"""Settings of the service, read once from the environment and checked."""

from collections.abc import Mapping

import msgspec

__all__ = ["Settings", "SettingsError"]


class SettingsError(ValueError):
    """A variable of the environment has a value that cannot be used."""


class Settings(msgspec.Struct, frozen=True):
    """What the service can be told.

    Args:
        model_dir: MODEL_DIR, the model to serve.
        port: PORT, 0 to 65535; 0 lets the system choose.
        host: HOST, the address to listen on.
    """

    model_dir: str = "output"
    port: int = 8080
    host: str = "127.0.0.1"

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
            raise SettingsError(f"{_variable(error)}: {error}") from error
        if not 0 <= settings.port <= 65535:  # noqa: PLR2004 - what TCP has
            raise SettingsError(f"PORT: got {settings.port}, expected 0 to 65535")
        return settings


def _variable(error: msgspec.ValidationError) -> str:
    """Return the name of the variable behind an error whose text ends in `$.field`."""
    return str(error).rpartition("$.")[2].rstrip("`").upper()
