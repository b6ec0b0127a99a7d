"""Try instructor: replies as text; a reply as an object is refused."""

from functools import partial

import instructor
from common import LOUD_REPLIES, MESSAGES, REFUSED, REPLIES, SERVICE, later, refusal, trial
from openai import OpenAI
from pydantic import BaseModel

FIELDS = {"TOOLS": "tool", "JSON": "response_format", "JSON_SCHEMA": "response_format"}


class Greeting(BaseModel):
    """A reply as an object."""

    word: str


def ask(messages, mode="TOOLS", response_model=None):
    client = instructor.from_openai(OpenAI(**SERVICE), mode=instructor.Mode[mode])
    answer = client.chat.completions.create(
        model="chat", messages=messages, response_model=response_model, max_retries=0
    )
    return answer if response_model else answer.choices[0].message.content


def conversation():
    reply = ask(MESSAGES)
    return [reply, ask(later(reply))]


def stream():
    client = instructor.from_openai(OpenAI(**SERVICE))
    chunks = client.chat.completions.create(
        model="chat", messages=MESSAGES, response_model=None, stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def objects():
    return [
        refusal(partial(ask, MESSAGES, mode, Greeting), field) for mode, field in FIELDS.items()
    ]


trial("plain", REPLIES[0], lambda: ask(MESSAGES[1:]))
trial("system prompt", LOUD_REPLIES, conversation)
trial("stream", LOUD_REPLIES[0], stream)
trial("`response_model` is refused by name", [REFUSED] * len(FIELDS), objects)
