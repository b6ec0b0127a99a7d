"""What the trials of `tools/clients.py` share: the two models, and how a result is reported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

GIVEN = json.loads(os.environ["TRIALS"])
BASE_URL, SYSTEM = GIVEN["base_url"], GIVEN["system"]
SERVICE = {"base_url": BASE_URL, "api_key": "none"}
QUESTIONS, REPLIES, LOUD_REPLIES = GIVEN["questions"], GIVEN["replies"], GIVEN["loud_replies"]
BEGINNINGS, ENDINGS = GIVEN["beginnings"], GIVEN["endings"]
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTIONS[0]}]
REFUSED = "refused"


def trial(what: str, expected: Any, run: Callable[[], Any]) -> None:
    """Print whether `run` returns what is expected."""
    try:
        got = run()
    except Exception as error:  # noqa: BLE001 - any error of a client is a result
        got = f"{type(error).__name__}: {error}"
    print(json.dumps([what, got == expected, got]))


def later(reply: str) -> list[dict[str, str]]:
    """Return the messages of the second turn, after a reply to the first."""
    turns = [{"role": "assistant", "content": reply}, {"role": "user", "content": QUESTIONS[1]}]
    return [*MESSAGES, *turns]


def refusal(run: Callable[[], Any], field: str) -> Any:
    """Return REFUSED if the service refuses a request because of a field that it names."""
    try:
        return run()
    except Exception as error:  # noqa: BLE001 - each client has its own
        text = str(error)
        is_named = field in text and "is not supported" in text
        return REFUSED if "400" in text and is_named else text


def program(name: str, *arguments: str) -> str:
    """Return what a program of the client prints."""
    command = [os.path.join(os.path.dirname(sys.executable), name), *arguments]  # noqa: PTH118, PTH120
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", check=False, stdin=subprocess.DEVNULL
    )
    return done.stdout.strip() or done.stderr.strip()
