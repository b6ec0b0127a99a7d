import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import microgpt
import numpy as np
import pexpect
import pytest
from cli.conftest import training

STEPS = 12_000
FLAGS = [
    *("--steps", STEPS, "--batch-size", 2, "--clip", 0.5, "--weight-decay", 0.01),
    *("--warmup-steps", 100, "--schedule", "cosine", "--val-fraction", 0.25, "--eval-every", 700),
    *("--snapshot-every", 1000, "--log-every", 1000),
]
WINDOWS = ["--long", "window", "--block-size", 3]
BPE = ["--tokenizer", "bpe", "--vocab-size", 262]
MUON = ["--optimizer", "muon", "--lr", 0.005]


def digest(directory: Path) -> str:
    return hashlib.sha256((directory / "weights.json").read_bytes()).hexdigest()


def digests(directory: Path) -> tuple[str, ...]:
    """Return hashes of the best model and of where training ended, which may be long after it."""
    snapshot = microgpt.read_snapshot(directory)
    assert snapshot.step == STEPS
    arrays = snapshot.arrays.values()
    return digest(directory), *(hashlib.sha256(array.data).hexdigest() for array in arrays)


def steps_in(directory: Path) -> list[int]:
    return [int(path.stem[5:]) for path in sorted((directory / "checkpoints").iterdir())]


def closing_samples(out: str) -> list[str]:
    assert "--- samples ---" in out
    return out.partition("--- samples ---")[2].split()


# ---------------------------------------------------------------- interrupted by signals


def stop_after(
    program: Path, number: signal.Signals, seconds: float, directory: Path, *flags: object
) -> int:
    """Train, and send a signal after so many seconds; return how the process ended."""
    with training(program, "train", "--output", directory, *flags) as process:
        time.sleep(seconds)
        process.send_signal(number)
        process.communicate(timeout=60)
    # -number: it had ended, and its interpreter was closing down
    assert process.returncode in {0, -number, 128 + number}
    return process.returncode


def check_interruptions(
    cli: Any,
    program: Path,
    tmp_path: Path,
    signals: list[signal.Signals],
    rng: random.Random,
    *new_run: object,
) -> None:
    """Stop a run at random by each of the signals, and resume it."""
    start = time.perf_counter()
    whole = cli("train", "--output", tmp_path / "whole", *new_run)
    seconds = 0.7 * (time.perf_counter() - start)  # so most signals come before the end
    assert whole.status == 0, whole.err
    expected = digests(tmp_path / "whole"), closing_samples(whole.out)
    n_stopped = 0
    for i in range(2 * len(signals)):  # some are quicker than their signal
        if n_stopped == len(signals):
            break
        directory, after = tmp_path / str(i), rng.uniform(0.0, seconds)
        if stop_after(program, signals[n_stopped], after, directory, *new_run) == 0:
            continue
        n_stopped += 1
        if microgpt.holds_snapshot(directory):
            resumed = cli("train", "--resume", directory)
        else:  # killed before the first one
            resumed = cli("train", "--output", directory, "--force", *new_run)
        assert resumed.status == 0, resumed.err
        assert (digests(directory), closing_samples(resumed.out)) == expected, i
        strange = {path.name for path in directory.iterdir()}
        expected_files = {"weights.json", "meta.json", "metrics.jsonl", "checkpoints"}
        assert strange - {"tokenizer.json"} == expected_files
    assert n_stopped == len(signals)


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]


@pytest.mark.parametrize(
    ("flags", "signals"),
    [([], SIGNALS), (WINDOWS, SIGNALS[:1]), (MUON, SIGNALS[2:]), (BPE, SIGNALS[1:2])],
    ids=["default", "windows", "muon", "bpe"],
)
def test_interrupted_runs_end_as_the_uninterrupted_one(
    cli: Any,
    program: Path,
    names: Path,
    tmp_path: Path,
    flags: list[object],
    signals: list[signal.Signals],
) -> None:
    new_run = ("--input", names, *FLAGS, *flags)
    check_interruptions(cli, program, tmp_path, signals, random.Random(1), *new_run)


