"""The running service against its own OpenAPI document: every mode and check of schemathesis."""

import subprocess
import sys
from pathlib import Path

import pytest
from serve.service import running

CONFIG = Path(__file__).with_name("schemathesis.toml")


def attack(model_dir: Path, tmp_path: Path, n_examples: int) -> None:
    with running(model_dir, log_level="info") as server:
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)]
        run = ["run", "--mode", "all", "--max-examples", str(n_examples), "--no-color"]
        done = subprocess.run(
            [*command, *run, f"{server.url}/openapi.json"],
            cwd=tmp_path,  # it writes a cache
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert "16 selected / 16 total" in done.stdout
        assert "Traceback" not in server.log


def test_the_service_is_what_its_document_says(chat_dir: Path, tmp_path: Path) -> None:
    attack(chat_dir, tmp_path, 3)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["names_dir", "chat_dir"])
def test_many_examples_find_no_failure(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    attack(request.getfixturevalue(kind), tmp_path, 200)
