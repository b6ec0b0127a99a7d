import io
import json
import os
import random
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import microgpt
import numpy as np
import pytest
from biased import biased
from measuring import unmeasured
from microgpt_cli.conversation import COMMANDS, HELP

if TYPE_CHECKING:
    from cli.conftest import Cli, Result
    from microgpt import Message

pexpect = pytest.importorskip("pexpect", reason="pseudo-terminals are of POSIX systems only")

PROMPT_BEGINS, PROMPT_ENDS = "\x1b[?2004h", "\x1b[?2004l"  # bracketed paste on and off
PASTE = "\x1b[200~{}\x1b[201~"
ENTER, CTRL_A, CTRL_C, CTRL_D, CTRL_W = "\r", "\x01", "\x03", "\x04", "\x17"
UP, LEFT, BACKSPACE = "\x1b[A", "\x1b[D", "\x7f"
SETTINGS = {
    "temperature": "0.5",
    "top_k": "none",
    "top_p": "1.0",
    "max_tokens": "none",
    "stop": "none",
    "seed": "42",
}


def user(content: str) -> "Message":
    return {"role": "user", "content": content}


def assistant(content: str) -> "Message":
    return {"role": "assistant", "content": content}


class Terminal:
    """A person at a pseudo-terminal, who reads what is printed between two prompts."""

    def __init__(self, program: Path, *arguments: object) -> None:
        self.process = pexpect.spawn(
            str(program),
            ["chat", *map(str, arguments)],
            encoding="utf-8",
            timeout=30,
            env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )
        self.process.delaybeforesend = None  # each prompt was seen before the next key
        self.banner = self.read()

    def read(self) -> str:
        """Return all that is printed until the next prompt."""
        self.process.expect_exact(PROMPT_BEGINS)
        printed: str = self.process.before
        return printed

    def press(self, keys: str) -> str:
        """Press keys that end a prompt; return what the prompt showed at last."""
        self.process.send(keys)
        self.process.expect_exact(PROMPT_ENDS)
        shown: str = self.process.before
        return shown

    def say(self, keys: str) -> str:
        """Press keys and Enter; return what is printed until the next prompt."""
        self.press(keys + ENTER)
        return self.read()

    def status(self) -> int | None:
        """Wait until the program ends by itself."""
        self.process.expect_exact(pexpect.EOF)
        self.process.close()
        status: int | None = self.process.exitstatus
        return status


