"""Try the program llm."""

import json
import os
from pathlib import Path

from common import (
    BASE_URL,
    BEGINNINGS,
    ENDINGS,
    LOUD_REPLIES,
    QUESTIONS,
    REPLIES,
    SYSTEM,
    program,
    trial,
)

models = [
    {"model_id": f"my-{name}", "model_name": name, "api_base": BASE_URL, "completion": is_text}
    for name, is_text in (("chat", False), ("names", True))
]
home = Path("llm").resolve()
home.mkdir()
(home / "extra-openai-models.yaml").write_bytes(json.dumps(models).encode())  # which is YAML, too
os.environ["LLM_USER_PATH"] = str(home)


def llm(*arguments):
    return program("llm", "prompt", *arguments)


def ask(*arguments):
    return llm("--model", "my-chat", *arguments, QUESTIONS[0])


def conversation():
    return [ask("-s", SYSTEM), llm("--continue", QUESTIONS[1])]


def cut():
    return ask("-s", SYSTEM, "-o", "max_tokens", "2", "-o", "temperature", "0", "-o", "seed", "1")


def complete():
    return llm("--model", "my-names", "-o", "temperature", "0", BEGINNINGS[0])


trial("plain", REPLIES[0], lambda: ask("--no-stream"))
trial("system prompt", LOUD_REPLIES, conversation)
trial("stream", LOUD_REPLIES[0], lambda: ask("-s", SYSTEM))
trial("options", LOUD_REPLIES[0][:2], cut)
trial("completion models", ENDINGS[0], complete)
