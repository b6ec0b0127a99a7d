"""What is in the built files, and the installations that are not the usual one."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest
from e2e.environments import (
    DISTRIBUTIONS,
    PYTHONS,
    ROOT,
    Installation,
    build_tree,
    clean_environment,
)

MAX_LIBRARY_BYTES = 400_000  # half of it the kernel
MAX_IMPORT_SECONDS = 0.15

TIME_OF_IMPORT = """
import time
start = time.thread_time()  # what else runs on the machine does not count
import microgpt
print(time.thread_time() - start)
"""


def wheel_of(dist: Path, distribution: str, tag: str = "py3-none-any") -> Path:
    (wheel,) = dist.rglob(f"{distribution.replace('-', '_')}-*-{tag}.whl")
    return wheel


def names_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheels_hold_their_package_and_nothing_else(dist: Path) -> None:
    assert len([*dist.glob("*.whl"), *dist.glob("pure/*.whl")]) == 4
    for wheel in dist.rglob("*.whl"):
        package = wheel.name.partition("-")[0].removesuffix("_lib")
        names = {name for name in names_in(wheel) if not name.endswith("/")}
        assert {name.partition("/")[0].partition("-")[0] for name in names} == {
            package,
            wheel.name.partition("-")[0],
        }
        assert f"{package}/py.typed" in names
        assert any(name.endswith("licenses/LICENSE") for name in names)
        assert not {Path(name).suffix for name in names} & {".c", ".h", ".pyc"}


def test_wheels_describe_themselves(dist: Path) -> None:
    for wheel in dist.rglob("*.whl"):
        (path,) = (name for name in names_in(wheel) if name.endswith("/METADATA"))
        metadata = message_from_bytes(zipfile.ZipFile(wheel).read(path))
        assert metadata["Requires-Python"] == f">={PYTHONS[0]}"
        classifiers = metadata.get_all("Classifier") or []
        for version in PYTHONS:
            assert f"Programming Language :: Python :: {version}" in classifiers
        for requirement in metadata.get_all("Requires-Dist") or []:
            assert ">=" in requirement, f"{requirement} has no lower bound"


@pytest.mark.skipif(sys.platform != "linux", reason="manylinux is a name for Linux systems")
def test_library_wheel_is_small_and_names_the_systems_it_runs_on(dist: Path) -> None:
    (native,) = dist.glob("microgpt_lib-*-py3-none-manylinux_2_17_*.whl")
    assert native.stat().st_size < MAX_LIBRARY_BYTES
    assert "microgpt/engines/kernel/libmicrogpt.so" in names_in(native)
    assert not any(name.endswith(".so") for name in names_in(wheel_of(dist, "microgpt-lib")))


def test_sdists_hold_what_compiling_takes(dist: Path) -> None:
    (sdist,) = dist.glob("microgpt_lib-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"kernel.c", "hatch_build.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not any(name.endswith((".pyi", ".so", ".sha256")) for name in names)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_bill_of_materials_lists_what_is_installed(dist: Path, distribution: str) -> None:
    (path,) = dist.glob(f"{distribution.replace('-', '_')}-*.cdx.json")
    bill = json.loads(path.read_text())
    assert bill["metadata"]["component"]["name"] == distribution
    components = {component["name"].lower() for component in bill["components"]}
    expected = {
        "microgpt-lib": {"numpy", "msgspec", "safetensors"},
        "microgpt-cli": {"microgpt-lib", "typer", "rich", "numpy"},
        "microgpt-serve": {"microgpt-lib", "starlette", "hypercorn", "numpy"},
    }
    assert expected[distribution] <= components
    assert components.isdisjoint({"pytest", "ruff", "hatchling"})
    assert str(ROOT) not in path.read_text()


def test_sums_are_those_of_the_files(dist: Path) -> None:
    lines = (dist / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    files = {str(path.relative_to(dist)) for path in dist.rglob("*") if path.is_file()}
    assert listed.keys() == files - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256((dist / name).read_bytes()).hexdigest() == digest


def test_line_of_the_readme_installs_what_the_build_wrote(dist: Path, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^pip install dist/.*$", readme, re.MULTILINE)
    (tmp_path / "dist").symlink_to(dist)
    venv.create(tmp_path / "venv", with_pip=True)
    variables = clean_environment()
    variables["PATH"] = f"{tmp_path / 'venv/bin'}{os.pathsep}{variables['PATH']}"
    engines = 'python -c "import microgpt; print(microgpt.unavailable_engines())"'
    typed = f"{line} --quiet && microgpt-cli --version && microgpt-serve --version && {engines}"
    done = subprocess.run(
        ["bash", "-c", typed],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    programs = [line.split()[0] for line in done.stdout.splitlines()]
    assert programs == ["microgpt-cli", "microgpt-serve", "{}"]


def test_library_is_imported_quickly(current: Installation, tmp_path: Path) -> None:
    def seconds() -> float:
        return float(current.run("python", "-c", TIME_OF_IMPORT, cwd=tmp_path))

    # The first run compiles; the fastest is the one that was disturbed least.
    assert min(seconds() for _ in range(7)) < MAX_IMPORT_SECONDS


def test_pure_wheel_trains_without_the_kernel(
    dist: Path, new_installation: Callable[..., Installation], tmp_path: Path
) -> None:
    pure = new_installation()
    pure.install(str(wheel_of(dist, "microgpt-lib")), dist=dist)
    program = "import microgpt as m; print(m.fit(['anna', 'bob'], steps=20).engine.name)"
    assert pure.run("python", "-c", program, cwd=tmp_path) == "vectorized\n"
    program = "import microgpt; print(*microgpt.unavailable_engines().items())"
    assert "not built" in pure.run("python", "-c", program, cwd=tmp_path)


def test_sdist_is_installed_without_a_compiler_unless_one_is_required(
    dist: Path, new_installation: Callable[..., Installation], tmp_path: Path
) -> None:
    (sdist,) = dist.glob("microgpt_lib-*.tar.gz")
    made = new_installation()
    no_compiler = {"PATH": str(tmp_path), "CC": ""}
    with pytest.raises(AssertionError, match="no C compiler found"):
        made.install(str(sdist), dist=dist, MICROGPT_REQUIRE_NATIVE="1", **no_compiler)
    made.install(str(sdist), "microgpt-cli", dist=dist, MICROGPT_REQUIRE_NATIVE="0", **no_compiler)
    (tmp_path / "names.txt").write_text("anna\nbob\n")
    arguments = ["train", "--input", "names.txt", "--output", "out", "--steps", "5"]
    done = subprocess.run(
        [made.bin / "microgpt-cli", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\nengine:      vectorized, float32\n" in done.stdout
    (explanation,) = done.stderr.splitlines()
    assert "the native engine is not built" in explanation


@pytest.mark.long
def test_sdist_compiles_where_it_is_installed(
    dist: Path, new_installation: Callable[..., Installation], tmp_path: Path
) -> None:
    (sdist,) = dist.glob("microgpt_lib-*.tar.gz")
    compiled = new_installation()
    compiled.install(str(sdist), dist=dist)
    program = "import microgpt; print(microgpt.unavailable_engines())"
    assert compiled.run("python", "-c", program, cwd=tmp_path) == "{}\n"


@pytest.mark.long
def test_same_files_give_the_same_bytes(release: Path, tmp_path: Path) -> None:
    # An empty cache, so that everything is compiled again; and what a developer may have set.
    variables = {"ZIG_GLOBAL_CACHE_DIR": str(tmp_path / "zig")}
    variables |= {"MICROGPT_CFLAGS": "-march=native", "MICROGPT_PURE": "1"}
    again = build_tree(tmp_path / "dist", **variables)
    assert (again / "SHA256SUMS").read_text() == (release / "SHA256SUMS").read_text()
