"""From a text or from messages to a prompt: the tokens that a model continues, within its block."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, TypeAlias, get_args

from microgpt.checks import ROLES, check_choice, check_type, checked_integer, checked_messages
from microgpt.data import BaseTokenizer, Message, Unknown
from microgpt.engines.decoding import slid
from microgpt.errors import ChatError, ContextLengthError

__all__ = ["ChatPrompt", "Prompt", "TooLong", "Turns", "build_prompt", "left_out", "text_prompt"]

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
        unknown: the characters left out, each once, in the order of their appearance.
    """

    token_ids: list[int]
    turns_dropped: int = 0
    tokens_dropped: int = 0
    n_unknown: int = 0
    stop_token: int = -1
    forbidden: tuple[int, ...] = ()
    first: tuple[int, ...] = ()
    system_dropped: bool = False
    unknown: str = ""


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
    n_unknown, strange = left_out(text, known, tokenizer) if unknown == "skip" else (0, "")
    if too_long == "truncate" and n_tokens > block_size:
        token_ids = slid(token_ids, block_size, first)
    return Prompt(
        token_ids,
        tokens_dropped=n_tokens - len(token_ids),
        n_unknown=n_unknown,
        stop_token=tokenizer.bos,
        first=first,
        unknown=strange,
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
    turns = Turns(tokenizer, unknown)
    if isinstance(messages, str | dict) or not isinstance(messages, Sequence):
        raise ChatError(f"messages is {messages!r:.80}, expected a list of messages")
    for role, content in checked_messages(messages):
        if role == "system":
            turns.instruct(content)
        else:
            turns.add(role, content)
    return turns.prompt(block_size, too_long)


class _Turn(NamedTuple):
    token_ids: list[int]
    n_unknown: int
    unknown: str


class Turns:
    """A growing conversation: `add` encodes each message once.

    A prompt is made in the same time however long the conversation has become.

    Args:
        tokenizer: of a chat model.
        unknown: see `build_prompt`.

    Attributes:
        system_dropped: see `Prompt`.

    Raises:
        ConfigError: `tokenizer` is no tokenizer.
        ChatError: the tokenizer has no chat tokens.

    Example:
        >>> import microgpt
        >>> turns = Turns(microgpt.Tokenizer.from_texts(["hi"], is_chat=True))
        >>> turns.add("user", "hi!")
        >>> turns
        <Turns: 1 message, 4 tokens>
        >>> turns.prompt(block_size=16).token_ids
        [5, 2, 0, 1, 4, 3]
    """

    def __init__(self, tokenizer: BaseTokenizer, unknown: Unknown = "skip") -> None:
        check_type("tokenizer", tokenizer, BaseTokenizer)
        if not tokenizer.is_chat:
            raise ChatError(
                "this model was not trained with chat tokens",
                hint="retrain with --chat to enable chat support",
            )
        self.system_dropped = False
        self._tokenizer, self._unknown = tokenizer, unknown
        self._roles = {role: tokenizer.special_id(role) for role in tokenizer.special_tokens}
        self._system = _Turn([], 0, "")
        self.clear()

    def __repr__(self) -> str:
        n = len(self._turns)
        return f"<Turns: {n} message{'s' * (n != 1)}, {self._n_tokens} tokens>"

    def clear(self) -> None:
        """Remove all messages but that of the system."""
        self._turns: list[_Turn] = []
        self._n_tokens = self._n_unknown = 0  # of the turns

    def instruct(self, content: str | None) -> None:
        """Set the message of the system, which precedes all others.

        Args:
            content: its text; None for no message.

        Raises:
            TokenError: see `build_prompt`.
        """
        knows, system = self._tokenizer.has_system, _Turn([], 0, "")
        if content is not None and knows:
            system = self._encoded("system", content)  # may raise: the one before stays
        self._system, self.system_dropped = system, content is not None and not knows

    def add(self, role: str, content: str) -> None:
        """Append a message.

        Args:
            role: "user" or "assistant".
            content: its text.

        Raises:
            ChatError: `role` has another value.
            TokenError: see `build_prompt`.
        """
        if role not in ROLES:
            raise ChatError(f"unknown role: {role!s:.80}", hint='expected "user" or "assistant"')
        turn = self._encoded(role, content)
        self._turns.append(turn)
        self._n_tokens += len(turn.token_ids)
        self._n_unknown += turn.n_unknown

    def pop(self) -> None:
        """Remove the latest message that was added.

        Raises:
            ChatError: there is none.
        """
        if not self._turns:
            raise ChatError("there is no message to remove")
        turn = self._turns.pop()
        self._n_tokens -= len(turn.token_ids)
        self._n_unknown -= turn.n_unknown

    def _encoded(self, role: str, content: str) -> _Turn:
        token_ids = self._tokenizer.encode_turn(role, content, unknown=self._unknown)
        return _Turn(token_ids, *left_out(content, token_ids, self._tokenizer))

    def prompt(self, block_size: int, too_long: TooLong = "error") -> Prompt:
        """Return the prompt of a reply.

        Args:
            block_size: see `build_prompt`.
            too_long: see `build_prompt`.

        Raises:
            ChatError: there is no message to reply to.
            ConfigError, ContextLengthError: see `build_prompt`.
        """
        check_choice("too_long", too_long, get_args(TooLong))
        checked_integer("block_size", block_size)
        system, n_unknown, unknown = self._system
        if not self._turns:
            if system or self.system_dropped:
                raise ChatError("the messages are of the system only, expected one to reply to")
            raise ChatError("messages must not be empty")
        room = block_size - max(1, block_size // 4) - MARKS - len(system)
        if system and room < MARKS:
            raise ContextLengthError(
                f"the message of the system has {len(system)} tokens, expected at most "
                f"{room + len(system) - MARKS} of block_size={block_size}; shorten it"
            )
        n_unknown += self._n_unknown
        if n_unknown:
            strange = chain(unknown, *(turn.unknown for turn in self._turns))
            unknown = "".join(dict.fromkeys(strange))
        kept = [turn.token_ids for turn in self._turns[self._first_kept(room) :]]
        kept = kept or [_truncated(self._turns[-1].token_ids, room, block_size, too_long)]
        roles, bos = self._roles, self._tokenizer.bos
        return Prompt(
            [bos, *system, *chain.from_iterable(kept), roles["assistant"]],
            turns_dropped=len(self._turns) - len(kept),
            tokens_dropped=self._n_tokens - sum(map(len, kept)),
            n_unknown=n_unknown,
            stop_token=roles["end_turn"],
            forbidden=(*(roles[role] for role in roles if role != "end_turn"), bos),
            first=(bos,),
            system_dropped=self.system_dropped,
            unknown=unknown,
        )

    def _first_kept(self, room: int) -> int:
        """Return the index of the first of the newest turns that fit into so many tokens."""
        turns, first, used = self._turns, len(self._turns), 0
        while first and (used := used + len(turns[first - 1].token_ids)) <= room:
            first -= 1
        assistant = self._roles["assistant"]
        while 0 < first < len(turns) - 1 and turns[first].token_ids[0] == assistant:
            first += 1  # an answer is dropped together with its question
        return first


def left_out(text: str, token_ids: list[int], tokenizer: BaseTokenizer) -> tuple[int, str]:
    """Return the number of characters that encoding has left out, and each of them once."""
    n_known = (
        sum(token_id < tokenizer.n_plain for token_id in token_ids)  # half the time of decoding
        if tokenizer.chars
        else len(tokenizer.decode(token_ids))
    )
    if n_known == len(text):
        return 0, ""
    unknown = [char for char in dict.fromkeys(text) if not tokenizer.encode(char, unknown="skip")]
    return len(text) - n_known, "".join(unknown)


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
