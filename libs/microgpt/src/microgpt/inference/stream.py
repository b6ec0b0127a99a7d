"""Text as it is chosen, piece by piece, until it ends or has to."""

from collections.abc import Collection, Iterator, Sequence
from typing import Literal, TypeAlias

from microgpt.checks import check_integer
from microgpt.data import Tokenizer
from microgpt.errors import ConfigError
from microgpt.inference.prompt import ChatPrompt

__all__ = ["FinishReason", "TextStream", "check_limits"]

FinishReason: TypeAlias = Literal["stop", "length"]


def check_limits(max_tokens: int | None, stop: Sequence[str], seed: int = 0) -> None:
    """Raise ConfigError unless a text can be limited by these and drawn from that seed."""
    check_integer("seed", seed)
    if max_tokens is not None:
        check_integer("max_tokens", max_tokens, 1)
    is_list = isinstance(stop, Collection) and not isinstance(stop, str)
    if not is_list or not all(isinstance(text, str) and text for text in stop):
        raise ConfigError(f"stop is {stop!r:.80}, expected a list of strings that are not empty")


def _until_stop(text: str, stop: Sequence[str]) -> str | None:
    """Return what comes before the stop string that is completed first, None if there is none."""
    found = [(at + len(string), at) for string in stop if (at := text.find(string)) >= 0]
    return text[: min(found)[1]] if found else None


def _n_pending(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of `text` may yet become a stop string."""
    longest = min(max(map(len, stop), default=1) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stop)), 0)


class TextStream(Iterator[str]):
    """Pieces of one text as they come; made by `LanguageModel.stream` and `stream_chat`.

    Close it, or let go of it, to end the text early.

    Args:
        token_ids: the text's tokens, as they are chosen.
        tokenizer: decodes them.
        max_tokens: how many there are at most.
        stop: strings that end the text; they are not part of it.
        prompt: what was read before, for a chat.

    Attributes:
        n_tokens: tokens chosen so far.
        finish_reason: why it ended: "stop" for by itself or at a stop string, "length" for cut at
            `max_tokens` or the model's block; None before it ends.
    """

    def __init__(
        self,
        token_ids: Iterator[int],
        tokenizer: Tokenizer,
        max_tokens: int,
        stop: Sequence[str] = (),
        prompt: ChatPrompt | None = None,
    ) -> None:
        self.prompt = prompt
        self.n_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._pieces = self._decoded(token_ids, tokenizer, max_tokens, stop)

    def __next__(self) -> str:
        """Return the next piece, one character or more."""
        return next(self._pieces)

    def _decoded(
        self, token_ids: Iterator[int], tokenizer: Tokenizer, max_tokens: int, stop: Sequence[str]
    ) -> Iterator[str]:
        pending = ""
        for token_id in token_ids:
            self.n_tokens += 1
            pending += tokenizer.decode([token_id])
            before = _until_stop(pending, stop)
            if before is not None:
                self.finish_reason = "stop"
                if before:
                    yield before
                return
            n_ready = len(pending) - _n_pending(pending, stop)
            if n_ready:
                yield pending[:n_ready]
                pending = pending[n_ready:]
        self.finish_reason = "length" if self.n_tokens == max_tokens else "stop"
        if pending:
            yield pending
