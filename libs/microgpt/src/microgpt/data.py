"""Characters to token ids and back, and the tokens that mark who speaks."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias, get_args

from microgpt.checks import checked_texts, is_integer
from microgpt.errors import ChatError, ConfigError, DataError, TokenError

__all__ = ["ROLES", "Message", "Tokenizer", "check_conversation", "checked_message"]

ROLES = ("user", "assistant")
SPECIAL_TOKENS = (*ROLES, "end_turn")  # of chat models, in the order of their ids
MAX_SHOWN = 10  # characters that an error message names

Message: TypeAlias = dict[str, str]  # {"role": "user" or "assistant", "content": text}
Unknown: TypeAlias = Literal["error", "skip"]
UNKNOWN: tuple[Unknown, ...] = get_args(Unknown)


def check_conversation(messages: Any) -> None:
    """Raise ChatError unless it may be a list of messages."""
    if isinstance(messages, str | dict) or not isinstance(messages, Iterable):
        raise ChatError(f"a conversation is {messages!r:.80}, expected a list of messages")


def checked_message(message: Any) -> tuple[str, str]:
    """Return role and content of what should be a message, or raise ChatError."""
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise ChatError(f'a message is {message!r:.80}, expected {{"role": ..., "content": ...}}')
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or role not in ROLES:
        raise ChatError(f"unknown role: {role!s:.80}", hint='expected "user" or "assistant"')
    if not isinstance(content, str):
        raise ChatError(f"the content of a message is {content!r:.80}, expected a string")
    return role, content


@dataclass(frozen=True)
class Tokenizer:
    """Characters to token ids and back.

    Characters have ids 0..n-1 in the order of their code points. Text models have one more token,
    BOS = n. Chat models have user = n, assistant = n+1, end_turn = n+2 and BOS = n+3.

    Args:
        chars: the characters, sorted, each once.
        is_chat: whether the chat tokens exist.

    Raises:
        DataError: `chars` holds something else than single characters, a lone surrogate, or one of
            them twice.

    Example:
        >>> tokenizer = Tokenizer.from_texts(["anna", "bob"])
        >>> tokenizer.encode_document("nab")
        [4, 2, 0, 1, 4]
        >>> tokenizer.decode([4, 2, 0, 1, 4])
        'nab'
    """

    chars: tuple[str, ...]
    is_chat: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.chars, tuple) or any(
            not isinstance(char, str) or len(char) != 1 for char in self.chars
        ):
            raise DataError(f"chars is {self.chars!r:.80}, expected a tuple of single characters")
        if surrogates := [char for char in self.chars if "\ud800" <= char <= "\udfff"]:
            raise DataError(
                f"the text holds {surrogates[0]!r}, half of a character, expected Unicode text; "
                'decode it anew, perhaps with errors="replace"'
            )
        if len(set(self.chars)) != len(self.chars):
            raise DataError("chars holds a character twice, expected each once")
        object.__setattr__(self, "_ids", {char: i for i, char in enumerate(self.chars)})

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, is_chat: bool = False) -> "Tokenizer":
        """Return a tokenizer for every character that occurs in `texts`.

        Args:
            texts: any, read once.
            is_chat: whether the chat tokens exist.
        """
        return cls(tuple(sorted(set().union(*checked_texts(texts)))), is_chat)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Names of the chat tokens in the order of their ids; empty for text models."""
        return SPECIAL_TOKENS if self.is_chat else ()

    @property
    def bos(self) -> int:
        """Id of the token before and after every document; always the last one."""
        return len(self.chars) + len(self.special_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of token ids: V."""
        return self.bos + 1

    def special_id(self, name: str) -> int:
        """Return the id of "user", "assistant" or "end_turn".

        Args:
            name: of a chat token.

        Raises:
            TokenError: this tokenizer has no such token.
        """
        if name not in self.special_tokens:
            raise TokenError(
                f"no special token {name!r}, expected one of {list(self.special_tokens)}"
            )
        return len(self.chars) + self.special_tokens.index(name)

    def encode(self, text: str, *, unknown: Unknown = "error") -> list[int]:
        """Return the ids of the characters of `text`, without special tokens.

        Args:
            text: any text.
            unknown: what to do about characters that are not in the vocabulary.

        Raises:
            TokenError: there are such characters and `unknown` is "error"; they are named.
            ConfigError: `unknown` is something else.
        """
        if not isinstance(text, str):
            raise TokenError(f"the text is {text!r:.80}, expected a string")
        if unknown not in UNKNOWN:
            raise ConfigError(f"unknown is {unknown!r:.80}, expected one of {', '.join(UNKNOWN)}")
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]  # set in __post_init__
        if unknown == "error" and (strange := sorted(set(text) - ids.keys())):
            shown = ", ".join(map(repr, strange[:MAX_SHOWN])) + ", ..." * (len(strange) > MAX_SHOWN)
            raise TokenError(
                f"the text holds characters that the model does not know: {shown}",
                hint="the model knows only characters of its training data",
            )
        return [ids[char] for char in text if char in ids]

    def encode_document(self, text: str) -> list[int]:
        """Return BOS, the characters, BOS.

        Args:
            text: any text.

        Raises:
            TokenError: a character is not in the vocabulary.
        """
        return [self.bos, *self.encode(text), self.bos]

    def encode_turn(self, role: str, content: str, *, unknown: Unknown = "error") -> list[int]:
        """Return the role's token, the characters, end_turn.

        Args:
            role: "user" or "assistant".
            content: any text.
            unknown: see `encode`.

        Raises:
            TokenError: the role is not in the vocabulary, or see `encode`.
        """
        ids = self.encode(content, unknown=unknown)
        return [self.special_id(role), *ids, self.special_id("end_turn")]

    def encode_conversation(self, messages: Iterable[Message]) -> list[int]:
        """Return BOS, every turn, BOS.

        Args:
            messages: each with "role" and "content".

        Raises:
            TokenError: a character is not in the vocabulary, or this is no tokenizer for chat.
            ChatError: the messages, or one of them, are not as expected.
        """
        check_conversation(messages)
        turns = (self.encode_turn(*checked_message(message)) for message in messages)
        return [self.bos, *chain.from_iterable(turns), self.bos]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the characters of `token_ids`; special tokens yield nothing.

        Args:
            token_ids: 0 to V - 1 each.

        Raises:
            TokenError: an id is not in the vocabulary, or these are no ids.
        """
        if not isinstance(token_ids, Iterable):
            raise TokenError(f"token ids are {token_ids!r:.80}, expected a list of integers")
        text = []
        chars, vocab_size = self.chars, self.vocab_size  # half the time of looking each time
        for token_id in token_ids:
            if not is_integer(token_id) or not 0 <= token_id < vocab_size:
                raise TokenError(f"token id {token_id!r:.80}, expected 0 to {vocab_size - 1}")
            if token_id < len(chars):
                text.append(chars[token_id])
        return "".join(text)
