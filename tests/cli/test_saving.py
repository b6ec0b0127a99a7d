"""Two programs and one directory: no model is lost."""

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import microgpt
import pytest
from cli.conftest import training

if TYPE_CHECKING:
    from cli.conftest import Cli

FOREVER = ("--steps", 10**7)


@pytest.mark.parametrize("flags", [(), ("--force",)])
def test_second_run_into_a_directory_is_refused_and_the_first_unharmed(
    cli: "Cli", program: Path, names: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    output = tmp_path / "out"
    job = ("train", "--input", names, "--output", output)
    with training(program, *job, *FOREVER, "--snapshot-every", 1000) as first:
        second = cli(*job, "--n-embd", 8, *flags)
        assert (second.status, second.out) == (1, "")
        assert second.err.startswith(f"error: another process trains into {output}\nhint: ")
        resumed = cli("train", "--resume", output) if microgpt.holds_snapshot(output) else second
        assert resumed.err == second.err
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
    assert first.returncode == 130
    assert microgpt.load(output).config.n_embd == 16
    lines = (output / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(10**4, len(steps) * 10**4 + 1, 10**4))
    assert not (output / "train.lock").exists()


def test_model_is_not_exported_into_a_directory_in_use(
    cli: "Cli", program: Path, names: Path, model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with training(program, "train", "--input", names, "--output", output, *FOREVER):
        result = cli("export", "--model-dir", model_dir, "--output", output, "--force")
        assert (result.status, result.out) == (1, "")
        assert result.err.startswith(f"error: another process trains into {output}\nhint: ")


@pytest.mark.parametrize("name", ["out", "."])
def test_model_that_appears_during_training_is_kept(
    program: Path,
    names: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    output = Path(name)
    job = ("train", "--input", names, "--output", output, *FOREVER)
    with training(program, *job) as process:
        while not (output / "metrics.jsonl").read_bytes():
            pass
        microgpt.fit(["anna"], steps=1, n_embd=4).save(output)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    beside = Path("out-2") if name == "out" else place.with_name("place-2")
    assert err.splitlines()[0] == (
        f"warning: another model has appeared in {output}; this run is saved into {beside}"
    )
    assert err.splitlines()[1].endswith(f"; resume with microgpt-cli train --resume {beside}")
    assert f"weights saved to {beside}/weights.json\n" in out
    assert microgpt.load(output).config.n_embd == 4
    assert not (output / "metrics.jsonl").exists()
    assert microgpt.load(beside).config.n_embd == 16
    assert microgpt.read_snapshot(beside).step > 0
    first = json.loads((beside / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 10**4


def test_forced_run_replaces_a_model_that_appears_during_training(
    program: Path, names: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job = ("train", "--input", names, "--output", output, "--force", *FOREVER)
    with training(program, *job) as process:
        microgpt.fit(["anna"], steps=1, n_embd=4).save(output)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert microgpt.load(output).config.n_embd == 16
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]
