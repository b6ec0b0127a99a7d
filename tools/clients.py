"""Try the service with unmodified clients: `hatch run clients`; one of them needs npm.

Installs the newest version of each client into a directory of its own, runs its trials (`trials/`)
against two models whose replies are known, and prints a table. The exit status is 1 if a trial
failed. Nothing is left behind.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import microgpt
from load import serving

TRIALS = Path(__file__).parent / "trials"
SYSTEM = "You are loud\nshout"  # in the form of shell_gpt's
QUESTIONS = ("hello", "and you?")
REPLIES = ("hi there!", "fine, thanks.")
LOUD_REPLIES = ("HI THERE!", "FINE, THANKS.")
NAMES = ("anna", "bob", "hannah", "otto", "emma", "olivia")
BEGINNINGS = ("ha", "o")
COLUMNS = ("plain", "system prompt", "stream", "list or batch")
UV = os.environ.get("HATCH_UV", "uv")
OURS = ("PYTHON", "UV_CONSTRAINT", "VIRTUAL_ENV")  # variables of this workspace
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
SECONDS = 300  # for an installation, or the trials of a client


@dataclass(frozen=True)
class Client:
    """A client to try.

    Args:
        package: its name in the registry.
        script: the file with its trials; npm's packages have scripts of Node.js.
        extra: what to install besides the package.
    """

    package: str
    script: str
    extra: tuple[str, ...] = ()


CLIENTS = (
    Client("openai", "with_openai.py"),
    Client("openai", "with_openai.mjs"),
    Client("ai", "with_ai_sdk.mjs", ("@ai-sdk/openai-compatible",)),
    Client("langchain-openai", "with_langchain.py"),
    Client("llm", "with_llm.py"),
    Client("litellm", "with_litellm.py"),
    Client("pydantic-ai-slim", "with_pydantic_ai.py", ("pydantic-ai-slim[openai]",)),
    Client("instructor", "with_instructor.py"),
    Client("shell-gpt", "with_shell_gpt.py", ("click",)),  # which it imports, but does not require
)


# ---------------------------------------------------------------- models


def conversation(replies: Sequence[str], system: str | None = None) -> list[microgpt.Message]:
    """Return the questions with replies, after a message of the system."""
    messages: list[microgpt.Message] = [{"role": "system", "content": system}] if system else []
    for question, reply in zip(QUESTIONS, replies, strict=True):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": reply})
    return messages


def trained_chat() -> microgpt.LanguageModel:
    """Return a model of two conversations that differ by the message of the system alone."""
    talks = [conversation(REPLIES), conversation(LOUD_REPLIES, SYSTEM)]
    config = microgpt.TrainConfig(steps=300, batch_size=2, learning_rate=0.01)
    model, trainer = microgpt.prepare(
        microgpt.Dataset.from_conversations(talks),
        config,
        random.Random(1),
        n_embd=32,
        block_size=768,  # shell_gpt's own system prompt has 420 characters
    )
    trainer.advance(config.steps)
    return model


# ---------------------------------------------------------------- trials


def run(folder: Path, *command: str, **variables: str) -> str:
    """Run a command in a folder; return its standard output.

    Raises:
        OSError, SubprocessError: the command is not there, failed, or took too long.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env=ENVIRONMENT | variables,
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=SECONDS,
    )
    return done.stdout


def install(client: Client, folder: Path) -> tuple[str, list[str]]:
    """Install a client into a folder; return its version, and the command of its trials.

    Raises:
        OSError, SubprocessError: see `run`.
    """
    script = str(shutil.copy(TRIALS / client.script, folder))
    if script.endswith(".mjs"):
        shutil.copy(TRIALS / "common.mjs", folder)
        run(folder, "npm", "install", "--silent", client.package, *client.extra)
        package = folder / "node_modules" / client.package / "package.json"
        return json.loads(package.read_text(encoding="utf-8"))["version"], ["node", script]
    shutil.copy(TRIALS / "common.py", folder)
    run(folder, UV, "venv", "--quiet", "--python", sys.executable, ".venv")
    python = str(folder / ".venv/bin/python")
    run(folder, UV, "pip", "install", "--quiet", "--python", python, client.package, *client.extra)
    version = f"import importlib.metadata as m; print(m.version('{client.package}'))"
    return run(folder, python, "-c", version).strip(), [python, script]


def row_of(client: Client, given: str) -> tuple[list[str], list[str]]:
    """Try a client; return its row of the table, and its failures."""
    language = "Node.js" if client.script.endswith(".mjs") else "Python"
    title = f"`{client.package}`, {language}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            version, command = install(client, folder)
        except (OSError, subprocess.SubprocessError) as error:
            return [title, "not installable", *["-"] * len(COLUMNS), last_line(error)], []
        try:
            printed = run(folder, *command, TRIALS=given, HOME=name)
        except (OSError, subprocess.SubprocessError) as error:
            return [title, version, *["NO"] * len(COLUMNS), ""], [f"{title}: {last_line(error)}"]
    trials = [json.loads(line) for line in printed.splitlines() if line.startswith("[")]
    verdicts = {what: "yes" if is_right else "NO" for what, is_right, _ in trials}
    cells = [verdicts.pop(column, "-") for column in COLUMNS]
    others = ", ".join(f"{'' if yes == 'yes' else 'NO '}{what}" for what, yes in verdicts.items())
    failures = [f"{title}: {what}: got {got!r}" for what, is_right, got in trials if not is_right]
    return [title, version, *cells, others], failures


def last_line(error: Exception) -> str:
    """Return what a failed command printed last, or the error."""
    printed = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
    return str(printed or error).strip().splitlines()[-1]


def main() -> None:
    """Try all clients, or those whose packages are named."""
    chat, names = trained_chat(), microgpt.fit(NAMES, steps=300)
    documents = [names.generate(1, prompt=each, temperature=0)[0] for each in BEGINNINGS]
    rows, failures = [["client", "version", *COLUMNS, "also"]], list[str]()
    with serving(names=names, chat=chat) as (address, _):
        given = json.dumps(
            {
                "base_url": f"{address}/v1",
                "system": SYSTEM,
                "questions": QUESTIONS,
                "replies": REPLIES,
                "loud_replies": LOUD_REPLIES,
                "beginnings": BEGINNINGS,
                "endings": list(map(str.removeprefix, documents, BEGINNINGS)),
            }
        )
        for client in CLIENTS:
            if sys.argv[1:] and client.package not in sys.argv[1:]:
                continue
            row, failed = row_of(client, given)
            print(*row, sep="  ", flush=True)
            rows.append(row)
            failures += failed
    rows.insert(1, ["---"] * len(rows[0]))
    print("", *(f"| {' | '.join(row)} |" for row in rows), "", *failures, sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
