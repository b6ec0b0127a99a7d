import json
import math
from pathlib import Path
from typing import Any

import microgpt
import pytest
from texts import TALK


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
    n_bytes = len("".join(names.read_text(encoding="utf-8").split()))
    bits = figures["bits_per_token"] * figures["n_tokens"]
    assert figures["bits_per_byte"] == pytest.approx(bits / n_bytes)
    documents = names.read_text(encoding="utf-8").split()
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
    lengths = [len(name) + 1 for name in names.read_text(encoding="utf-8").split()]
    weighted = sum(nats * n for nats, n in zip(figures["documents"], lengths, strict=True))
    assert weighted / sum(lengths) == pytest.approx(figures["nats_per_token"], rel=1e-6)
    lines = cli("score", *flags).lines
    assert [float(line.split()[1]) for line in lines[:8]] == pytest.approx(
        figures["documents"], abs=5e-5
    )
    assert lines[8] == f"{'n_tokens:':<17}{sum(lengths)}"


def test_unknown_character_is_named(cli: Any, names: Path, model_dir: Path) -> None:
    names.write_text("zoe\n", encoding="utf-8")
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


# ---------------------------------------------------------------- strange lines, and rows


STRANGE = "anna\n\nzoe\tx\nbob\n"


def test_line_with_unknown_characters_is_named(cli: Any, tmp_path: Path, model_dir: Path) -> None:
    path = tmp_path / "strange.txt"
    path.write_text(STRANGE)
    for flags in ((), ("--per-document",)):
        result = cli("score", "--model-dir", model_dir, "--input", path, *flags)
        assert (result.status, result.out) == (1, "")
        assert result.err.startswith(f"error: line 3 of {path}: the text holds characters that")
        assert (
            "hint: --unknown skip leaves such characters out, --unknown worst has each cost"
            in result.err
        )


@pytest.mark.parametrize("unknown", ["skip", "worst"])
@pytest.mark.parametrize("name", ["rows.tsv", "rows.jsonl"])
def test_rows_of_a_file_have_number_text_and_score(
    cli: Any, tmp_path: Path, model_dir: Path, unknown: Any, name: str
) -> None:
    path, rows_path = tmp_path / "strange.txt", tmp_path / name
    path.write_text(STRANGE)
    flags = ("--model-dir", model_dir, "--input", path, "--unknown", unknown)
    result = cli("score", *flags, "--output", rows_path)
    assert result.status == 0
    treatment = {"skip": "left out", "worst": "counted as twice log V each"}[unknown]
    assert result.err == (f"warning: 3 characters that the model does not know {treatment}\n")
    model = microgpt.load(model_dir)
    texts = ["anna", "zoe\tx", "bob"]
    scores = model.score(texts, unknown=unknown)
    n_tokens = [5, 3 + 3 * (unknown == "worst"), 4]
    expected = [
        {
            "line": line,
            "text": text,
            "nats_per_token": nats,
            "tokens": n,
            "unknown": m,
            "file": str(path),
        }
        for line, text, nats, n, m in zip(
            [1, 3, 4], texts, scores, n_tokens, [0, 3, 0], strict=True
        )
    ]
    rows = rows_path.read_text().splitlines()
    if name == "rows.jsonl":
        assert [json.loads(row) for row in rows] == expected
    else:
        assert rows[0].split("\t") == list(expected[0])
        found = [row.split("\t") for row in rows[1:]]
        assert found == [
            [
                f"{value:.6f}" if isinstance(value, float) else str(value).replace("\t", "\\t")
                for value in row.values()
            ]
            for row in expected
        ]
    figures = json.loads(cli("score", *flags, "--json").out)
    assert figures["n_tokens"] == sum(n_tokens)
    total = model.measure(texts, unknown=unknown)
    assert figures["nats_per_token"] == pytest.approx(total.nats_per_token, rel=1e-6)
    assert "documents" not in figures
    assert "documents" in json.loads(cli("score", *flags, "--json", "--per-document").out)


def test_file_that_exists_is_replaced_by_force_only(
    cli: Any, tmp_path: Path, model_dir: Path, names: Path
) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("mine")
    flags = ("score", model_dir, "--input", names, "--output", path)
    hint = "hint: use --force to overwrite it, or name another file\n"
    assert cli(*flags) == (1, "", f"error: {path} exists\n{hint}")
    assert path.read_text() == "mine"
    assert cli(*flags, "--force").status == 0
    assert path.read_text().startswith("line\ttext\t")


@pytest.mark.parametrize(
    ("flags", "content", "lines"),
    [
        (("--split", "paragraph"), "anna\nbob\n\n\nhannah\n", [1, 5]),
        (("--split", "file"), "\nanna\n", [1]),
        (("--field", "name"), '{"name": "anna"}\n\n{"name": " "}\n{"name": "bob"}\n', [1, 4]),
    ],
)
def test_rows_name_the_first_line_of_a_document(
    cli: Any, tmp_path: Path, model_dir: Path, flags: Any, content: str, lines: list[int]
) -> None:
    path, rows_path = tmp_path / "input", tmp_path / "rows.jsonl"
    path.write_text(content)
    arguments = ("--model-dir", model_dir, "--input", path, "--unknown", "skip", *flags)
    assert cli("score", *arguments, "--output", rows_path).status == 0
    rows = [json.loads(row) for row in rows_path.read_text().splitlines()]
    assert [row["line"] for row in rows] == lines
    documents = microgpt.read_documents(
        path,
        split=flags[1] if flags[0] == "--split" else "line",
        field=flags[1] if flags[0] == "--field" else None,
    )
    assert [row["text"] for row in rows] == list(documents)


# ---------------------------------------------------------------- conversations


@pytest.mark.parametrize("loss_on", ["all", "assistant"])
def test_turns_count_that_the_model_was_trained_on(cli: Any, tmp_path: Path, loss_on: Any) -> None:
    model = microgpt.fit_chat([TALK], steps=5, block_size=64, n_embd=8, n_layer=1, loss_on=loss_on)
    model.save(tmp_path)
    path = tmp_path / "talks.jsonl"
    path.write_text(f"{json.dumps(TALK[:2])}\n{json.dumps(TALK)}\n")
    dataset = microgpt.Dataset.from_conversations([TALK[:2], TALK]).encoded_with(model.tokenizer)
    if loss_on == "assistant":
        dataset = dataset.only_assistant()
    result = cli("score", tmp_path, "--input", path, "--per-document", "--json")
    figures = json.loads(result.out)
    assert figures["nats_per_token"] == model.measure(dataset).nats_per_token
    assert figures["documents"] == [model.measure(dataset.only(i)).nats_per_token for i in range(2)]
    assert result.err == "only the answers count, as in training\n" * (loss_on == "assistant")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--output", "rows.tsv"),
            "--output: it is for texts, and this model reads conversations; --per-",
        ),
        (
            ("--unknown", "skip"),
            "--unknown: it is for texts, and this model reads conversations; leave",
        ),
    ],
)
def test_flags_of_texts_are_refused_for_conversations(
    cli: Any, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    microgpt.fit_chat([TALK], steps=1, block_size=64, n_embd=8, n_layer=1).save(tmp_path)
    result = cli("score", tmp_path, "--input", "talks.jsonl", *flags)
    assert (result.status, result.out) == (2, "")
    assert message in " ".join(result.err.split())
