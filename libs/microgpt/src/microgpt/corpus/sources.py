"""Files, folders and open streams: the bytes of each, and a count of those that were skipped."""

import io
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from microgpt.checks import PathLike, cause_of, checked_path
from microgpt.errors import ConfigError, DataError

__all__ = ["Inputs", "Notes", "Source", "Sources"]

Inputs: TypeAlias = PathLike | BinaryIO | Iterable[PathLike | BinaryIO]

CHUNK = 1 << 20  # bytes that are read at once
SNIFFED = 1 << 13  # bytes at the beginning that decide whether a file of a folder is text
MAX_STREAM = 4 << 30  # bytes of a pipe or device, because it may have no end
# No text holds these; UTF-16 and UTF-32 do, after their mark.
CONTROLS = bytes({*range(32)} - {*b"\a\b\t\n\f\r\x1b"})
MARKS = {  # at the beginning of a file; the longest first
    b"\xff\xfe\0\0": "utf-32-le",
    b"\0\0\xfe\xff": "utf-32-be",
    b"\xef\xbb\xbf": "utf-8",
    b"\xff\xfe": "utf-16-le",
    b"\xfe\xff": "utf-16-be",
}
# Files of a model directory, also of one whose first run has not saved a model yet.
WEIGHTS = {"weights.json", "weights.safetensors"}  # beside meta.json
LOCK = "train.lock"


@dataclass
class Notes:
    """What reading has left out, and what looks unintended.

    Args:
        skipped: files and folders inside the given folders that were not read, by reason.
        repeated: files that were given more than once, and read once.
        newlines: files with CR line ends, alone or among others.
        json_files: files that hold JSON and were read as plain lines.
        n_lines: lines that are not blank.
        n_blank: blank lines.
        n_indented: lines that lost the spaces at their beginning.
    """

    skipped: Counter[str] = field(default_factory=Counter)
    repeated: list[str] = field(default_factory=list)
    newlines: list[str] = field(default_factory=list)
    json_files: list[str] = field(default_factory=list)
    n_lines: int = 0
    n_blank: int = 0
    n_indented: int = 0


class Source(NamedTuple):
    """One file or stream.

    Args:
        name: for messages.
        place: a path, or a stream that is open for reading bytes.
        is_found: whether it was found in a folder, and not named by the caller.
    """

    name: str
    place: Path | BinaryIO
    is_found: bool = False

    def chunks(self) -> Iterator[bytes]:
        """Yield the content; raise DataError where that fails."""
        try:
            if not isinstance(self.place, Path):
                yield from _limited(self.name, self.place)
                return
            with self.place.open("rb") as file:
                is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                yield from _chunks(file) if is_regular else _limited(self.name, file)
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name, a closed file
            raise _unreadable(self.name, error) from error


def _unreadable(name: str, error: Exception) -> DataError:
    return DataError(f"failed to read {name}: {cause_of(error)}; expected a UTF-8 text file")


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _limited(name: str, file: BinaryIO) -> Iterator[bytes]:
    n_bytes = 0
    for chunk in _chunks(file):
        n_bytes += len(chunk)
        if n_bytes > MAX_STREAM:
            raise DataError(
                f"failed to read {name}: it goes on after {MAX_STREAM:,} bytes, the most of a pipe "
                "or device; write the text to a file first"
            )
        yield chunk


