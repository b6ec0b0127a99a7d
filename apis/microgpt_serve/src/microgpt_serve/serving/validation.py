"""Messages for values and bodies that msgspec refuses: what was received, what was expected."""

import re

import msgspec
from msgspec import Raw

from microgpt_serve.serving.errors import ApiError, counted

__all__ = ["MAX_SHOWN", "body_error", "expectation", "printable", "shown"]

MAX_SHOWN = 80  # characters of a value
MAX_NEAR = 20  # characters of a body, around the place where it stops being JSON
TYPES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true, false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
BOUNDS = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}
UNITS = {"str": "character", "array": "item"}
SYNTAX = {
    "object keys must be strings": "expected a name in double quotes",
    "trailing characters": "expected nothing after the object",
    "trailing comma in object": "expected no comma before the bracket",
    "trailing comma in array": "expected no comma before the bracket",
}
LONE_SURROGATE = re.compile(
    rb"\\u(?<![^\\]\\\\u)"  # an escape, whose backslash is not escaped itself
    rb"(?:[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u)[dD][c-fC-F])",
    re.DOTALL,
)


def shown(text: str) -> str:
    """Return a string as a message shows it: quoted, printable, cut."""
    return repr(text[:MAX_SHOWN]) + "..." * (len(text) > MAX_SHOWN)


def printable(text: str) -> str:
    """Return a text with escapes for the characters that a line of a log cannot carry."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# ---------------------------------------------------------------- values


def expectation(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return the path of a value, such as "messages[0].role", and what was expected of it.

    For a field without a value, the expectation is empty.
    """
    text, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    if found := re.fullmatch("Object missing required field `(.*)`", text):
        return f"{path}.{found[1]}".removeprefix("."), ""
    return path, _expected(text)


def _expected(text: str) -> str:
    if found := re.fullmatch(r"Expected `(.+)`, got `.+`", text):
        kinds = ", ".join(TYPES.get(kind, kind) for kind in found[1].split(" | "))
        return " or ".join(kinds.rsplit(", ", 1))
    if found := re.fullmatch(r"Expected `(\w+)` of length ([<>]=?) (\d+)", text):
        return f"{BOUNDS[found[2]]} {counted(int(found[3]), UNITS.get(found[1], 'field'))}"
    if found := re.fullmatch(r"Expected `\w+` ([<>]=?) (\S+)", text):
        return f"{BOUNDS[found[1]]} {found[2].removesuffix('.0')}"
    if text == "Number out of range":
        return "a finite number"
    if text.startswith("Invalid enum value"):
        return "a value that is supported"
    return text.removeprefix("Expected ").replace("`", "")


def body_error(error: Exception, body: bytes | bytearray) -> ApiError:
    """Return the error that the client is sent if a body cannot be decoded."""
    if isinstance(error, RecursionError):
        return ApiError(400, "the body is nested too deeply")
    if not isinstance(error, msgspec.ValidationError):
        message = _describe_syntax(str(error), bytes(body))
        return ApiError(400, message, reason=message.partition(":")[0])
    path, expected = expectation(error)
    name, field = path or "the body", re.split(r"[.\[]", path)[0] or None
    if not expected:
        return ApiError(400, f"{name} is missing", param=field)
    try:
        value = _shown_at(bytes(body), path)
    except (LookupError, msgspec.DecodeError):  # another field of the same name follows
        value = "invalid"
    message = f"{name} is {value}, expected {expected}"
    return ApiError(400, message, param=field, reason=f"{name}: expected {expected}")


def _shown_at(body: bytes, path: str) -> str:
    """Return the value at a path as a message shows it: on one line, printable, cut."""
    value = Raw(body)
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        if index:
            value = msgspec.json.decode(value, type=list[Raw])[int(index)]
        else:
            value = msgspec.json.decode(value, type=dict[str, Raw])[name]
    text = bytes(value).decode(errors="replace")
    if text.startswith('"'):
        return shown(msgspec.json.decode(text))
    return printable(" ".join(text[:MAX_SHOWN].split())) + "..." * (len(text) > MAX_SHOWN)


# ---------------------------------------------------------------- syntax


def _describe_syntax(reason: str, body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        place = _place(body, error.start)
        return f"the body is not UTF-8: byte {body[error.start]:#04x} at {place}"
    if not text.strip():
        return "the body is empty, expected a JSON object"
    is_escape = any(word in reason for word in ("surrogate", "hex escape", "truncated"))
    if is_escape and (found := LONE_SURROGATE.search(body)):
        half = "half of a surrogate pair without the other"
        return f"the body is not JSON: {half} at {_place(body, found.start(), show=True)}"
    if not (position := re.search(r"JSON is malformed: (.+) \(byte (\d+)\)", reason)):
        return "the body is not JSON: it ends before its last bracket or quote"
    reason, i = position[1], int(position[2])
    if reason == "trailing characters":
        i -= 1
    return f"the body is not JSON: {SYNTAX.get(reason, reason)} at {_place(body, i, show=True)}"


def _place(body: bytes, i: int, *, show: bool = False) -> str:
    before = body[:i].decode(errors="replace")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    place = f"line {line}, column {column}"
    if not show:
        return place
    word = re.search(r"[\w.+-]*\Z", before[-MAX_NEAR // 2 :])
    near = (word[0] if word else "") + body[i : i + 4 * MAX_NEAR].decode(errors="replace")
    return f"{place}, near {near[:MAX_NEAR]!r}"
