"""The installed programs: train, resume, generate, chat, serve; each result against another's."""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from e2e.environments import ROOT, Installation, clean_environment

TRAIN = [
    "train",
    "--input",
    "names.txt",
    "--output",
    "model",
    "--steps",
    "200",
    "--snapshot-every",
    "100",
]


@pytest.fixture(scope="session")
def trained(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sample names, and a model of them with its snapshots."""
    folder = tmp_path_factory.mktemp("trained")
    installation.run("microgpt-cli", "data", "names", "--output", "names.txt", cwd=folder)
    output = installation.run("microgpt-cli", *TRAIN, cwd=folder)
    assert "engine:      native" in output
    return folder


@contextmanager
def served(installation: Installation, model: Path) -> Iterator[str]:
    """Run the service, and yield its address; it must end well."""
    environment = clean_environment() | {"PORT": "0", "MODEL_DIR": str(model)}
    program = [installation.bin / "microgpt-serve"]
    with subprocess.Popen(
        program, env=environment, cwd=model, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr
            log = ""
            while " ready " not in log and (line := process.stderr.readline()):
                log += line
            found = re.search(r"listens on (http://\S+)", log)
            assert found, log
            yield found[1]
        finally:
            process.terminate()
            assert process.wait(timeout=30) == 0


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def test_what_runs_is_what_was_installed(installation: Installation, tmp_path: Path) -> None:
    program = "import {0}; print({0}.__file__)"
    for module in ("microgpt", "microgpt_cli", "microgpt_serve"):
        where = installation.run("python", "-c", program.format(module), cwd=tmp_path)
        assert Path(where.strip()).is_relative_to(installation.folder)
        assert not Path(where.strip()).is_relative_to(ROOT)


def test_generate_repeats_what_training_ended_with(
    installation: Installation, trained: Path
) -> None:
    asked = ["generate", "--model-dir", "model", "--num-samples", "3", "--seed", "7"]
    texts = installation.run("microgpt-cli", *asked, cwd=trained)
    program = (
        "import microgpt; "
        "print(*microgpt.load('model').generate(3, temperature=0.5, seed=7), sep='\\n')"
    )
    by_library = installation.run("python", "-c", program, cwd=trained).splitlines()
    assert texts.splitlines() == [f"sample {i:2}: {text}" for i, text in enumerate(by_library, 1)]


def test_resumed_training_ends_at_the_same_weights(
    installation: Installation, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for file in ("weights.json", "meta.json", "checkpoints/step-00000200.safetensors"):
        (tmp_path / "model" / file).unlink()
    output = installation.run("microgpt-cli", *TRAIN, "--resume", "model", cwd=tmp_path)
    assert "step    1" not in output
    assert "step  200" in output
    again = tmp_path / "model/weights.json"
    assert again.read_bytes() == (trained / "model/weights.json").read_bytes()


def test_chat_answers_line_by_line(installation: Installation, tmp_path: Path) -> None:
    sample = installation.run("microgpt-cli", "data", "chat", cwd=tmp_path).splitlines()
    greetings = [
        line for line in sample if json.loads(line)[0]["content"] == "hello" and len(line) < 120
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(greetings[:50]))
    sizes = "--n-embd 16 --n-layer 1 --block-size 48 --steps 100"
    train = f"train --chat --input chat.jsonl --output model {sizes} --quiet"
    installation.run("microgpt-cli", *train.split(), cwd=tmp_path)
    chat = ["chat", "--model-dir", "model", "--temperature", "0"]
    answers = installation.run("microgpt-cli", *chat, cwd=tmp_path, stdin="hello\n")
    assert answers == "hi there!\n"


def test_service_answers_what_the_command_line_prints(
    installation: Installation, trained: Path
) -> None:
    model = trained / "model"
    with served(installation, model) as address:
        with urllib.request.urlopen(f"{address}/health", timeout=30) as response:
            assert response.status == 200
        url = f"{address}/microgpt/v1/generate"
        samples = post(url, {"num_samples": 3, "temperature": 0.5, "seed": 7})["samples"]
    asked = f"generate --model-dir {model} --num-samples 3 --seed 7".split()
    printed = installation.run("microgpt-cli", *asked, cwd=trained)
    assert printed.splitlines() == [f"sample {i:2}: {text}" for i, text in enumerate(samples, 1)]


BASELINE = """
import random, microgpt
from microgpt.engines.native import NativeEngine
dataset = microgpt.Dataset.from_documents(["anna", "bob", "hannah", "otto"])
config = microgpt.TrainConfig(steps=50)
losses = []
for width in (16, None):
    model, trainer = microgpt.prepare(dataset, config, random.Random(1), dtype="float64")
    trainer.engine = NativeEngine(model.parameters, vector_bytes=width)
    losses.append([report.loss for report in trainer])
baseline, widest = losses
assert len(baseline) == 50
print(max(abs(a / b - 1) for a, b in zip(baseline, widest)))
"""


def test_wheel_runs_on_the_oldest_x86_64(installation: Installation, tmp_path: Path) -> None:
    machine = "import platform; print(platform.machine())"
    if installation.run("python", "-c", machine, cwd=tmp_path) != "x86_64\n":
        pytest.skip("there is only one width of vectors")
    largest_difference = float(installation.run("python", "-c", BASELINE, cwd=tmp_path))
    assert largest_difference < 1e-12
