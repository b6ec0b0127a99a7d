"""Build and release the distributions, each on its own version.

    hatch run package:build                      # sdists, wheels, bills of materials, sums: dist/
    hatch run package:api                        # public names against those of the last release
    hatch run package:bump microgpt-lib 0.1.1    # version, changelog, commit and tag; --dry-run
    hatch run package:lock                       # versions and hashes of what CI installs

A build takes the committed files and the time of the commit, so that the same commit, compiler and
locked tools give the same bytes.
"""

import argparse
import hashlib
import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.tags import platform_tags
from packaging.version import Version
from public_names import breaking_changes, describe

ROOT = Path(__file__).parents[1]
LIBRARY = "microgpt-lib"
FOLDERS = {
    LIBRARY: "libs/microgpt",
    "microgpt-cli": "apps/microgpt_cli",
    "microgpt-serve": "apis/microgpt_serve",
}
PUBLIC_NAMES = ROOT / "libs/microgpt/api"  # one file per release
LOCK = Path(".ci/requirements.lock")
HATCH_LOCK = Path(".ci/hatch.lock")  # hatch, which installs all the rest
UNRELEASED = "## Unreleased\n"


class ReleaseError(Exception):
    """A release that cannot be built or tagged."""


def run(*command: str, cwd: Path = ROOT, variables: dict[str, str] | None = None) -> str:
    """Return a program's output; raise ReleaseError with its error message if it fails."""
    environment = os.environ | (variables or {})
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise ReleaseError(f"{' '.join(command)} failed:\n{done.stderr or done.stdout}")
    return done.stdout.strip()


def tool(name: str) -> str:
    """Return the path of a program of this environment."""
    return str(Path(sys.executable).with_name(name))


def project_of(distribution: str, root: Path = ROOT) -> dict[str, Any]:
    """Return the `[project]` table of a distribution."""
    path = root / FOLDERS[distribution] / "pyproject.toml"
    project: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return project


# ---------------------------------------------------------------- build


@contextmanager
def source_tree(*, worktree: bool) -> Iterator[Path]:
    """Yield a folder with the files of the last commit, or of the working tree."""
    with tempfile.TemporaryDirectory() as directory:
        if worktree:
            listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
            for name in filter(None, listed.split("\0")):
                if (ROOT / name).is_file():
                    to = Path(directory, name)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / name, to)
        else:
            archive = Path(directory, "source.tar")
            run("git", "archive", "--output", str(archive), "HEAD")
            shutil.unpack_archive(archive, directory, filter="data")
            archive.unlink()
        yield Path(directory)


def systems() -> tuple[str, list[str]]:
    """Return the tag of a wheel for this system, "" if it has none, and those of the others."""
    tags = runpy.run_path(str(ROOT / FOLDERS[LIBRARY] / "hatch_build.py"))["SYSTEMS"]
    here = next((tag for tag in tags if tag in set(platform_tags())), "")
    return here, [tag for tag in tags if tag != here]


def build_all(tree: Path, output: Path, *, here_only: bool) -> None:
    """Write an sdist and a wheel of each distribution, and more wheels of the library.

    pip refuses two wheels of one version in one command: those for other systems are in `others`
    and the one without the kernel in `pure`, so that `pip install dist/*.whl` works.
    """
    here, others = systems()
    # A developer may have set -march=native, or no kernel at all: not for a release.
    at = {"MICROGPT_CFLAGS": "", "MICROGPT_PURE": ""}
    at["SOURCE_DATE_EPOCH"] = run("git", "log", "-1", "--format=%ct")
    command = tool("hatchling"), "build", "--directory", str(output)
    for distribution, folder in FOLDERS.items():
        print(f"building {distribution}", file=sys.stderr)
        kernel = {"MICROGPT_REQUIRE_NATIVE": "1"}
        kernel["MICROGPT_TARGET"] = here if distribution == LIBRARY else ""
        run(*command, cwd=tree / folder, variables=at | kernel)
    more = [("pure", {"MICROGPT_PURE": "1", "MICROGPT_TARGET": ""})]
    if not here_only:
        more += [("others", {"MICROGPT_TARGET": tag}) for tag in others]
    for name, kernel in more:
        print(
            f"building {LIBRARY} for {kernel['MICROGPT_TARGET'] or 'any system'}", file=sys.stderr
        )
        apart = tool("hatchling"), "build", "--target", "wheel", "--directory", str(output / name)
        run(*apart, cwd=tree / FOLDERS[LIBRARY], variables=at | kernel)


