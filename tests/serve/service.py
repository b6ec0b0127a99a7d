"""The service under test: models to serve, and the program as users start it.

Its clients verify no certificates: there are none, and reading those of the system takes as long as
a dozen requests.
"""

import asyncio
import os
import re
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import httpx2
import microgpt
import numpy as np
import windows
from microgpt.parameters import Parameters
from microgpt_serve.serving.limits import DEFAULT_LIMITS, Limits
from starlette.testclient import TestClient

__all__ = ["CHARS", "MakeClient", "Server", "StartLog", "running", "save_talker"]

CHARS = string.ascii_letters + string.digits + " .,?!'"
WAIT_SECONDS = 30.0
PROGRAM = """
from microgpt_serve.main import run
from microgpt_serve.serving.limits import Limits
run({!r})
"""


def save_talker(directory: Path, n_embd: int, n_head: int, n_layer: int, block_size: int) -> None:
    """Save a chat model that never ends its turn, so that replies fill the block."""
    tokenizer = microgpt.Tokenizer(tuple(sorted(CHARS)), is_chat=True)
    config = microgpt.ModelConfig(
        vocab_size=tokenizer.vocab_size,
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        block_size=block_size,
    )
    weights = np.random.default_rng(1).normal(0.0, 0.08, config.n_params).astype(np.float32)
    model = microgpt.LanguageModel(tokenizer, Parameters(config, weights))
    # One feature is large at every position, and opposes the token that ends a turn.
    model.parameters["wpe"][:, 0] = 10.0
    model.parameters["lm_head"][model.tokenizer.special_id("end_turn"), 0] = -10.0
    model.save(directory, format="safetensors")


StartLog: TypeAlias = Callable[[str], None]


class MakeClient(Protocol):
    """Returns a client of an application that serves a model with these settings."""

    def __call__(
        self, model_dir: Path, limits: Limits = DEFAULT_LIMITS, **settings: Any
    ) -> TestClient: ...


@dataclass
class Server:
    """`microgpt-serve` in a process of its own, on a free port."""

    process: subprocess.Popen[bytes]
    stderr: Path

    @property
    def log(self) -> str:
        """The output on stderr so far."""
        return self.stderr.read_text(encoding="utf-8")

    @property
    def port(self) -> int:
        found = self.wait_for_log(r"(?:listens on |\"url\":\")http://.*:(\d+)[\n\"]")
        return int(found.group(1))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_for_log(self, pattern: str, n: int = 1) -> re.Match[str]:
        """Return the n-th match as soon as it is there."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if len(found := list(re.finditer(pattern, self.log))) >= n:
                return found[n - 1]
            assert self.process.poll() is None, self.log
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in {self.log}")

    def wait_until_ready(self, n_workers: int = 1) -> Self:
        self.wait_for_log(r" ready .*model=|\"event\":\"ready\"", n_workers)
        return self

    async def until_metrics(self, **expected: float) -> None:
        """Wait until each metric reaches its expected value, or is 0 if 0 is expected."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            now = {name: await asyncio.to_thread(self.metric, name) for name in expected}
            if all(now[name] >= n if n else now[name] == 0 for name, n in expected.items()):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"expected {expected}, got {now}")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def metric(self, name: str) -> float:
        """Return the sum over all labels of a metric."""
        text = httpx2.get(f"{self.url}/metrics", verify=False).text
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        assert found, f"no {name} in {text}"
        return sum(map(float, found))


@contextmanager
def running(
    model_dir: Path | str,
    limits: Limits = DEFAULT_LIMITS,
    command: Sequence[str] = (),
    **settings: object,
) -> Iterator[Server]:
    """Start the program with these settings and limits; show its log if the test fails."""
    module = ["-m", "microgpt_serve"]
    options = module if limits == DEFAULT_LIMITS else ["-c", PROGRAM.format(limits)]
    command = command or [sys.executable, *options]
    given = {name.upper(): str(value) for name, value in settings.items()}
    environment = os.environ | {"MODEL_DIR": str(model_dir), "PORT": "0"} | given
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stderr")
        with path.open("wb") as stderr:
            process = subprocess.Popen(
                command, env=environment, stderr=stderr, creationflags=windows.NEW_GROUP
            )
        server = Server(process, path)
        try:
            yield server.wait_until_ready(int(given.get("WORKERS", 1)))
        except BaseException:
            sys.stderr.write(server.log)
            raise
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