@pytest.fixture(scope="session")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says random letters, and that knows no others."""
    directory = tmp_path_factory.mktemp("models") / "talkative"
    biased("abcdefghijklmnopqrstuvwxyz \n", {"end_turn": 1.0}, block_size=128).save(directory)
    return directory


@pytest.fixture
def terminal(program: Path, talkative: Path) -> Iterator[Callable[..., Terminal]]:
    """Open terminals, and close them in the end."""
    opened = []

    def open_one(*arguments: object, model_dir: Path = talkative) -> Terminal:
        opened.append(Terminal(program, "--model-dir", model_dir, *arguments))
        return opened[-1]

    yield open_one
    for one in opened:
        one.process.close(force=True)


class Replies:
    """What a model answers, as the library says."""

    def __init__(self, model_dir: Path) -> None:
        self.model = microgpt.load(model_dir)
        self.said: list[Message] = []

    def to(self, text: str, *, seed: int, **options: Any) -> str:
        self.said.append(user(text))
        return self.again(seed=seed, **options)

    def again(self, *, seed: int, **options: Any) -> str:
        reply = self.model.chat(self.said, seed=seed, too_long="truncate", **options).content
        self.said.append(assistant(reply))
        return reply


def shown(reply: str) -> str:
    """Return a reply of plain characters as a terminal gets it."""
    return f"microgpt> {reply}\n".replace("\n", "\r\n")


# ---------------------------------------------------------------- at a terminal


def test_banner_and_prompts_are_the_seeds(terminal: Callable[..., Terminal]) -> None:
    person = terminal()
    assert person.banner.startswith(
        "microgpt chat (block_size=128)\r\ntype /quit to exit, /clear to reset history\r\n\r\n\x1b"
    )
    assert "you> hello" in person.press("hello" + ENTER)
    assert person.read().startswith("microgpt> ")
    assert "you> /quit" in person.press("/quit" + ENTER)
    assert person.status() == 0


def test_reply_k_is_drawn_with_seed_plus_k(
    terminal: Callable[..., Terminal], talkative: Path
) -> None:
    person, replies = terminal("--seed", 7), Replies(talkative)
    for k, text in enumerate(["hello", "how are you", "fine"]):
        assert person.say(text) == shown(replies.to(text, seed=7 + k))


def test_options_are_those_of_the_library(
    terminal: Callable[..., Terminal], talkative: Path
) -> None:
    flags = ["--temperature", 2, "--top-k", 9, "--top-p", 0.9, "--max-tokens", 40, "--stop", "a"]
    options = {"temperature": 2.0, "top_k": 9, "top_p": 0.9, "max_tokens": 40, "stop": ["a", "b"]}
    person, replies = terminal(*flags, "--stop", "b"), Replies(talkative)
    assert person.say("hello") == shown(replies.to("hello", seed=42, **options))
    values = SETTINGS | {name: str(value) for name, value in options.items()}
    assert person.say("/set") == settings_shown(values)


def settings_shown(values: dict[str, str]) -> str:
    return "".join(f"{name:<12}{value}\r\n" for name, value in values.items())


def test_every_command_works(
    terminal: Callable[..., Terminal], talkative: Path, tmp_path: Path
) -> None:
    person, replies = terminal(), Replies(talkative)
    assert person.say("/help") == f"{HELP}\n".replace("\n", "\r\n")
    assert person.say("/set") == settings_shown(SETTINGS)
    assert person.say("/regen") == "(nothing was said yet)\r\n"
    assert person.say("") == ""
    assert person.say("/nonsense").startswith("error: unknown command '/nonsense', expected one of")

    assert person.say("hello") == shown(replies.to("hello", seed=42))
    first = replies.said.pop()
    assert person.say("/regen") == shown(replies.again(seed=43))
    assert replies.said[-1] != first

    saved = tmp_path / "talk.jsonl"
    assert person.say(f"/save {saved}") == f"(saved to {saved})\r\n"
    assert json.loads(saved.read_text()) == replies.said
    assert person.say("/set temperature 2") == ""
    assert person.say("and") == shown(replies.to("and", seed=44, temperature=2.0))
    assert person.say(f"/save {saved}") == f"(saved to {saved})\r\n"  # its own file
    assert microgpt.read_conversations(saved).conversations == [replies.said]

    assert person.say("/clear") == "(history cleared)\r\n"
    replies.said.clear()
    assert person.say("again") == shown(replies.to("again", seed=45, temperature=2.0))
    person.press("/quit" + ENTER)
    assert person.status() == 0


def test_wrong_command_at_a_terminal_changes_nothing(terminal: Callable[..., Terminal]) -> None:
    person = terminal()
    error = "error: temperature is 'warm', expected a number\r\n"
    assert person.say("/set temperature warm") == error
    assert person.say("/set") == settings_shown(SETTINGS)
    assert person.say("hello").startswith("microgpt> ")


def test_line_can_be_edited_recalled_written_over_lines_and_pasted(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    person = terminal()
    keys = {
        f"helo{LEFT}l": "hello",
        f"ello{CTRL_A}h": "hello",
        f"hello worlds{BACKSPACE}": "hello world",
        f"{UP} again": "hello world again",
        f"{UP}{UP}{UP}{CTRL_W}bye": "bye",
        '"""one line"""': "one line",
        PASTE.format("pasted\nlines"): "pasted\nlines",
        PASTE.format("/quit\nis no command when pasted"): None,
    }
    for pressed in keys:
        person.say(pressed)
    assert person.say('"""first') == ""
    assert "...  second" in person.press("second" + ENTER)
    person.read()
    assert "microgpt> " in person.say('third"""')
    saved = tmp_path / "talk.jsonl"
    person.say(f"/save {saved}")
    asked = [turn["content"] for turn in json.loads(saved.read_text()) if turn["role"] == "user"]
    assert asked == [*filter(None, keys.values()), "first\nsecond\nthird"]


