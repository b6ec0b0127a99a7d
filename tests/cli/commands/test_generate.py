import json
import os
import pty
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import microgpt
import pytest
from texts import TALK

if TYPE_CHECKING:
    from cli.conftest import Cli


def samples(cli: "Cli", model_dir: Path, *arguments: object) -> list[str]:
    """Return what `generate` prints, without the numbering, which is checked."""
    result = cli("generate", "--model-dir", model_dir, *arguments)
    assert (result.status, result.err) == (0, "")
    heads = [f"sample {i:2d}: " for i in range(1, len(result.lines) + 1)]
    assert [line[: len(head)] for head, line in zip(heads, result.lines, strict=True)] == heads
    return [line[len(head) :] for head, line in zip(heads, result.lines, strict=True)]


def test_twenty_samples_at_half_temperature_are_the_default(cli: "Cli", model_dir: Path) -> None:
    expected = microgpt.load(model_dir).generate(20, temperature=0.5, seed=42)
    assert samples(cli, model_dir) == expected
    assert len(set(expected)) > 3


def test_samples_of_a_chat_model_name_the_command_that_chats(cli: "Cli", tmp_path: Path) -> None:
    microgpt.fit_chat([TALK], steps=1, block_size=64, n_embd=8, n_layer=1).save(tmp_path)
    result = cli("generate", tmp_path, "--num-samples", 1)
    assert (result.status, len(result.lines)) == (0, 1)
    assert result.err == (
        "warning: the model was trained on conversations; microgpt-cli chat replies to messages\n"
    )


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--temperature", "1.5"], {"temperature": 1.5}),
        (["--seed", "7"], {"seed": 7}),
        (["--prompt", "ha"], {"prompt": "ha"}),
        (["--temperature", "2", "--top-k", "2"], {"temperature": 2.0, "top_k": 2}),
        (["--temperature", "2", "--top-p", "0.5"], {"temperature": 2.0, "top_p": 0.5}),
        (["--max-tokens", "2"], {"max_tokens": 2}),
        (["--stop", "nn", "--stop", "tt"], {"stop": ["nn", "tt"]}),
        (["--temperature", "0"], {"temperature": 0.0}),
        (["--threads", "1"], {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_are_those_of_the_library(
    cli: "Cli", model_dir: Path, arguments: list[str], options: dict[str, object]
) -> None:
    model = microgpt.load(model_dir)
    expected = model.generate(8, **options)  # type: ignore[arg-type]
    assert samples(cli, model_dir, "--num-samples", 8, *arguments) == expected
    if options:
        assert expected != model.generate(8)


def test_sample_does_not_depend_on_how_many_are_asked_for(cli: "Cli", model_dir: Path) -> None:
    some = samples(cli, model_dir, "--num-samples", 3)
    assert samples(cli, model_dir, "--num-samples", 5)[:3] == some
    assert samples(cli, model_dir, "--num-samples", 2, "--seed", 43) == some[1:]


def test_none_are_printed_if_none_are_asked_for(cli: "Cli", model_dir: Path) -> None:
    assert samples(cli, model_dir, "--num-samples", 0) == []


def test_seed_may_be_larger_than_any_machine_integer(cli: "Cli", model_dir: Path) -> None:
    seed = 10**40
    expected = microgpt.load(model_dir).generate(2, seed=seed)
    assert samples(cli, model_dir, "--num-samples", 2, "--seed", seed) == expected


def test_prompt_that_fills_the_block_gets_one_more_character(cli: "Cli", model_dir: Path) -> None:
    prompt = "hannahhannahhan"  # with BOS, 16 tokens
    (sample,) = samples(cli, model_dir, "--num-samples", 1, "--prompt", prompt)
    assert sample.startswith(prompt)
    assert len(sample) <= len(prompt) + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "--temperature is -1.0, expected a finite number of at least 0"),
        (["--temperature", "nan"], "--temperature is nan, expected a finite number of at least 0"),
        (["--temperature", "inf"], "--temperature is inf, expected a finite number of at least 0"),
        (["--top-p", "0"], "--top-p is 0.0, expected above 0 and at most 1"),
        (["--top-p", "nan"], "--top-p is nan, expected above 0 and at most 1"),
        (
            ["--prompt", "zoë"],
            (
                "the text holds characters that the model does not know: 'z', 'ë'\n"
                "hint: the model knows only characters of its training data"
            ),
        ),
        (
            ["--prompt", "hannahhannahhann"],
            (
                "the prompt has 17 tokens, expected at most block_size=16; shorten it or load a "
                "model with a larger block_size"
            ),
        ),
        (["--stop", ""], "--stop is [''], expected a list of strings that are not empty"),
    ],
)
def test_option_out_of_its_domain_is_one_error(
    cli: "Cli", model_dir: Path, arguments: list[str], message: str
) -> None:
    result = cli("generate", "--model-dir", model_dir, *arguments)
    assert result == (1, "", f"error: {message}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--top-k", "0"],
        ["--seed", "-1"],
        ["--num-samples", "-1"],
        ["--max-tokens", "0"],
        ["--threads", "0"],
        ["--temperature", "warm"],
    ],
)
def test_numbers_out_of_range_are_wrong_usage(
    cli: "Cli", model_dir: Path, arguments: list[str]
) -> None:
    result = cli("generate", "--model-dir", model_dir, *arguments)
    assert (result.status, result.out) == (2, "")
    assert f"Invalid value for '{arguments[0]}'" in result.err


