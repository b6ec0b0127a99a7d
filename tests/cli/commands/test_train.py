import inspect
import json
import os
import pty
import re
import resource
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import microgpt
import numpy as np
import pexpect
import pytest
from faults import needs_linux
from measuring import unmeasured
from microgpt_cli.commands.train import command

if TYPE_CHECKING:
    from cli.conftest import Cli

SMALL = ["--steps", "20", "--n-embd", "8", "--n-head", "2", "--block-size", "8"]


def contents(directory: Path) -> dict[str, bytes]:
    """Return the files of a model."""
    return {name: (directory / name).read_bytes() for name in ("weights.json", "meta.json")}


def step_lines(losses: list[float]) -> list[str]:
    """Return what a run of 1000 steps prints about its first ones."""
    return [f"step {step:4d} / 1000 | loss {loss:.4f}" for step, loss in enumerate(losses, 1)]


# ---------------------------------------------------------------- the original, digit for digit


@pytest.fixture(scope="module")
def original(shared: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((shared / "golden/microgpt_py/default.json").read_text())
    return figures


@pytest.fixture
def main_job(shared: Path, tmp_path: Path) -> list[str | Path]:
    names = shared / "data/names.txt"
    flags = ["--log-every", "1", "--num-samples", "20", "--lr", "0.01"]
    return ["train", "--input", names, "--output", tmp_path / "out", *flags]


@pytest.mark.parametrize("engine", ["vectorized", "native"])
def test_float64_prints_the_losses_and_samples_of_the_original(
    cli: "Cli",
    original: dict[str, Any],
    main_job: list[str | Path],
    tmp_path: Path,
    engine: str,
) -> None:
    result = cli(*main_job, "--dtype", "float64", "--engine", engine)
    assert (result.status, result.err) == (0, "")
    lines = result.lines
    losses = original["losses"]
    meaning = lines.pop(11 + len(step_lines(losses)))
    assert meaning.startswith(f"last 20 steps: {sum(losses[-20:]) / 20:.4f} nats per token, ")
    assert lines == [
        "microgpt train (text)",
        "  n_embd:      16",
        "  n_head:      4",
        "  n_layer:     1",
        "  block_size:  16",
        "num docs:    32033",
        "vocab size:  27",
        "num params:  4192",
        f"engine:      {engine}, float64",
        "lr:          0.01",
        "",
        *step_lines(losses),
        "",
        f"weights saved to {tmp_path}/out/weights.json",
        f"metadata saved to {tmp_path}/out/meta.json",
        "",
        "--- samples ---",
        *(f"  {sample}" for sample in original["samples"]),
    ]


@pytest.mark.parametrize("engine", ["vectorized", "native"])
def test_float32_comes_within_a_millionth_of_the_original(
    cli: "Cli", original: dict[str, Any], main_job: list[str | Path], engine: str
) -> None:
    events = [json.loads(line) for line in cli(*main_job, "--json", "--engine", engine).lines]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    np.testing.assert_allclose(losses, original["losses"], rtol=0, atol=1e-6)
    assert events[-1]["samples"] == original["samples"]


def test_scalar_engine_prints_the_first_losses_of_the_original_until_ctrl_c(
    program: Path, original: dict[str, Any], main_job: list[str | Path], tmp_path: Path
) -> None:
    command = [program, *main_job, "--engine", "scalar", "--dtype", "float64"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        lines: list[str] = []
        while not (lines and lines[-1].startswith("step    5")):
            lines.append(process.stdout.readline().rstrip("\n"))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert lines[11:] == step_lines(original["losses"])[:5]
    assert process.returncode == 130
    # One more step may have begun before the signal was seen.
    assert re.match(r"warning: interrupted after step [56] of 1000; resume with ", err)
    assert f"weights saved to {tmp_path}/out/weights.json\n" in out
    assert microgpt.load(tmp_path / "out").config.n_params == 4192


@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", "7", "--n-embd", "6", "--n-head", "3", "--n-layer", "2", "--block-size", "5"],
        ["--seed", "0", "--n-embd", "10", "--n-head", "1", "--batch-size", "3", "--no-shuffle"],
    ],
    ids=["deep and short", "one head, batches"],
)
def test_engines_agree_with_the_scalar_one_on_other_seeds_and_shapes(
    cli: "Cli", names: Path, tmp_path: Path, flags: list[str]
) -> None:
    def events(engine: str) -> list[dict[str, Any]]:
        job = ["train", "--input", names, "--output", tmp_path / "out", "--force", "--json"]
        pace = ["--steps", "6", "--log-every", "1", "--dtype", "float64", "--engine", engine]
        return [json.loads(line) for line in cli(*job, *pace, *flags).lines]

    expected = events("scalar")
    for engine in ("vectorized", "native"):
        for ours, theirs in zip(events(engine), expected, strict=True):
            for key in ours.keys() - {"engine", "elapsed"}:
                is_float = isinstance(ours[key], float)
                expected_value = pytest.approx(theirs[key], abs=1e-10) if is_float else theirs[key]
                assert ours[key] == expected_value, (engine, key)