@pytest.mark.long
@pytest.mark.parametrize("flags", [[], WINDOWS, MUON, BPE])
def test_fifty_interrupted_runs_end_as_the_uninterrupted_one(
    cli: Any, program: Path, names: Path, tmp_path: Path, flags: list[object]
) -> None:
    new_run = ("--input", names, *FLAGS, *flags)
    rng = random.Random()
    signals = rng.choices(SIGNALS, k=50)
    check_interruptions(cli, program, tmp_path, signals, rng, *new_run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_saves_and_prints_how_to_resume(
    program: Path, names: Path, tmp_path: Path, number: signal.Signals
) -> None:
    flags = ("--steps", 10**7, "--input", names, "--output", tmp_path / "out")
    with training(program, "train", *flags) as process:
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    snapshot = microgpt.read_snapshot(tmp_path / "out")
    assert err == (
        f"warning: interrupted after step {snapshot.step} of 10000000; resume with "
        f"microgpt-cli train --resume {tmp_path / 'out'}\n"
    )
    model = microgpt.load(tmp_path / "out")
    assert model.parameters.flat.tolist() == snapshot.arrays["weights"].tolist()


@contextmanager
def long_step(program: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a training whose steps take seconds, each in one call of the compiled engine."""
    (tmp_path / "texts").write_text("some words\n" * 4000)
    big = ("--n-embd", 64, "--batch-size", 4000, "--n-layer", 8, "--steps", 3)
    command = [program, "train", "--input", tmp_path / "texts", "--output", tmp_path / "out", *big]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout
        while process.stdout.readline() not in {b"\n", b""}:
            pass  # the header; an empty line is its end
        time.sleep(0.5)  # the step has begun
        yield process


def test_second_hangup_does_not_end_the_save(program: Path, tmp_path: Path) -> None:
    # A shell and the kernel may send one each.
    with long_step(program, tmp_path) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 129
    assert microgpt.holds_model(tmp_path / "out")


def test_terminal_that_closes_ends_training_with_a_save(
    program: Path, names: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    flags = ["--steps", str(10**7), "--input", str(names), "--output", str(output)]
    child = pexpect.spawn(str(program), ["train", *flags], timeout=60)
    child.expect("step    1 ")
    os.close(child.child_fd)
    assert child.pid
    _, status = os.waitpid(child.pid, 0)
    child.closed, child.terminated = True, True
    assert os.waitstatus_to_exitcode(status) == 129
    assert microgpt.load(output).config.n_embd == 16
    assert microgpt.holds_snapshot(output)


def test_hangup_is_ignored_under_nohup(program: Path, names: Path, tmp_path: Path) -> None:
    flags = ("--steps", 10**7, "--input", names, "--output", tmp_path / "out")
    with training("nohup", program, "train", *flags) as process:
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_a_long_step_at_once(
    program: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with long_step(program, tmp_path) as process:
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)  # the step continues
        start = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert time.monotonic() - start < 1.0
    assert not microgpt.holds_model(tmp_path / "out")


# ---------------------------------------------------------------- what a resumed run keeps


def train(cli: Any, *arguments: object) -> Any:
    result = cli("train", "--quiet", *arguments)
    assert result.status == 0, result.err
    return result


@pytest.fixture
def snapshots(cli: Any, names: Path, tmp_path: Path) -> Path:
    """Return a directory with snapshots after steps 10 and 20 of 25."""
    directory = tmp_path / "out"
    train(cli, "--input", names, "--output", directory, "--steps", 25, "--snapshot-every", 10)
    return directory


def test_latest_snapshots_are_kept(cli: Any, names: Path, tmp_path: Path) -> None:
    flags = ("--input", names, "--output", tmp_path / "out", "--steps", 100)
    train(cli, *flags, "--snapshot-every", 10)
    assert steps_in(tmp_path / "out") == [80, 90, 100]
    train(cli, *flags, "--force", "--snapshot-every", 30, "--keep-snapshots", 1)
    assert steps_in(tmp_path / "out") == [90]


def test_forced_run_does_not_mix_with_the_one_before(
    cli: Any, snapshots: Path, names: Path
) -> None:
    flags = ("--steps", 8, "--snapshot-every", 5, "--force")
    train(cli, "--input", names, "--output", snapshots, *flags)
    assert steps_in(snapshots) == [5]


def test_unfinished_run_is_not_overwritten(cli: Any, snapshots: Path, names: Path) -> None:
    for name in ("weights.json", "meta.json"):
        (snapshots / name).unlink()
    result = cli("train", "--input", names, "--output", snapshots)
    assert result.status == 1
    assert result.err.splitlines() == [
        f"error: {snapshots} already holds snapshots of a run that was not finished",
        f"hint: resume it with --resume {snapshots}, or start a new run with --force",
    ]


def test_run_may_be_resumed_elsewhere(cli: Any, snapshots: Path, tmp_path: Path) -> None:
    train(cli, "--resume", snapshots, "--output", tmp_path / "other")
    assert digest(tmp_path / "other") == digest(snapshots)


def test_resumed_run_may_name_its_directory_in_another_way(
    cli: Any, snapshots: Path, tmp_path: Path
) -> None:
    before = (snapshots / "metrics.jsonl").read_text().splitlines()[:20]
    (tmp_path / "link").symlink_to(snapshots)
    for name in (tmp_path / "link", tmp_path / "link" / ".." / "out"):
        train(cli, "--resume", snapshots, "--output", name)
        assert (snapshots / "metrics.jsonl").read_text().splitlines()[:20] == before
        assert steps_in(snapshots) == [10, 20]


PACE = {  # flags that no result depends on
    "--log-every": 4,
    "--snapshot-every": 7,
    "--keep-snapshots": 2,
    "--sample-every": 9,
    "--num-samples": 1,
}


def due(out: str) -> dict[str, list[int]]:
    """Return the steps of the events, and the number of samples at the end."""
    events = [json.loads(line) for line in out.splitlines()]
    steps = {name: [e["step"] for e in events if e["event"] == name] for name in ("step", "sample")}
    return steps | {"samples": [len(events[-1]["samples"])]}


def test_resumed_run_keeps_its_pace_except_where_flags_say_otherwise(
    cli: Any, names: Path, tmp_path: Path
) -> None:
    out, flags = tmp_path / "out", [item for pair in PACE.items() for item in pair]
    train(cli, "--input", names, "--output", out, "--steps", 30, *flags)
    assert steps_in(out) == [21, 28]
    (out / "checkpoints" / "step-00000028.safetensors").unlink()
    again = cli("train", "--json", "--resume", out)
    assert due(again.out) == {"step": [24, 28, 30], "sample": [27], "samples": [1]}
    assert steps_in(out) == [21, 28]
    other = cli("train", "--json", "--resume", out, "--log-every", 29, "--snapshot-every", 29)
    assert due(other.out) == {"step": [29, 30], "sample": [], "samples": [1]}
    assert steps_in(out) == [28, 29]  # --keep-snapshots as it was
    last = cli("train", "--json", "--resume", out, "--num-samples", 3)
    assert due(last.out) == {"step": [30], "sample": [], "samples": [3]}


def test_snapshot_that_knows_no_pace_can_be_resumed(cli: Any, snapshots: Path) -> None:
    snapshot = microgpt.read_snapshot(snapshots)
    dataset = microgpt.Dataset.from_documents(microgpt.read_documents(snapshot.options["input"]))
    config = microgpt.TrainConfig(steps=25)
    _, trainer = microgpt.prepare(dataset, config, random.Random(42))
    microgpt.restore(trainer, snapshot)
    older = {name: value for name, value in snapshot.options.items() if name != "pace"}
    assert older != snapshot.options
    microgpt.write_snapshot(snapshots, trainer, older)
    assert train(cli, "--resume", snapshots).err == ""


def test_engine_may_be_chosen_again_as_it_was(cli: Any, names: Path, tmp_path: Path) -> None:
    flags = ("--steps", 20, "--snapshot-every", 10)
    for engine in ("auto", "vectorized"):
        job = ("--input", names, "--output", tmp_path / engine, "--engine", engine)
        train(cli, *job, *flags)
        train(cli, "--resume", tmp_path / engine, "--engine", engine)
    (error,) = refused(cli, "--resume", tmp_path / "vectorized", "--engine", "auto")
    assert error.startswith("error: the run's engine: got native, expected vectorized as in ")


def test_resumed_run_keeps_its_flags_and_its_metrics(cli: Any, snapshots: Path) -> None:
    before = (snapshots / "metrics.jsonl").read_text().splitlines()
    assert len(before) == 25
    result = train(cli, "--resume", snapshots)
    assert result.err == ""
    after = list(map(json.loads, (snapshots / "metrics.jsonl").read_text().splitlines()))
    assert [(line["step"], line["loss"]) for line in after] == [
        (line["step"], line["loss"]) for line in map(json.loads, before)
    ]
    elapsed = [line["elapsed"] for line in after]
    assert elapsed == sorted(elapsed)


def test_moved_data_may_be_named_again(cli: Any, snapshots: Path, names: Path) -> None:
    moved = names.rename(names.with_name("moved.txt"))
    result = cli("train", "--resume", snapshots)
    assert result.status == 1
    assert result.err == f"error: input file not found: {names}\n"
    train(cli, "--resume", snapshots, "--input", moved)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_data_whose_name_is_not_utf_8_can_be_named_again(
    cli: Any, names: Path, tmp_path: Path
) -> None:
    strange = names.rename(os.fsdecode(os.fsencode(names.parent) + b"/na\xefve.txt"))
    output = tmp_path / "out"
    flags = ("--output", output, "--steps", 20, "--snapshot-every", 15)
    assert train(cli, "--input", strange, *flags).err == ""
    error, *_ = refused(cli, "--resume", output)
    assert error.endswith(r"na\xefve.txt")
    whole = digest(output)
    train(cli, "--resume", output, "--input", strange)
    assert digest(output) == whole


# ---------------------------------------------------------------- snapshots of version 0.1

OLDER = Path(__file__).parent / "older"  # written by version 0.1
SMALL = ("--steps", 30, "--dtype", "float64", "--engine", "vectorized", "--n-embd", 4)
OLDER_FLAGS: dict[str, tuple[object, ...]] = {
    "text": (
        *("--lr", 0.02, "--seed", 7, "--no-shuffle", "--batch-size", 2, "--clip", 0.5),
        *("--weight-decay", 0.01, "--warmup-steps", 3, "--schedule", "cosine"),
    ),
    "share": ("--val-fraction", 0.25, "--eval-every", 7),
    "validation": ("--eval-every", 5, "--long", "split", "--block-size", 5),
    "chat": (
        *("--chat", "--loss-on", "assistant", "--optimizer", "adam"),
        *("--batch-size", 1, "--warmup-steps", 0, "--n-layer", 1, "--weight-decay", 0),
    ),
}


@pytest.mark.parametrize("kind", OLDER_FLAGS)
def test_snapshot_of_version_0_1_is_resumed(
    cli: Any, names: Path, tmp_path: Path, kind: str
) -> None:
    resumed, whole = tmp_path / kind, tmp_path / "whole"
    shutil.copytree(OLDER / kind, resumed)
    files = ["--input", OLDER / "chat.jsonl" if kind == "chat" else names]
    files += ["--val-input", OLDER / "val.txt"] * (kind == "validation")
    train(cli, "--resume", resumed, *files)
    flags = ("--n-head", 2, "--block-size", 8, *OLDER_FLAGS[kind])
    train(cli, *files, "--output", whole, *SMALL, *flags)
    ours, theirs = (microgpt.load(path).parameters.flat for path in (resumed, whole))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)  # another processor wrote it
    lines = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))


def test_pace_of_version_0_1_is_kept(cli: Any, names: Path, tmp_path: Path) -> None:
    shutil.copytree(OLDER / "share", tmp_path / "share")  # every 4 steps, 9 of them
    train(cli, "--resume", tmp_path / "share", "--input", names)
    assert steps_in(tmp_path / "share") == [12, 16, 20, 24, 28]


def test_flags_of_version_0_1_have_their_meaning(cli: Any, snapshots: Path) -> None:
    train(cli, "--resume", snapshots, "--checkpoint-every", 3, "--keep-checkpoints", 2)
    assert steps_in(snapshots) == [21, 24]


# ---------------------------------------------------------------- what cannot be resumed


def refused(cli: Any, *arguments: object) -> list[str]:
    result = cli("train", *arguments)
    assert result.status == 1
    assert result.out == ""
    lines: list[str] = result.err.splitlines()
    assert len(lines) <= 2
    return lines


def test_flags_that_differ_are_named(cli: Any, snapshots: Path) -> None:
    flags = (
        "--n-embd",
        32,
        "--lr",
        0.1,
        "--schedule",
        "constant",
        "--no-shuffle",
        "--block-size",
        16,
    )
    error, hint = refused(cli, "--resume", snapshots, *flags)
    assert error.startswith(
        "error: got --n-embd 32, expected --n-embd 16; got --lr 0.1, expected --lr 0.01; "
        "got --schedule constant, expected --schedule linear; got --no-shuffle, expected --shuffle "
        f"as in {snapshots}"
    )
    assert hint == "hint: a resumed run keeps its flags: leave these out, or start a new run"


def test_directory_without_a_snapshot_is_named(cli: Any, tmp_path: Path) -> None:
    error, hint = refused(cli, "--resume", tmp_path / "nowhere")
    assert error == (
        f"error: {tmp_path / 'nowhere'} holds no snapshot of training: there is nothing in "
        f"{tmp_path / 'nowhere' / 'checkpoints'}"
    )
    assert hint.startswith("hint: train with --snapshot-every")


def test_changed_data_is_an_error(cli: Any, snapshots: Path, names: Path) -> None:
    names.write_text(names.read_text(encoding="utf-8").replace("bob", "abo"), encoding="utf-8")
    error, hint = refused(cli, "--resume", snapshots)
    assert error.startswith("error: the training data is not that of ")
    assert hint == "hint: give the same files as --input and --val-input, unchanged"


def test_other_validation_documents_are_a_flag_that_differs(
    cli: Any, snapshots: Path, names: Path
) -> None:
    error, _ = refused(cli, "--resume", snapshots, "--val-input", names)
    assert error.startswith(f"error: got --val-input {names}, expected no --val-input as in ")


def test_corrupt_snapshot_is_an_error(cli: Any, snapshots: Path) -> None:
    latest = snapshots / "checkpoints" / "step-00000020.safetensors"
    content = bytearray(latest.read_bytes())
    content[-1] ^= 1
    latest.write_bytes(content)
    error, hint = refused(cli, "--resume", snapshots)
    assert error.startswith(f"error: {latest} is damaged")
    assert hint == f"hint: remove {latest.name} to resume from the snapshot before"
    latest.unlink()
    train(cli, "--resume", snapshots)


def test_snapshot_of_another_version_is_an_error(cli: Any, snapshots: Path) -> None:
    latest = snapshots / "checkpoints" / "step-00000020.safetensors"
    content = latest.read_bytes()
    latest.write_bytes(content.replace(b"microgpt-snapshot-1", b"microgpt-snapshot-9"))
    error, hint = refused(cli, "--resume", snapshots)
    assert error.endswith("'microgpt-snapshot-9', expected 'microgpt-snapshot-1'")
    assert hint == "hint: resume with the version of microgpt that wrote it"


def test_snapshot_of_another_program_is_an_error(cli: Any, tmp_path: Path, names: Path) -> None:
    dataset = microgpt.Dataset.from_documents(microgpt.read_documents(names))
    config = microgpt.TrainConfig(steps=3)
    _, trainer = microgpt.prepare(dataset, config, random.Random(1))
    trainer.advance(1)
    path = microgpt.write_snapshot(tmp_path, trainer, {"steps": 3})
    (error,) = refused(cli, "--resume", tmp_path)
    assert error.startswith(
        f"error: {path} does not hold the options of microgpt-cli train: Object missing required "
        "field `input`"
    )


@pytest.mark.parametrize("value", [0, -1, "x"])
@pytest.mark.parametrize("flag", ["--snapshot-every", "--keep-snapshots", "--eval-every"])
def test_pace_must_be_positive(cli: Any, names: Path, flag: str, value: object) -> None:
    result = cli("train", "--input", names, flag, value)
    assert result.status == 2
    assert flag in result.err


# ---------------------------------------------------------------- refused before training starts


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--val-fraction", 0.01), "--val-fraction is 0.01, expected a share between 0 and 1 that"),
        (("--val-fraction", 1.0), "--val-fraction is 1.0, expected a finite number of at least 0 "),
        (
            ("--batch-size", 9),
            "the number of documents to train on is 8, expected at least batch_size=9",
        ),
        (
            ("--batch-size", 7, "--val-fraction", 0.25),
            "the number of documents to train on is 6, expected at least batch_size=7",
        ),
        (("--warmup-steps", 1000), "--warmup-steps is 1000, expected at least 0 and less than the"),
        (
            ("--block-size", 3, "--long", "skip"),
            "every document is longer than block_size=3",
        ),
    ],
)
def test_run_that_cannot_be_is_refused_before_it_starts(
    cli: Any, names: Path, tmp_path: Path, flags: tuple[object, ...], message: str
) -> None:
    names.write_text("anna\nbobby\notto\nhanna\nanne\nella\nelle\nabel\n", encoding="utf-8")
    error, *_ = refused(cli, "--input", names, "--output", tmp_path / "out", *flags)
    assert error.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_validation_file_that_is_missing_is_named(cli: Any, names: Path, tmp_path: Path) -> None:
    flags = ("--input", names, "--output", tmp_path / "out", "--val-input", tmp_path / "none")
    assert refused(cli, *flags) == [f"error: input file not found: {tmp_path / 'none'}"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zoe\n", "the text holds characters that the model does not know: 'z'"),
        ("hannabella\n", "every document is longer than block_size=7"),
        ("\n", "dataset is empty"),
    ],
)
def test_error_in_the_validation_documents_names_them(
    cli: Any, names: Path, tmp_path: Path, text: str, message: str
) -> None:
    others = tmp_path / "others.txt"
    others.write_text(text)
    output = tmp_path / "out"
    flags = ("--val-input", others, "--long", "skip", "--block-size", 7, "--output", output)
    error, *_ = refused(cli, "--input", names, *flags)
    assert error == f"error: the validation documents: {message}"
    assert not output.exists()


def test_more_samples_than_there_can_be_are_refused_before_it_starts(
    cli: Any, names: Path, tmp_path: Path
) -> None:
    flags = ("--output", tmp_path / "out", "--num-samples", 1_000_001)
    result = cli("train", "--input", names, *flags)
    assert (result.status, result.out) == (2, "")
    assert "--num-samples" in result.err
    assert not (tmp_path / "out").exists()
