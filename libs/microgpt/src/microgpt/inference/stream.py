"""Generated texts: a whole reply, or a stream of pieces until a stop text or the last token."""

import codecs
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from microgpt.data import BaseTokenizer
from microgpt.engines.decoding import ChosenToken
from microgpt.inference.prompt import Prompt

__all__ = ["ChatReply", "FinishReason", "Reply", "TextStream", "reply_of", "text_of"]

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


class TextStream(Iterator[str]):
    """Pieces of one text as they are generated; made by `LanguageModel.stream` and `stream_chat`.

    Close the stream, or drop it, to end the text early.

    Args:
        token_ids: the text's tokens as they are chosen, plain or each a `ChosenToken`.
        tokenizer: decodes them.
        max_tokens: the most tokens of the text.
        stop: texts that end the text; they are not part of it.
        prompt: the tokens read before.

    Attributes:
        n_tokens: tokens chosen so far.
        tokens: the tokens of the latest piece, each with the logits that it was chosen from.
        finish_reason: "stop" for a text that ended by itself or at a stop text, "length" for one
            cut at `max_tokens`, or without it at the model's block; None before the end.
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
        self.n_tokens = 0
        self.tokens: list[ChosenToken] = []
        self.finish_reason: FinishReason | None = None
        self._tokenizer, self._stop = tokenizer, stop
        self._pending: deque[tuple[int, ChosenToken]] = deque()  # each with where its text begins
        self._n_given = 0  # characters
        self._pieces = self._decoded(token_ids, max_tokens)

    def __next__(self) -> str:
        """Return the next piece, one character or more."""
        return next(self._pieces)

    def _decoded(
        self, token_ids: Iterator[int] | Iterator[ChosenToken], max_tokens: int
    ) -> Iterator[str]:
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # holds half a character back
        is_whole = bool(self._tokenizer.chars)  # each token is a character: half the time
        text = ""  # not given yet
        for token in token_ids:
            self.n_tokens += 1
            chosen = token if isinstance(token, ChosenToken) else ChosenToken(token)
            self._pending.append((self._n_given + len(text), chosen))
            text += (
                self._tokenizer.decode([chosen.token_id])
                if is_whole
                else utf8.decode(self._tokenizer.token_bytes(chosen.token_id))
            )
            if self._stop and (before := _until_stop(text, self._stop)) is not None:
                self.finish_reason = "stop"
                if before:
                    yield self._piece(before)
                return
            n_ready = len(text) - (_n_pending(text, self._stop) if self._stop else 0)
            if n_ready:
                ready, text = text[:n_ready], text[n_ready:]
                yield self._piece(ready)
        self.finish_reason = "length" if self.n_tokens == max_tokens else "stop"
        if text := text + utf8.decode(b"", final=True):
            yield self._piece(text)

    def reply(self) -> Reply:
        """Return the text as a whole; to be called instead of reading pieces."""
        content, token_ids = "", []
        for piece in self:
            content += piece
            token_ids += [token.token_id for token in self.tokens]
        assert self.finish_reason, "a text that was read to its end"
        assert self.prompt, "of a model's stream"
        return Reply(content, self.finish_reason, self.n_tokens, self.prompt, token_ids)

    def _piece(self, text: str) -> str:
        """Return the next text, and take as `tokens` those that begin in it."""
        self._n_given += len(text)
        self.tokens = []
        while self._pending and self._pending[0][0] < self._n_given:
            self.tokens.append(self._pending.popleft()[1])
        return text


def text_of(token_ids: Sequence[int], tokenizer: BaseTokenizer, stop: Sequence[str]) -> str:
    """Return the text of tokens that are all chosen, up to the first stop text."""
    if stop:
        return "".join(TextStream(iter(token_ids), tokenizer, len(token_ids), stop))
    return tokenizer.decode(token_ids)  # in half the time


def reply_of(
    token_ids: Sequence[int],
    tokenizer: BaseTokenizer,
    max_tokens: int,
    stop: Sequence[str],
    prompt: Prompt,
) -> Reply:
    """Return the reply of tokens that are all chosen, as `TextStream.reply` does."""
    if stop:
        return TextStream(iter(token_ids), tokenizer, max_tokens, stop, prompt).reply()
    reason: FinishReason = "length" if len(token_ids) == max_tokens else "stop"
    return Reply(tokenizer.decode(token_ids), reason, len(token_ids), prompt, token_ids)
