"""From a text or from messages to a prompt: the tokens that a model continues, within its block."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Literal, TypeAlias, get_args

from microgpt.checks import check_choice, checked_integer, checked_messages
from microgpt.data import BaseTokenizer, Message, Unknown
from microgpt.engines.decoding import slid
from microgpt.errors import ChatError, ContextLengthError

__all__ = ["ChatPrompt", "Prompt", "TooLong", "build_prompt", "text_prompt"]

TooLong: TypeAlias = Literal["error", "truncate"]

MARKS = 2  # of a turn, the role's token and end_turn; of a prompt, BOS and the assistant's token


@dataclass(frozen=True)
class Prompt:
    """The tokens that a model reads before its text, and how that text ends.

    Args:
        token_ids: BOS and the text, or the text alone; or BOS, the turns that fit, the
            assistant's token.
        turns_dropped: oldest turns that did not fit.
        tokens_dropped: tokens of these turns, and those cut off the front of a too long turn or
            text.
        n_unknown: characters that the model does not know, left out.
        stop_token: token id that ends the text; -1 for a text that fills the block.
        forbidden: token ids that are never chosen.
        first: token ids that every context begins with, once the text has left the block.
        system_dropped: whether the system's message was left out: the model knows none.
    """

    token_ids: list[int]
    turns_dropped: int = 0
    tokens_dropped: int = 0
    n_unknown: int = 0
    stop_token: int = -1
    forbidden: tuple[int, ...] = ()
    first: tuple[int, ...] = ()
    system_dropped: bool = False


ChatPrompt = Prompt  # its name while only messages became a prompt


def text_prompt(
    text: str,
    tokenizer: BaseTokenizer,
    block_size: int,
    unknown: Unknown = "error",
    too_long: TooLong = "error",
    *,
    windows: bool = False,
) -> Prompt:
    """Return the prompt of a document that begins with `text`.

    Args:
        text: may be empty.
        tokenizer: of the model.
        block_size: the most tokens that the model can attend to.
        unknown: see `build_prompt`.
        too_long: "truncate" keeps the end of a text that is longer than the block, half a block of
            it; with "error" that text is refused when it is continued.
        windows: leave BOS out, unless nothing else is in the prompt: a model that was trained on
            windows has seldom read it.

    Raises:
        TokenError: there are unknown characters and `unknown` is "error".
        ConfigError: `unknown` or `too_long` has another value.
    """
    check_choice("too_long", too_long, get_args(TooLong))
    known = tokenizer.encode(text, unknown=unknown)
    first = () if windows else (tokenizer.bos,)
    token_ids = [*first, *known] or [tokenizer.bos]
    n_tokens = len(token_ids)
    if too_long == "truncate" and n_tokens > block_size:
        token_ids = slid(token_ids, block_size, first)
    return Prompt(
        token_ids,
        tokens_dropped=n_tokens - len(token_ids),
        n_unknown=_n_left_out(text, known, tokenizer) if unknown == "skip" else 0,
        stop_token=tokenizer.bos,
        first=first,
    )


def build_prompt(
    messages: Sequence[Message],
    tokenizer: BaseTokenizer,
    block_size: int,
    *,
    unknown: Unknown = "skip",
    too_long: TooLong = "error",
) -> Prompt:
    """Return the prompt of a reply to `messages`, with room for the reply: a quarter of the block.

    Where not all turns fit, the oldest are dropped, whole, and an answer together with its
    question; a first message of the system is kept. A model that was trained without such messages
    does not read it.

    Args:
        messages: at least one, each with "role" (user or assistant; the first may be of the system)
            and "content".
        tokenizer: of a chat model.
        block_size: the most tokens that the model can attend to.
        unknown: "skip" leaves out characters that the model does not know, "error" refuses them.
        too_long: "truncate" keeps the end of a last turn that alone does not fit, "error" refuses.

    Raises:
        ChatError: the tokenizer has no chat tokens, or a message is not as expected.
        TokenError: there are unknown characters and `unknown` is "error".
        ConfigError: `unknown` or `too_long` has another value, or block_size is no integer.
        ContextLengthError: the last turn does not fit and `too_long` is "error", or the block
            cannot hold any.

    Example:
        >>> import microgpt
        >>> tokenizer = microgpt.Tokenizer.from_texts(["hi"], is_chat=True)
        >>> prompt = build_prompt([{"role": "user", "content": "hi!"}], tokenizer, block_size=16)
        >>> prompt.token_ids, prompt.n_unknown, prompt.stop_token
        ([5, 2, 0, 1, 4, 3], 1, 4)
    """
    if not tokenizer.is_chat:
        raise ChatError(
            "this model was not trained with chat tokens",
            hint="retrain with --chat to enable chat support",
        )
    check_choice("too_long", too_long, get_args(TooLong))
    checked_integer("block_size", block_size)
    if isinstance(messages, str | dict) or not isinstance(messages, Sequence):
        raise ChatError(f"messages is {messages!r:.80}, expected a list of messages")
    if not messages:
        raise ChatError("messages must not be empty")
    turns, n_unknown = [], 0
    system: list[int] = []
    system_dropped = False
    for role, content in checked_messages(messages):
        if role == "system" and not tokenizer.has_system:
            system_dropped = True
            continue
        turn = tokenizer.encode_turn(role, content, unknown=unknown)
        n_unknown += _n_left_out(content, turn, tokenizer)
        if role == "system":
            system = turn
        else:
            turns.append(turn)
    if not turns:
        raise ChatError("the messages are of the system only, expected one to reply to")
    room = block_size - max(1, block_size // 4) - MARKS - len(system)
    if system and room < MARKS:
        raise ContextLengthError(
            f"the message of the system has {len(system)} tokens, expected at most "
            f"{room + len(system) - MARKS} of block_size={block_size}; shorten it"
        )
    n_that_fit = sum(used <= room for used in accumulate(map(len, reversed(turns))))
    roles = {role: tokenizer.special_id(role) for role in tokenizer.special_tokens}
    first = len(turns) - n_that_fit
    while 0 < first < len(turns) - 1 and turns[first][0] == roles["assistant"]:
        first += 1  # an answer is dropped together with its question
    kept = turns[first:] or [_truncated(turns[-1], room, block_size, too_long)]
    end_turn = roles.pop("end_turn")
    return Prompt(
        [tokenizer.bos, *system, *chain.from_iterable(kept), roles["assistant"]],
        turns_dropped=len(turns) - len(kept),
        tokens_dropped=sum(map(len, turns)) - sum(map(len, kept)),
        n_unknown=n_unknown,
        stop_token=end_turn,
        forbidden=(*roles.values(), tokenizer.bos),
        first=(tokenizer.bos,),
        system_dropped=system_dropped,
    )


def _n_left_out(text: str, token_ids: list[int], tokenizer: BaseTokenizer) -> int:
    """Return the number of characters that encoding has left out."""
    if tokenizer.chars:  # each plain token is a character: half the time
        return len(text) - sum(token_id < tokenizer.n_plain for token_id in token_ids)
    return len(text) - len(tokenizer.decode(token_ids))


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