def write_bill_of_materials(distribution: str, tree: Path, output: Path) -> None:
    """Write the bill of materials of a distribution, installed at the locked versions."""
    project = project_of(distribution, tree)
    name = f"{distribution.replace('-', '_')}-{project['version']}.cdx.json"
    with tempfile.TemporaryDirectory() as directory:
        python = f"{directory}/bin/python"
        run(tool("uv"), "venv", "--quiet", "--python", sys.executable, directory)
        install = tool("uv"), "pip", "install", "--quiet", "--python", python
        find = "--find-links", str(output), "--constraint", str(tree / LOCK)
        run(*install, *find, f"{distribution}=={project['version']}")
        pyproject = tree / FOLDERS[distribution] / "pyproject.toml"
        bill = tool("cyclonedx-py"), "environment", "--output-reproducible"
        run(*bill, "--pyproject", str(pyproject), "-o", str(output / name), python)


def build(output: Path, *, worktree: bool, here_only: bool) -> None:
    """Write every file of a release."""
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        raise ReleaseError(f"{output} is not empty: remove it, or choose another --output")
    with source_tree(worktree=worktree) as tree:
        build_all(tree, output, here_only=here_only)
        for distribution in FOLDERS:
            write_bill_of_materials(distribution, tree, output)
    files = sorted(path for path in output.rglob("*") if path.is_file() and path.suffix)
    names = {path: path.relative_to(output).as_posix() for path in files}
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {names[path]}\n" for path in files]
    (output / "SHA256SUMS").write_text("".join(sums), encoding="utf-8", newline="\n")
    for path in files:
        print(f"{path.stat().st_size:>9,}  {names[path]}")


def lock() -> None:
    """Write the versions and hashes of CI's packages, for every system and Python."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    environments = settings["tool"]["hatch"]["envs"].values()
    wanted = {name for each in environments for name in each.get("dependencies", [])}
    compile_lock(HATCH_LOCK, ["hatch"])
    compile_lock(LOCK, ["hatch", *sorted(wanted), *(f"./{path}" for path in FOLDERS.values())])


def compile_lock(path: Path, requirements: list[str]) -> None:
    """Write the newest versions that satisfy the requirements, and their hashes."""
    command = tool("uv"), "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"
    written = "--generate-hashes", "--no-annotate", "--no-header", "--output-file", str(path)
    ours = (f"--no-emit-package={distribution}" for distribution in FOLDERS)
    content = "\n".join(requirements)
    whole = [*command, *written, *ours, "-"]
    subprocess.run(whole, cwd=ROOT, input=content, encoding="utf-8", check=True)


# ---------------------------------------------------------------- compatibility


def released_versions(distribution: str) -> list[Version]:
    """Return the versions that have a tag in this clone, the oldest first."""
    prefix = f"{distribution}-v"
    tags = run("git", "tag", "--list", f"{prefix}*").split()
    return sorted(Version(tag.removeprefix(prefix)) for tag in tags)


def public_names(version: Version) -> str:
    """Return the description of this checkout's public names, with its title."""
    sys.path.insert(0, str(ROOT / FOLDERS[LIBRARY] / "src"))
    title = f"# Public names of {LIBRARY} {version}, written by `hatch run package:bump`."
    return f"{title}\n\n{describe(importlib.import_module('microgpt'))}"


def check_api(now: Version) -> None:
    """Compare the library's public names with its last release; a new minor may break them."""
    described = [Version(path.stem) for path in PUBLIC_NAMES.glob("*.pyi")]
    if not described:
        print(f"no release is described in {PUBLIC_NAMES.relative_to(ROOT)}: nothing to compare")
        return
    last = max(described)
    old = (PUBLIC_NAMES / f"{last}.pyi").read_text(encoding="utf-8")
    changes = breaking_changes(old, public_names(now))
    if not changes:
        print(f"code written for {LIBRARY} {last} can use {now}")
        return
    broken = "\n".join([f"code written for {LIBRARY} {last} cannot use {now}:", *changes])
    if now.release[:2] == last.release[:2]:
        raise ReleaseError(f"{broken}\nkeep these names, or raise the minor version")
    print(f"{broken}\n{now} is a new minor version, so this is allowed")


def range_of(application: str) -> Requirement:
    """Return the requirement of an application on the library."""
    requirements = map(Requirement, project_of(application)["dependencies"])
    return next(requirement for requirement in requirements if requirement.name == LIBRARY)


def check_ranges(distribution: str, version: Version) -> None:
    """Raise ReleaseError unless applications and library fit together after the release."""
    for application in sorted(FOLDERS.keys() - {LIBRARY}):
        wanted = range_of(application)
        if distribution == LIBRARY and version not in wanted.specifier:
            raise ReleaseError(
                f"{application} takes {wanted}, which does not admit {version}: "
                "widen its range first"
            )
        if distribution == application and not any(
            released in wanted.specifier for released in released_versions(LIBRARY)
        ):
            raise ReleaseError(
                f"{application} takes {wanted}, and no such version is released: "
                f"release {LIBRARY} first"
            )