class Sources:
    """The files of some inputs: named files, text files below named folders, streams.

    Args:
        inputs: a path or an open binary stream, or several of them. Folders are searched in sorted
            order, through links too.

    Attributes:
        notes: what was skipped, here and while reading.

    Raises:
        DataError: there is no input, or a path does not exist.
        ConfigError: an input is neither a path nor a stream.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.notes = Notes()
        self._seen: set[tuple[int, int]] = set()  # device and number of each file and folder
        self._sources: list[Source] = []
        self._names: list[str] = []
        self._read: set[int] = set()  # streams, which can be read once
        for each in _several(inputs):
            if isinstance(each, io.TextIOBase):
                raise ConfigError(
                    "the stream is one of text, expected one that is open in binary mode"
                )
            if each == "":
                raise ConfigError("the path is empty, expected a file or a folder")
            if isinstance(each, str | os.PathLike) or not hasattr(each, "read"):
                name = str(checked_path(each))
                self._add(Path(name))
            else:
                name = str(getattr(each, "name", "stream")).strip("<>")
                name = "stdin" if name == "0" else name
                self._sources.append(Source(name, each))
            self._names.append(name)
        self._searched = self.notes.skipped.copy()
        if not self._sources:
            raise self._nothing()

    def _nothing(self) -> DataError:
        skipped = ", ".join(f"{n} {reason}" for reason, n in self.notes.skipped.items() if n)
        return DataError(
            f"no text file in {', '.join(self._names) or 'an empty list'}, expected one; "
            f"skipped: {skipped or 'none'}"
        )

    def _add(self, path: Path) -> None:
        try:
            status = path.stat()
        except (OSError, ValueError) as error:
            raise _unreadable(str(path), error) from error
        if stat.S_ISDIR(status.st_mode):
            self._search(path)
        elif self._is_new(status):
            self._sources.append(Source(str(path), path))
        else:
            self.notes.repeated.append(str(path))

    def _is_new(self, status: os.stat_result) -> bool:
        key = (status.st_dev, status.st_ino)
        is_new = key not in self._seen or not status.st_ino  # 0 on drives that number no files
        self._seen.add(key)
        return is_new

    def _search(self, folder: Path) -> None:
        """Add the files below a folder."""
        skipped = self.notes.skipped

        def skip(_: OSError) -> None:
            skipped["unreadable"] += 1

        for place, folders, names in _walk(folder, skip):
            if not self._is_new(Path(place).stat()):  # links may lead in a circle
                skipped["linked twice"] += 1
                folders.clear()
            elif LOCK in names or ("meta.json" in names and WEIGHTS & {*names}):
                skipped["model directory"] += 1
                folders.clear()
            else:
                shown = [name for name in folders if not name.startswith(".")]
                skipped["hidden"] += len(folders) - len(shown)
                folders[:] = sorted(shown)
                for name in sorted(names):
                    self._add_found(Path(place, name))

    def _add_found(self, path: Path) -> None:
        skipped = self.notes.skipped
        if path.name.startswith("."):
            skipped["hidden"] += 1
            return
        try:
            status = path.stat()
        except OSError:  # a link to nothing
            skipped["unreadable"] += 1
            return
        if not stat.S_ISREG(status.st_mode):
            skipped["no regular file"] += 1
        elif not self._is_new(status):
            skipped["linked twice"] += 1
        else:
            self._sources.append(Source(str(path), path, is_found=True))

    def __iter__(self) -> Iterator[tuple[Source, Iterator[bytes]]]:
        """Yield each source and its bytes; files of folders that are no text are skipped."""
        self.notes.skipped = skipped = self._searched.copy()
        n_read = 0
        for source in self._sources:
            if not isinstance(source.place, Path):
                if id(source.place) in self._read:
                    raise DataError(
                        f"{source.name} is a stream that was read before, expected a file; "
                        "keep its documents in a list"
                    )
                self._read.add(id(source.place))
            chunks = source.chunks()
            if source.is_found:
                try:
                    first = next(chunks, b"")
                except DataError:
                    skipped["unreadable"] += 1
                    continue
                if not is_text(first):
                    skipped["not text"] += 1
                    continue
                chunks = chain([first], chunks)
            n_read += 1
            yield source, chunks
        if not n_read:
            raise self._nothing()


def _several(inputs: Inputs) -> Iterable[PathLike | BinaryIO]:
    """Return one or several inputs as several."""
    is_one = isinstance(inputs, str | bytes | os.PathLike) or hasattr(inputs, "read")
    return inputs if isinstance(inputs, Iterable) and not is_one else [inputs]  # type: ignore[list-item, return-value]  # an open file is iterable


def _walk(
    folder: Path, skip: Callable[[OSError], None]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield as os.walk does; raise DataError where folders are too many in one another."""
    try:
        yield from os.walk(folder, onerror=skip, followlinks=True)
    except RecursionError as error:
        raise DataError(f"failed to read {folder}: too many folders in one another") from error


def mark_of(content: bytes) -> bytes:
    """Return the byte order mark at the beginning, or nothing."""
    return next((mark for mark in MARKS if content.startswith(mark)), b"")


def is_text(content: bytes) -> bool:
    """Return whether the beginning of a file looks like text, of whatever encoding."""
    beginning = content[:SNIFFED]
    if mark_of(beginning):
        return True
    return b"\0" not in content and len(beginning.translate(None, CONTROLS)) == len(beginning)
