"""Building the library where compilers, variables or folders are not as they should be."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from kernel_builds import KERNEL, hatch_build

ROOT = Path(__file__).parents[2]
LIBRARY = "microgpt/engines/kernel/libmicrogpt.so"
BUILD = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d"]
QUICK = "-O0 -Dalways_inline=unused"
VARIABLES = {"MICROGPT_CFLAGS": QUICK, "MICROGPT_REQUIRE_NATIVE": "0"}

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the library's folder, as it is before it is built."""
    ignore = shutil.ignore_patterns("libmicrogpt.*", "__pycache__")
    return Path(shutil.copytree(ROOT / "libs/microgpt", tmp_path / "tree", ignore=ignore))


def build(tree: Path, *before: str, **variables: str) -> tuple[set[str], str]:
    """Return the names of the wheel's files, and what the build said."""
    to = tree.parent / "wheels"
    done = subprocess.run(
        [*before, *BUILD, str(to)],
        cwd=tree,
        env=os.environ | VARIABLES | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = to.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist()), done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CC": "gcc '"}, """CC is "gcc '": No closing quotation"""),
        ({"CC": "false"}, "false -std=gnu11 .* failed"),
        ({"CC": "", "PATH": "/nowhere"}, "no C compiler found"),
        ({"MICROGPT_CFLAGS": '"'}, "MICROGPT_CFLAGS is '\"': No closing quotation"),
    ],
    ids=["quote", "fails", "none", "flags"],
)
def test_what_cannot_compile_is_told_and_leaves_a_wheel_without_the_kernel(
    tree: Path, variables: dict[str, str], message: str
) -> None:
    names, said = build(tree, **variables)
    assert re.search(f"without the native engine: {message}", said)
    assert LIBRARY not in names


def test_folder_that_is_read_only_is_compiled_elsewhere(tree: Path) -> None:
    # A mount, since permissions do not keep root from writing.
    bind = f"mount --bind {tree} {tree} && mount -o remount,bind,ro {tree} && cd {tree}"
    before = ["unshare", "-rm", "sh", "-c", f'{bind} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*before, "true"], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    names, said = build(tree, *before)
    assert "without the native engine" not in said
    assert {LIBRARY, LIBRARY.replace(".so", ".sha256")} <= names
    assert not [*tree.rglob("libmicrogpt.*")]


@pytest.mark.parametrize(
    ("variables", "content"),
    [({"MICROGPT_TARGET": "win_amd64"}, ["of Windows"]), ({"MICROGPT_PURE": "1"}, [])],
    ids=["windows", "pure"],
)
def test_wheel_for_others_leaves_the_library_of_this_system_to_it(
    tree: Path, tmp_path: Path, variables: dict[str, str], content: list[str]
) -> None:
    of_this_system = tree / "src" / LIBRARY
    for suffix in (".so", ".sha256"):
        of_this_system.with_suffix(suffix).write_text("of this system")
    zig = tmp_path / "ziglang/__main__.py"
    zig.parent.mkdir()
    zig.write_text(
        "import pathlib, sys\n"
        "pathlib.Path(sys.argv[sys.argv.index('-o') + 1]).write_text('of Windows')"
    )
    build(tree, PYTHONPATH=str(tmp_path), **variables)
    (wheel,) = (zipfile.ZipFile(path) for path in (tmp_path / "wheels").glob("*.whl"))
    kernels = [info for info in wheel.infolist() if info.filename.endswith(".so")]
    assert [wheel.read(info).decode() for info in kernels] == content
    assert of_this_system.read_text() == "of this system"


@pytest.mark.parametrize(
    ("platform_of_python", "processor", "expected"),
    [
        ("macosx-10.9-universal2", "arm64", ("11.0", "arm64")),
        ("macosx-10.13-universal2", "x86_64", ("10.13", "x86_64")),
        ("macosx-11.0-arm64", "arm64", ("11.0", "arm64")),
        ("macosx-14-arm64", "arm64", ("14.0", "arm64")),
    ],
)
def test_wheel_of_a_mac_is_for_the_processor_that_compiles(
    platform_of_python: str,
    processor: str,
    expected: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = hatch_build()
    monkeypatch.setattr(module.sysconfig, "get_platform", lambda: platform_of_python)
    monkeypatch.setattr(module.platform, "machine", lambda: processor)
    monkeypatch.setattr(module.sys, "platform", "darwin")
    oldest, _ = expected
    assert module._apple() == expected
    assert module._tag_here() == f"macosx_{oldest.replace('.', '_')}_{processor}"
    for flags in (module._here().flags, module._here().link):
        assert flags[-3:] == ["-arch", processor, f"-mmacosx-version-min={oldest}"]


def test_no_compiler_of_windows_is_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = hatch_build()
    monkeypatch.setattr(module.sys, "platform", "win32")
    with pytest.raises(module.CompileError, match="install a wheel of the library"):
        module.compile_kernel(KERNEL / "kernel.c", tmp_path / "library", [])


def test_target_that_is_not_known_or_cannot_be_compiled_for_is_an_error(
    tree: Path, tmp_path: Path
) -> None:
    module = hatch_build()
    for tag in ("win32", "wasm32"):
        expected = f"'{tag}', expected one of manylinux_2_17_x86_64, .*, win_amd64$"
        with pytest.raises(module.CompileError, match=expected):
            module.target_of(tag)
    if importlib.util.find_spec("ziglang") is None:
        with pytest.raises(module.CompileError, match="No module named ziglang"):
            module.compile_kernel(
                KERNEL / "kernel.c", tmp_path / "library", [], module.target_of("win_amd64")
            )
    variables = os.environ | VARIABLES | {"MICROGPT_TARGET": "win32"}
    command = [*BUILD, str(tmp_path)]
    done = subprocess.run(
        command, cwd=tree, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0, "a wheel that lacks the kernel of its system"
    assert "MICROGPT_TARGET is 'win32'" in done.stderr
