"""Text to token ids and back. A token is a character, or a special token that marks a place.

A document is `BOS, characters, BOS`, where BOS stands for "beginning of sequence". A conversation
is `BOS, turns, BOS`, and each of its turns is `role, characters, end_turn`. The vocabulary is the
set of all tokens; their ids are 0 to vocab_size - 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias, get_args

from microgpt import checks
from microgpt.errors import TokenError

__all__ = ["BaseTokenizer", "Message", "Tokenizer"]

SPECIAL_TOKENS = (*checks.ROLES, "end_turn", "system")  # of chat models, by id; BOS follows

Message: TypeAlias = dict[str, Any]  # {"role": "user" or "assistant", "content": text}
Unknown: TypeAlias = Literal["error", "skip"]


class BaseTokenizer:
    """What all tokenizers share: tokens of text have ids from 0, special tokens the ids after them.

    Text models have one special token, BOS; chat models user, assistant, end_turn, (system,) BOS.
    """

    chars: tuple[str, ...]  # none for subwords
    is_chat: bool
    has_system: bool
    n_plain: int  # number of tokens of text

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Names of the chat tokens in the order of their ids; empty for text models."""
        return SPECIAL_TOKENS[: 3 + self.has_system] if self.is_chat else ()

    @property
    def bos(self) -> int:
        """Id of the token before and after every document: the last id."""
        return self.n_plain + len(self.special_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of token ids: V."""
        return self.bos + 1

    def special_id(self, name: str) -> int:
        """Return the id of a chat token, or raise TokenError if there is no such token.

        Args:
            name: such as "user".
        """
        if name not in self.special_tokens:
            raise TokenError(
                f"no special token {name!r}, expected one of {list(self.special_tokens)}"
            )
        return self.n_plain + self.special_tokens.index(name)

    def encode(self, text: str, *, unknown: Unknown = "error") -> list[int]:
        """Return the ids of `text`, without special tokens.

        Args:
            text: any text.
            unknown: "error", or "skip" to leave out characters that are not in the vocabulary.

        Raises:
            TokenError: there are such characters and `unknown` is "error"; they are named.
        """
        checks.check_text(text)
        checks.check_choice("unknown", unknown, get_args(Unknown))
        return self._encode(text, unknown)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of token ids; special tokens yield nothing.

        Args:
            token_ids: 0 to V - 1 each, or TokenError is raised. Bytes that are no UTF-8, of
                subwords, yield U+FFFD.
        """
        token_ids = checks.checked_ids(token_ids, self.vocab_size)
        return self._decode([token_id for token_id in token_ids if token_id < self.n_plain])

    def encode_document(self, text: str) -> list[int]:
        """Return BOS, the ids of the text, BOS.

        Args:
            text: any text.
        """
        return [self.bos, *self.encode(text), self.bos]

    def encode_turn(self, role: str, content: str, *, unknown: Unknown = "error") -> list[int]:
        """Return the role's token, the ids of the text, end_turn.

        Args:
            role: "user", "assistant" or "system".
            content: any text.
            unknown: see `encode`.
        """
        ids = self.encode(content, unknown=unknown)
        return [self.special_id(role), *ids, self.special_id("end_turn")]

    def encode_conversation(self, messages: Iterable[Message]) -> list[int]:
        """Return BOS, every turn, BOS.

        Args:
            messages: each with "role" and "content".
        """
        turns = (self.encode_turn(*message) for message in checks.checked_messages(messages))
        return [self.bos, *chain.from_iterable(turns), self.bos]

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 of a token; special tokens have none.

        Args:
            token_id: 0 to V - 1, or TokenError is raised.
        """
        return self.decode([token_id]).encode()

    def token_text(self, token_id: int) -> str:
        r"""Return a token for display: a special one as "bos", half a character as "\xc3".

        Args:
            token_id: see `token_bytes`.
        """
        text = self.token_bytes(token_id).decode(errors="backslashreplace")
        return text or (*self.special_tokens, "bos")[token_id - self.n_plain]

    def _encode(self, text: str, unknown: Unknown) -> list[int]:
        raise NotImplementedError

    def _decode(self, token_ids: Sequence[int]) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Tokenizer(BaseTokenizer):
    """Characters to token ids and back; ids are in the order of the characters' code points.

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
        object.__setattr__(self, "n_plain", len(self.chars))
        object.__setattr__(self, "_ids", {char: i for i, char in enumerate(self.chars)})

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, is_chat: bool = False) -> "Tokenizer":
        """Return a tokenizer for every character of `texts`.

        Args:
            texts: read once.
            is_chat: whether the chat tokens exist.
        """
        return cls(tuple(sorted(set().union(*checks.checked_texts(texts)))), is_chat)

    def _encode(self, text: str, unknown: Unknown) -> list[int]:
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]  # set in __post_init__
        if unknown == "error" and (strange := sorted(set(text) - ids.keys())):
            shown = checks.listed(strange)
            raise TokenError(
                f"the text holds characters that the model does not know: {shown}",
                hint="the model knows only characters of its training data",
            )
        return [ids[char] for char in text if char in ids]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return "".join([self.chars[token_id] for token_id in token_ids])