def test_wrong_temperature_is_named_before_the_model_is_looked_for(
    cli: "Cli", tmp_path: Path
) -> None:
    result = cli("generate", "--model-dir", tmp_path / "none", "--temperature", "nan")
    assert result.err.startswith("error: --temperature is nan")


@pytest.mark.parametrize("command", ["generate", "info"])
@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_place_without_a_model_is_named(
    cli: "Cli", tmp_path: Path, command: str, kind: str
) -> None:
    place = tmp_path / "place"
    cause = "Not a directory" if kind == "file" else "No such file or directory"
    if kind == "empty":
        place.mkdir()
    elif kind == "file":
        place.touch()
    result = cli(command, "--model-dir", place)
    assert result == (
        1,
        "",
        (
            f"error: cannot read {place}/meta.json: {cause}\n"
            "hint: is this the directory of a trained model?\n"
        ),
    )


def test_damaged_model_is_one_error(cli: "Cli", model_dir: Path) -> None:
    weights = model_dir / "weights.json"
    weights.write_bytes(weights.read_bytes()[:-10])
    result = cli("generate", "--model-dir", model_dir)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"error: {weights} is not what meta.json describes")


def test_model_of_the_rust_system_generates(cli: "Cli", shared: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(shared / "golden/seed_rust", tmp_path / "rust")
    found = samples(cli, directory)
    assert found == microgpt.load(shared / "golden/seed_rust").generate(20)
    # Theirs all began alike.
    assert len({sample[0] for sample in found}) > 4


@pytest.fixture
def steering_model(tmp_path: Path) -> Path:
    """A model whose every text holds a sequence that would colour a terminal."""
    directory = tmp_path / "steering"
    microgpt.fit(["a\x1b[31m"], steps=100, n_layer=2).save(directory)
    return directory


def test_control_characters_reach_a_file_but_not_a_terminal(
    program: Path, steering_model: Path
) -> None:
    command: list[str | Path] = [
        program,
        "generate",
        "--num-samples",
        "1",
        "--model-dir",
        steering_model,
    ]
    piped = subprocess.run(command, capture_output=True, check=True).stdout
    assert piped == b"sample  1: a\x1b[31m\n"
    ours, theirs = pty.openpty()
    subprocess.run(command, stdout=theirs, check=True)
    os.close(theirs)
    assert os.read(ours, 1000) == b"sample  1: a\\x1b[31m\r\n"
    os.close(ours)


# ---------------------------------------------------------------- past the block


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of scenes in windows of 16 characters."""
    folder = tmp_path_factory.mktemp("scenes")
    text = "ROMEO:\nHark, a lark!\n\nJULIET:\nNo, no: a nightingale.\n\n" * 6
    (folder / "scenes.txt").write_text(text)
    microgpt.fit(
        microgpt.read_documents(folder / "scenes.txt", split="file"),
        steps=150,
        batch_size=4,
        n_embd=32,
        long="window",
    ).save(folder)
    return folder


def test_scene_of_500_characters_is_written(cli: "Cli", scenes: Path) -> None:
    options = ("--num-samples", 1, "--prompt", "ROMEO:\n", "--max-tokens", 500)
    result = cli("generate", "--model-dir", scenes, *options)
    (expected,) = microgpt.load(scenes).generate(prompt="ROMEO:\n", max_tokens=500)
    assert result == (0, f"sample  1: {expected}\n", "")
    assert len(expected) == 507


def test_prompt_longer_than_the_block_is_read_from_its_end(cli: "Cli", scenes: Path) -> None:
    prompt = "JULIET:\nNo, no: a nightingale.\n"
    options = ("--model-dir", scenes, "--num-samples", 1, "--prompt", prompt)
    result = cli("generate", *options, "--max-tokens", 40, "--temperature", 0)
    assert result.status == 0
    assert result.out.startswith(f"sample  1: {prompt}")
    assert len(result.out) == len(f"sample  1: {prompt}") + 41
    assert result.err == (
        "warning: 23 tokens at the beginning of the prompt do not fit into the block and are not "
        "read\n"
    )
    result = cli("generate", *options)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("error: the prompt has 31 tokens, expected at most block_size=16")


# ---------------------------------------------------------------- for other programs


def test_plain_texts_stand_alone(cli: "Cli", model_dir: Path) -> None:
    expected = microgpt.load(model_dir).generate(5)
    flags = ("generate", "--model-dir", model_dir, "--num-samples", 5)
    assert cli(*flags, "--plain").out == "".join(f"{text}\n" for text in expected)
    assert cli(*flags, "--null").out == "".join(f"{text}\0" for text in expected)
    lines = [json.loads(line) for line in cli(*flags, "--json").lines]
    assert lines == [
        {"sample": i + 1, "seed": 42 + i, "text": text} for i, text in enumerate(expected)
    ]


@pytest.mark.parametrize(("name", "flag"), [("new.txt", "--plain"), ("new.jsonl", "--json")])
def test_file_has_what_stdout_would_have(
    cli: "Cli", model_dir: Path, tmp_path: Path, name: str, flag: str
) -> None:
    flags = ("generate", "--model-dir", model_dir, "--num-samples", 5)
    result = cli(*flags, "--output", tmp_path / name)
    assert (result.status, result.out, result.err) == (0, "", "")
    assert (tmp_path / name).read_text() == cli(*flags, flag).out
    assert cli(*flags, "--plain", "--output", tmp_path / name, "--force").status == 0
    assert (tmp_path / name).read_text() == cli(*flags, "--plain").out


def test_file_that_exists_is_kept(cli: "Cli", model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text("")
    result = cli("generate", model_dir, "--output", path)
    hint = "hint: use --force to overwrite it, or name another file\n"
    assert result == (1, "", f"error: {path} exists\n{hint}")
    assert path.read_text() == ""


def test_place_that_cannot_be_written_is_found_before_the_work(cli: "Cli", tmp_path: Path) -> None:
    path = tmp_path / "none" / "new"
    result = cli("generate", tmp_path / "no model", "--output", path)
    assert result == (1, "", f"error: cannot write {path}: No such file or directory\n")


def test_unique_and_novel_samples_are_drawn_until_there_are_enough(
    cli: "Cli", model_dir: Path, names: Path
) -> None:
    model = microgpt.load(model_dir)
    flags = ("generate", "--model-dir", model_dir, "--num-samples", 30, "--temperature", 1.5)
    every = model.generate(3000, temperature=1.5)
    once = list(dict.fromkeys(every))
    assert cli(*flags, "--unique", "--plain").lines == once[:30]
    known = names.read_text(encoding="utf-8").split()
    assert {*known} & {*every[:30]}
    novel = [text for text in every if text not in known]
    assert cli(*flags, "--novel", names, "--plain").lines == novel[:30]
    both = list(dict.fromkeys(novel))
    found = cli(*flags, "--unique", "--novel", names, "--json").lines
    assert [json.loads(line)["text"] for line in found] == both[:30]
    for line in found:
        fields = json.loads(line)
        assert model.generate(1, temperature=1.5, seed=fields["seed"]) == [fields["text"]]


def test_too_few_different_samples_are_written_and_said(
    cli: "Cli", model_dir: Path, tmp_path: Path
) -> None:
    flags = ("--num-samples", 5, "--unique", "--temperature", 0)
    result = cli("generate", "--model-dir", model_dir, *flags, "--output", tmp_path / "new")
    (text,) = microgpt.load(model_dir).generate(1, temperature=0)
    assert (tmp_path / "new").read_text() == f"{text}\n"
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        "error: 500 draws gave 1 of 5 samples that are unique\n"
        "hint: a higher --temperature gives more different ones\n"
    )


def test_line_ends_within_texts_are_said(cli: "Cli", tmp_path: Path) -> None:
    microgpt.fit(["a\nb", "c\nd"], steps=200).save(tmp_path)
    flags = ("generate", "--model-dir", tmp_path, "--num-samples")
    assert "--null tells where each ends" in cli(*flags, 3, "--plain").err
    for harmless in ((1, "--plain"), (3, "--null"), (3, "--json"), (3,)):
        assert cli(*flags, *harmless).err == ""


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--json", "--plain"), "--json: use it or --plain, not both"),
        (("--novel", "missing.txt"), "missing.txt"),
        (("--output", "/"), "error: cannot write /: it is not a regular file\n"),
    ],
)
def test_output_that_cannot_be_is_refused(
    cli: "Cli", model_dir: Path, flags: tuple[str, ...], problem: str
) -> None:
    result = cli("generate", "--model-dir", model_dir, *flags)
    assert result.status in {1, 2}
    assert (problem in result.err, result.out) == (True, "")


def test_number_of_samples_is_shown_where_they_are_not(model_dir: Path, program: Path) -> None:
    controller, terminal = pty.openpty()
    command = [str(program), "generate", "--model-dir", str(model_dir), "--num-samples", "200000"]
    try:
        done = subprocess.run(
            [*command, "--plain"],
            stdout=subprocess.PIPE,
            stderr=terminal,
            env=os.environ | {"TERM": "xterm"},
            check=True,
        )
        shown = os.read(controller, 1 << 16).decode()
    finally:
        os.close(controller)
        os.close(terminal)
    assert done.stdout.count(b"\n") == 200_000
    assert " of 200,000 samples" in shown
    assert shown.endswith("\r\x1b[2K")
