"""Try LiteLLM."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # the list of prices is not downloaded

import litellm
from common import BEGINNINGS, ENDINGS, LOUD_REPLIES, MESSAGES, REPLIES, SERVICE, later, trial

chat = {"model": "openai/chat", **SERVICE}
text = {"model": "text-completion-openai/names", "temperature": 0, **SERVICE}


def content(answer):
    return answer.choices[0].message.content


def ask(messages):
    return content(litellm.completion(messages=messages, **chat))


def conversation():
    reply = ask(MESSAGES)
    return [reply, ask(later(reply))]


def stream():
    chunks = litellm.completion(messages=MESSAGES, stream=True, **chat)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def continuations():
    answer = litellm.text_completion(prompt=BEGINNINGS, **text)
    return [choice.text for choice in answer.choices]


def batch():
    return [content(answer) for answer in litellm.batch_completion(messages=[MESSAGES] * 2, **chat)]


trial("plain", REPLIES[0], lambda: ask(MESSAGES[1:]))
trial("system prompt", LOUD_REPLIES, conversation)
trial("stream", LOUD_REPLIES[0], stream)
trial("list or batch", ENDINGS, continuations)
trial("`batch_completion`", LOUD_REPLIES[:1] * 2, batch)
