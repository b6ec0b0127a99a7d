"""Errors of the operating system as errors of the library, and their report on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import microgpt

from microgpt_cli.terminal import remark

__all__ = ["Failures", "flag_of", "report_error", "translated"]

FIELDS = {*microgpt.TrainConfig.__struct_fields__, *vars(microgpt.SamplingConfig())}
RENAMED = {"learning_rate": "--lr", "muon_learning_rate": "--muon-lr"}  # the others have dashes


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Raise an OSError as a MicrogptError: "ACTION: reason".

    Args:
        action: such as "cannot read names.txt".
    """
    try:
        yield
    except microgpt.MicrogptError:  # some are a ValueError too
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in a path
        reason = error.strerror if isinstance(error, OSError) else None
        raise microgpt.MicrogptError(f"{action}: {reason or error}") from error


def flag_of(field: str) -> str:
    """Return the flag of a field of `TrainConfig` or `SamplingConfig`."""
    return RENAMED.get(field, f"--{field.replace('_', '-')}")


def report_error(
    error: BaseException, prefix: str = "", spelled: Callable[[str], str] = flag_of
) -> bool:
    """Print a user's error as one line and a hint; return False if the error is a bug instead.

    Args:
        error: a message "FIELD is VALUE, expected ..." names the flag of that field.
        prefix: of the message.
        spelled: from a field to how a user types it.
    """
    if isinstance(error, microgpt.MicrogptError):
        name, verb, rest = str(error).partition(" is ")
        if isinstance(error, microgpt.ConfigError) and name in FIELDS:
            name = spelled(name)
        remark(f"error: {prefix}{name}{verb}{rest}")
        if error.hint:
            remark(f"hint: {error.hint}")
        return True
    if isinstance(error, MemoryError):
        remark(f"error: {prefix}not enough memory for a model or dataset of this size")
        return True
    return False


class Failures(list[microgpt.MicrogptError]):
    """Errors that do not keep a trained model from being saved, and are raised after it is."""

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Append a MicrogptError instead of raising it."""
        try:
            yield
        except microgpt.MicrogptError as error:
            self.append(error)
