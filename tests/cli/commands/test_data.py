import json
import os
import resource
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import microgpt
import pytest
from faults import needs_linux
from measuring import unmeasured

if TYPE_CHECKING:
    from cli.conftest import Cli


def test_names_are_at_least_2000_each_once_and_one_per_line(cli: "Cli") -> None:
    result = cli("data", "names")
    assert (result.status, result.err) == (0, "")
    assert result.out.endswith("\n")
    assert len(result.lines) >= 2000
    assert len(set(result.lines)) == len(result.lines)
    assert all(name == name.strip() and name.isalpha() for name in result.lines)


def test_licence_of_the_names_is_kept_beside_them() -> None:
    licence = (files("microgpt_cli") / "sample_data/names.LICENSE").read_text()
    assert licence.startswith("Copyright (c) 2012 Daniele Faraglia\n")  # who wrote Faker
    assert "Permission is hereby granted" in licence


def test_names_are_written_to_a_file_as_to_stdout(cli: "Cli", tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    for _ in range(2):  # the second time it is there already, and the same
        assert cli("data", "names", "--output", path) == (0, "", "")
        assert path.read_text() == cli("data", "names").out
    assert [file.name for file in tmp_path.iterdir()] == ["names.txt"]


def test_file_that_holds_something_else_is_not_overwritten(cli: "Cli", tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("mine\n")
    message = f"error: {path} exists and holds something else\n"
    hint = "hint: use --force to overwrite it, or name another file\n"
    assert cli("data", "names", "--output", path) == (1, "", message + hint)
    assert path.read_text() == "mine\n"


@pytest.mark.parametrize("name", ["names", "poem", "chat", "questions", "convert"])
def test_file_is_replaced_by_force(cli: "Cli", tmp_path: Path, name: str) -> None:
    path, talk = tmp_path / "out", tmp_path / "talk.jsonl"
    talk.write_text('{"question": "a", "answer": "b"}\n')
    path.write_text("mine\n")
    flags = [talk] * (name == "convert")
    assert cli("data", name, *flags, "--output", path).status == 1
    assert cli("data", name, *flags, "--output", path, "--force") == (0, "", "")
    assert path.read_text() != "mine\n"


@pytest.mark.parametrize(
    ("place", "cause"),
    [(".", "it is not a regular file"), ("none/x", "No such file or directory")],
)
def test_place_that_cannot_be_written_is_one_error(
    cli: "Cli", tmp_path: Path, place: str, cause: str
) -> None:
    path = tmp_path / place
    assert cli("data", "names", "--output", path) == (
        1,
        "",
        f"error: cannot write {path}: {cause}\n",
    )


@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_only_files_are_written_whole(cli: "Cli", tmp_path: Path, kind: str) -> None:
    path = tmp_path / "place"
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")  # which would be read for ever
    error = f"error: cannot write {path}: it is not a regular file\n"
    assert cli("data", "names", "--output", path) == (1, "", error)
    assert [file.name for file in tmp_path.iterdir()] == ["place"]
    assert not path.is_file()


def test_link_to_a_file_is_kept(cli: "Cli", tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to("names.txt")
    assert cli("data", "names", "--output", path).status == 0
    assert path.is_symlink()
    assert (tmp_path / "names.txt").read_text() == cli("data", "names").out


def test_path_through_a_folder_that_is_not_there_is_one_error(cli: "Cli", tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dear")
    path = tmp_path / "nowhere/../names.txt"
    error = f"error: cannot write {path}: No such file or directory\n"
    assert cli("data", "names", "--output", path) == (1, "", error)
    assert (tmp_path / "names.txt").read_text() == "dear"


def test_directory_that_is_gone_is_one_error(program: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        ["sh", "-c", f'rmdir "$PWD"; exec "{program}" data names --output names.txt'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    error = "error: cannot write names.txt: No such file or directory\n"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", error)


def test_full_disk_leaves_no_part_of_a_file(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    run = subprocess.run(
        [program, "data", "names", "--output", path],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        env=unmeasured(),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (1, f"error: cannot write {path}: File too large\n")
    assert list(tmp_path.iterdir()) == []


@needs_linux
def test_full_disk_under_stdout_is_one_error(program: Path) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        run = subprocess.run(
            [program, "data", "names"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (run.returncode, run.stderr) == (1, "error: No space left on device\n")


@pytest.mark.parametrize(
    ("name", "flags"),
    [("names", []), ("chat", ["--chat"]), ("faq", ["--chat"])],
    ids=["names", "chat", "faq"],
)
def test_sample_data_can_be_trained_on(
    cli: "Cli", tmp_path: Path, name: str, flags: list[str]
) -> None:
    path = tmp_path / "sample"
    cli("data", name, "--output", path)
    job = ["train", "--input", path, "--output", tmp_path / "out", "--steps", 3, *flags]
    assert cli(*job, "--block-size", 256, "--n-embd", 16).status == 0
    assert microgpt.load(tmp_path / "out").tokenizer.is_chat == bool(flags)


def test_stats_are_those_of_the_file(cli: "Cli", names: Path) -> None:
    lines = cli("data", "stats", names).lines
    # Predictions of the eight names, their ends included: 5 4 7 5 4 4 5 5.
    assert lines[:7] == [
        "documents:       8",
        "tokens:          39 (each predicted once: characters and ends)",
        "vocabulary:      10 (9 characters)",
        "charset:         'abehlnotv'",
        "not ASCII:       characters of 0 documents",
        "document length: half up to 5, 90 % up to 7, 99 % up to 7, longest 7",
        "block size:      --block-size 8 covers 100.0% of the documents",
    ]
    assert lines[7].startswith("training:        1000 steps of the default model")


def test_stats_as_json(cli: "Cli", names: Path) -> None:
    figures = json.loads(cli("data", "stats", names, "--json").out)
    assert figures.pop("seconds_per_1000_steps") > 0
    assert figures == {
        "documents": 8,
        "tokens": 39,
        "characters": 9,
        "vocab_size": 10,
        "tokens_p50": 5,
        "tokens_p90": 7,
        "tokens_p99": 7,
        "tokens_longest": 7,
        "suggested_block_size": 8,
        "covered": 1.0,
        "not_ascii": 0,
        "charset": list("abehlnotv"),
    }


def test_stats_of_subwords_say_how_much_more_text_fits(cli: "Cli", names: Path) -> None:
    flags = ("--tokenizer", "bpe", "--vocab-size", 262)
    lines = cli("data", "stats", names, *flags).lines
    figures = json.loads(cli("data", "stats", names, *flags, "--json").out)
    dataset = microgpt.Dataset.from_documents(
        names.read_text(encoding="utf-8").split()
    ).with_subwords(262)
    n_tokens = int(dataset.lengths.sum())
    assert (figures["tokens"], figures["vocab_size"], figures["characters"]) == (n_tokens, 262, 9)
    assert figures["characters_per_token"] == round(39 / n_tokens, 3)
    assert figures["charset"] == list("abehlnotv")
    assert lines[1] == f"tokens:          {n_tokens} (each predicted once: subwords and ends)"
    assert lines[2] == (
        f"vocabulary:      262 (subwords; a block holds {39 / n_tokens:.2f} times the text that it "
        "holds by characters)"
    )


def test_number_of_subwords_needs_subwords(cli: "Cli", names: Path) -> None:
    for command in (("data", "stats", names), ("train", "--input", names)):
        refused = cli(*command, "--vocab-size", 300)
        assert refused.status == 2
        assert "--vocab-size: it needs --tokenizer bpe" in refused.err


def test_one_document_beyond_ascii_is_counted_in_the_singular(cli: "Cli", tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("zo\u00eb\nanna\n")
    assert "not ASCII:       characters of 1 document" in cli("data", "stats", path).lines


def test_stats_of_conversations_warn_about_messages_left_out(cli: "Cli", tmp_path: Path) -> None:
    user, assistant = ({"role": role, "content": "hi"} for role in ("user", "assistant"))
    path = tmp_path / "chat.jsonl"
    talks = [[user, assistant], [user, assistant, user], [user]]
    path.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    result = cli("data", "stats", path, "--chat")
    assert result.lines[:2] == [
        "documents:       2",
        "tokens:          18 (each predicted once: characters and ends)",
    ]
    assert result.err == (
        "warning: 1 conversation trimmed: nobody answers the user turn at the end\n"
        "warning: 1 conversation left out: no assistant turn\n"
    )


def test_stats_of_real_conversations_are_those_that_json_alone_gives(
    cli: "Cli", shared: Path
) -> None:
    path = shared / "data" / "oasst1_chat.jsonl"
    n_trimmed = n_skipped = n_long = n_not_ascii = n_kept = 0
    for line in path.read_text("utf-8").split("\n")[:-1]:
        talk = json.loads(line)
        if "assistant" not in [turn["role"] for turn in talk]:
            n_skipped += 1
            continue
        n_trimmed += talk[-1]["role"] == "user"
        while talk[-1]["role"] == "user":
            talk.pop()
        text = "".join(turn["content"] for turn in talk)
        n_long += len(text) + 2 * len(talk) + 1 > 1024
        n_not_ascii += not text.isascii()
        n_kept += 1
    result = cli("data", "stats", path, "--chat", "--json")
    figures = json.loads(result.out)
    assert figures["documents"] == n_kept
    assert figures["not_ascii"] == n_not_ascii > 100
    assert figures["suggested_block_size"] == 1024
    assert figures["covered"] == pytest.approx(1 - n_long / n_kept, rel=1e-12)
    assert result.err.startswith(f"warning: {n_trimmed} conversations trimmed: ")
    assert ("no assistant turn" in result.err) == (n_skipped > 0)


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, [], "failed to read {path}: No such file or directory"),
        (b"", [], "dataset is empty"),
        (b"\xff", [], "failed to read {path}: invalid UTF-8 on line 1 (byte offset 0)"),
        (b"[3]\n", ["--chat"], "{path}, line 1: message 1: found 3, expected"),
    ],
    ids=["missing", "empty", "UTF-8", "JSON"],
)
def test_stats_of_invalid_data_is_one_error(
    cli: "Cli", tmp_path: Path, content: bytes | None, flags: list[str], message: str
) -> None:
    path = tmp_path / "input"
    if content is not None:
        path.write_bytes(content)
    result = cli("data", "stats", path, *flags)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"error: {message.format(path=path)}")
    assert result.err.count("\n") == 1 + ("\nhint: save a text" in result.err)


def test_conversations_of_other_tools_are_described_and_converted(
    cli: "Cli", tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text('[\n{"instruction": "hi", "input": "x", "output": "hé"}\n]')
    (tmp_path / "b.jsonl").write_text(
        '{"question": "a", "answer": "b"}\n[]\n[{"role": "user", "content": "?"}]\n'
    )
    inputs = (tmp_path / "a.json", tmp_path / "b.jsonl")
    warning = "warning: 1 conversation left out: no assistant turn\n"
    stats = cli("data", "stats", *inputs, "--chat")
    assert (stats.status, stats.err) == (0, warning)
    assert "forms:           1 with instruction, 1 with question, 1 with messages" in stats.lines
    figures = json.loads(cli("data", "stats", *inputs, "--chat", "--json").out)
    assert figures["kinds"] == {"instruction": 1, "question": 1, "messages": 1}
    converted = cli("data", "convert", *inputs)
    assert converted.out == (
        '[{"role": "user", "content": "hi\\n\\nx"}, {"role": "assistant", "content": "hé"}]\n'
        '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]\n'
    )
    output = tmp_path / "c.jsonl"
    assert cli("data", "convert", *inputs, "--output", output) == (0, "", warning)
    assert output.read_text() == converted.out
    assert cli("data", "stats", output, "--chat").status == 0
