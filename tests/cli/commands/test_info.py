import json
import random
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import microgpt
import pytest

if TYPE_CHECKING:
    from cli.conftest import Cli


def test_lines_are_those_of_the_rust_system_and_two_more(cli: "Cli", shared: Path) -> None:
    result = cli("info", "--model-dir", shared / "golden/seed_rust")
    assert result.err == ""
    assert result.lines == [
        "microgpt model",
        "  vocab_size:      27",
        "  n_embd:          16",
        "  n_head:          4",
        "  n_layer:         1",
        "  block_size:      16",
        f"  charset:         {list('abcdefghijklmnopqrstuvwxyz')}",
        "  num_params:      4192",
        "  dtype:           float64",
        f"  engine:          {microgpt.load(shared / 'golden/seed_rust').engine.name}",
    ]


def test_values_stand_at_column_20(cli: "Cli", model_dir: Path) -> None:
    for line in cli("info", "--model-dir", model_dir).lines[1:]:
        label, _, value = line.partition(":")
        assert line == f"  {label.strip() + ':':<17}{value.strip()}"


def test_chat_model_names_its_special_tokens(cli: "Cli", tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    dataset = microgpt.Dataset.from_conversations([talk])
    model, _ = microgpt.prepare(dataset, microgpt.TrainConfig(), random.Random(42))
    model.save(tmp_path)
    lines = cli("info", "--model-dir", tmp_path).lines
    assert lines[6:9] == [
        "  charset:         ['h', 'i', 'o']",
        "  special_tokens:  ['user', 'assistant', 'end_turn']",
        f"  num_params:      {model.config.n_params}",
    ]


def test_model_of_windows_says_what_its_prompts_are(cli: "Cli", tmp_path: Path) -> None:
    microgpt.fit(["abcd"], steps=1, long="window", block_size=2).save(tmp_path)
    lines = cli("info", "--model-dir", tmp_path).lines
    assert lines[7] == "  prompts:         any part of a document, without BOS"


def test_model_says_how_it_was_trained(cli: "Cli", names: Path, tmp_path: Path) -> None:
    flags = ("--steps", 20, "--seed", 7, "--lr", 0.02, "--val-fraction", 0.25, "--json")
    job = ("train", "--input", names, "--output", tmp_path / "out", "--engine", "vectorized")
    events = [json.loads(line) for line in cli(*job, *flags).lines]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    lines = cli("info", "--model-dir", tmp_path / "out").lines[1:]
    rows = {line[2:19].strip(" :"): line[19:] for line in lines}
    training = microgpt.load(tmp_path / "out").training
    assert training
    assert list(rows)[-7:] == [
        *("trained", "options", "seed", "data_digest", "loss", "val_loss", "library")
    ]
    assert rows["trained"] == "20 steps"
    assert rows["options"] == "steps=20, learning_rate=0.02, val_fraction=0.25, engine=vectorized"
    assert rows["seed"] == "7"
    assert training.data_digest.startswith(rows["data_digest"])
    assert rows["loss"] == f"{losses[-1]:.4f}"
    assert rows["val_loss"] == f"{events[-1]['val_loss']:.4f}"
    assert rows["library"] == f"microgpt-lib {version('microgpt-lib')}"


@pytest.mark.parametrize("name", ["meta.json", "weights.json"])
def test_missing_half_is_named(cli: "Cli", model_dir: Path, name: str) -> None:
    (model_dir / name).unlink()
    result = cli("info", "--model-dir", model_dir)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"error: cannot read {model_dir / name}: No such file")


def test_folder_that_may_only_be_read_is_enough(cli: "Cli", shared: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(shared / "golden/seed_rust", tmp_path / "copy")
    copied.chmod(0o555)
    assert cli("info", "--model-dir", copied).status == 0
    assert {path.name for path in copied.iterdir()} >= {"meta.json", "weights.json"}
    copied.chmod(0o755)


def test_model_of_subwords_names_the_longest(cli: "Cli", tmp_path: Path) -> None:
    microgpt.fit(["banana", "bananas"], steps=1, tokenizer="bpe", vocab_size=260).save(tmp_path)
    lines = cli("info", "--model-dir", tmp_path).lines
    assert "  vocab_size:      260" in lines
    assert "  subwords:        3 besides single bytes, longest 'ban'" in lines
    assert not any("charset" in line for line in lines)