# ---------------------------------------------------------------- reports, and their streams


def test_defaults_are_those_of_the_rust_system(
    cli: "Cli", names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = cli("train", "--input", names).lines
    assert lines[1:5] == [
        "  n_embd:      16",
        "  n_head:      4",
        "  n_layer:     1",
        "  block_size:  16",
    ]
    steps = [line[:16] for line in lines if line.startswith("step")]
    assert steps == [f"step {step:4d} / 1000" for step in (1, *range(100, 1001, 100))]
    assert lines[-10:-5] == [
        "",
        "weights saved to output/weights.json",
        "metadata saved to output/meta.json",
        "",
        "--- samples ---",
    ]
    model = microgpt.fit(names.read_text(encoding="utf-8").splitlines(), steps=1000, seed=42)
    loaded = microgpt.load("output")
    np.testing.assert_array_equal(loaded.parameters.flat, model.parameters.flat)


def test_samples_are_five_and_continue_the_draws_of_training(
    cli: "Cli", names: Path, tmp_path: Path
) -> None:
    def samples(*flags: str) -> list[str]:
        job = ["train", "--input", names, "--output", tmp_path / "out", "--force"]
        return cli(*job, "--steps", 50, *flags).out.partition("--- samples ---\n")[2].splitlines()

    five = samples()
    assert len(five) == 5
    assert all(line.startswith("  ") for line in five)
    assert samples("--num-samples", "8")[:5] == five
    assert samples("--num-samples", "0") == []


@pytest.mark.parametrize(
    ("log_every", "steps"), [(1, range(1, 11)), (3, [1, 3, 6, 9, 10]), (10, [1, 10]), (99, [1, 10])]
)
def test_first_and_last_step_are_always_logged(
    cli: "Cli", names: Path, tmp_path: Path, log_every: int, steps: list[int]
) -> None:
    job = ["train", "--input", names, "--output", tmp_path / "out", "--steps", 10]
    out = cli(*job, "--log-every", log_every).out
    assert re.findall(r"^step +(\d+) /   10 ", out, re.MULTILINE) == [str(step) for step in steps]


def test_logging_changes_nothing_else(cli: "Cli", names: Path, tmp_path: Path) -> None:
    for log_every in (1, 7, 100):
        output = tmp_path / str(log_every)
        cli("train", "--input", names, "--output", output, "--log-every", log_every, *SMALL)
    assert contents(tmp_path / "1") == contents(tmp_path / "7") == contents(tmp_path / "100")


def test_learning_rate_depends_on_the_width_unless_it_is_given(
    cli: "Cli", names: Path, tmp_path: Path
) -> None:
    job = ["train", "--input", names, "--output", tmp_path / "out", "--force", "--steps", 1]
    assert "lr:          0.005" in cli(*job, "--n-embd", 32).lines
    assert "lr:          0.02" in cli(*job, "--n-embd", 32, "--lr", 0.02).lines


def test_muon_is_reported_recorded_and_learns(cli: "Cli", names: Path, tmp_path: Path) -> None:
    job = ["train", "--input", names, "--force", *SMALL, "--output"]
    result = cli(*job, tmp_path / "muon", "--optimizer", "muon", "--muon-iterations", 3)
    assert {"lr:          0.0141421", "muon lr:     0.02"} <= set(result.lines)
    options = json.loads((tmp_path / "muon/meta.json").read_text())["training"]["options"]
    found = {name: value for name, value in options.items() if "muon" in (name[:4], value)}
    assert found == {
        "optimizer": "muon",
        "muon_learning_rate": 0.02,
        "muon_momentum": 0.95,
        "muon_iterations": 3,
    }
    cli(*job, tmp_path / "adam")
    assert (
        contents(tmp_path / "muon")["weights.json"] != contents(tmp_path / "adam")["weights.json"]
    )
    refused = cli(*job, tmp_path / "adam", "--muon-lr", 0.02)
    assert refused.err.startswith("error: --muon-lr is 0.02, expected None without")


def test_windows_are_counted_and_no_warning(cli: "Cli", names: Path, tmp_path: Path) -> None:
    flags = ("--long", "window", "--block-size", 4, "--steps", 1, "--val-fraction", 0.25)
    result = cli("train", "--input", names, "--output", tmp_path / "out", *flags)
    assert result.err == ""
    # The eight names have 39 positions, 29 of them to train on; blocks of at most four positions.
    rows = result.lines[5:8]
    assert [row.partition(":")[0] for row in rows] == ["num docs", "windows", "held out"]
    n_windows, n_held_out = (int(row.split()[-1]) for row in rows[1:])
    assert 29 / 4 <= n_windows <= 29
    assert 10 / 4 <= n_held_out <= 10


def test_warnings_go_to_stderr_and_count_documents_that_are_cut(
    cli: "Cli", names: Path, tmp_path: Path
) -> None:
    job = ["train", "--input", names, "--output", tmp_path / "out", "--steps", 1]
    result = cli(*job, "--block-size", 4)
    # Positions of the eight names, a closing one included: 5 4 7 5 4 4 5 5.
    assert result.err == (
        "warning: 5 of 8 documents cut: longer than block_size=4; a block size of 5 "
        "covers half of them, 7 covers 90 %, 7 99 %, 7 all\n"
    )
    assert "are cut" not in result.out


def test_engine_that_cannot_run_here_is_a_warning_unless_one_is_chosen(
    cli: "Cli", names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microgpt, "unavailable_engines", lambda: {"native": "not built"})
    job = ["train", "--input", names, "--output", tmp_path / "out", "--force", *SMALL]
    chosen = cli(*job, "--engine", "vectorized")
    assert chosen.err == ""
    assert cli(*job).err.startswith("warning: no native engine, ")
    assert cli(*job).err.endswith(" is slower: not built\n")


def test_quiet_prints_errors_only(cli: "Cli", names: Path, tmp_path: Path) -> None:
    job = ["train", "--input", names, "--output", tmp_path / "out", "--quiet", *SMALL]
    assert cli(*job) == (0, "", "")
    assert microgpt.holds_model(tmp_path / "out")
    assert cli(*job).err.startswith("error: ")


def test_json_prints_one_event_per_line(cli: "Cli", names: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = cli("train", "--input", names, "--output", output, "--json", *SMALL)
    quietly = cli(
        "train", "--input", names, "--output", output, "--json", "--quiet", "--force", *SMALL
    )
    assert quietly.lines[1:-1] == result.lines[1:-1]
    events = [json.loads(line) for line in result.lines]
    kinds = [event["event"] for event in events]
    assert kinds == ["start", "step", "step", "meaning", "saved", "samples", "result"]
    assert events[0]["n_embd"] == 8
    assert events[4]["weights"] == str(output / "weights.json")
    assert events[-1]["steps"] == 20
    assert len(events[-1]["samples"]) == 5


def test_type_of_numbers_is_that_of_the_saved_model(
    cli: "Cli", names: Path, tmp_path: Path
) -> None:
    job = ["train", "--input", names, "--output", tmp_path / "out", "--force", *SMALL]
    cli(*job)
    assert microgpt.load(tmp_path / "out").dtype == "float32"
    cli(*job, "--dtype", "float64")
    assert microgpt.load(tmp_path / "out").dtype == "float64"


def test_order_of_documents_follows_the_file_without_shuffle(
    cli: "Cli", names: Path, tmp_path: Path
) -> None:
    job = ["train", "--output", tmp_path / "out", "--force", *SMALL, "--log-every", "1"]
    first = names.with_name("first.txt")
    first.write_text("".join(names.read_text(encoding="utf-8").splitlines(keepends=True)[:1]))
    unshuffled = cli(*job, "--input", names, "--no-shuffle").out
    assert unshuffled != cli(*job, "--input", names).out
    assert unshuffled == cli(*job, "--input", names, "--no-shuffle").out


# ---------------------------------------------------------------- the schema of a run

SCHEMA = get_type_hints(microgpt.TrainConfig, include_extras=True)
BOUNDED = {  # field: a value below its least
    name: (about.ge or 0) - 1
    for name, (_, about) in ((name, get_args(hint)) for name, hint in SCHEMA.items())
    if about.ge is not None or name == "seed"
}


def test_flags_have_the_names_types_and_defaults_of_the_schema() -> None:
    parameters = inspect.signature(command).parameters
    defaults = microgpt.TrainConfig()
    assert SCHEMA.keys() <= parameters.keys()
    kinds = get_type_hints(microgpt.TrainConfig) | {"engine": Literal[*microgpt.ENGINES]}
    for name, kind in kinds.items():
        assert get_args(parameters[name].annotation)[0] == kind, name
        assert parameters[name].default == getattr(defaults, name), name


@pytest.mark.parametrize(("name", "below"), BOUNDED.items())
def test_flags_have_the_bounds_of_the_schema(
    cli: "Cli", names: Path, tmp_path: Path, name: str, below: float
) -> None:
    flag = f"--{name.replace('_', '-')}"
    result = cli("train", "--input", names, "--output", tmp_path / "out", f"{flag}={below}")
    assert (result.status, result.out) == (2, "")
    assert f"Invalid value for '{flag}'" in result.err


@pytest.mark.parametrize("flag", ["--lr", "--learning-rate"])
def test_learning_rate_has_two_names(cli: "Cli", names: Path, tmp_path: Path, flag: str) -> None:
    job = ["train", "--input", names, "--output", tmp_path / "out", "--steps", 1]
    assert "lr:          0.05" in cli(*job, flag, 0.05).lines


# ---------------------------------------------------------------- on a terminal


def on_terminal(command: list[str | Path], **environment: str) -> tuple[str, str]:
    """Return what a command prints to a pipe, and to a terminal as its stderr."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environment},
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # EIO: the other side is closed
                break
        assert process.stdout
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    return out.decode(), shown.decode()


@pytest.fixture
def long_job(program: Path, names: Path, tmp_path: Path) -> list[str | Path]:
    # Long enough for a few drawings of the bar, a tenth of a second apart.
    flags = ["--engine", "vectorized", "--n-embd", "32", "--steps", "1000", "--batch-size", "2"]
    return [program, "train", "--input", names, "--output", tmp_path / "out", "--force", *flags]


def test_bar_is_drawn_on_stderr_and_not_on_stdout(cli: "Cli", long_job: list[str | Path]) -> None:
    out, shown = on_terminal(long_job)
    assert out == cli(*long_job[1:]).out
    bar = r"━ \d+/1000 loss \d\.\d{4} [\d,]+ steps/s  [\d,]+ tokens/s ETA \d+:\d\d"
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert re.search(bar, plain)
    assert shown != plain
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back
    assert shown.endswith("\x1b[2K")  # and the bar is gone


def test_bar_of_a_resumed_run_counts_only_steps_since_then(
    cli: "Cli", program: Path, names: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job = ["train", "--input", names, "--output", output, "--steps", 30_000, "--quiet"]
    assert cli(*job, "--snapshot-every", 20_000).status == 0
    _, shown = on_terminal([program, "train", "--resume", output])
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown).replace(",", "")
    drawn = re.findall(r"(\d+)/30000 loss \S+ (\d+) steps/s  (\d+) tokens/s", plain)
    assert len(drawn) > 1
    for step, steps_per_second, tokens_per_second in drawn:
        assert 20_000 < int(step) <= 30_000
        # A name has 4 to 7 tokens. Both are rounded.
        assert 3.9 < int(tokens_per_second) / int(steps_per_second) < 7.1


def test_no_color_leaves_out_colours(long_job: list[str | Path]) -> None:
    _, shown = on_terminal(long_job, NO_COLOR="1")
    assert "steps/s" in shown
    assert not re.search(r"\x1b\[[\d;]*3[0-9][\d;]*m", shown)


def test_dumb_terminal_gets_no_bar(long_job: list[str | Path]) -> None:
    assert "\r" not in on_terminal(long_job, TERM="dumb")[1].replace("\r\n", "\n")


@pytest.mark.parametrize("flags", [[], ["--sample-every", "10"]])
def test_samples_cannot_steer_the_terminal(program: Path, tmp_path: Path, flags: list[str]) -> None:
    steering = tmp_path / "steering.txt"
    steering.write_text("\x1b]\x1b]\x1b]\x1b]\n" * 3)
    output = tmp_path / "out"
    job = [str(program), "train", "--input", str(steering), "--output", str(output), "--force"]
    job += flags
    environment = os.environ | {"TERM": "dumb"}
    shown = pexpect.run(shlex.join(job), timeout=60, env=environment, encoding="utf-8")
    assert "\\x1b]" in str(shown)
    assert "\x1b]" not in str(shown)
    piped = subprocess.run(job, capture_output=True, check=True)
    assert b"\x1b]" in piped.stdout  # as it is


# ---------------------------------------------------------------- a model that is there already


def test_model_is_overwritten_by_force_only(cli: "Cli", names: Path, model_dir: Path) -> None:
    before = contents(model_dir)
    job = ["train", "--input", names, "--output", model_dir, *SMALL]
    assert cli(*job) == (
        1,
        "",
        (
            f"error: {model_dir} already holds a model\n"
            "hint: use --force to overwrite it, or choose another --output\n"
        ),
    )
    assert contents(model_dir) == before
    assert cli(*job, "--force").status == 0
    assert contents(model_dir) != before


def test_full_disk_leaves_the_model_before(
    cli: "Cli", program: Path, names: Path, model_dir: Path
) -> None:
    before = contents(model_dir)
    run = subprocess.run(
        [program, "train", "--input", names, "--output", model_dir, "--force", *SMALL],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        env=unmeasured(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr == (
        f"error: cannot write {model_dir}: File too large\n"
        "hint: the model that was there before is intact\n"
    )
    assert contents(model_dir) == before
    assert cli("info", "--model-dir", model_dir).status == 0


def test_divergence_names_step_and_rate_and_leaves_the_model_before(
    cli: "Cli", names: Path, model_dir: Path
) -> None:
    before = contents(model_dir)
    result = cli("train", "--input", names, "--output", model_dir, "--force", "--lr", "1e30")
    assert result.status == 1
    assert re.fullmatch(
        r"error: loss is (nan|inf) at step \d+ \(learning rate 9\.\d+e\+29\), expected a finite "
        r"number; training stopped there\n"
        rf"hint: try a smaller learning rate; {model_dir} is as it was before\n",
        result.err,
    )
    assert contents(model_dir) == before
    assert "samples" not in result.out


@pytest.mark.parametrize("flags", [[], ["--val-fraction", "0.4", "--eval-every", "1"]])
def test_divergence_saves_the_last_good_weights_where_no_model_was(
    cli: "Cli", names: Path, tmp_path: Path, flags: list[str]
) -> None:
    output = tmp_path / "out"
    result = cli("train", "--input", names, "--output", output, "--lr", "1e30", *flags)
    assert result.status == 1
    assert result.err.endswith(f"learning rate; {output} holds the last good weights\n")
    saved = microgpt.load(output)
    assert np.isfinite(saved.logits([saved.tokenizer.bos])).all()


def test_divergence_at_once_leaves_nothing_to_save(cli: "Cli", names: Path, tmp_path: Path) -> None:
    result = cli("train", "--input", names, "--output", tmp_path / "out", "--lr", "1e300")
    assert result.status == 1
    assert result.err.endswith("hint: try a smaller learning rate; nothing was learned before\n")
    assert not microgpt.holds_model(tmp_path / "out")


# ---------------------------------------------------------------- input of every kind

SAME = {
    "CRLF": lambda text: text.replace(b"\n", b"\r\n"),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "no final newline": lambda text: text.rstrip(b"\n"),
    "blank lines and spaces": lambda text: b"\n \n" + text.replace(b"\n", b" \t\n\n  "),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_form_of_the_file_makes_no_difference(
    cli: "Cli", names: Path, tmp_path: Path, change: Any
) -> None:
    changed = tmp_path / "changed.txt"
    changed.write_bytes(change(names.read_bytes()))
    for path in (names, changed):
        cli("train", "--input", path, "--output", tmp_path / path.stem, *SMALL)
    assert contents(tmp_path / "names") == contents(tmp_path / "changed")


def test_documents_of_one_character_are_enough(cli: "Cli", tmp_path: Path) -> None:
    letters = tmp_path / "letters.txt"
    letters.write_text("a\nb\nc\n")
    output = tmp_path / "out"
    lines = cli("train", "--input", letters, "--output", output, "--steps", 300).lines
    assert lines[5:7] == ["num docs:    3", "vocab size:  4"]
    assert {line.strip() for line in lines[-5:]} <= {"a", "b", "c"}


def test_line_of_50_megabytes_is_one_document(cli: "Cli", tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"ab" * 25_000_000)
    result = cli("train", "--input", path, "--output", tmp_path / "out", "--steps", 2)
    assert result.status == 0
    assert result.lines[5:7] == ["num docs:    1", "vocab size:  3"]
    assert result.err.startswith("warning: 1 of 1 document cut: longer than block_size=16")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "input file not found: {path}"),
        (b"", "dataset is empty"),
        (b" \n\t\r\n\n", "dataset is empty"),
        (
            b"anna\nb\xffb\n",
            (
                "failed to read {path}: invalid UTF-8 on line 2 (byte offset 6): invalid start "
                "byte; expected UTF-8 text\nhint: save a text of another encoding as UTF-8 in an "
                "editor, or convert it: iconv -f WINDOWS-1252 -t UTF-8 {path}"
            ),
        ),
        (
            b"\xef\xbb\xbfanna\nbo\xe2\x82",
            (
                "failed to read {path}: invalid UTF-8 on line 2 (byte offset 10): unexpected end "
                "of data; expected UTF-8 text\nhint: save a text of another encoding as UTF-8 in "
                "an editor, or convert it: iconv -f WINDOWS-1252 -t UTF-8 {path}"
            ),
        ),
        (
            b"anna\nbob\no\0o\n",
            (
                "failed to read {path}: NUL byte on line 3 (byte offset 10); expected UTF-8 text\n"
                "hint: save a text of another encoding as UTF-8 in an editor, or convert it: "
                "iconv -f UTF-16LE -t UTF-8 {path}"
            ),
        ),
        ("directory", "no text file in {path}, expected one; skipped: none"),
    ],
    ids=["missing", "empty", "blank", "UTF-8", "UTF-8 cut short", "NUL", "directory"],
)
def test_input_that_is_no_text_is_one_error_and_nothing_is_written(
    cli: "Cli", tmp_path: Path, content: bytes | str | None, message: str
) -> None:
    path = tmp_path / "input"
    if content == "directory":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    output = tmp_path / "out"
    result = cli("train", "--input", path, "--output", output)
    assert result == (1, "", f"error: {message.format(path=path)}\n")
    assert not output.exists()


def test_width_that_heads_do_not_divide_is_the_message_of_the_rust_system(
    cli: "Cli", names: Path, tmp_path: Path
) -> None:
    job = ["train", "--input", names, "--output", tmp_path / "out"]
    assert cli(*job, "--n-embd", 10, "--n-head", 4) == (
        1,
        "",
        "error: n_embd (10) must be divisible by n_head (4)\n",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flag",
    [
        "--steps",
        "--lr",
        "--n-embd",
        "--n-head",
        "--n-layer",
        "--block-size",
        "--batch-size",
        "--log-every",
        "--threads",
    ],
)
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_sizes_must_be_above_zero(
    cli: "Cli", names: Path, tmp_path: Path, flag: str, value: str
) -> None:
    result = cli("train", "--input", names, "--output", tmp_path / "out", f"{flag}={value}")
    assert (result.status, result.out) == (2, "")
    assert f"Invalid value for '{flag}'" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--lr", "inf"),
        ("--seed", "-1"),
        ("--num-samples", "-1"),
        ("--dtype", "float16"),
        ("--engine", "gpu"),
        ("--schedule", "step"),
        ("--long", "wrap"),
    ],
)
def test_value_that_there_is_not_is_wrong_usage(
    cli: "Cli", names: Path, tmp_path: Path, flag: str, value: str
) -> None:
    result = cli("train", "--input", names, "--output", tmp_path / "out", f"{flag}={value}")
    assert (result.status, result.out) == (2, "")
    assert f"Invalid value for '{flag}'" in result.err


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("names.txt", "cannot write {place}: {place} is not a directory"),
        ("names.txt/below", "cannot write {place}: {parent} is not a directory"),
        pytest.param(
            "/proc/model", "cannot write /proc/model: No such file or directory", marks=needs_linux
        ),
    ],
)
def test_output_that_cannot_be_made_is_one_error(
    cli: "Cli", names: Path, tmp_path: Path, output: str, message: str
) -> None:
    before = names.read_bytes()
    place = tmp_path / output
    result = cli("train", "--input", names, "--output", place, *SMALL)
    expected = message.format(place=place, parent=place.parent)
    assert (result.status, result.err) == (1, f"error: {expected}\n")
    assert names.read_bytes() == before


@pytest.mark.parametrize("flags", [["--n-embd", f"{10**12}"], ["--block-size", f"{10**20}"]])
def test_model_beyond_any_memory_is_one_error(
    cli: "Cli", names: Path, tmp_path: Path, flags: list[str]
) -> None:
    result = cli("train", "--input", names, "--output", tmp_path / "out", *flags)
    assert (result.status, result.out) == (1, "")
    assert re.fullmatch(r"error: a model of these sizes has [\d,]+ parameters, .*\n", result.err)


# ---------------------------------------------------------------- files, folders and streams


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder of notes, with what is no note."""
    folder = tmp_path / "notes"
    (folder / "more").mkdir(parents=True)
    (folder / "b.txt").write_text("one\n  two\n\nthree\n")
    (folder / "more/a.md").write_text("four\n")
    (folder / ".hidden").write_text("x")
    (folder / "picture").write_bytes(b"\x89PNG\0")
    return folder


def n_documents(result: Any) -> int:
    (line,) = (line for line in result.lines if line.startswith("num docs:"))
    return int(line.split()[-1])


@pytest.mark.parametrize(("split", "n"), [("line", 4), ("paragraph", 3), ("file", 2)])
def test_folder_is_read_by_lines_paragraphs_or_files(
    cli: "Cli", notes: Path, tmp_path: Path, split: str, n: int
) -> None:
    flags = ("--output", tmp_path / "out", "--steps", 1, "--split", split, "--block-size", 32)
    result = cli("train", "--input", notes, *flags)
    assert (result.status, n_documents(result)) == (0, n)
    indented = "warning: 1 line lost leading space; --split paragraph or --split file keeps it\n"
    expected = "warning: skipped in folders: 1 hidden, 1 not text\n" + indented * (split == "line")
    assert result.err == expected
    assert ("\n" in microgpt.load(tmp_path / "out").tokenizer.chars) == (split != "line")


def test_several_inputs_and_stdin_are_read_in_their_order(
    program: Path, notes: Path, tmp_path: Path
) -> None:
    inputs = ("--input", notes / "b.txt", "--input", "-", "--input", notes / "more/a.md")
    command = [program, "train", *inputs, "--input", notes / "b.txt", "--output", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, command), "--steps", "1", "--no-shuffle", "--val-input", str(notes / "b.txt")],
        input="zwei\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "num docs:    5" in done.stdout
    assert f"warning: given twice, read once: {notes / 'b.txt'}\n" in done.stderr
    snapshot = microgpt.load(tmp_path / "out").tokenizer
    assert {"z", "w", "f"} <= {*snapshot.chars}


def test_field_of_json_lines_is_learned(cli: "Cli", tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "anna"}\n{"name": "bob"}\n')
    flags = ("--input", path, "--output", tmp_path / "out", "--steps", 1)
    result = cli("train", *flags, "--field", "name")
    assert (result.status, result.err, n_documents(result)) == (0, "", 2)
    result = cli("train", *flags, "--force")
    assert result.err.startswith(f"warning: {path}: JSON is learned as plain text; --field NAME ")
    result = cli("train", *flags, "--field", "none", "--force")
    assert result.err.startswith(f"error: invalid JSON on line 1 of {path}: Object missing requ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--split", "file", "--field", "a"), "Invalid value for --split: use it or --field"),
        (("--split", "file", "--chat"), "Invalid value for --split: not with conversations."),
        (("--field", "a", "--chat"), "Invalid value for --field: not with conversations."),
    ],
)
def test_flags_that_each_say_what_a_document_is_are_refused(
    cli: "Cli", names: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    result = cli("train", "--input", names, "--output", tmp_path / "out", *flags)
    assert (result.status, result.out) == (2, "")
    assert message in result.err


def test_stdin_is_read_once(cli: "Cli", tmp_path: Path) -> None:
    inputs = ("--input", "-", "--val-input", "-", "--output", tmp_path / "out")
    error = "error: stdin (-) is given twice, expected once: it can be read only once\n"
    assert cli("train", *inputs) == (1, "", error)


# ---------------------------------------------------------------- going on from a model


@pytest.fixture
def base(cli: "Cli", names: Path, tmp_path: Path) -> Path:
    output = tmp_path / "base"
    flags = ("--output", output, "--steps", 20, "--n-embd", 8, "--dtype", "float64")
    assert cli("train", "--input", names, *flags, "--quiet").status == 0
    return output


def test_run_starts_from_a_model_and_says_so(
    cli: "Cli", base: Path, names: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    flags = ("--input", names, "--output", output, "--steps", 5, "--seed", 3)
    result = cli("train", "--init-from", base, *flags)
    assert result.status == 0
    assert f"init from:   {base}" in result.lines
    assert "engine:      native, float64" in result.lines
    dataset = microgpt.Dataset.from_documents(microgpt.read_documents(names))
    config = microgpt.TrainConfig(steps=5, seed=3)
    expected, trainer = microgpt.prepare(dataset, config, init_from=microgpt.load(base))
    trainer.advance(5)
    assert (microgpt.load(output).parameters.flat == expected.parameters.flat).all()
    digest = trainer.record().init_from
    assert digest is not None
    rows = cli("info", "--model-dir", output).lines
    made = f"a model with the weights {digest.weights_digest[:12]}, trained 20 steps"
    assert f"  init from:       {made}" in rows


def test_interrupted_run_from_a_model_resumes_without_that_model(
    cli: "Cli", base: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more.txt"
    more.write_text("zoé\nanna\n")
    flags = ("--input", more, "--extend-vocab", "--steps", 6, "--init-from", base, "--quiet")
    assert cli("train", *flags, "--output", tmp_path / "whole").status == 0
    whole = microgpt.load(tmp_path / "whole")
    assert cli("train", *flags, "--output", tmp_path / "out", "--snapshot-every", 3).status == 0
    shutil.rmtree(base)
    snapshots = sorted((tmp_path / "out/checkpoints").iterdir())
    snapshots[-1].unlink()  # that of the last step
    result = cli("train", "--resume", tmp_path / "out")
    assert result.status == 0
    resumed = microgpt.load(tmp_path / "out")
    assert (resumed.parameters.flat == whole.parameters.flat).all()
    assert resumed.training == whole.training


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--n-embd", 16),
            "got --n-embd 16, expected --n-embd 8 as in {base}\nhint: leave it out",
        ),
        (
            ("--tokenizer", "bpe", "--vocab-size", 300),
            "got --tokenizer bpe, expected --tokenizer characters as in {base}\n",
        ),
        (("--chat",), "invalid JSON on line 1 of {names}: "),
        (("--init-from", "nowhere"), "cannot read nowhere/meta.json: No such file or directory"),
        (("--output", "base"), "{base} already holds a model\nhint: use --force"),
    ],
)
def test_model_that_does_not_suit_is_an_error(
    cli: "Cli", base: Path, names: Path, flags: tuple[object, ...], message: str
) -> None:
    given = [base if flag == "base" else flag for flag in flags]
    before = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
    common = ("--input", names, "--output", base.parent / "out", "--init-from", base)
    result = cli("train", *common, *given)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("error: " + message.format(base=base, names=names))
    assert before == {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}


