"""Fields of a request that its type does not have: refused by name, or ignored."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Raw

from microgpt_serve.api.schemas import Turn
from microgpt_serve.serving.errors import ApiError
from microgpt_serve.serving.log import log
from microgpt_serve.serving.validation import printable

__all__ = ["BodyDecoder"]

# Fields that change the response and that no route has, with their values without effect.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "continue_final_message": (False,),
    "dry_multiplier": (0,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "grammar": ("",),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "json_schema": (),
    "length_penalty": (1,),
    "logit_bias": ({}, []),
    "logits_processors": ([],),
    "min_p": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "stop_token_ids": ([],),
    "stream": (False,),
    "structured_outputs": (),
    "suffix": ("",),
    "tfs_z": (1,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_a": (0,),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "xtc_probability": (0,),
}
TURN = frozenset(Turn.__struct_fields__)  # fields of a message, on every route
# Ignored, although they resemble fields of ours.
NOT_MISSPELT = {"max_tokens", "mode", "models", "stop", "top", "top_k", "top_p"}

MAX_EDITS = 2
LETTERS_PER_EDIT = 3  # `seed` may be one letter off, and `n` none
MAX_NAMED = 4  # fields in a message
MAX_EXAMINED = 32  # unknown fields of one request
MAX_LOGGED = 100  # names per route
MAX_SHOWN = 64  # characters of a name

T = TypeVar("T")

_names = msgspec.json.Decoder(dict[str, Raw])
_names_of_turns = msgspec.json.Decoder(list[dict[str, Raw]])


class BodyDecoder(Generic[T]):
    """Decodes the bodies of one route.

    Args:
        kind: the type of the body, a struct.
        route: path of the route, for the log.
    """

    def __init__(self, kind: type[T], route: str) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._route = route
        self._known = frozenset(getattr(kind, "__struct_encode_fields__", ()))
        self._spellings = (*sorted(self._known), *WITHOUT_EFFECT)
        self._logged: set[str] = set()

    def decode(self, body: bytes | bytearray) -> T:
        """Return the decoded body; log the fields that are ignored, once each.

        Raises:
            ApiError: a field is not supported, or is misspelt (400).
            msgspec.DecodeError, RecursionError, UnicodeDecodeError: the body is invalid.
        """
        given = _names.decode(body)
        if not given.keys() <= self._known:
            self._check(given)
        try:
            decoded = self._decoder.decode(body)
        except msgspec.ValidationError:
            _check_turns(given)
            raise
        if any(turn.content is None for turn in getattr(decoded, "messages", None) or ()):
            _check_turns(given)
        return decoded

    def _check(self, given: dict[str, Raw]) -> None:
        unknown = WITHOUT_EFFECT.keys() & given.keys() - self._known
        if refused := sorted(name for name in unknown if _has_effect(name, given[name])):
            verb = "is" if len(refused) == 1 else "are"
            message = f"{' and '.join(refused[:MAX_NAMED])} {verb} not supported"
            raise ApiError(400, message, param=refused[0])
        others = (name for name in given if name not in self._known and name not in unknown)
        for name in islice(others, MAX_EXAMINED):
            if bytes(given[name]) == b"null":
                continue
            if len(name) <= MAX_SHOWN and (meant := _meant(name, self._spellings)):
                message = f"unknown field {printable(name)}; did you mean {meant}?"
                raise ApiError(400, message, param=name)
            cut = printable(name[:MAX_SHOWN])
            if cut not in self._logged and len(self._logged) < MAX_LOGGED:
                self._logged.add(cut)
                log(logging.INFO, "field ignored", route=self._route, field=cut)


def _check_turns(given: dict[str, Raw]) -> None:
    """Raise if a message lacks a field and has a misspelt one."""
    try:
        turns = _names_of_turns.decode(given.get("messages", b"[]"))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return  # described by its path, or refused by the model
    unknown = (
        (i, name, tuple(sorted(missing)))
        for i, turn in enumerate(turns)
        if (missing := TURN - turn.keys())
        for name in turn
        if name not in TURN and len(name) <= MAX_SHOWN
    )
    for i, name, spellings in islice(unknown, MAX_EXAMINED):
        if meant := _meant(name, spellings):
            message = f"unknown field messages[{i}].{printable(name)}; did you mean {meant}?"
            raise ApiError(400, message, param="messages")


def _has_effect(name: str, value: Raw) -> bool:
    try:
        return msgspec.json.decode(value) not in (None, *WITHOUT_EFFECT[name])
    except (msgspec.DecodeError, UnicodeDecodeError):  # such as 1e999
        return True


@lru_cache(1024)
def _meant(name: str, spellings: Sequence[str]) -> str | None:
    """Return the first of the nearest spellings that `name` may misspell, if there is one."""
    if name in NOT_MISSPELT:
        return None
    written = _letters(name)
    for n_edits in range(MAX_EDITS + 1):
        for known in spellings:
            if n_edits <= min(len(name), len(known)) // LETTERS_PER_EDIT and _is_within(
                written, _letters(known), n_edits
            ):
                return known
    return None


def _letters(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _is_within(a: str, b: str, n_edits: int) -> bool:
    """Whether `n_edits` letters added, left out, replaced or swapped turn `a` into `b`."""
    if abs(len(a) - len(b)) > n_edits:
        return False
    i = 0
    while i < min(len(a), len(b)) and a[i] == b[i]:
        i += 1
    a, b = a[i:], b[i:]
    if not a or not b or n_edits == 0:
        return a == b or len(a + b) <= n_edits
    is_swapped = a[:2] == b[1::-1]
    return (
        _is_within(a[1:], b[1:], n_edits - 1)
        or _is_within(a[1:], b, n_edits - 1)
        or _is_within(a, b[1:], n_edits - 1)
        or (is_swapped and _is_within(a[2:], b[2:], n_edits - 1))
    )
