"""Try shell_gpt, which sends a system prompt with every question."""

import json
import os
from pathlib import Path

from common import BASE_URL, LOUD_REPLIES, QUESTIONS, REPLIES, SYSTEM, program, trial

roles = Path.home() / ".config/shell_gpt/roles"
roles.mkdir(parents=True)
(roles / "loud.json").write_bytes(json.dumps({"name": "loud", "role": SYSTEM}).encode())
os.environ |= {"API_BASE_URL": BASE_URL, "OPENAI_API_KEY": "none", "DEFAULT_MODEL": "chat"}
os.environ["CHAT_CACHE_PATH"] = str(Path("chats").resolve())


def sgpt(*arguments):
    return program("sgpt", "--no-cache", "--no-md", *arguments)


def conversation():
    reply = sgpt("--chat", "talk", "--role", "loud", QUESTIONS[0])
    return [reply, sgpt("--chat", "talk", QUESTIONS[1])]


def own_prompt():
    reply = sgpt(QUESTIONS[0])
    known = set("".join(REPLIES + LOUD_REPLIES))  # an error has other characters
    return "answered" if reply and set(reply) <= known else reply


trial("system prompt", LOUD_REPLIES, conversation)
trial("stream", LOUD_REPLIES[0], lambda: sgpt("--role", "loud", QUESTIONS[0]))
trial("its own system prompt", "answered", own_prompt)