def test_unknown_characters_are_counted_and_left_out(
    terminal: Callable[..., Terminal], talkative: Path
) -> None:
    person, replies = terminal(), Replies(talkative)
    printed = person.say("HELLO w\N{SNOWMAN}rld")
    note = "(6 characters left out that the model does not know)\r\n"
    assert printed == note + shown(replies.to(" wrld", seed=42))


def test_messages_that_do_not_fit_are_noted(
    terminal: Callable[..., Terminal], talkative: Path
) -> None:
    person, replies = terminal("--max-tokens", 30), Replies(talkative)
    printed = person.say("a" * 150)  # 128 - 32 - 2 - 2 = 92 characters fit
    reply = shown(replies.to("a" * 92, seed=42, max_tokens=30))
    assert printed == "(too long: 58 characters cut off at the beginning)\r\n" + reply
    printed = person.say("b" * 60)
    reply = shown(replies.to("b" * 60, seed=43, max_tokens=30))
    # The reply would fit, not its question.
    assert printed == "(2 old turns left out to fit)\r\n" + reply
    person.say("/clear")
    replies.said.clear()
    reply = shown(replies.to("hi", seed=44, max_tokens=30))
    assert person.say("hi") == reply
    notes = "(2 old turns left out to fit)\r\n(too long: 8 characters cut off at the beginning)\r\n"
    reply = shown(replies.to("c" * 92, seed=45, max_tokens=30))
    assert person.say("d" * 8 + "c" * 92) == notes + reply


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose reply is longer than the buffer of a terminal."""
    directory = tmp_path_factory.mktemp("models") / "endless"
    biased("hi", {"h": 100.0}, block_size=30_000).save(directory, format="safetensors")
    return directory


def test_interrupt_stops_the_reply_and_not_the_program(
    terminal: Callable[..., Terminal], endless: Path, tmp_path: Path
) -> None:
    person = terminal(model_dir=endless)
    person.press("hi" + ENTER)
    person.process.expect_exact("microgpt> hh")
    person.process.send(CTRL_C)
    # The terminal's echo of the key stands among what was said.
    assert person.read().replace("^C", "").endswith("h\r\n(stopped)\r\n")
    person.say("/set max_tokens 3")
    assert person.say("i") == "microgpt> hhh\r\n"
    person.say(f"/save {tmp_path / 'talk'}")
    talk = json.loads((tmp_path / "talk").read_text())
    assert [talk[0], *talk[2:]] == [user("hi"), user("i"), assistant("hhh")]
    assert set(talk[1]["content"]) == {"h"}  # what was said until then is part of it
    assert len(talk[1]["content"]) < 29_000


def test_interrupt_at_the_prompt_clears_the_line_and_a_second_one_leaves(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    person = terminal()
    for _ in range(2):  # a line in between, and it takes two again
        person.press("forget this" + CTRL_C)
        assert person.read() == ""
        person.say("hello")
    person.say('"""a')
    person.press("b" + CTRL_C)  # so do lines between quotes
    assert person.read() == ""
    saved = tmp_path / "talk"
    person.say(f"/save {saved}")
    assert json.loads(saved.read_text())[::2] == [user("hello")] * 2
    person.press(CTRL_C)
    assert person.read() == ""
    person.press("what was typed since" + CTRL_C)  # is cleared as well
    assert person.read() == ""
    person.press(CTRL_C)
    assert person.status() == 0


@pytest.mark.parametrize("first", ["", "hello" + ENTER, '"""a' + ENTER])
def test_end_of_input_leaves(terminal: Callable[..., Terminal], first: str) -> None:
    person = terminal()
    if first:
        person.press(first)
        person.read()
    person.press(CTRL_D)
    assert person.status() == 0


NASTY = {
    "\x1b": r"\x1b",
    "\x9b": r"\x9b",
    "\x07": r"\x07",
    "\x08": r"\x08",
    "\x7f": r"\x7f",
    "\r": r"\r",
    "\u202e": r"\u202e",
    "\ue000": r"\ue000",
    "é": "é",
    "]": "]",
}


