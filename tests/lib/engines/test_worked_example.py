"""The edits that CONTRIBUTING shows apply, and turn those tests red that it names."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from microgpt import unavailable_engines

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / ".github/CONTRIBUTING.md").read_text(encoding="utf-8")
(SECTION,) = re.findall(r"^## Edit the model\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
(DIFF,) = re.findall(r"^```diff\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
EDITS = re.findall(r"^(\d)\. ([\w./]+).*\n((?:[-+].*\n)+)", DIFF, re.MULTILINE)
((TEST_FILE, SELECTION),) = re.findall(r'^hatch run test (\S+) -k "(.*)"$', SECTION, re.MULTILINE)
RED = {
    number: set(re.findall(r"`(.*?)`", cell))
    for number, cell in re.findall(r"^\| (\d) \| (.*)\|$", SECTION, re.MULTILINE)
}
KINDS = set().union(*RED.values())
OF_PYTORCH = {"scalar_engine_itself"}


def apply(copy: Path, path: str, lines: str) -> None:
    """Replace each line with a minus by the one with a plus that follows it."""
    content = (copy / path).read_text(encoding="utf-8")
    for old, new in re.findall(r"^-(.*\n)\+(.*\n)", lines, re.MULTILINE):
        assert content.count(old) == 1, f"{path} has no such line, or several: {old}"
        content = content.replace(old, new)
    (copy / path).write_text(content, encoding="utf-8")


def run(folder: Path, *arguments: str, sources: Path) -> str:
    """Return what a module of the environment prints; with sources of a copy of the library."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(sources), "MICROGPT_REQUIRE_NATIVE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    return done.stdout


def red_kinds(copy: Path) -> set[str]:
    """Return the kinds of tests with a failure, among the tests that the page selects."""
    sources = copy / "libs/microgpt/src"
    output = run(copy, "pytest", "-rA", TEST_FILE, "-k", SELECTION, sources=sources)
    results = re.findall(r"^(PASSED|FAILED) \S+?::(\S+)", output, re.MULTILINE)
    for kind in KINDS - OF_PYTORCH:
        assert any(kind in name for _, name in results), f"no test is called {kind}"
    return {kind for kind in KINDS if any(kind in name for red, name in results if red == "FAILED")}


def test_page_shows_six_edits_and_what_is_red_after_each() -> None:
    assert [number for number, _, _ in EDITS] == list("123456") == list(RED)
    assert "".join(lines for _, _, lines in EDITS).count("\n") == DIFF.count("\n") - len(EDITS)
    for _, path, lines in EDITS:
        content = (ROOT / path).read_text(encoding="utf-8")
        for old in re.findall(r"^-(.*\n)", lines, re.MULTILINE):
            assert content.count(old) == 1, f"CONTRIBUTING edits a line that {path} lacks: {old}"


@pytest.mark.long
@pytest.mark.skipif("native" in unavailable_engines(), reason="there is no native engine to edit")
def test_each_edit_turns_those_tests_red_that_the_page_names(tmp_path: Path) -> None:
    for name in ("libs/microgpt", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    library = tmp_path / "libs/microgpt"
    unseen = set() if importlib.util.find_spec("torch") else OF_PYTORCH
    assert red_kinds(tmp_path) == set()
    for number, path, lines in EDITS:
        apply(tmp_path, path, lines)
        if path.endswith(".h"):
            run(library, "hatchling", "build", "--hooks-only", sources=library / "src")
        assert red_kinds(tmp_path) == RED[number] - unseen, f"after edit {number}"
