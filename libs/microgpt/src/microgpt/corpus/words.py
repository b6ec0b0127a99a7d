r"""Text cut into words, the pieces that subwords are parts of.

A word is a space and the letters after it, for instance: no merge of `subwords` crosses a word's
end. Everything beyond ASCII counts as letters, so that the cut needs no table of Unicode and is
the same in every version of it. The pattern names code points only, no class such as `\s` and no
flag: it means the same to `re`, to Oniguruma (the `tokenizers` package) and to JavaScript.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain

__all__ = ["PATTERN", "WHITESPACE", "whole_words", "words_of"]

WHITESPACE = "\t\n\v\f\r "
_SPACE = r"[\x09-\x0D\x20]"
_NO_SPACE = r"[^\x09-\x0D\x20]"
_LETTER = r"[^\x00-\x40\x5B-\x60\x7B-\x7F]"  # A-Z, a-z, and all that is not ASCII
_DIGIT = r"[\x30-\x39]"
_OTHER = r"[\x00-\x08\x0E-\x1F\x21-\x2F\x3A-\x40\x5B-\x60\x7B-\x7F]"  # punctuation, controls

PATTERN = "|".join(
    [
        rf"'(?:[dmst]|ll|re|ve)(?!{_LETTER})",  # the end of "it's", "they'll"
        rf" ?{_LETTER}+",
        rf" ?{_DIGIT}{{1,3}}",
        rf" ?{_OTHER}+",
        rf"{_SPACE}*[\x0A\x0D]+",
        rf"{_SPACE}+(?!{_NO_SPACE})",  # leaves the last space to the word after it
        rf"{_SPACE}+",
    ]
)
_WORD = re.compile(PATTERN)
PART = 1 << 18  # characters of a text cut at a time: `findall` is faster, but a list


def words_of(text: str) -> Iterator[str]:
    r"""Yield the words of a text; joined, they are the text.

    Args:
        text: any text.

    Example:
        >>> list(words_of("They'll see 1234 cafés,\n\n  'try'!"))
        ['They', "'ll", ' see', ' 123', '4', ' cafés', ',', '\n\n', ' ', " '", 'try', "'!"]
    """
    slices = (text[start : start + PART] for start in range(0, len(text), PART))
    parts = [text] if len(text) <= PART else whole_words(slices)
    return chain.from_iterable(map(_WORD.findall, parts))


def whole_words(pieces: Iterable[str]) -> Iterator[str]:
    """Yield a text that comes in pieces in other pieces, none of which begins or ends in a word.

    Args:
        pieces: of one text; a word that ends in a later piece is held back until then.
    """
    held: list[str] = []
    for piece in pieces:
        held.append(piece)
        last = max(map(piece.rfind, WHITESPACE))
        if last < 0:
            continue
        # Before whitespace that follows something else a word ends, whatever may come.
        text = "".join(held)
        end = len(text[: len(text) - len(piece) + last + 1].rstrip(WHITESPACE))
        if end:
            yield text[:end]
        held = [text[end:]]
    if rest := "".join(held):
        yield rest