def test_control_characters_of_a_reply_never_reach_the_terminal(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    biased("".join(NASTY) + "\t\n", {}, block_size=128).save(tmp_path)
    person, replies = terminal("--temperature", 1, model_dir=tmp_path), Replies(tmp_path)
    printed = person.say("]")
    reply = replies.to("]", seed=42, temperature=1.0)
    assert NASTY.keys() < set(reply)
    assert printed == shown("".join(NASTY.get(char, char) for char in reply))
    assert {char for char in printed if not char.isprintable()} == {"\r", "\n", "\t"}


def test_two_hundred_turns_with_a_small_block_are_aware_of_the_last_ones(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    dataset = microgpt.Dataset.from_conversations([[user("abcdefghij "), assistant("a")]])
    config = microgpt.TrainConfig(steps=1)
    model, _ = microgpt.prepare(dataset, config, random.Random(42), block_size=64)
    model.parameters.flat[:] *= 10  # so that every token before has a say in the next
    model.save(tmp_path)
    person, replies = terminal("--max-tokens", 9, model_dir=tmp_path), Replies(tmp_path)
    rng = random.Random(1)
    n_aware = 0
    for k in range(200):
        text = "".join(rng.choices("abcdefghij ", k=rng.randint(1, 9))).strip() or "a"
        printed = person.say(text)
        reply = replies.to(text, seed=42 + k, max_tokens=9)
        assert printed.endswith(shown(reply))
        alone = replies.model.chat([user(text)], seed=42 + k, max_tokens=9).content
        n_aware += alone != reply
    assert "left out to fit" in printed
    assert n_aware > 150  # what was said before the question changed the reply


# ---------------------------------------------------------------- through a pipe

Piped = Callable[..., "Result"]


@pytest.fixture
def piped(cli: "Cli", talkative: Path, monkeypatch: pytest.MonkeyPatch) -> Piped:
    """Run `chat` with text or bytes on stdin."""

    def call(text: str | bytes, *arguments: object, model_dir: Path = talkative) -> "Result":
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        return cli("chat", "--model-dir", model_dir, *arguments)

    return call


def test_piped_in_each_line_gets_one_line_of_answer_and_no_banner(
    piped: Piped, talkative: Path
) -> None:
    replies = Replies(talkative)
    lines = ["hello", "how are you", "and you"]
    expected = [replies.to(line, seed=42 + k) for k, line in enumerate(lines)]
    assert any("\n" in reply for reply in expected)
    expected.insert(1, "")  # of the blank line
    result = piped("hello\r\n\n   how are you  \nand you")
    assert result == (0, "".join(reply.replace("\n", r"\n") + "\n" for reply in expected), "")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])  # of Notepad, of PowerShell 5
def test_byte_order_mark_is_no_part_of_the_first_line(
    encoding: str, piped: Piped, talkative: Path
) -> None:
    replies = Replies(talkative)
    expected = [replies.to(line, seed=42 + k) for k, line in enumerate(["hello", "and you"])]
    result = piped("hello\r\nand you\r\n".encode(encoding))
    assert result == (0, "".join(reply.replace("\n", r"\n") + "\n" for reply in expected), "")


def test_separate_lines_know_nothing_of_each_other(
    piped: Piped, talkative: Path, tmp_path: Path
) -> None:
    lines = ["hello", "how are you", "", "and you"]
    replies = [Replies(talkative).to(lines[i], seed=42 + k) for k, i in enumerate((0, 1, 3))]
    replies.insert(2, "")
    result = piped("\n".join(lines), "--separate")
    assert result.out == "".join(reply.replace("\n", r"\n") + "\n" for reply in replies)
    piped(f"hello\nand you\n/save {tmp_path / 'talk'}\n", "--separate")
    (talk,) = microgpt.read_conversations(tmp_path / "talk").conversations
    assert [turn["content"] for turn in talk][::2] == ["and you"]


