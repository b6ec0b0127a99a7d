import re
from pathlib import Path
from typing import TYPE_CHECKING

from microgpt_cli.errors import FIELDS, flag_of

if TYPE_CHECKING:
    from cli.conftest import Cli


def test_error_about_an_option_names_its_flag(cli: "Cli", model_dir: Path, names: Path) -> None:
    train = ("train", "--input", names, "--steps", 3)
    for arguments, message in (
        ((*train, "--muon-lr", 0.1), "--muon-lr is 0.1, expected None without optimizer muon"),
        (
            ("generate", "--model-dir", model_dir, "--top-p", 2),
            "--top-p is 2.0, expected above 0 and at most 1",
        ),
        (
            ("data", "stats", names, "--tokenizer", "bpe", "--vocab-size", 3),
            "--vocab-size is 3, expected at least 257: 256 bytes and 1 special token",
        ),
    ):
        assert cli(*arguments) == (1, "", f"error: {message}\n")


def test_path_with_a_space_is_quoted_where_it_is_to_be_typed(
    cli: "Cli", names: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "my model"  # as below C:\\Users on many machines
    train = ("train", "--input", names, "--output", directory, "--steps", 4)
    assert cli(*train, "--snapshot-every", 1).status == 0
    assert f'further: microgpt-cli train --init-from "{directory}" --steps 5 --input INPUT' in (
        cli("train", "--resume", directory, "--steps", 9).err
    )
    for path in directory.glob("*.json"):
        path.unlink()
    assert f'resume it with --resume "{directory}", or' in cli(*train).err


def test_every_option_has_the_flag_that_errors_name(cli: "Cli") -> None:
    shown = cli("train", "--help").out + cli("generate", "--help").out
    assert {flag_of(field) for field in FIELDS} <= {*re.findall(r"--[\w-]+", shown)}
