"""Messages for values and bodies that msgspec refuses."""

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from microgpt_serve.api.fields import BodyDecoder
from microgpt_serve.api.openai_schemas import ChatCompletionRequest
from microgpt_serve.api.schemas import GenerateRequest
from microgpt_serve.serving.errors import ApiError
from microgpt_serve.serving.validation import body_error
from starlette.testclient import TestClient

NOT_JSON = "the body is not JSON: "
LONE = "half of a surrogate pair without the other"
TURN = '{"messages": [{"role": "user", "content": %s}]}'
JARGON = re.compile(r"`|\$\.|Expected|\bgot\b|\bint\b|\bstr\b|\barray\b|malformed|codec|utf-16|hex")


def message_of(body: bytes, kind: type = ChatCompletionRequest) -> tuple[str, str | None]:
    with pytest.raises((msgspec.DecodeError, RecursionError, UnicodeDecodeError)) as info:
        BodyDecoder(kind, "/").decode(body)
    error = body_error(info.value, body)
    return error.message, error.param


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"n": "three"}', "n is 'three', expected an integer or null"),
        ('{"n": 1.5}', "n is 1.5, expected an integer or null"),
        ('{"n": 0}', "n is 0, expected at least 1"),
        ('{"n": 51}', "n is 51, expected at most 50"),
        ('{"top_p": 1.5}', "top_p is 1.5, expected at most 1"),
        ('{"temperature": "hot"}', "temperature is 'hot', expected a number or null"),
        ('{"temperature": 1e999}', "temperature is 1e999, expected a finite number"),
        ('{"temperature": 1e7}', "temperature is 1e7, expected at most 1000000"),
        ('{"stream": "yes"}', "stream is 'yes', expected true, false or null"),
        ('{"stop": 5}', "stop is 5, expected a string, a list or null"),
        (
            '{"stop": [' + '"",' * 16 + '""]}',
            "stop is [" + '"",' * 16 + '""], expected at most 16 items',
        ),
        ('{"stop": ["a", 5]}', "stop[1] is 5, expected a string"),
        ('{"stream_options": []}', "stream_options is [], expected an object or null"),
        ("{}", "messages is missing"),
        ('{"messages": [{}]}', "messages[0].role is missing"),
        (TURN % "5", "messages[0].content is 5, expected a string, a list or null"),
        (
            TURN % '[{"type": "image_url"}]',
            "messages[0].content[0].type is 'image_url', expected a value that is supported",
        ),
        ("[]", "the body is [], expected an object"),
        ('"x"', "the body is 'x', expected an object"),
        # Shown in one line, cut, printable.
        ('{"n": [1,\n  2,\t3]}', "n is [1, 2, 3], expected an integer or null"),
        ('{"n": "a\\nb\u200b"}', r"n is 'a\nb\u200b', expected an integer or null"),
        ('{"n": {"\u200b": 1}}', r'n is {"\u200b": 1}, expected an integer or null'),
        (f'{{"n": "{"a" * 99}"}}', f"n is '{'a' * 80}'..., expected an integer or null"),
        ('{"n": "\ud83d\ude00"}', "n is '\U0001f600', expected an integer or null"),
        # Of two fields with one name, msgspec reads the first, a look at the body the last.
        (
            '{"messages": [{"role": "a", "content": 5}], "messages": []}',
            "messages[0].content is invalid, expected a string, a list or null",
        ),
    ],
)
def test_value_is_shown_with_what_was_expected(body: str, expected: str) -> None:
    message, field = message_of(body.encode("utf-16", "surrogatepass").decode("utf-16").encode())
    assert message == expected
    assert field == (None if "body" in message else re.split(r"[ .\[]", expected)[0])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "the body is empty, expected a JSON object"),
        (b" \n", "the body is empty, expected a JSON object"),
        (b'{"n": 1', f"{NOT_JSON}it ends before its last bracket or quote"),
        (b'{"a": "b', f"{NOT_JSON}it ends before its last bracket or quote"),
        (rb'{"a": "\\ud800', f"{NOT_JSON}it ends before its last bracket or quote"),
        (b'{"n": NaN}', f"{NOT_JSON}invalid character at line 1, column 7, near 'NaN}}'"),
        (b'{"n": -Infinity}', f"{NOT_JSON}invalid character at line 1, column 8, near '-Inf"),
        (b'{"n": True}', f"{NOT_JSON}invalid character at line 1, column 7, near 'True}}'"),
        (b"{'n': 1}", f"{NOT_JSON}expected a name in double quotes at line 1, column 2, near "),
        (b'{\n "n": 1,\n}', f"{NOT_JSON}expected no comma before the bracket at line 3, column 1"),
        (b'{"n": 1 "a": 2}', f"{NOT_JSON}expected ',' or '}}' at line 1, column 9, near '\"a\""),
        (b"{} x", f"{NOT_JSON}expected nothing after the object at line 1, column 4, near 'x'"),
        ('{"я": "я",\n"я" 5}'.encode(), f"{NOT_JSON}expected ':' at line 2, column 5, near '5}}'"),
        (b'{"prompt": "\xff"}', "the body is not UTF-8: byte 0xff at line 1, column 13"),
        (b"\xff\xfe{\0}\0", "the body is not UTF-8: byte 0xff at line 1, column 1"),
        (rb'{"a": "\ud800"}', rf"{NOT_JSON}{LONE} at line 1, column 8, near '\\ud800"),
        (rb'{"a": "\ud800 and more"}', rf"{NOT_JSON}{LONE} at line 1, column 8, near '\\ud800"),
        (rb'{"a": "\ud800\u0041"}', rf"{NOT_JSON}{LONE} at line 1, column 8, near '\\ud800"),
        (rb'{"a": "\udc00"}', rf"{NOT_JSON}{LONE} at line 1, column 8, near '\\udc00"),
        (rb'{"a": "\ud83d\ude00\ud800"}', f"{NOT_JSON}{LONE} at line 1, column 20"),
        (b'{"a": ' + b"[" * 100_000, "the body is nested too deeply"),
    ],
)
def test_misspelt_body_is_described_with_its_place(body: bytes, expected: str) -> None:
    message, field = message_of(body, GenerateRequest)
    assert message.startswith(expected)
    assert field is None


JSON_TEXTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
).map(lambda value: json.dumps(value).encode())
FIELDS = st.sampled_from([*ChatCompletionRequest.__struct_fields__, "user", "tools", "min_p"])


@given(FIELDS, JSON_TEXTS | st.binary(max_size=30), st.integers(0, 50))
def test_no_message_has_words_of_the_parser(field: str, value: bytes, cut: int) -> None:
    body = (
        (b'{"messages": [{"role": "user", "content": "a"}], "%s": ' % field.encode()) + value + b"}"
    )
    for sent in (body, body[: -cut - 1], body[cut:]):
        try:
            BodyDecoder(ChatCompletionRequest, "/").decode(sent)
        except ApiError:  # the field is refused by name
            pass
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            message = body_error(error, sent).message
            ours = re.sub(r"(?<= is ).*(?=, expected )|, near .*", "", message)
            assert not JARGON.search(ours), message
            assert message.isprintable()
            assert len(message) < 300


def test_client_is_sent_the_message_and_the_field(chat: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "n": "three"}
    error = chat.post("/v1/chat/completions", json=body).json()["error"]
    assert error["message"] == "n is 'three', expected an integer or null"
    assert error["param"] == "n"
    missing = chat.post("/v1/chat/completions", json={}).json()["error"]
    assert (missing["message"], missing["param"]) == ("messages is missing", "messages")
