import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from biased import biased
from faults import needs_linux
from microgpt_cli.main import COMMANDS

if TYPE_CHECKING:
    from cli.conftest import Cli


def test_version_names_both_distributions(cli: "Cli") -> None:
    result = cli("--version")
    library = version("microgpt-lib")
    assert result.out == f"microgpt-cli {version('microgpt-cli')} (microgpt-lib {library})\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_fits_80_columns_and_ends_no_line_in_dots(
    cli: "Cli", monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = cli(flag)
    assert (result.status, result.err) == (0, "")
    assert max(map(len, result.lines)) <= 80
    assert "..." not in result.out.partition("Options:")[2]
    assert "..." not in cli("data", flag).out.partition("Options:")[2]
    commands = result.out.partition("Commands:\n")[2].splitlines()
    assert dict(re.split(r"  +", line.strip(), maxsplit=1) for line in commands) == COMMANDS


@pytest.mark.parametrize(("command", "summary"), COMMANDS.items())
def test_help_of_a_command_begins_with_its_line_in_the_list(
    cli: "Cli", command: str, summary: str
) -> None:
    usage, text = cli(command, "--help").out.split("\n\n")[:2]
    assert usage.startswith(f"Usage: microgpt-cli {command} [OPTIONS]")
    assert " ".join(text.split()).startswith(summary)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(
    cli: "Cli", monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = cli(command, "--help").out
    assert max(map(len, out.splitlines())) <= 80
    for option in re.split(r"\n(?=  -)", out.partition("Options:")[2])[1:]:
        words = re.sub(r"<.*?>|\[.*?\]|--?[\w-]+", "", option).split()
        assert len(words) > 1, option


def test_no_command_shows_the_help_and_is_wrong_usage(cli: "Cli") -> None:
    result = cli()
    assert result.status == 2
    assert "Usage: microgpt-cli" in result.out + result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tran"], "No such command 'tran'. Did you mean 'train'?"),
        (["data", "name"], "No such command 'name'. Did you mean 'names'?"),
        (["train", "--inptu", "x"], "No such option: --inptu"),
        (["train"], "--input: it is needed unless --resume is given"),
        (["train", "--input", "x", "--loss-on", "assistant"], "--loss-on: it needs --chat"),
        (
            ["train", "--input", "x", "--val-input", "y", "--val-fraction", "0.1"],
            "--val-input: use it or --val-fraction, not both",
        ),
        (["generate", "output", "extra"], "unexpected extra argument"),
        (["generate", "--num-samples", "many"], "'many' is not a valid int"),
    ],
)
def test_wrong_usage_has_status_2_and_a_message(
    cli: "Cli", arguments: list[str], message: str
) -> None:
    result = cli(*arguments)
    assert (result.status, result.out) == (2, "")
    assert message in result.err


def completing(shell: str, typed: str) -> dict[str, str]:
    """Return the variables with which a shell asks for completions of the last word."""
    return {
        "_MICROGPT_CLI_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(typed.count(" ")),
        "_TYPER_COMPLETE_ARGS": typed,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--help"], {}), ([], completing("bash", "microgpt-cli ge"))],
    ids=["help", "completion"],
)
def test_help_and_completion_load_nothing_that_is_slow_to_load(
    program: Path, arguments: list[str], environment: dict[str, str]
) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", program, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "generate" in run.stdout
    imported = set(re.findall(r"\| +(\w+)$", run.stderr, re.MULTILINE))
    assert "typer" in imported
    assert imported.isdisjoint(
        {"numpy", "msgspec", "microgpt", "rich", "prompt_toolkit", "pydantic"}
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "offered", "others"),
    [
        ("microgpt-cli ge", "generate", "info"),
        ("microgpt-cli data st", "stats", "names"),
        ("microgpt-cli train --n-e", "--n-embd", "--steps"),
    ],
)
def test_shell_completes_commands_and_options(
    cli: "Cli",
    monkeypatch: pytest.MonkeyPatch,
    shell: str,
    typed: str,
    offered: str,
    others: str,
) -> None:
    for name, value in completing(shell, typed).items():
        monkeypatch.setenv(name, value)
    completed = cli()
    assert offered in completed.out
    assert others not in completed.out


