from pathlib import Path
from typing import Any

import microgpt
import numpy as np
import pytest


@pytest.fixture
def model_dir(cli: Any, names: Path, tmp_path: Path) -> Path:
    flags = ("--input", names, "--output", tmp_path / "out", "--steps", 5, "--quiet")
    assert cli("train", *flags).status == 0
    return tmp_path / "out"


@pytest.mark.parametrize("flags", [("json",), ("safetensors",), ("safetensors", "--half")])
def test_copy_is_read_by_every_reader(
    cli: Any, names: Path, model_dir: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    copy = tmp_path / "copy"
    result = cli("export", "--model-dir", model_dir, "--output", copy, "--format", *flags)
    assert result.status == 0
    assert sorted(path.name for path in copy.iterdir()) == ["meta.json", f"weights.{flags[0]}"]
    expected = microgpt.load(model_dir).parameters.flat
    if "--half" in flags:
        expected = expected.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(microgpt.load(copy).parameters.flat, expected)
    for command in (("generate",), ("info",), ("score", "--input", names)):
        assert cli(*command, "--model-dir", copy).status == 0
    again = cli("export", "--model-dir", model_dir, "--output", copy)
    assert again.err.startswith(f"error: {copy} already holds a model\nhint: use --force")


def test_snapshots_of_an_unfinished_run_are_replaced_by_force_only(
    cli: Any, model_dir: Path, names: Path, tmp_path: Path
) -> None:
    unfinished = tmp_path / "unfinished"
    flags = ("--steps", 5, "--snapshot-every", 2, "--quiet")
    assert cli("train", "--input", names, "--output", unfinished, *flags).status == 0
    (unfinished / "weights.json").unlink()
    (unfinished / "meta.json").unlink()
    export = ("export", "--model-dir", model_dir, "--output", unfinished)
    refused = cli(*export)
    assert (refused.status, refused.out) == (1, "")
    assert refused.err == (
        f"error: {unfinished} already holds snapshots of a run that was not finished\n"
        f"hint: resume it with --resume {unfinished}, or start a new run with --force\n"
    )
    assert microgpt.read_snapshot(unfinished).step == 4
    (unfinished / "checkpoints" / "step-00000006.safetensors.staged").touch()  # killed while saving
    assert cli(*export, "--force").status == 0
    assert list((unfinished / "checkpoints").iterdir()) == []


def test_half_needs_safetensors(cli: Any, model_dir: Path, tmp_path: Path) -> None:
    flags = ("--model-dir", model_dir, "--output", tmp_path / "copy", "--format", "json", "--half")
    result = cli("export", *flags)
    assert result.status == 2
    assert "needs --format safetensors" in result.err
    assert not (tmp_path / "copy").exists()


def test_model_of_subwords_is_exported_with_a_warning_about_other_readers(
    cli: Any, names: Path, tmp_path: Path
) -> None:
    model_dir, copy = tmp_path / "out", tmp_path / "copy"
    flags = ("--tokenizer", "bpe", "--vocab-size", 262, "--steps", 5, "--quiet")
    assert cli("train", "--input", names, "--output", model_dir, *flags).status == 0
    result = cli("export", "--model-dir", model_dir, "--output", copy, "--format", "json")
    assert result.status == 0
    assert result.err == (
        "warning: the Rust system cannot read this model: its tokens are subwords\n"
    )
    assert sorted(path.name for path in copy.iterdir()) == [
        "meta.json",
        "tokenizer.json",
        "weights.json",
    ]
    for command in (("generate",), ("info",), ("score", "--input", names)):
        expected = cli(*command, "--model-dir", model_dir)
        assert cli(*command, "--model-dir", copy).out == expected.out
        assert expected.status == 0