def test_tokenizer_is_that_of_the_model_to_start_from(
    cli: "Cli", names: Path, tmp_path: Path
) -> None:
    flags = ("--input", names, "--steps", 2, "--output")
    subwords = ("--tokenizer", "bpe", "--vocab-size", 260)
    assert cli("train", *flags, tmp_path / "base", *subwords).status == 0
    more = (*flags, tmp_path / "out", "--init-from", tmp_path / "base")
    result = cli("train", *more, "--tokenizer", "characters")
    expected = "got --tokenizer characters, expected --tokenizer bpe as in"
    assert result.err.startswith(f"error: {expected} {tmp_path / 'base'}\n")
    result = cli("train", *more, "--tokenizer", "bpe", "--vocab-size", 300)
    assert "got --vocab-size 300, expected --vocab-size 260 as in" in result.err
    assert cli("train", *more, *subwords).status == 0


def test_model_is_continued_in_its_own_directory_with_force(
    cli: "Cli", base: Path, names: Path
) -> None:
    flags = ("--input", names, "--init-from", base, "--output", base, "--steps", 5, "--force")
    assert cli("train", *flags).status == 0
    record = microgpt.load(base).training
    assert record is not None
    assert record.init_from is not None


def test_damaged_model_is_no_start(cli: "Cli", base: Path, names: Path, tmp_path: Path) -> None:
    (base / "weights.json").write_text("{}")
    flags = ("--input", names, "--init-from", base, "--output", tmp_path / "out")
    result = cli("train", *flags)
    assert (result.status, result.out) == (1, "")
    assert str(base) in result.err
    assert not (tmp_path / "out").exists()


