"""From bytes to text: encodings and line ends."""

import codecs
import io
import re
from collections.abc import Iterator

from microgpt.corpus.sources import MARKS, Notes, Source, mark_of
from microgpt.errors import DataError

__all__ = ["line_lists", "numbered_lines", "text_of"]

LINE_END = re.compile("\r\n|\r|\n")


def text_of(source: Source, chunks: Iterator[bytes], notes: Notes) -> Iterator[str]:
    r"""Yield the text of a file, piece by piece; each line ends with "\n".

    UTF-8, or UTF-16 or UTF-32 that begins with its byte order mark. CRLF and CR become LF. Other
    separators, such as U+2028 and U+0085, are characters as any other.

    Args:
        source: names the file.
        chunks: its content.
        notes: gains a file with unusual line ends.

    Raises:
        DataError: the content is no such text; line and byte offset are named.
    """
    first = next(chunks, b"")
    mark = mark_of(first)
    decoder = _Decoder(source, mark)
    yield decoder.text_of(first[len(mark) :])
    for chunk in chunks:
        yield decoder.text_of(chunk)
    yield decoder.text_of(b"", is_last=True)
    kinds = decoder.newlines.newlines  # one, or a tuple of several
    if "\r" in (kinds if isinstance(kinds, tuple) else (kinds,)):
        notes.newlines.append(source.name)


def _guess(content: bytes) -> str:
    """Return the encoding that the beginning of a file is most likely in, if it is no UTF-8."""
    if b"\0" not in content:
        return "WINDOWS-1252"
    return "UTF-16LE" if content[0] else "UTF-16BE"  # the upper byte of most letters is 0


class _Decoder:
    """Decodes one file, chunk by chunk; knows line and byte offset of what is no text."""

    def __init__(self, source: Source, mark: bytes) -> None:
        self.source = source
        self.encoding = MARKS.get(mark, "utf-8")
        self.decoder = codecs.getincrementaldecoder(self.encoding)()
        self.newlines = io.IncrementalNewlineDecoder(self.decoder, translate=True)
        self.n_bytes = len(mark)
        self.n_lines = 0

    def text_of(self, chunk: bytes, *, is_last: bool = False) -> str:
        pending, _ = self.decoder.getstate()
        try:
            text = self.newlines.decode(chunk, final=is_last)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(self.encoding)
            offset = self.n_bytes - len(pending) + error.start
            what, guess = f"invalid {self.encoding.upper()}", _guess(pending + chunk)
            raise self._error(what, before, offset, guess, f": {error.reason}") from error
        if "\0" in text:
            before = (pending + chunk).decode(self.encoding, "ignore").partition("\0")[0]
            offset = self.n_bytes - len(pending) + len(before.encode(self.encoding))
            raise self._error("NUL byte", before, offset, _guess(pending + chunk))
        self.n_bytes += len(chunk)
        self.n_lines += text.count("\n")
        return text

    def _error(
        self, what: str, before: str, offset: int, guess: str, reason: str = ""
    ) -> DataError:
        """Return the error about a byte after `before`, the text of this chunk so far."""
        _, flags = self.newlines.getstate()
        n_lines = self.n_lines + len(LINE_END.findall("\r" * (flags & 1) + before))
        name = self.source.name
        return DataError(
            f"failed to read {name}: {what} on line {n_lines + 1} (byte offset {offset}){reason}; "
            "expected UTF-8 text",
            hint="save a text of another encoding as UTF-8 in an editor, or convert it: iconv -f "
            f"{guess} -t UTF-8 {name}",
        )


def line_lists(text: Iterator[str]) -> Iterator[list[str]]:
    """Yield the lines of a text, without their ends, many at a time."""
    open_line: list[str] = []
    for piece in text:
        first, *rest = piece.split("\n")
        open_line.append(first)
        if rest:
            rest.insert(0, "".join(open_line))
            open_line = [rest.pop()]
            yield rest
    if any(open_line):
        yield ["".join(open_line)]


def numbered_lines(text: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of every line that is not blank, stripped."""
    number = 0
    for lines in line_lists(text):
        for number, line in enumerate(lines, number + 1):  # noqa: B020 - continues the count
            if stripped := line.strip():
                yield number, stripped