def test_long_conversation_through_a_pipe_is_the_librarys(
    piped: Piped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = biased("abcdefghij \n", {"end_turn": 1.0}, block_size=64)
    model.parameters.flat[:] += np.random.default_rng(1).normal(size=model.parameters.flat.size)
    model.save(tmp_path)
    replies, rng, expected, lines = Replies(tmp_path), random.Random(1), [], []
    for k in range(150):
        if k % 10 == 9:
            lines.append("/regen")
            replies.said.pop()
            expected.append(replies.again(seed=42 + k))
            continue
        if k % 70 == 35:
            lines.append("/clear")
            replies.said.clear()
        lines.append("a" + "".join(rng.choices("abcdefghij ", k=rng.randint(0, 30))).rstrip())
        expected.append(replies.to(lines[-1], seed=42 + k))
    encoded, encode = list[str](), microgpt.Tokenizer._encode

    def count(*arguments: Any) -> list[int]:
        encoded.append(arguments[1])
        return encode(*arguments)

    monkeypatch.setattr(microgpt.Tokenizer, "_encode", count)
    result = piped("\n".join(lines), model_dir=tmp_path)
    assert result.out == "".join(reply.replace("\n", r"\n") + "\n" for reply in expected)
    assert "old turns left out to fit" in result.err
    assert len(encoded) < 4 * 150  # each message a few times, not once for each line after it


def test_each_line_is_answered_before_the_next_is_written(program: Path, talkative: Path) -> None:
    replies = Replies(talkative)
    with subprocess.Popen(
        [program, "chat", "--model-dir", talkative],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=unmeasured() | {"PYTHONUNBUFFERED": ""},
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        for k, line in enumerate(["hello", "how are you"]):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 30)[0]
            answer = process.stdout.readline()
            assert answer == replies.to(line, seed=42 + k).replace("\n", r"\n") + "\n"
        process.stdin.close()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("temperature", "0", "0.0"),
        ("top_k", "3", "3"),
        ("top_k", "none", "none"),
        ("top_p", "0.5", "0.5"),
        ("max_tokens", "7", "7"),
        ("max_tokens", "none", "none"),
        ("stop", "the end", "['the end']"),
        ("stop", "", "none"),
        ("stop", "none", "none"),
        ("seed", "0", "0"),
    ],
)
def test_every_setting_can_be_changed(piped: Piped, name: str, value: str, stored: str) -> None:
    result = piped(f"/set {name} {value}\n/set\n")
    expected = SETTINGS | {name: stored}
    assert result.err == "".join(f"{name:<12}{value}\n" for name, value in expected.items())


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/set temperature -1", "temperature is -1.0, expected a finite number of at least 0"),
        ("/set temperature nan", "temperature is nan, expected a finite number of at least 0"),
        ("/set temperature warm", "temperature is 'warm', expected a number"),
        ("/set temperature", "temperature is '', expected a number"),
        ("/set top_k few", "top_k is 'few', expected a number or none"),
        ("/set top_k 0", "top_k is 0, expected an integer of at least 1"),
        ("/set top_p 2", "top_p is 2.0, expected above 0 and at most 1"),
        ("/set max_tokens 0", "max_tokens is 0, expected an integer of at least 1"),
        ("/set seed -1", "seed is -1, expected at least 0"),
        (
            "/set color red",
            "no option 'color', expected one of temperature, top_k, top_p, max_tokens, stop, seed",
        ),
        ("/save /nowhere/a", "cannot write /nowhere/a: No such file or directory"),
        ("/save /", "cannot write /: it exists already; name another file"),
        ("/save a\0b", r"cannot write a\x00b: embedded null byte"),
        (f"/save {'a' * 300}", f"cannot write {'a' * 300}: File name too long"),
        ("/save", "/save needs a file; /help explains the commands"),
        (
            "/nonsense \x1b[2J",
            rf"unknown command '/nonsense \x1b[2J', expected one of {', '.join(COMMANDS)}",
        ),
    ],
)
def test_wrong_command_through_a_pipe_ends_it_with_an_error(
    piped: Piped, talkative: Path, line: str, error: str
) -> None:
    reply = Replies(talkative).to("hi", seed=42).replace("\n", r"\n")
    result = piped(f"\nhi\n{line}\nnever asked\n")
    assert result == (1, f"\n{reply}\n", f"error: line 3: {error}\n")