def test_resume_with_more_steps_says_how_to_go_on(cli: "Cli", names: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = ("--input", names, "--output", output, "--steps", 10, "--snapshot-every", 5)
    assert cli("train", *flags, "--quiet").status == 0
    result = cli("train", "--resume", output, "--steps", 30)
    assert result.status == 1
    command = f"--init-from {output} --steps 20 --input INPUT --output OUTPUT\n"
    assert result.err.endswith(f"to train its model further: microgpt-cli train {command}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--patience", 3), "Invalid value for --patience: it needs --val-fraction or --val-in"),
        (("--extend-vocab",), "Invalid value for --extend-vocab: it needs --init-from."),
    ],
)
def test_flag_without_the_one_it_needs_is_refused(
    cli: "Cli", names: Path, flags: tuple[object, ...], message: str
) -> None:
    result = cli("train", "--input", names, *flags)
    assert (result.status, result.out) == (2, "")
    assert message in result.err


def test_patience_ends_a_run_with_its_best_model(cli: "Cli", names: Path, tmp_path: Path) -> None:
    flags = ("--input", names, "--output", tmp_path / "out", "--steps", 3000, "--lr", 0.1)
    validation = ("--val-fraction", 0.2, "--eval-every", 10, "--patience", 2)
    result = cli("train", *flags, *validation, "--json", "--snapshot-every", 10)
    assert result.status == 0
    events = [json.loads(line) for line in result.lines]
    (stopped,) = (event for event in events if event["event"] == "stopped early")
    assert stopped["step"] < 3000
    assert stopped["patience"] == 2
    assert events[-1]["stopped_early"]
    assert events[-1]["steps"] == stopped["step"] == events[-1]["best_step"] + 20
    losses = [event["val_loss"] for event in events if event["event"] == "validation"]
    assert losses.index(min(losses)) == len(losses) - 3
    result = cli("train", "--resume", tmp_path / "out", "--json")  # stays as it ended
    assert result.status == 0
    assert json.loads(result.lines[-1])["steps"] == stopped["step"]


