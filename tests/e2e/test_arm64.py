"""The release on an arm64 Python computes what it computes on x86-64.

The tests of `test_programs.py` run on it too, the service among them.
"""

import json
import platform
import shutil
from pathlib import Path

import pytest
from e2e.environments import ROOT, Installation

TRAIN = (
    "train --input names.txt --output model --dtype float64 "
    "--steps 200 --snapshot-every 100 --log-every 1"
)
TENTH_DIGIT = 1e-10  # relative; sums differ in the order of their terms

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with x86-64"),
]


@pytest.fixture(scope="module")
def both(arm64: Installation, current: Installation) -> dict[str, Installation]:
    return {"aarch64": arm64, "x86_64": current}


@pytest.fixture(scope="module")
def trained(
    both: dict[str, Installation], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Folders with a model and its snapshots, each of its processor."""
    folders = {}
    for processor, installation in both.items():
        folder = folders[processor] = tmp_path_factory.mktemp(processor)
        installation.run("microgpt-cli", "data", "names", "--output", "names.txt", cwd=folder)
        installation.run("microgpt-cli", *TRAIN.split(), cwd=folder)
    return folders


def losses(folder: Path) -> dict[int, float]:
    lines = map(json.loads, (folder / "model/metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines}


FIT = """
import json, platform, microgpt
losses = []
model = microgpt.fit(
    ["anna", "bob", "hannah", "otto", "nathan"], steps={steps}, n_embd=8, dtype="float64",
    engine="{engine}", on_step=lambda report: losses.append(report.loss),
)
made = [platform.machine(), model.engine.name, losses, model.generate(20, seed=7)]
print(json.dumps(made))
"""


@pytest.mark.parametrize(
    ("asked", "used", "steps"),
    [("auto", "native", 200), ("vectorized", "vectorized", 200), ("scalar", "scalar", 20)],
)
def test_fit_learns_the_same(
    both: dict[str, Installation], tmp_path: Path, asked: str, used: str, steps: int
) -> None:
    def fitted(processor: str) -> tuple[list[float], list[str]]:
        program = FIT.format(engine=asked, steps=steps)
        printed = json.loads(both[processor].run("python", "-c", program, cwd=tmp_path))
        machine, engine, losses, samples = printed
        assert (machine, engine, len(losses)) == (processor, used, steps)
        return losses, samples

    losses, samples = fitted("aarch64")
    expected_losses, expected_samples = fitted("x86_64")
    assert losses == pytest.approx(expected_losses, rel=TENTH_DIGIT)
    assert samples == expected_samples


@pytest.mark.parametrize(("first", "second"), [("aarch64", "x86_64"), ("x86_64", "aarch64")])
def test_training_goes_on_from_a_snapshot_of_the_other_processor(
    both: dict[str, Installation],
    trained: dict[str, Path],
    tmp_path: Path,
    first: str,
    second: str,
) -> None:
    shutil.copytree(trained[first], tmp_path, dirs_exist_ok=True)
    for file in ("weights.json", "meta.json", "checkpoints/step-00000200.safetensors"):
        (tmp_path / "model" / file).unlink()
    printed = both[second].run("microgpt-cli", *TRAIN.split(), "--resume", "model", cwd=tmp_path)
    assert "step  100" not in printed
    resumed, expected = losses(tmp_path), losses(trained[second])
    assert len(expected) == 200
    assert resumed == pytest.approx(expected, rel=TENTH_DIGIT)


COMMANDS = {
    "generate": "generate model --num-samples 20 --seed 7 --temperature 1",
    "score": "score model --input names.txt",
    "explain": "explain model anna --json",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_command_prints_the_same_of_each_model(
    both: dict[str, Installation], trained: dict[str, Path], command: str
) -> None:
    printed = {
        installation.run("microgpt-cli", *command.split(), cwd=folder)
        for installation in both.values()
        for folder in trained.values()
    }
    assert len(printed) == 1


def test_tests_of_the_native_engine_pass(arm64: Installation, tmp_path: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-k", "native and not pytorch"]
    where = ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT / "tests"]
    files = [ROOT / f"tests/lib/engines/test_{name}.py" for name in ("engines", "muon")]
    asked = map(str, ("-m", "pytest", *options, *where, *files))
    printed = arm64.run("python", *asked, cwd=tmp_path, timeout=600)
    assert "passed" in printed
    assert "skipped" not in printed