def test_commands_work_through_a_pipe_and_speak_on_stderr(
    piped: Piped, talkative: Path, tmp_path: Path
) -> None:
    replies, saved = Replies(talkative), tmp_path / "talk"
    answers = [replies.to("hello", seed=42)]
    replies.said.pop()
    answers.append(replies.again(seed=43))
    result = piped(f"/regen\nhello\n/regen\n/save {saved}\n/clear\n/help\n/quit\nnever asked\n")
    assert result.out == "".join(answer.replace("\n", r"\n") + "\n" for answer in answers)
    notes = ["(nothing was said yet)", f"(saved to {saved})", "(history cleared)", HELP]
    assert (result.status, result.err) == (0, "\n".join(notes) + "\n")
    assert json.loads(saved.read_text()) == replies.said


def test_file_that_is_there_already_is_not_written_over(piped: Piped, tmp_path: Path) -> None:
    saved = tmp_path / "talk"
    saved.write_text("dear")
    result = piped(f"hello\n/save {saved}\n")
    error = f"error: line 2: cannot write {saved}: it exists already; name another file\n"
    assert (result.status, result.err) == (1, error)
    assert saved.read_text() == "dear"


def test_path_through_a_folder_that_is_not_there_writes_over_nothing(
    piped: Piped, tmp_path: Path
) -> None:
    (tmp_path / "talk").write_text("dear")
    path = tmp_path / "nowhere/../talk"
    result = piped(f"hello\n/save {path}\n")
    error = f"error: line 2: cannot write {path}: No such file or directory\n"
    assert (result.status, result.err) == (1, error)
    assert (tmp_path / "talk").read_text() == "dear"


def test_full_disk_leaves_no_part_of_a_saved_conversation(
    program: Path, talkative: Path, tmp_path: Path
) -> None:
    command = 'ulimit -f 0; exec "$0" chat --model-dir "$1"'
    result = subprocess.run(
        ["bash", "-c", command, program, talkative],
        env=unmeasured(),
        input=f"hello\n/save {tmp_path / 'talk'}\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == f"error: line 2: cannot write {tmp_path / 'talk'}: File too large\n"
    assert result.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_are_no_text_are_unknown_characters(piped: Piped, talkative: Path) -> None:
    reply = Replies(talkative).to("ab", seed=42).replace("\n", r"\n")
    note = "(5 characters left out that the model does not know)\n"
    assert piped(b"a\0\xff\xed\xa0\x80b\n") == (0, reply + "\n", note)


def test_nothing_but_unknown_characters_is_an_empty_turn(piped: Piped, talkative: Path) -> None:
    reply = Replies(talkative).to("", seed=42).replace("\n", r"\n")
    note = "(3 characters left out that the model does not know)\n"
    assert piped("???\n") == (0, reply + "\n", note)


def test_no_input_gets_no_answer(piped: Piped) -> None:
    assert piped("") == (0, "", "")


def test_model_without_chat_tokens_is_the_seeds_error(piped: Piped, model_dir: Path) -> None:
    error = (
        "error: this model was not trained with chat tokens\n"
        "hint: retrain with --chat to enable chat support\n"
    )
    assert piped("hello\n", model_dir=model_dir) == (1, "", error)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--temperature", "-1"], "--temperature is -1.0, expected a finite number of at least 0"),
        (["--top-p", "0"], "--top-p is 0.0, expected above 0 and at most 1"),
        (["--stop", ""], "--stop is [''], expected a list of strings that are not empty"),
    ],
)
def test_option_out_of_its_domain_is_an_error(
    piped: Piped, arguments: list[str], error: str
) -> None:
    assert piped("hello\n", *arguments) == (1, "", f"error: {error}\n")


@pytest.mark.parametrize("block_size", [1, 4])
def test_block_too_small_to_chat_is_an_error(piped: Piped, tmp_path: Path, block_size: int) -> None:
    biased("hi", {}, block_size=block_size).save(tmp_path)
    result = piped("hi\n", model_dir=tmp_path)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"error: block_size={block_size} cannot hold a question and an an")


# ---------------------------------------------------------------- conversations to train on