def test_samples_of_several_lines_are_indented(cli: "Cli", tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("a\nb\n" * 20)
    flags = ("--split", "file", "--long", "window", "--steps", 200, "--num-samples", 3)
    result = cli("train", "--input", tmp_path / "poem.txt", "--output", tmp_path / "out", *flags)
    at = result.lines.index("--- samples ---")
    assert len(result.lines[at:]) > 4
    assert all(line.startswith("  ") for line in result.lines[at + 1 :])


def test_fewer_subwords_than_asked_for_are_said(cli: Any, names: Path, tmp_path: Path) -> None:
    names.write_text("ab\n", encoding="utf-8")
    flags = ("--tokenizer", "bpe", "--vocab-size", 600, "--steps", 2, "--output", tmp_path / "out")
    result = cli("train", "--input", names, *flags)
    assert result.status == 0
    assert result.err.startswith(
        "warning: the vocabulary has 258 of 600 tokens: no pair is left to merge\n"
    )
    assert "vocab size:  258" in result.out


def test_documents_are_too_long_in_subwords(cli: Any, names: Path, tmp_path: Path) -> None:
    names.write_text("banana banana\nbanana ban zoe\nbanana\n" * 3, encoding="utf-8")
    flags = ("--tokenizer", "bpe", "--vocab-size", 262, "--block-size", 4, "--steps", 2)
    dataset = microgpt.Dataset.from_documents(
        names.read_text(encoding="utf-8").splitlines()
    ).with_subwords(262)
    n_long = int((dataset.lengths > 4).sum())
    result = cli("train", "--input", names, *flags, "--output", tmp_path / "out")
    assert 0 < n_long < 9
    assert f"warning: {n_long} of 9 documents cut: longer than block_size=4" in result.err


@pytest.mark.parametrize(("block_size", "n_long"), [(4, 5), (32, 0)])
def test_documents_are_too_long_for_the_model_to_start_from(
    cli: Any, names: Path, tmp_path: Path, block_size: int, n_long: int
) -> None:
    flags = ("train", "--input", names, "--steps", 2, "--quiet")
    assert cli(*flags, "--block-size", block_size, "--output", tmp_path / "base").status == 0
    names.write_text("annabotha\nbothannabothannabot\nann\n" + "hannahanna\n" * 3, encoding="utf-8")
    result = cli(*flags, "--init-from", tmp_path / "base", "--output", tmp_path / "out")
    assert result.status == 0, result.err
    found = f"{n_long} of 6 documents cut: longer than block_size={block_size}" in result.err
    assert found == bool(n_long)
    assert bool(result.err) == bool(n_long)
