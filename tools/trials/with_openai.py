"""Try OpenAI's client."""

from common import BEGINNINGS, ENDINGS, LOUD_REPLIES, MESSAGES, REPLIES, SERVICE, later, trial
from openai import OpenAI

client = OpenAI(**SERVICE)


def ask(messages):
    answer = client.chat.completions.create(model="chat", messages=messages)
    return answer.choices[0].message.content


def conversation():
    reply = ask(MESSAGES)
    return [reply, ask(later(reply))]


def stream():
    chunks = client.chat.completions.create(model="chat", messages=MESSAGES, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def continuations():
    answer = client.completions.create(model="names", prompt=BEGINNINGS, temperature=0)
    return [choice.text for choice in answer.choices]


def echo():
    answer = client.completions.create(
        model="names", prompt="anna", echo=True, logprobs=1, max_tokens=0
    )
    (choice,) = answer.choices
    return choice.text, len(choice.logprobs.token_logprobs)


trial("plain", REPLIES[0], lambda: ask(MESSAGES[1:]))
trial("system prompt", LOUD_REPLIES, conversation)
trial("stream", LOUD_REPLIES[0], stream)
trial("list or batch", ENDINGS, continuations)
trial("models", ["names", "chat"], lambda: [model.id for model in client.models.list()])
trial("`echo` with `logprobs`", ("anna", len("anna")), echo)
