"""Every command of the READMEs, in their order, from the wheels, in an empty directory.

MICROGPT_UPDATE_READMES=1 writes into the READMEs what the commands print now.
"""

import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from e2e.environments import ROOT, Installation, clean_environment

READMES = [
    ROOT / "README.md",
    ROOT / "apps/microgpt_cli/README.md",
    ROOT / "apis/microgpt_serve/README.md",
]
# The library's README is a doctest of the usual run; the rest of that column needs a checkout, or a
# model that takes minutes to train.
OF_A_CHECKOUT = re.compile(r"(pip|hatch|python3 -m venv) ")
NEEDS_A_CHAT_MODEL = ("demo/chat-model", "/microgpt/v1/chat", "from openai import")
BLOCK = re.compile(
    r"^```(console|bash|python)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL
)


class Reader:
    """Someone who types what a README says, in one shell after another.

    Args:
        installation: where the programs are.
        folder: where they run.
        services: ends the services that a README starts.
    """

    def __init__(self, installation: Installation, folder: Path, services: ExitStack) -> None:
        self.folder = folder
        self.services = services
        path = os.pathsep.join([str(installation.bin), os.environ["PATH"]])
        self.environment = clean_environment() | {"PATH": path}
        self.port = free_port()

    def run(self, command: str) -> str:
        """Return what a command prints; it must succeed, and say nothing else."""
        command = command.replace("8080", str(self.port))
        if command.endswith("microgpt-serve"):
            return self.start(command).replace(str(self.port), "8080")
        silent = command.replace("curl ", "curl --silent --show-error --fail ")
        done = self.shell(silent, subprocess.run, capture_output=True, check=False, timeout=120)
        assert (done.returncode, done.stderr) == (0, ""), (command, done.stdout)
        output: str = done.stdout
        return output if output.endswith("\n") or not output else output + "\n"

    def start(self, command: str) -> str:
        """Return the first line of a service, once its model is loaded; it runs on."""
        service = self.shell(f"exec env {command}", subprocess.Popen, stderr=subprocess.PIPE)
        self.services.callback(service.communicate, timeout=20)
        self.services.callback(service.terminate)
        line: str = service.stderr.readline()
        ready = f"curl --silent --fail --retry 20 http://localhost:{self.port}/readyz"
        self.shell(ready, subprocess.run, stdout=subprocess.DEVNULL, check=True, timeout=120)
        return line

    def shell(self, command: str, how: Any, **options: Any) -> Any:
        bash = ["bash", "-c", command]
        return how(bash, cwd=self.folder, env=self.environment, text=True, **options)

    def type(self, block: re.Match[str]) -> str:
        """Return a block as it should be: the same commands, and what they print here."""
        kind, content, output = block.groups()
        if any(text in content for text in NEEDS_A_CHAT_MODEL):
            return block[0]
        if kind == "console":
            typed = (f"$ {command}\n{self.run(command)}" for command in commands(content))
            return f"```console\n{''.join(typed)}```\n"
        if kind == "python":
            printed = self.run(f"python -c {shlex.quote(content)}")
            assert output is not None, "a program without what it prints"
            return f"```python\n{content}```\n\n```text\n{printed}```\n"
        for command in content.splitlines():
            if not OF_A_CHECKOUT.match(command):
                self.run(command)
        return block[0]


def commands(content: str) -> Iterator[str]:
    """Yield what follows each prompt, with the lines that a backslash adds."""
    yield from re.findall(r"^\$ ((?:.*\\\n)*.*)\n", content, re.MULTILINE)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_commands_of_the_readme_print_what_it_shows(
    current: Installation, tmp_path: Path, readme: Path
) -> None:
    shown = readme.read_text(encoding="utf-8")
    with ExitStack() as services:
        found = BLOCK.sub(Reader(current, tmp_path, services).type, shown)
    if os.environ.get("MICROGPT_UPDATE_READMES"):
        readme.write_text(found, encoding="utf-8")
    else:
        assert found == shown