def test_completion_script_is_shown_for_the_shell_in_use(program: Path) -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run(
        [program, "--show-completion", "bash"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "complete -o default -F _microgpt_cli_completion microgpt-cli" in shown


def test_module_runs_as_the_command_does(cli: "Cli") -> None:
    run = subprocess.run(
        [sys.executable, "-m", "microgpt_cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == cli("--version").out


@needs_linux
@pytest.mark.parametrize(
    "command", [["generate", "--num-samples", "1"], ["info"]], ids=["generate", "info"]
)
def test_full_disk_under_stdout_is_one_error_line(
    program: Path, model_dir: Path, command: list[str]
) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        run = subprocess.run(
            [program, *command, "--model-dir", model_dir],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (run.returncode, run.stderr) == (1, "error: No space left on device\n")


@pytest.fixture
def chat_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "chat"
    biased("abc", {"a": 1.0, "end_turn": 1.0}).save(directory)
    return directory


EBADF = "error: stdin or stdout: Bad file descriptor\n"


def run_without(stream: str, *command: str | Path, text: str = "abc") -> tuple[int, str, str]:
    """Run a command with one standard stream closed, which Popen cannot do."""
    redirection = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-"}[stream]
    run = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout, run.stderr


@pytest.mark.parametrize(
    "command",
    [
        "data names",
        "generate --model-dir {model} --num-samples 2",
        "info --model-dir {model}",
        "chat --model-dir {chat}",
        "--help",
    ],
)
def test_command_without_stdout_fails_in_one_line(
    program: Path, model_dir: Path, chat_dir: Path, command: str
) -> None:
    arguments = command.format(model=model_dir, chat=chat_dir).split()
    assert run_without("stdout", program, *arguments) == (1, "", EBADF)


def test_chat_without_stdin_fails_in_one_line(program: Path, chat_dir: Path) -> None:
    assert run_without("stdin", program, "chat", "--model-dir", chat_dir) == (1, "", EBADF)


def test_command_without_stderr_does_its_work(
    program: Path, names: Path, chat_dir: Path, tmp_path: Path
) -> None:
    status, out, _ = run_without("stderr", program, "data", "stats", names)
    assert (status, out.splitlines()[0]) == (0, "documents:       8")
    status, out, _ = run_without("stderr", program, "chat", "--model-dir", chat_dir, text="hello")
    assert (status, out.count("\n")) == (0, 1)  # "(5 characters left out..." goes nowhere
    missing = tmp_path / "missing"
    assert run_without("stderr", program, "info", "--model-dir", missing) == (1, "", "")


@needs_linux
def test_full_disk_under_stderr_does_not_matter(program: Path, chat_dir: Path) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        run = subprocess.run(
            [program, "chat", "--model-dir", chat_dir],
            input="hello\n",
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
        )
    assert (run.returncode, run.stdout.count("\n")) == (0, 1)


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "train --input {names} --output {tmp}/out --steps 9",
        "generate --model-dir {model}",
        "chat --model-dir {chat}",
        "info --model-dir {model}",
        "plot {trained}",
        "score --model-dir {model} --input {names} --per-document",
        "export --model-dir {model} --output {tmp}/copy",
        "evaluate {chat} --questions {questions}",
        "bench",
        "data names",
        "data stats {names}",
    ],
)
def test_reader_that_has_left_is_no_error(
    cli: "Cli",
    program: Path,
    names: Path,
    model_dir: Path,
    chat_dir: Path,
    tmp_path: Path,
    command: str,
) -> None:
    questions = tmp_path / "questions"
    questions.write_text('{"messages": [{"role": "user", "content": "a"}], "answer": "a"}\n')
    trained = tmp_path / "trained"
    if "{trained}" in command:
        assert cli("train", "--input", names, "--output", trained, "--steps", 9).status == 0
    places = {"names": names, "model": model_dir, "chat": chat_dir, "questions": questions}
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [program, *command.format(**places, trained=trained, tmp=tmp_path).split()],
        input=b"abc\n",
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, b"")


def sampling(program: Path, model_dir: Path, n_samples: int) -> subprocess.Popen[bytes]:
    command: list[str | Path] = [program, "generate", "--num-samples", str(n_samples)]
    command += ["--model-dir", model_dir]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_reader_that_leaves_ends_the_command_in_silence(program: Path, model_dir: Path) -> None:
    with sampling(program, model_dir, 100_000) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline().startswith(b"sample  1: ")
        process.stdout.close()
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == b""


def test_interrupt_ends_with_status_130_and_no_traceback(program: Path, model_dir: Path) -> None:
    with sampling(program, model_dir, 100_000_000) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(2)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
