"""A file or a model is replaced on request only."""

import errno
from contextlib import suppress
from itertools import count
from pathlib import Path

import microgpt
import typer

from microgpt_cli.errors import translated
from microgpt_cli.terminal import typed

__all__ = ["holds_run", "new_sibling", "refuse_to_overwrite", "refuse_to_replace"]


def holds_run(directory: Path) -> bool:
    """Return whether a directory holds a model, or the snapshots of an unfinished run."""
    return microgpt.holds_model(directory) or microgpt.holds_snapshot(directory)


def refuse_to_overwrite(directory: Path) -> None:
    """Raise CheckpointError if a directory holds a model, or the snapshots of an unfinished run."""
    if microgpt.holds_model(directory):
        raise microgpt.CheckpointError(
            f"{directory} already holds a model",
            hint="use --force to overwrite it, or choose another --output",
        )
    if microgpt.holds_snapshot(directory):
        raise microgpt.CheckpointError(
            f"{directory} already holds snapshots of a run that was not finished",
            hint=f"resume it with --resume {typed(directory)}, or start a new run with --force",
        )


def refuse_to_replace(path: Path, *, force: bool, content: bytes | None = None) -> None:
    """Raise the errors about a file that would otherwise come after the work of its content.

    Args:
        path: of the file.
        force: whether it may be replaced.
        content: of the file to write; a file of the same content is no reason to refuse.

    Raises:
        BadParameter: it is "-", which stands for stdin elsewhere.
        DataError: it exists.
        MicrogptError: it is not a regular file, cannot be read, or its directory does not exist.
    """
    if path == Path("-"):
        raise typer.BadParameter(
            "it is -, expected the name of a file; leave --output out to print to stdout.",
            param_hint="--output",
        )
    with translated(f"cannot write {path}"):
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is not a regular file")
        path.parent.stat()  # it exists
        is_other = path.exists() and (content is None or path.read_bytes() != content)
    if is_other and not force:
        raise microgpt.DataError(
            f"{path} exists" + " and holds something else" * (content is not None),
            hint="use --force to overwrite it, or name another file",
        )


def new_sibling(directory: Path) -> Path:
    """Make a new directory beside another one, and return its path.

    Raises:
        MicrogptError: it cannot be made.
    """
    base = directory if directory.name.strip(".") else directory.resolve()
    with translated(f"cannot write beside {directory}"):
        for k in count(2):
            path = Path(f"{base}-{k}")
            with suppress(FileExistsError):
                path.mkdir()
                break
    return path
