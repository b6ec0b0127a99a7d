"""From messages to the tokens that a chat model goes on from, within its block."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Literal, TypeAlias, get_args

from microgpt.checks import check_integer
from microgpt.data import Message, Tokenizer, Unknown, checked_message
from microgpt.errors import ChatError, ConfigError, ContextLengthError

__all__ = ["ChatPrompt", "build_prompt"]

TooLong: TypeAlias = Literal["error", "truncate"]
TOO_LONG: tuple[TooLong, ...] = get_args(TooLong)

MARKS = 2  # of a turn, the role's token and end_turn; of a prompt, BOS and the assistant's token


@dataclass(frozen=True)
class ChatPrompt:
    """What a model reads before it replies.

    Args:
        token_ids: BOS, the turns that fit, the assistant's token.
        turns_dropped: oldest turns that did not fit.
        tokens_dropped: tokens of these turns, and those cut off the front of a too long one.
        n_unknown: characters that the model does not know, left out.
    """

    token_ids: list[int]
    turns_dropped: int
    tokens_dropped: int
    n_unknown: int


def build_prompt(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    block_size: int,
    *,
    unknown: Unknown = "skip",
    too_long: TooLong = "error",
) -> ChatPrompt:
    """Return the tokens for a reply to `messages`, with room for it: a quarter of the block.

    Where not all fit, whole turns are dropped, the oldest first.

    Args:
        messages: at least one, each with "role" (user or assistant) and "content".
        tokenizer: of a chat model.
        block_size: the most tokens that the model can attend to.
        unknown: what to do about characters that the model does not know.
        too_long: what to do if the last turn does not fit by itself; "truncate" keeps its end.

    Raises:
        ChatError: the tokenizer has no chat tokens, or a message is not as expected.
        TokenError: there are unknown characters and `unknown` is "error".
        ConfigError: `unknown` or `too_long` is none of these, or block_size no integer.
        ContextLengthError: the last turn does not fit and `too_long` is "error", or the block
            cannot hold any.

    Example:
        >>> tokenizer = Tokenizer.from_texts(["hi"], is_chat=True)
        >>> build_prompt([{"role": "user", "content": "hi!"}], tokenizer, block_size=16)
        ChatPrompt(token_ids=[5, 2, 0, 1, 4, 3], turns_dropped=0, tokens_dropped=0, n_unknown=1)
    """
    if not tokenizer.is_chat:
        raise ChatError(
            "this model was not trained with chat tokens",
            hint="retrain with --chat to enable chat support",
        )
    if too_long not in TOO_LONG:
        raise ConfigError(f"too_long is {too_long!r:.80}, expected one of {', '.join(TOO_LONG)}")
    check_integer("block_size", block_size)
    if isinstance(messages, str | dict) or not isinstance(messages, Sequence):
        raise ChatError(f"messages is {messages!r:.80}, expected a list of messages")
    if not messages:
        raise ChatError("messages must not be empty")
    turns, n_unknown = [], 0
    for message in messages:
        role, content = checked_message(message)
        turns.append(tokenizer.encode_turn(role, content, unknown=unknown))
        n_unknown += len(content) + MARKS - len(turns[-1])
    room = block_size - max(1, block_size // 4) - MARKS
    n_that_fit = sum(used <= room for used in accumulate(map(len, reversed(turns))))
    kept = turns[len(turns) - n_that_fit :]
    if not kept:
        kept = [_truncated(turns[-1], room, block_size, too_long)]
    token_ids = [tokenizer.bos, *chain.from_iterable(kept), tokenizer.special_id("assistant")]
    n_tokens = sum(map(len, turns))
    return ChatPrompt(token_ids, len(turns) - len(kept), n_tokens - sum(map(len, kept)), n_unknown)


def _truncated(turn: list[int], room: int, block_size: int, too_long: TooLong) -> list[int]:
    """Return the role's token and the end of a turn, `room` tokens together."""
    if room < MARKS:
        raise ContextLengthError(
            f"block_size={block_size} cannot hold a question and an answer; "
            "use a model with a larger block_size"
        )
    if too_long == "error":
        raise ContextLengthError(
            f"the last message has {len(turn)} tokens, expected at most {room} of "
            f"block_size={block_size}; shorten it or use a model with a larger block_size"
        )
    return [turn[0], *turn[len(turn) - room + 1 :]]
