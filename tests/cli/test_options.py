"""Flags that several commands share."""

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cli.conftest import Cli

READERS = ["generate", "chat", "info", "plot", "score", "export", "evaluate", "explain"]


@pytest.mark.parametrize("command", READERS)
def test_directory_of_the_model_is_an_argument_or_a_flag(cli: "Cli", command: str) -> None:
    needed: list[Any] = {
        "score": ["--input", "in"],
        "export": ["--output", "out"],
        "evaluate": ["--questions", "in"],
        "explain": ["--input", "in"],
    }.get(command, [])

    def place(*arguments: str) -> str:
        """Return the directory that is read, which is not there."""
        found = re.search(r"(?:cannot read|nothing to draw:) (\w+)/", cli(command, *arguments).err)
        assert found
        return found[1]

    assert place("mine", *needed) == "mine"
    assert place("--model-dir", "mine", *needed) == "mine"
    assert place("mine", "--model-dir", "mine/", *needed) == "mine"
    assert place(*needed) == "output"
    result = cli(command, "mine", "--model-dir", "yours", *needed)
    assert (result.status, result.out) == (2, "")
    assert result.err.splitlines()[-1] == (
        "Error: Invalid value for --model-dir: it is yours, expected the same as the argument, "
        "mine; give one of them."
    )
