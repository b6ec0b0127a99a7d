"""Generated texts: a whole reply, or a stream of pieces until a stop text or the last token."""

import codecs
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from microgpt.data import BaseTokenizer
from microgpt.engines.decoding import ChosenToken
from microgpt.inference.prompt import Prompt
from microgpt.parameters import IntArray

__all__ = [
    "ChatReply",
    "FinishReason",
    "Pieces",
    "Reply",
    "TextStream",
    "reply_of",
    "text_of",
    "texts_of",
]

FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True)
class Reply:
    """A text that a model generated.

    Args:
        content: the text.
        finish_reason: "stop" if the model or a stop text ended it, "length" if it was cut at
            `max_tokens`, or without it at the model's block.
        n_tokens: tokens of the text.
        prompt: the tokens read before, and what was left out of them.
        token_ids: of the text; where a stop text has cut it, those that begin in it.
    """

    content: str
    finish_reason: FinishReason
    n_tokens: int
    prompt: Prompt = field(repr=False)
    token_ids: Sequence[int] = field(default=(), repr=False)

    @property
    def tokens_dropped(self) -> int:
        """Tokens of the messages that did not fit into the block."""
        return self.prompt.tokens_dropped


ChatReply = Reply  # its name while only messages had replies


def _until_stop(text: str, stop: Sequence[str]) -> str | None:
    """Return the text before the stop text that is completed first, None if there is none."""
    found = [(at + len(string), at) for string in stop if (at := text.find(string)) >= 0]
    return text[: min(found)[1]] if found else None


