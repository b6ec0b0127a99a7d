"""The release tool, in a clone that it may change."""

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from e2e.environments import ROOT

TODAY = datetime.now(UTC).date().isoformat()


class Clone:
    """A checkout of its own, without tags, in which everything is at version 0.1.0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run(
            ["git", "clone", "--quiet", "--no-tags", ROOT, folder], check=True, capture_output=True
        )
        self.git("config", "user.name", "Tester")
        self.git("config", "user.email", "tester@example.org")
        (folder / "tools/release.py").write_bytes((ROOT / "tools/release.py").read_bytes())
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
    assert 'version = "0.1.1"' in (clone.folder / PROJECT).read_text()
    application = (clone.folder / "apps/microgpt_cli/pyproject.toml").read_text()
    assert 'version = "0.1.0"' in application


def refusal(clone: Clone, distribution: str, version: str) -> str:
    """Return the one line that a refused release prints; nothing has changed."""
    before = clone.git("rev-parse", "HEAD"), clone.git("tag")
    status, output = clone.release("bump", distribution, version)
    assert status == 1
    assert (clone.git("rev-parse", "HEAD"), clone.git("tag")) == before
    assert output.startswith("error: ")
    return output.removeprefix("error: ").strip()


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
    assert refusal(clone, "microgpt-lib", "0.1.0").startswith("the changelog says nothing of 0.1.0")


def test_release_of_changes_that_are_not_committed_is_refused(clone: Clone) -> None:
    (clone.folder / "README.md").write_text("changed")
    assert refusal(clone, "microgpt-lib", "0.1.0") == "there are changes that are not committed"


@pytest.mark.parametrize("version", ["0.1", "one", "0.1.0rc1", ""])
def test_version_that_is_none_is_wrong_usage(clone: Clone, version: str) -> None:
    status, output = clone.release("bump", "microgpt-lib", version)
    assert status == 2
    assert "X.Y.Z" in output


def test_compatibility_check_passes_without_a_release(clone: Clone) -> None:
    status, output = clone.release("api")
    assert status == 0
    assert "no tag microgpt-lib-v* in this clone" in output


def test_broken_public_name_is_refused_in_a_patch_and_told_in_a_minor(clone: Clone) -> None:
    clone.git("tag", "microgpt-lib-v0.1.0")
    assert clone.release("api") == (0, "what used microgpt-lib 0.1.0 can use 0.1.0\n")
    source = "libs/microgpt/src/microgpt/language_model.py"
    clone.replace(source, "    num_samples: int = 1,", "    n_samples: int = 1,")
    status, output = clone.release("api")
    assert status == 1
    assert "num_samples" in output
    clone.replace(PROJECT, 'version = "0.1.0"', 'version = "0.2.0"')
    status, output = clone.release("api")
    assert status == 0
    assert "0.2.0 is a new minor version, so it may" in output


def test_bump_judges_a_broken_public_name_by_the_version_asked_for(clone: Clone) -> None:
    clone.git("tag", "microgpt-lib-v0.1.0")
    clone.replace(
        "libs/microgpt/src/microgpt/language_model.py",
        "    num_samples: int = 1,",
        "    n_samples: int = 1,",
    )
    for application in ("apps/microgpt_cli", "apis/microgpt_serve"):
        clone.replace(f"{application}/pyproject.toml", "microgpt-lib>=0.1,<0.2", "microgpt-lib<0.3")
    with_fresh_changelog(clone)
    assert "num_samples" in refusal(clone, "microgpt-lib", "0.1.1")
    status, output = clone.release("bump", "microgpt-lib", "0.2.0")
    assert status == 0, output
    assert "0.2.0 is a new minor version, so it may" in output


def test_build_into_what_is_no_folder_is_one_error(clone: Clone) -> None:
    status, output = clone.release("build", "--output", "README.md")
    assert (status, output) == (1, f"error: {clone.folder / 'README.md'}: File exists\n")


def test_entries_that_wait_for_a_release_stand_in_one_place(clone: Clone) -> None:
    for changelog in clone.folder.glob("*/*/CHANGELOG.md"):
        _, _, sections = changelog.read_text().partition("\n## Unreleased\n")
        unreleased, *older = sections.split("\n## ")
        undated = [title for title in older if re.match(r"[\d.]+\n", title)]
        assert not (unreleased.strip() and undated), changelog
