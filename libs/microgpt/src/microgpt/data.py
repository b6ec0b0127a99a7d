"""Text to token ids and back. A token is a character, or a special token that marks a place.

A document is `BOS, characters, BOS`, where BOS stands for "beginning of sequence". A conversation
is `BOS, turns, BOS`, and each of its turns is `role, characters, end_turn`: the layout functions
define it. The vocabulary is the set of all tokens; their ids are 0 to vocab_size - 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias, get_args

from microgpt import checks
from microgpt.errors import TokenError

__all__ = ["Message", "Tokenizer", "conversation_layout", "document_layout", "turn_layout"]

SPECIAL_TOKENS = (*checks.ROLES, "end_turn", "system")  # of chat models, by id; BOS follows

Message: TypeAlias = dict[str, Any]  # {"role": "user" or "assistant", "content": text}
Layout: TypeAlias = list[tuple[str, str]]  # special tokens, each with the text after it
Unknown: TypeAlias = Literal["error", "skip"]


def document_layout(text: str) -> Layout:
    """Return BOS, the text, BOS."""
    return [("bos", text), ("bos", "")]


def turn_layout(role: str, content: str) -> Layout:
    """Return the role, the text, end_turn."""
    return [(role, content), ("end_turn", "")]


def conversation_layout(messages: Iterable[Message]) -> Layout:
    """Return BOS, every turn, BOS; raise ChatError for messages of another form."""
    turns = [turn_layout(role, content) for role, content in checks.checked_messages(messages)]
    return [("bos", ""), *chain.from_iterable(turns), ("bos", "")]


@dataclass(frozen=True)
class Tokenizer:
    """Characters to token ids and back.

    Characters have ids 0..n-1 in the order of their code points. Text models have one more token,
    BOS = n. Chat models have user = n, assistant = n+1, end_turn = n+2, system where known, BOS.

    Args:
        chars: the characters, sorted, each once.
        is_chat: whether the chat tokens exist.
        has_system: whether that of the system exists too.

    Raises:
        DataError: `chars` holds something other than single characters, a lone surrogate, or one
            character twice.

    Example:
        >>> tokenizer = Tokenizer.from_texts(["anna", "bob"])
        >>> tokenizer.encode_document("nab")
        [4, 2, 0, 1, 4]
        >>> tokenizer.decode([4, 2, 0, 1, 4])
        'nab'
    """

    chars: tuple[str, ...]
    is_chat: bool = False
    has_system: bool = False

    def __post_init__(self) -> None:
        checks.check_chars(self.chars)
        object.__setattr__(self, "_ids", {char: i for i, char in enumerate(self.chars)})

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, is_chat: bool = False) -> "Tokenizer":
        """Return a tokenizer for every character of `texts`.

        Args:
            texts: read once.
            is_chat: whether the chat tokens exist.
        """
        return cls(tuple(sorted(set().union(*checks.checked_texts(texts)))), is_chat)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Names of the chat tokens in the order of their ids; empty for text models."""
        return SPECIAL_TOKENS[: 3 + self.has_system] if self.is_chat else ()

    @property
    def bos(self) -> int:
        """Id of the token before and after every document: the last id."""
        return len(self.chars) + len(self.special_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of token ids: V."""
        return self.bos + 1

    def special_id(self, name: str) -> int:
        """Return the id of a chat token, such as "user".

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
            unknown: "error", or "skip" to leave out characters that are not in the vocabulary.

        Raises:
            TokenError: there are such characters and `unknown` is "error"; they are named.
        """
        if not isinstance(text, str):
            raise TokenError(f"the text is {text!r:.80}, expected a string")
        checks.check_choice("unknown", unknown, get_args(Unknown))
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]  # set in __post_init__
        if unknown == "error" and (strange := sorted(set(text) - ids.keys())):
            shown = checks.listed(strange)
            raise TokenError(
                f"the text holds characters that the model does not know: {shown}",
                hint="the model knows only characters of its training data",
            )
        return [ids[char] for char in text if char in ids]

    def _encode_layout(self, layout: Layout, unknown: Unknown = "error") -> list[int]:
        token_ids = []
        for name, text in layout:
            token_ids.append(self.bos if name == "bos" else self.special_id(name))
            token_ids += self.encode(text, unknown=unknown)
        return token_ids

    def encode_document(self, text: str) -> list[int]:
        """Return BOS, the characters, BOS.

        Args:
            text: any text.
        """
        return self._encode_layout(document_layout(text))

    def encode_turn(self, role: str, content: str, *, unknown: Unknown = "error") -> list[int]:
        """Return the role's token, the characters, end_turn.

        Args:
            role: "user", "assistant" or "system".
            content: any text.
            unknown: see `encode`.
        """
        return self._encode_layout(turn_layout(role, content), unknown)

    def encode_conversation(self, messages: Iterable[Message]) -> list[int]:
        """Return BOS, every turn, BOS.

        Args:
            messages: each with "role" and "content".
        """
        return self._encode_layout(conversation_layout(messages))

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the characters of `token_ids`; special tokens yield nothing.

        Args:
            token_ids: 0 to V - 1 each.

        Raises:
            TokenError: an id is not in the vocabulary, or no integer.
        """
        if not isinstance(token_ids, Iterable):
            raise TokenError(f"token ids are {token_ids!r:.80}, expected a list of integers")
        text = []
        chars, vocab_size = self.chars, self.vocab_size  # local: read once for many tokens
        for token_id in token_ids:
            if not checks.is_integer(token_id) or not 0 <= token_id < vocab_size:
                raise TokenError(f"token id {token_id!r:.80}, expected 0 to {vocab_size - 1}")
            if token_id < len(chars):
                text.append(chars[token_id])
        return "".join(text)