def _n_pending(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of `text` may yet become a stop text."""
    longest = min(max(map(len, stop), default=1) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stop)), 0)


class Pieces:
    """From the tokens of a text to pieces of it, as far as they are certain.

    Args:
        tokenizer: decodes the tokens.
        max_tokens: the most tokens of the text.
        stop: texts that end the text; they are not part of it.

    Attributes:
        n_tokens: tokens so far.
        tokens: the tokens of the latest piece: those that begin in it.
        token_ids: the tokens of all pieces.
        finish_reason: see `TextStream.finish_reason`.
    """

    def __init__(self, tokenizer: BaseTokenizer, max_tokens: int, stop: Sequence[str] = ()) -> None:
        self.n_tokens = 0
        self.tokens: list[ChosenToken] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._tokenizer, self._max_tokens, self._stop = tokenizer, max_tokens, stop
        self._pending: deque[tuple[int, ChosenToken]] = deque()  # each with where its text begins
        self._text = ""  # not given yet
        self._n_given = 0  # characters
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # holds half a character back
        self._is_whole = bool(tokenizer.chars)  # each token is a character: half the time

    def push(self, tokens: Sequence[ChosenToken]) -> str:
        """Return the next piece, empty where no character is certain yet."""
        if self._is_whole and not self._stop:  # at once: a fifth of the time
            return self._push_characters(tokens)
        text, begun = "", list[ChosenToken]()
        for token in tokens:
            text += self._push_one(token)
            begun += self.tokens
            if self.finish_reason:
                break
        self.tokens = begun
        return text

    def _push_characters(self, tokens: Sequence[ChosenToken]) -> str:
        self.n_tokens += len(tokens)
        at, n_plain = self._n_given, self._tokenizer.n_plain
        for token in tokens:
            self._pending.append((at, token))
            at += token.token_id < n_plain
        self._text = self._tokenizer.decode([token.token_id for token in tokens])
        return self._piece(len(self._text))

    def _push_one(self, token: ChosenToken) -> str:
        self.n_tokens += 1
        self._pending.append((self._n_given + len(self._text), token))
        self._text += (
            self._tokenizer.decode([token.token_id])
            if self._is_whole
            else self._utf8.decode(self._tokenizer.token_bytes(token.token_id))
        )
        if self._stop and (before := _until_stop(self._text, self._stop)) is not None:
            self.finish_reason = "stop"
            return self._piece(len(before))
        n_held = _n_pending(self._text, self._stop) if self._stop else 0
        return self._piece(len(self._text) - n_held)

    def finish(self) -> str:
        """Return the last piece of a text that no stop text has ended."""
        self.finish_reason = "length" if self.n_tokens == self._max_tokens else "stop"
        self._text += self._utf8.decode(b"", final=True)
        return self._piece(len(self._text), is_last=True)

    def _piece(self, n_ready: int, *, is_last: bool = False) -> str:
        """Return so many characters, and take as `tokens` those that begin in them."""
        ready, self._text = self._text[:n_ready], self._text[n_ready:]
        self._n_given += n_ready
        self.tokens = []
        while self._pending and (is_last or self._pending[0][0] < self._n_given):
            self.tokens.append(self._pending.popleft()[1])
            self.token_ids.append(self.tokens[-1].token_id)
        return ready


class TextStream(Iterator[str]):
    """Pieces of one text as they are generated; made by `LanguageModel.stream` and `stream_chat`.

    Close the stream, or drop it, to end the text early.

    Args:
        token_ids: the text's tokens as they are chosen, plain or each a `ChosenToken`.
        tokenizer: decodes them.
        max_tokens: the most tokens of the text.
        stop: texts that end the text; they are not part of it.
        prompt: the tokens read before.
    """

    def __init__(
        self,
        token_ids: Iterator[int] | Iterator[ChosenToken],
        tokenizer: BaseTokenizer,
        max_tokens: int,
        stop: Sequence[str] = (),
        prompt: Prompt | None = None,
    ) -> None:
        self.prompt = prompt
        self._pieces = Pieces(tokenizer, max_tokens, stop)
        self._texts = self._decoded(token_ids)

    @property
    def n_tokens(self) -> int:
        """Tokens chosen so far."""
        return self._pieces.n_tokens

    @property
    def tokens(self) -> list[ChosenToken]:
        """The tokens of the latest piece, each with the logits that it was chosen from."""
        return self._pieces.tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text ended, None before the end.

        "stop" for a text that ended by itself or at a stop text, "length" for one cut at
        `max_tokens`, or without it at the model's block.
        """
        return self._pieces.finish_reason

    def __next__(self) -> str:
        """Return the next piece, one character or more."""
        return next(self._texts)

    def _decoded(self, token_ids: Iterator[int] | Iterator[ChosenToken]) -> Iterator[str]:
        pieces = self._pieces
        for token in token_ids:
            chosen = token if isinstance(token, ChosenToken) else ChosenToken(token)
            if text := pieces.push([chosen]):
                yield text
            if pieces.finish_reason:
                return
        if text := pieces.finish():
            yield text

    def reply(self) -> Reply:
        """Return the text as a whole; to be called instead of reading pieces."""
        content = "".join(self)
        assert self.finish_reason, "a text that was read to its end"
        assert self.prompt, "of a model's stream"
        token_ids = self._pieces.token_ids
        return Reply(content, self.finish_reason, self.n_tokens, self.prompt, token_ids)


def text_of(token_ids: Sequence[int], tokenizer: BaseTokenizer, stop: Sequence[str]) -> str:
    """Return the text of tokens that are all chosen, up to the first stop text."""
    if stop:
        return "".join(TextStream(iter(token_ids), tokenizer, len(token_ids), stop))
    return tokenizer.decode(token_ids)  # in half the time


def texts_of(
    tokens: IntArray, lengths: IntArray, tokenizer: BaseTokenizer, stop: Sequence[str]
) -> Iterator[str]:
    """Yield the texts of rows of tokens; see `text_of`.

    Args:
        tokens: shape (n, T).
        lengths: how many of each row are the text, shape (n,).
        tokenizer: decodes them.
        stop: see `text_of`.
    """
    if len(tokens) == 1:
        yield text_of(tokens[0, : lengths[0]].tolist(), tokenizer, stop)
        return
    ids = tokens[np.arange(tokens.shape[1]) < lengths[:, None]]  # row after row
    ends = np.cumsum(lengths).tolist()
    if stop or not tokenizer.chars or ids.size == 0 or ids.max() >= tokenizer.n_plain:
        rows = (ids[end - n : end].tolist() for n, end in zip(lengths.tolist(), ends, strict=True))
        yield from (text_of(row, tokenizer, stop) for row in rows)
        return
    codes = np.array([ord(char) for char in tokenizer.chars], "<u4")  # all at once: half the time
    together = codes[ids].tobytes().decode("utf-32-le", "surrogatepass")
    start = 0
    for end in ends:
        yield together[start:end]
        start = end


def reply_of(
    token_ids: Sequence[int],
    tokenizer: BaseTokenizer,
    max_tokens: int,
    stop: Sequence[str],
    prompt: Prompt,
) -> Reply:
    """Return the reply of tokens that are all chosen, as `TextStream.reply` does."""
    if stop:
        pieces = Pieces(tokenizer, max_tokens, stop)
        content = pieces.push(list(map(ChosenToken, token_ids)))
        content += "" if pieces.finish_reason else pieces.finish()
        assert pieces.finish_reason, "after the last token"
        return Reply(content, pieces.finish_reason, pieces.n_tokens, prompt, pieces.token_ids)
    reason: FinishReason = "length" if len(token_ids) == max_tokens else "stop"
    return Reply(tokenizer.decode(token_ids), reason, len(token_ids), prompt, token_ids)
