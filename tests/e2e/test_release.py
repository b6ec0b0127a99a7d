"""The release tool, run in a clone of the repository."""

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from e2e.environments import ROOT

TODAY = datetime.now(UTC).date().isoformat()


class Clone:
    """A checkout of its own, without releases, in which everything is at version 0.1.0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run(
            ["git", "clone", "--quiet", "--no-tags", ROOT, folder], check=True, capture_output=True
        )
        self.git("config", "user.name", "Tester")
        self.git("config", "user.email", "tester@example.org")
        for name in ("tools/public_names.py", "tools/release.py"):
            (folder / name).write_bytes((ROOT / name).read_bytes())
        for described in (folder / "libs/microgpt/api").glob("*"):
            described.unlink()
        for name in ("libs/microgpt", "apps/microgpt_cli", "apis/microgpt_serve"):
            project = (ROOT / name / "pyproject.toml").read_text()
            project = re.sub(r'(?m)^version = ".*"$', 'version = "0.1.0"', project)
            project = re.sub(r'"microgpt-lib[^"]*"', '"microgpt-lib>=0.1,<0.2"', project)
            (folder / name / "pyproject.toml").write_text(project)
        self.commit()

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.folder, capture_output=True, text=True, check=True
        )
        return done.stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "Change")

    def append(self, path: str, line: str) -> None:
        with (self.folder / path).open("a") as file:
            file.write(f"\n{line}\n")
        self.commit()

    def replace(self, path: str, old: str, new: str) -> None:
        content = (self.folder / path).read_text()
        assert old in content
        (self.folder / path).write_text(content.replace(old, new, 1))
        self.commit()

    def release(self, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "tools/release.py", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr + done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone")


CHANGELOG, PROJECT = "libs/microgpt/CHANGELOG.md", "libs/microgpt/pyproject.toml"
VERSION = "libs/microgpt/src/microgpt/version.py"
PACKAGE = "libs/microgpt/src/microgpt/__init__.py"


def with_fresh_changelog(clone: Clone, released: str = "") -> None:
    """Write a changelog with one unreleased entry."""
    text = f"# Changelog\n\n## Unreleased\n\n### Added\n\n- Something.\n{released}"
    (clone.folder / CHANGELOG).write_text(text)
    clone.commit()


def test_first_release_is_dated_committed_and_tagged(clone: Clone) -> None:
    with_fresh_changelog(clone)
    status, output = clone.release("bump", "microgpt-lib", "0.1.0")
    assert status == 0, output
    assert clone.git("tag").split() == ["microgpt-lib-v0.1.0"]
    assert clone.git("log", "-1", "--format=%s") == "Release microgpt-lib 0.1.0\n"
    assert clone.git("status", "--porcelain") == ""
    assert (clone.folder / CHANGELOG).read_text() == (
        f"# Changelog\n\n## Unreleased\n\n## 0.1.0 - {TODAY}\n\n### Added\n\n- Something.\n"
    )


def test_section_that_waits_for_its_date_gets_it(clone: Clone) -> None:
    (clone.folder / CHANGELOG).write_text("# C\n\n## Unreleased\n\n## 0.1.0\n\n- First.\n")
    clone.commit()
    status, output = clone.release("bump", "microgpt-lib", "0.1.0")
    assert status == 0, output
    dated = f"# C\n\n## Unreleased\n\n## 0.1.0 - {TODAY}\n\n- First.\n"
    assert (clone.folder / CHANGELOG).read_text() == dated


def test_each_distribution_is_released_apart(clone: Clone) -> None:
    with_fresh_changelog(clone)
    assert clone.release("bump", "microgpt-lib", "0.1.0")[0] == 0
    with_fresh_changelog(clone, released="\n## 0.1.0 - 2026-01-01\n")
    assert clone.release("bump", "microgpt-lib", "0.1.1")[0] == 0
    assert '\nversion = "0.1.1"\n' in (clone.folder / PROJECT).read_text()
    assert '\nVERSION = "0.1.1"\n' in (clone.folder / VERSION).read_text()
    application = (clone.folder / "apps/microgpt_cli/pyproject.toml").read_text()
    assert 'version = "0.1.0"' in application


def state_of(clone: Clone) -> list[str]:
    commands = ("rev-parse", "HEAD"), ("tag",), ("status", "--porcelain")
    return [clone.git(*command) for command in commands]


def refusal(clone: Clone, distribution: str, version: str) -> str:
    """Return the one line that a refused release prints, dry or not; nothing has changed."""
    before = state_of(clone)
    status, output = clone.release("bump", distribution, version)
    assert status == 1
    assert state_of(clone) == before
    assert output.startswith("error: ")
    assert clone.release("bump", distribution, version, "--dry-run") == (status, output)
    return output.removeprefix("error: ").strip()


def test_dry_run_shows_the_release_and_changes_nothing(clone: Clone) -> None:
    with_fresh_changelog(clone, released="\n## 0.0.9 - 2026-01-01\n\n- Older.\n")
    before = state_of(clone)
    status, output = clone.release("bump", "microgpt-lib", "0.1.1", "--dry-run")
    assert status == 0, output
    assert output == (
        "no release is described in libs/microgpt/api: nothing to compare\n"
        "microgpt-lib 0.1.0 would become 0.1.1\n"
        f"  would write {CHANGELOG}\n"
        "  would write libs/microgpt/api/0.1.1.pyi\n"
        f"  would write {PROJECT}\n"
        f"  would write {VERSION}\n"
        "  would commit 'Release microgpt-lib 0.1.1'\n"
        "  would tag microgpt-lib-v0.1.1\n\n"
        f"## 0.1.1 - {TODAY}\n\n### Added\n\n- Something.\n"
    )
    assert state_of(clone) == before
    assert clone.release("bump", "microgpt-lib", "0.1.1")[0] == 0
    shown = set(re.findall("would write (.*)", output))
    assert shown == set(clone.git("diff", "--name-only", "HEAD~").split())


def test_library_that_an_application_does_not_take_is_refused(clone: Clone) -> None:
    with_fresh_changelog(clone)
    assert "does not admit 0.2.0: widen its range first" in refusal(clone, "microgpt-lib", "0.2.0")


def test_application_is_refused_until_its_library_is_released(clone: Clone) -> None:
    complaint = refusal(clone, "microgpt-cli", "0.1.0")
    assert complaint.endswith("no such version is released: release microgpt-lib first")


def test_version_that_does_not_follow_is_refused(clone: Clone) -> None:
    with_fresh_changelog(clone)
    assert refusal(clone, "microgpt-lib", "0.0.9").startswith("microgpt-lib is at 0.1.0")
    assert clone.release("bump", "microgpt-lib", "0.1.0")[0] == 0
    with_fresh_changelog(clone)
    assert refusal(clone, "microgpt-lib", "0.1.0").startswith("microgpt-lib 0.1.0 is released")


def test_release_without_a_word_in_the_changelog_is_refused(clone: Clone) -> None:
    (clone.folder / CHANGELOG).write_text("# Changelog\n\n## Unreleased\n")
    clone.commit()
    assert refusal(clone, "microgpt-lib", "0.1.0").startswith("the changelog lacks 0.1.0")


def test_release_of_changes_that_are_not_committed_is_refused(clone: Clone) -> None:
    (clone.folder / "README.md").write_text("changed")
    assert refusal(clone, "microgpt-lib", "0.1.0") == "there are changes that are not committed"


@pytest.mark.parametrize("version", ["0.1", "one", "0.1.0rc1", ""])
def test_version_that_is_none_is_wrong_usage(clone: Clone, version: str) -> None:
    status, output = clone.release("bump", "microgpt-lib", version)
    assert status == 2
    assert "X.Y.Z" in output


# ---------------------------------------------------------------- public names


@pytest.fixture
def released(clone: Clone) -> Clone:
    """A checkout whose library is released as 0.1.0."""
    with_fresh_changelog(clone)
    status, output = clone.release("bump", "microgpt-lib", "0.1.0")
    assert status == 0, output
    return clone


def test_compatibility_check_passes_without_a_release(clone: Clone) -> None:
    status, output = clone.release("api")
    assert (status, output.partition(":")[0]) == (0, "no release is described in libs/microgpt/api")


def test_release_describes_the_public_names(released: Clone) -> None:
    description = (released.folder / "libs/microgpt/api/0.1.0.pyi").read_text()
    assert description.startswith("# Public names of microgpt-lib 0.1.0, ")
    assert "\nclass ConfigError(MicrogptError, ValueError, Exception):\n" in description
    assert "\ndef read_documents(path, *, split='line', field=None): ...\n" in description
    for member in (
        "def __init__(self, *, vocab_size, n_embd=16, n_head=4,",  # a dataclass
        "def __init__(self, *, steps=1000, learning_rate=None,",  # a Struct
        "@classmethod\n    def from_documents(cls, documents): ...",
        "def __add__(self, other): ...",
        "perplexity: ...",  # a property
        "tokenizer: ...",  # set by a constructor
    ):
        assert f"\n    {member}" in description
    assert "\n    def _" not in description.replace("def __", "")


def test_names_that_are_added_pass_without_a_tag(released: Clone) -> None:
    released.git("tag", "--delete", "microgpt-lib-v0.1.0")
    released.append(PACKAGE, '__all__.append("more")\ndef more(): ...')
    released.append(
        PACKAGE, "def train_step(model, optimizer, token_ids, learning_rate, clip=1): ..."
    )
    assert released.release("api") == (0, "code written for microgpt-lib 0.1.0 can use 0.1.0\n")


def test_names_that_are_removed_or_changed_are_refused_and_listed(released: Clone) -> None:
    for change in (
        '__all__.remove("Conversations")',
        "class Score:\n    n_tokens: int",
        "class ConfigError(MicrogptError): ...",
        "def read_documents(file): ...",
        "def load(directory, *, engine=None, dtype, threads=None): ...",
        "def train_step(optimizer, model, token_ids, learning_rate): ...",
        "def fit(documents, *options): ...",
    ):
        released.append(PACKAGE, change)
    status, output = released.release("api")
    assert status == 1
    assert output.startswith("error: code written for microgpt-lib 0.1.0 cannot use 0.1.0:\n")
    for complaint in (
        "`Conversations`: *Public object was removed*",
        "`Score.perplexity`: *Public object was removed*",
        "`ConfigError`: *Base class was removed*: `ValueError`",
        "`read_documents(path)`: *Parameter was removed*",
        "`load(engine)`: *Parameter default was changed*: `'auto'` -> `None`",
        "`load(dtype)`: *Parameter is now required*",
        "`train_step(model)`: *Positional parameter was moved*",
        "`fit(steps)`: *Parameter was removed*",
    ):
        assert f"\n- {complaint}\n" in output


def test_new_minor_version_may_break_public_names(released: Clone) -> None:
    released.append(PACKAGE, '__all__.remove("Score")')
    with_fresh_changelog(released)
    assert "`Score`" in refusal(released, "microgpt-lib", "0.1.1")
    for application in ("apps/microgpt_cli", "apis/microgpt_serve"):
        project = f"{application}/pyproject.toml"
        released.replace(project, "microgpt-lib>=0.1,<0.2", "microgpt-lib<0.3")
    status, output = released.release("bump", "microgpt-lib", "0.2.0")
    assert status == 0, output
    assert "0.2.0 is a new minor version, so this is allowed" in output
    assert "class Score" not in (released.folder / "libs/microgpt/api/0.2.0.pyi").read_text()
    assert released.release("api") == (0, "code written for microgpt-lib 0.2.0 can use 0.2.0\n")


# ---------------------------------------------------------------- the rest


def test_build_into_what_is_no_folder_is_one_error(clone: Clone) -> None:
    status, output = clone.release("build", "--output", "README.md")
    assert (status, output) == (1, f"error: {clone.folder / 'README.md'}: File exists\n")


def test_entries_that_wait_for_a_release_stand_in_one_place(clone: Clone) -> None:
    for changelog in clone.folder.glob("*/*/CHANGELOG.md"):
        _, _, sections = changelog.read_text().partition("\n## Unreleased\n")
        unreleased, *older = sections.split("\n## ")
        undated = [title for title in older if re.match(r"[\d.]+\n", title)]
        assert not (unreleased.strip() and undated), changelog


def test_changelogs_begin_with_what_the_first_release_has() -> None:
    changelogs = sorted(ROOT.glob("*/*/CHANGELOG.md"))
    assert len(changelogs) == 3
    for changelog in changelogs:
        first = changelog.read_text().split("\n## ")[-1]
        assert re.search(r"\n\nThe first release: .+\n\n### Added\n", first)
        titles = re.findall(r"^### (.*)", first, re.MULTILINE)
        assert titles == ["Added"], f"{changelog}: the first release has nothing to change or fix"