# ---------------------------------------------------------------- bump


def dated_changelog(changelog: str, version: Version, date: str) -> str:
    """Return the changelog with a dated section for the version.

    The entries under Unreleased become that section. Without such entries, a section that is
    titled with the version alone, as before the first release, gets the date.
    """
    head, found, rest = changelog.partition(UNRELEASED)
    if not found:
        raise ReleaseError(f"the changelog has no line {UNRELEASED.strip()!r}")
    unreleased, next_section, older = rest.partition("\n## ")
    title = f"## {version} - {date}\n"
    if unreleased.strip():
        if f"\n## {version}\n" in changelog:
            raise ReleaseError(f"the changelog has entries under Unreleased and under {version}")
        return f"{head}{UNRELEASED}\n{title}{unreleased}{next_section}{older}"
    if f"\n## {version}\n" not in changelog:
        raise ReleaseError(f"the changelog lacks {version}: add lines under Unreleased")
    return changelog.replace(f"\n## {version}\n", f"\n{title}", 1)


def check_order(distribution: str, version: Version) -> None:
    """Raise ReleaseError unless the version follows the last release and the project file."""
    current = Version(project_of(distribution)["version"])
    if version < current:
        raise ReleaseError(f"{distribution} is at {current}, expected a version from there on")
    released = released_versions(distribution)
    if released and version <= released[-1]:
        raise ReleaseError(f"{distribution} {released[-1]} is released, expected a later version")


def files_of_release(distribution: str, version: Version) -> dict[Path, str]:
    """Return the files that a release changes, with their new content."""
    folder = ROOT / FOLDERS[distribution]
    changelog = folder / "CHANGELOG.md"
    today = datetime.now(UTC).date().isoformat()
    files = {changelog: dated_changelog(changelog.read_text(encoding="utf-8"), version, today)}
    if distribution == LIBRARY:
        files[PUBLIC_NAMES / f"{version}.pyi"] = public_names(version)
    for path in (folder / "pyproject.toml", *folder.glob("src/*/version.py")):
        content = path.read_text(encoding="utf-8")
        files[path] = re.sub(r'(?mi)^(version) = ".*"$', rf'\1 = "{version}"', content, count=1)
    return files


def bump(distribution: str, version: Version, *, dry_run: bool) -> None:
    """Set a version, date its changelog, commit and tag; nothing is pushed."""
    if run("git", "status", "--porcelain"):
        raise ReleaseError("there are changes that are not committed")
    check_order(distribution, version)
    check_ranges(distribution, version)
    if distribution == LIBRARY:
        check_api(version)
    files = files_of_release(distribution, version)
    tag, subject = f"{distribution}-v{version}", f"Release {distribution} {version}"
    if dry_run:
        print(f"{distribution} {project_of(distribution)['version']} would become {version}")
        for path in files:
            print(f"  would write {path.relative_to(ROOT)}")
        print(f"  would commit {subject!r}\n  would tag {tag}\n")
        section = files[ROOT / FOLDERS[distribution] / "CHANGELOG.md"].split("\n## ")[2]
        print(f"## {section.rstrip()}")
        return
    for path, content in files.items():
        path.write_text(content, encoding="utf-8", newline="\n")
    run("git", "add", "--all")
    run("git", "commit", "--message", subject)
    run("git", "tag", "--annotate", tag, "--message", f"{distribution} {version}")
    print(f"committed and tagged; publish with: git push origin HEAD {tag}")


def a_version(text: str) -> Version:
    """Parse X.Y.Z as a version, for argparse."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected X.Y.Z")
    return Version(text)


def main() -> None:
    """Run a command of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="write sdists, wheels, bills of materials, sums")
    builder.add_argument("--output", type=Path, default=ROOT / "dist")
    builder.add_argument("--worktree", action="store_true", help="include uncommitted changes")
    builder.add_argument("--here", action="store_true", help="no wheels for other systems")
    commands.add_parser("lock", help="choose the versions that CI installs")
    commands.add_parser("api", help="compare public names with the last release")
    bumper = commands.add_parser("bump", help="set a version, date its changelog, commit and tag")
    bumper.add_argument("distribution", choices=FOLDERS)
    bumper.add_argument("version", type=a_version)
    bumper.add_argument("--dry-run", action="store_true", help="show what would change")
    arguments = parser.parse_args()
    try:
        if arguments.command == "build":
            output = arguments.output.resolve()
            build(output, worktree=arguments.worktree, here_only=arguments.here)
        elif arguments.command == "lock":
            lock()
        elif arguments.command == "api":
            check_api(Version(project_of(LIBRARY)["version"]))
        else:
            bump(arguments.distribution, arguments.version, dry_run=arguments.dry_run)
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
