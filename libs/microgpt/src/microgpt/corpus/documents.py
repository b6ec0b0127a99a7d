"""Documents of text files: each line, each paragraph, each whole file, or a field of JSON lines."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from typing import Literal, TypeAlias, get_args, overload

import msgspec

from microgpt.checks import check_choice
from microgpt.corpus.json_lines import json_lines
from microgpt.corpus.sources import Inputs, Notes, Source, Sources
from microgpt.corpus.texts import line_lists, numbered_lines, text_of
from microgpt.errors import ConfigError

__all__ = ["Documents", "Split", "read_documents"]

Split: TypeAlias = Literal["line", "paragraph", "file"]


class Documents(Sequence[str]):
    """The documents of files, in their order; made by `read_documents`.

    Iterating reads the files anew, so that documents of any size need no memory. The length, an
    index or a slice keep all documents in memory. A slice has documents too.

    Args:
        sources: the files.
        split: what a document is.
        field: of each line, which is JSON; None for plain text.

    Attributes:
        notes: what was skipped or looked unintended, when the files were read last.
    """

    def __init__(self, sources: Sources, split: Split = "line", field: str | None = None) -> None:
        self.notes = sources.notes
        self.split = split
        self.field = field
        self._sources = sources
        self._kept: list[str] | None = None

    def __iter__(self) -> Iterator[str]:
        return map("".join, self.pieces())

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Documents": ...
    def __getitem__(self, index: int | slice) -> "str | Documents":
        if not isinstance(index, slice):
            return self._all()[index]
        part = Documents(self._sources, self.split, self.field)
        part._kept = self._all()[index]
        return part

    def __repr__(self) -> str:
        return f"Documents(split={self.split!r}, field={self.field!r})"

    def _all(self) -> list[str]:
        if self._kept is None:
            self._kept = list(map("".join, self.pieces()))
        return self._kept

    def numbered(self) -> Iterator[tuple[str, int, str]]:
        """Yield file, number of the first line, and text of each document; read the files anew."""
        for source, chunks in self._sources:
            text = text_of(source, chunks, self.notes)
            if self.field is not None:
                yield from ((source.name, *each) for each in _fields(source, text, self.field))
            elif self.split == "file":
                yield from ((source.name, 1, "".join(pieces)) for pieces in _whole(text))
            elif self.split == "paragraph":
                yield from ((source.name, *each) for each in _numbered_paragraphs(text))
            else:
                yield from ((source.name, *each) for each in numbered_lines(text))

    def pieces(self) -> Iterator[Iterable[str]]:
        """Yield each document in pieces, to be read before the next: a whole file may be large."""
        if self._kept is not None:
            yield from ([text] for text in self._kept)
            return
        notes = self.notes
        notes.n_lines = notes.n_blank = notes.n_indented = 0
        notes.newlines.clear()
        notes.json_files.clear()
        for source, chunks in self._sources:
            text = text_of(source, chunks, notes)
            if self.field is None:
                text = _noticed(source, text, notes)
            if self.field is not None:
                yield from ([text] for _, text in _fields(source, text, self.field))
            elif self.split == "file":
                yield from _whole(text)
            elif self.split == "paragraph":
                yield from _paragraphs(text)
            else:
                yield from ([line] for line in _lines(text, notes))


def _fields(source: Source, text: Iterator[str], name: str) -> Iterator[tuple[int, str]]:
    """Yield number and field of each line, unless the field is blank."""
    kind = msgspec.defstruct("Line", [("text", str)], rename={"text": name})
    for number, line in json_lines(source, text, kind, f'an object with the string "{name}"'):
        if line.text.strip():
            yield number, line.text.replace("\r\n", "\n").replace("\r", "\n")


def _whole(text: Iterator[str]) -> Iterator[Iterable[str]]:
    """Yield the text, unless it is blank."""
    before = []
    for piece in text:
        before.append(piece)
        if piece.strip():
            yield chain(before, text)
            return


def _paragraphs(text: Iterator[str]) -> Iterator[Iterable[str]]:
    """Yield runs of lines without a blank one, each in pieces: a run may be a whole file."""
    lines = chain.from_iterable(line_lists(text))
    for is_blank, run in groupby(lines, lambda line: not line.strip()):
        if not is_blank:
            yield _joined(run)


def _numbered_paragraphs(text: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Yield paragraphs as `_paragraphs` does, each with the number of its first line."""
    lines = enumerate(chain.from_iterable(line_lists(text)), 1)
    for is_blank, run in groupby(lines, lambda line: not line[1].strip()):
        if not is_blank:
            number, first = next(run)
            yield number, "\n".join([first, *(line for _, line in run)])


def _joined(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines, many at a time, with a line end between them."""
    between = ""
    while some := list(islice(lines, 1000)):
        yield between + "\n".join(some)
        between = "\n"


def _lines(text: Iterator[str], notes: Notes) -> Iterator[str]:
    """Yield the lines that are not blank, stripped."""
    for lines in line_lists(text):
        stripped = [line for line in map(str.strip, lines) if line]
        notes.n_lines += len(stripped)
        notes.n_blank += len(lines) - len(stripped)
        notes.n_indented += sum(line[0].isspace() and not line.isspace() for line in lines if line)
        yield from stripped


def _noticed(source: Source, text: Iterator[str], notes: Notes) -> Iterator[str]:
    """Yield the text; note a file that begins with JSON."""
    first = next(text, "")
    line = first.lstrip().partition("\n")[0].strip()
    if line == "[" or (line and _is_json(line)):
        notes.json_files.append(source.name)
    yield first
    yield from text


def _is_json(line: str) -> bool:
    try:
        return line[0] in "{[" and bool(msgspec.json.decode(line))
    except (msgspec.DecodeError, RecursionError):
        return False


def read_documents(path: Inputs, *, split: Split = "line", field: str | None = None) -> Documents:
    r"""Return the documents of text files.

    Files are UTF-8, or UTF-16 or UTF-32 that begins with its mark; CRLF and CR become LF. Blank
    documents are left out.

    Args:
        path: a file, a folder (the text files below it, sorted; what is hidden, no text or a model
            directory is skipped and counted) or an open binary stream, or several of them.
        split: "line": each line is a document, stripped. "paragraph": the lines up to a blank one
            are a document. "file": each file is one. But for lines, every character counts.
        field: take this field of each line, a JSON object, as a document; None for plain text.

    Raises:
        DataError: a file cannot be read or is no text, a line has no such field, or a folder has
            no text file; file, line and byte offset are named. Files are opened while the
            documents are read.
        ConfigError: an argument is out of its domain.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "poem.txt")
        ...     _ = path.write_text("One,\n  two.\n\nThree.\n")
        ...     [list(read_documents(path, split=split)) for split in ("line", "paragraph")]
        [['One,', 'two.', 'Three.'], ['One,\n  two.', 'Three.']]
    """
    check_choice("split", split, get_args(Split))
    if field is not None and not isinstance(field, str):
        raise ConfigError(f"field is {field!r:.80}, expected a string or None")
    if field is not None and split != "line":
        raise ConfigError(f"got field={field!r} and split={split!r}, expected one of them")
    return Documents(Sources(path), split, field)
