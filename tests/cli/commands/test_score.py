import json
import math
from pathlib import Path
from typing import Any

import microgpt
import pytest


@pytest.fixture
def model_dir(cli: Any, names: Path, tmp_path: Path) -> Path:
    flags = ("--input", names, "--output", tmp_path / "out", "--steps", 50, "--block-size", 4)
    assert cli("train", *flags, "--quiet").status == 0
    return tmp_path / "out"


def test_score_agrees_with_the_logits(cli: Any, names: Path, model_dir: Path) -> None:
    result = cli("score", "--model-dir", model_dir, "--input", names, "--json")
    figures = json.loads(result.out)
    assert list(figures) == [
        "n_tokens",
        "nats_per_token",
        "bits_per_token",
        "bits_per_byte",
        "perplexity",
    ]
    n_bytes = len("".join(names.read_text().split()))
    bits = figures["bits_per_token"] * figures["n_tokens"]
    assert figures["bits_per_byte"] == pytest.approx(bits / n_bytes)
    documents = names.read_text().split()
    assert figures["n_tokens"] == sum(len(name) + 1 for name in documents)
    model = microgpt.load(model_dir)
    total = 0.0
    for name in documents:
        ids = model.tokenizer.encode_document(name)
        n_targets, seen = len(ids) - 1, 0
        while seen < n_targets:  # windows of 4 positions, each with 2 that were seen at least
            start = min(seen - 2, n_targets - 4) if seen else 0
            rows = model.logits(ids[start : min(start + 4, n_targets)]).tolist()
            for row, target in list(zip(rows, ids[start + 1 :], strict=False))[seen - start :]:
                total += math.log(sum(map(math.exp, row))) - row[target]
            seen = start + len(rows)
    mean = total / figures["n_tokens"]
    assert figures["nats_per_token"] == pytest.approx(mean, rel=1e-5)  # float32
    assert figures["bits_per_token"] == pytest.approx(mean / math.log(2), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)


def test_each_document_is_scored_on_request(cli: Any, names: Path, model_dir: Path) -> None:
    flags = ("--model-dir", model_dir, "--input", names, "--per-document")
    figures = json.loads(cli("score", *flags, "--json").out)
    lengths = [len(name) + 1 for name in names.read_text().split()]
    weighted = sum(nats * n for nats, n in zip(figures["documents"], lengths, strict=True))
    assert weighted / sum(lengths) == pytest.approx(figures["nats_per_token"], rel=1e-6)
    lines = cli("score", *flags).lines
    assert [float(line.split()[1]) for line in lines[:8]] == pytest.approx(
        figures["documents"], abs=5e-5
    )
    assert lines[8] == f"{'n_tokens:':<17}{sum(lengths)}"


def test_unknown_character_is_named(cli: Any, names: Path, model_dir: Path) -> None:
    names.write_text("zoe\n")
    result = cli("score", "--model-dir", model_dir, "--input", names)
    assert result.status == 1
    assert "characters that the model does not know: 'z'" in result.err


def test_text_that_a_model_finds_all_but_impossible_is_scored(
    cli: Any, names: Path, model_dir: Path
) -> None:
    model = microgpt.load(model_dir)
    model.parameters["lm_head"][:] *= 1e6
    model.save(model_dir)
    flags = ("--model-dir", model_dir, "--input", names)
    assert cli("score", *flags).lines[-1] == f"{'perplexity:':<17}inf"
    figures = json.loads(cli("score", *flags, "--json").out, parse_constant=pytest.fail)
    assert figures["nats_per_token"] > 1000
    assert figures["perplexity"] is None
