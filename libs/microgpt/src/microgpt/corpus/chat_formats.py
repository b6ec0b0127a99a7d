"""From a conversation in JSON to its turns: the keys determine the form."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from microgpt.checks import ROLES, SYSTEM_ROLES

__all__ = ["EXPECTED", "OtherForm", "SkippedConversation", "Turn", "conversations_in", "turns_of"]

EXPECTED = (
    'messages ({"role", "content"}), conversations ({"from", "value"}), instruction and output, '
    "prompt and completion, or question and answer"
)
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "system": "system",
}
TOOL_ROLES = ("tool", "function", "function_call", "observation")


class OtherForm(Exception):  # noqa: N818 - becomes a DataError that names file and line
    """A value is no conversation; its text says what was found and what was expected."""


class SkippedConversation(Exception):  # noqa: N818 - counted, no error
    """A conversation cannot be learned; its text is the reason, as it is counted."""


class Turn(NamedTuple):
    """One turn of a conversation.

    Args:
        role: "user", "assistant" or "system".
        content: the text.
        counts: whether the turn is learned, and not only read.
    """

    role: str
    content: str
    counts: bool = True


def conversations_in(value: Any) -> list[Any]:
    """Return the conversations of a line or an entry: itself, or those of an array of them."""
    is_array = isinstance(value, list) and all(isinstance(each, dict | list) for each in value)
    is_conversation = not is_array or any(
        {"role", "from"} & {*each} for each in value if isinstance(each, dict)
    )
    return [value] if is_conversation else value


def turns_of(value: Any) -> tuple[str, list[Turn]]:
    """Return the kind and the turns of one conversation.

    Raises:
        OtherForm: it is of no known form.
        SkippedConversation: it holds what cannot be learned, such as calls of tools.
    """
    if isinstance(value, list):
        is_sharegpt = any(isinstance(each, dict) and "from" in each for each in value)
        value = {"conversations" if is_sharegpt else "messages": value}
    if not isinstance(value, dict):
        raise OtherForm(f"found {_shown(value)}, expected an object or an array: {EXPECTED}")
    for keys, read in FORMS.items():
        if {*keys} <= value.keys():
            turns = _with_system(value, read(value))
            if any(turn.role == "system" for turn in turns[1:]):
                raise SkippedConversation("a system turn that is not the first")
            return keys[0], turns
    raise OtherForm(f"found an object with {_keys(value)}, expected {EXPECTED}")


def _with_system(value: Mapping[str, Any], turns: list[Turn]) -> list[Turn]:
    """Put the text of a key "system", which some files have, before the turns."""
    text = value.get("system")
    return [Turn("system", text), *turns] if isinstance(text, str) and text else turns


def _messages(value: Mapping[str, Any]) -> list[Turn]:
    return [_message(i, message) for i, message in enumerate(_array(value, "messages"))]


def _message(i: int, message: Any) -> Turn:
    place = f"message {i + 1}"
    if not isinstance(message, dict) or "role" not in message:
        raise OtherForm(f'{place}: found {_shown(message)}, expected {{"role", "content"}}')
    role = message["role"]
    if role in TOOL_ROLES or message.get("tool_calls") or message.get("function_call"):
        raise SkippedConversation("calls of tools")
    if role in SYSTEM_ROLES:
        role = "system"
    elif role not in ROLES:
        raise OtherForm(
            f'{place}: unknown role {_shown(role)}, expected "user", "assistant" or "system"'
        )
    if message.get("weight", 1) not in (0, 1):
        raise OtherForm(f"{place}: weight is {_shown(message['weight'])}, expected 0 or 1")
    if "content" not in message:
        raise OtherForm(f"{place}: there is no content, expected a text")
    return Turn(role, _text(place, message["content"]), message.get("weight", 1) == 1)


def _text(place: str, content: Any) -> str:
    """Return a text, or the texts of its parts together."""
    if content is None:
        raise SkippedConversation("a turn without content")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        if any(part.get("type", "text") != "text" for part in content):
            raise SkippedConversation("other content than text")
        parts = [part.get("text") for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    if not isinstance(content, str):
        raise OtherForm(f"{place}: the content is {_shown(content)}, expected a text")
    return content


def _sharegpt(value: Mapping[str, Any]) -> list[Turn]:
    turns = []
    for i, message in enumerate(_array(value, "conversations"), 1):
        if not isinstance(message, dict) or not {"from", "value"} <= message.keys():
            raise OtherForm(f'message {i}: found {_shown(message)}, expected {{"from", "value"}}')
        speaker = message["from"]
        if speaker in TOOL_ROLES:
            raise SkippedConversation("calls of tools")
        if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
            names = ", ".join(SHAREGPT_ROLES)
            raise OtherForm(f"message {i}: from is {_shown(speaker)}, expected one of {names}")
        turns.append(Turn(SHAREGPT_ROLES[speaker], _text(f"message {i}", message["value"])))
    return turns


def _alpaca(value: Mapping[str, Any]) -> list[Turn]:
    question = _string(value, "instruction")
    if value.get("input") not in (None, ""):
        question += "\n\n" + _string(value, "input")
    return [Turn("user", question), Turn("assistant", _string(value, "output"))]


def _pair(question: str, answer: str) -> Callable[[Mapping[str, Any]], list[Turn]]:
    return lambda value: [
        Turn("user", _string(value, question)),
        Turn("assistant", _string(value, answer)),
    ]


FORMS: dict[tuple[str, ...], Callable[[Mapping[str, Any]], list[Turn]]] = {  # by their keys
    ("messages",): _messages,
    ("conversations",): _sharegpt,
    ("instruction", "output"): _alpaca,
    ("prompt", "completion"): _pair("prompt", "completion"),
    ("question", "answer"): _pair("question", "answer"),
}


def _array(value: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(value[key], list):
        raise OtherForm(f'"{key}" is {_shown(value[key])}, expected an array')
    found: list[Any] = value[key]
    return found


def _string(value: Mapping[str, Any], key: str) -> str:
    if not isinstance(value[key], str):
        raise OtherForm(f'"{key}" is {_shown(value[key])}, expected a text')
    text: str = value[key]
    return text


def _keys(value: Mapping[str, Any]) -> str:
    return f"the keys {', '.join(map(repr, value))}" if value else "no keys"


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