def test_messages_left_out_of_real_conversations_are_counted(
    cli: "Cli", shared: Path, tmp_path: Path
) -> None:
    path = shared / "data" / "oasst1_chat.jsonl"
    talks = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    n_trimmed = sum(talk[-1]["role"] == "user" for talk in talks)
    kept = [talk[: -1 if talk[-1]["role"] == "user" else None] for talk in talks]
    assert all(talk[-1]["role"] == "assistant" for talk in kept)
    n_long = sum(sum(len(turn["content"]) + 2 for turn in talk) + 1 > 64 for talk in kept)
    n_characters = len({char for talk in kept for turn in talk for char in turn["content"]})
    flags = ["--chat", "--steps", 3, "--block-size", 64, "--output", tmp_path / "out"]
    result = cli("train", "--input", path, *flags)
    assert result.status == 0, result.err
    assert f"num convos:  {len(talks)}" in result.lines
    assert f"vocab size:  {n_characters + 4}" in result.lines
    assert f"warning: {n_trimmed} conversations trimmed: " in result.err
    assert (
        f"warning: {n_long:,} of {len(talks):,} documents cut: longer than block_size=64"
        in result.err
    )


# ---------------------------------------------------------------- the message of the system


@pytest.fixture(scope="module", params=[{}, {"tokenizer": "bpe", "vocab_size": 264}])
def instructed(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers in capitals if the system says so."""
    folder = tmp_path_factory.mktemp("instructed")
    loud = [{"role": "system", "content": "loud"}, user("hi"), assistant("HEY")]
    dataset = microgpt.Dataset.from_conversations([loud, [user("hi"), assistant("hey")]])
    config = microgpt.TrainConfig(steps=300, block_size=32, batch_size=2, n_embd=24)
    model, trainer = microgpt.prepare(dataset, config, **request.param)
    trainer.advance(config.steps)
    model.save(folder)
    return folder


def test_system_instructs_until_it_is_taken_back(
    piped: Piped, instructed: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.jsonl"
    lines = [
        "hi",
        "/clear",
        "/system loud",
        "hi",
        f"/save {saved}",
        "/clear",
        "hi",
        "/system",
        "/clear",
        "hi",
    ]
    done = piped("\n".join(lines), "--temperature", 0, model_dir=instructed)
    assert (done.status, done.out.split()) == (0, ["hey", "HEY", "HEY", "hey"])
    told = piped("hi", "--system", "loud", "--temperature", 0, model_dir=instructed)
    assert (told.status, told.out) == (0, "HEY\n")
    (talk,) = microgpt.read_conversations(saved).conversations
    assert [turn["content"] for turn in talk] == ["loud", "hi", "HEY"]


def test_text_of_the_system_is_no_part_of_a_message_that_is_cut(
    piped: Piped, instructed: Path
) -> None:
    tokenizer = microgpt.load(instructed).tokenizer
    n_read = 32 - 8 - 2 - 2 - len(tokenizer.encode_turn("system", "loud"))
    done = piped("/system loud\n" + "y" * 40, model_dir=instructed)
    assert done.err == f"(too long: {40 - n_read} characters cut off at the beginning)\n"


def test_model_without_system_turns_says_so(
    cli: "Cli", piped: Piped, instructed: Path, tmp_path: Path
) -> None:
    dataset = microgpt.Dataset.from_conversations([[user("hi"), assistant("hey")]])
    model, _ = microgpt.prepare(dataset, microgpt.TrainConfig())
    model.save(tmp_path)
    done = piped("/system be brief\n", model_dir=tmp_path)
    error = (
        "error: line 1: the model was trained without messages of the system, expected one that "
    )
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(error)
    told = piped("hi\n", "--system", "be brief", model_dir=tmp_path)
    assert (told.status, told.out) == (1, "")
    assert told.err.startswith(error.replace("line 1: ", ""))
    exported = cli(
        "export", "--model-dir", instructed, "--output", tmp_path / "json", "--format", "json"
    )
    reasons = ("it has a token for messages of the system", "its tokens are subwords")
    assert exported.err in [
        f"warning: the Rust system cannot read this model: {reason}\n" for reason in reasons
    ]
    assert cli("export", "--model-dir", instructed, "--output", tmp_path / "safe").err == ""
