"""The kernel of each system, executed here by harness.c: its numbers are those of NumPy.

What stands in for a processor or a system: qemu-user for ARM, wine for Windows, node for a browser.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from e2e.debian import unpack_packages
from e2e.environments import ROOT, Installation, program
from e2e.systems import BUILD, KERNEL, LINUX, TARGETS, exports_of

HARNESS = Path(__file__).with_name("harness.c")
STRICT = ["-Werror", "-Wconversion", "-Wshadow"]
ZIG = [sys.executable, "-m", "ziglang", "cc", "-target"]
TOLERANCES = {32: 1e-4, 64: 1e-10}  # by bits
CPU_FLAGS = {16: "sse2", 32: "avx2", 64: "avx512dq"}  # by bytes of a vector, as Linux names them
NODE = """
import { readFileSync } from "node:fs";
import { WASI } from "node:wasi";
const wasi = new WASI({ version: "preview1", args: ["harness"] });
const program = await WebAssembly.compile(readFileSync(process.argv[2]));
wasi.start(await WebAssembly.instantiate(program, wasi.getImportObject()));
"""
MODULE = """
import { readFileSync } from "node:fs";
const module = await WebAssembly.compile(readFileSync(process.argv[2]));
const { exports } = await WebAssembly.instantiate(module, {});
exports._initialize();
console.log(JSON.stringify([WebAssembly.Module.imports(module), Object.keys(exports)]));
"""

ENGINE_TESTS = ("decoding", "draws", "engines", "muon", "native", "texts")

Numbers = dict[str, list[float]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux")


def run(*command: str | Path, **environment: str) -> str:
    """Return what a program prints; it must succeed."""
    variables = os.environ | environment
    done = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers_of(output: str) -> Numbers:
    numbers = defaultdict(list)
    for line in output.splitlines():
        name, _, number = line.partition(" ")
        numbers[name].append(float(number))
    return numbers


@pytest.fixture(scope="session")
def numpy_numbers(current: Installation) -> dict[int, Numbers]:
    """What the harness computes, by the bits of a number, according to NumPy."""
    path = str(HARNESS.with_suffix(".py"))
    return {
        bits: numbers_of(current.run("python", path, str(bits), cwd=ROOT)) for bits in TOLERANCES
    }


@pytest.fixture
def check(numpy_numbers: dict[int, Numbers]) -> Callable[[str, int], Numbers]:
    """Compare what a harness has printed with NumPy, and return it."""

    def check(output: str, bits: int) -> Numbers:
        found, expected = numbers_of(output), numpy_numbers[bits]
        assert {name: len(values) for name, values in expected.items()} == {
            name: len(values) for name, values in found.items() if name not in {"bytes", "widest"}
        }
        for name in ("loss", "logit", "draw"):
            assert found[name] == pytest.approx(expected[name], rel=0, abs=TOLERANCES[bits])
        assert found["token"] == expected["token"]
        return found

    return check


@pytest.fixture(params=[16, 32, 64])
def width(request: pytest.FixtureRequest) -> int:
    """Bytes of a vector of x86 that this processor has."""
    if CPU_FLAGS[request.param] not in Path("/proc/cpuinfo").read_text(encoding="utf-8").split():
        pytest.skip(f"this processor has no vectors of {request.param} bytes")
    return int(request.param)


@pytest.fixture(params=[64, pytest.param(32, marks=pytest.mark.long)])
def bits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def compiled(to: Path, compiler: list[str], kind: tuple[int, int], *flags: str) -> Path:
    """Compile the harness for numbers of so many bits and vectors of so many bytes."""
    bits, width = kind
    kind_flags = [f"-DREAL_BITS={bits}", f"-DVECTOR_BYTES={width}", f"-I{KERNEL}"]
    run(*compiler, *BUILD["FLAGS"], *flags, *kind_flags, HARNESS, "-lm", "-o", to)
    return to


def by_zig(to: Path, tag: str, kind: tuple[int, int], *flags: str) -> Path:
    """Compile the harness for a row of TARGETS."""
    target = TARGETS[tag]
    # Where pointers have 32 bits, all sizes of a model become shorter numbers.
    strict = STRICT[:1] if tag.startswith("wasm") else STRICT
    every = [*target.flags, *target.widths[kind[1]], *BUILD["ZIG_FLAGS"], *strict, *flags]
    return compiled(to, [*ZIG, target.zig], kind, *every)


@pytest.fixture(scope="session")
def sizes_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], list[float]]:
    """Return what memory a large model takes on this machine, in bytes."""

    @cache
    def sizes(bits: int, width: int) -> list[float]:
        harness = tmp_path_factory.mktemp("sizes") / "harness"
        flags = BUILD["X86_FLAGS"][width]
        compiled(harness, [program("gcc")], (bits, width), *flags, "-pthread", "-ldl")
        return numbers_of(run(harness))["bytes"]

    return sizes


@pytest.mark.parametrize(
    "compiler", ["gcc", *(pytest.param(name, marks=pytest.mark.long) for name in ("clang", "zig"))]
)
def test_compilers_agree_at_every_width(
    compiler: str, bits: int, width: int, tmp_path: Path, check: Callable[[str, int], Numbers]
) -> None:
    harness, kind = tmp_path / "harness", (bits, width)
    if compiler == "zig":
        by_zig(harness, "musllinux_1_2_x86_64", kind, "-static")
    else:
        flags = [*BUILD["X86_FLAGS"][width], *STRICT, "-pthread", "-ldl"]
        compiled(harness, [program(compiler)], kind, *flags)
    check(run(harness), bits)


@pytest.mark.long
@pytest.mark.parametrize("compiler", ["gcc", "clang", "zig"])
def test_python_tests_of_engines_pass(
    compiler: str,
    dist: Path,
    new_installation: Callable[..., Installation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = new_installation()
    made.install("microgpt-cli", "pytest", "hypothesis", dist=dist)
    (library,) = made.folder.rglob("libmicrogpt.so")
    before, target = library.read_bytes(), None
    if compiler == "zig":
        target = TARGETS["manylinux_2_17_x86_64"]._replace(compiled_by_zig=True)
    else:
        monkeypatch.setenv("CC", program(compiler))
    BUILD["compile_kernel"](KERNEL / "kernel.c", library, [], target)
    assert library.read_bytes() != before
    digest = library.with_suffix(".sha256")
    digest.unlink()  # uv links what it installs: others would change too
    digest.write_text(hashlib.sha256(library.read_bytes()).hexdigest(), encoding="utf-8")
    files = [ROOT / f"tests/lib/engines/test_{name}.py" for name in ENGINE_TESTS]
    options = ["-q", "-c", str(ROOT / "pyproject.toml"), "-k", "not pytorch"]
    printed = run(made.bin / "python", "-m", "pytest", *options, *files)
    assert "passed" in printed
    assert "skipped" not in printed


def test_arm_computes_the_same(
    bits: int, tmp_path: Path, check: Callable[[str, int], Numbers]
) -> None:
    emulator = program("qemu-aarch64", "qemu-aarch64-static")
    harness = by_zig(tmp_path / "harness", "musllinux_1_2_aarch64", (bits, 16), "-static")
    check(run(emulator, harness), bits)


def node(script: str, path: Path, *, is_relaxed: bool) -> str:
    """Return what a script prints of a WebAssembly file."""
    found, flag = program("node"), "--experimental-wasm-relaxed-simd"
    is_needed = is_relaxed and flag in run(found, "--v8-options")  # before Node.js 22
    script_path = path.with_name("script.mjs")
    script_path.write_text(script, encoding="utf-8")
    return run(found, "--no-warnings", *[flag] * is_needed, script_path, path)


WASM = ["wasm32", pytest.param("wasm32_relaxed", marks=pytest.mark.long)]


@pytest.mark.parametrize("tag", WASM)
def test_webassembly_computes_the_same(
    tag: str, bits: int, tmp_path: Path, check: Callable[[str, int], Numbers]
) -> None:
    harness = by_zig(tmp_path / "harness.wasm", tag, (bits, 16))
    check(node(NODE, harness, is_relaxed=tag != "wasm32"), bits)


@pytest.mark.long
@pytest.mark.parametrize("tag", ["wasm32", "wasm32_relaxed"])
def test_webassembly_module_imports_nothing(tag: str, tmp_path: Path) -> None:
    to = tmp_path / "kernel.wasm"
    BUILD["compile_kernel"](KERNEL / "kernel.c", to, [], TARGETS[tag])
    imports, exports = json.loads(node(MODULE, to, is_relaxed=tag != "wasm32"))
    assert imports == []
    assert set(exports) == exports_of(tag) | {"memory", "_initialize", "__stack_pointer"}


# ---------------------------------------------------------------- libraries of wheels


@pytest.fixture(scope="session")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command that runs a program of Windows."""
    command, settings = program("wine"), tmp_path_factory.mktemp("wine")
    variables = {"WINEPREFIX": str(settings), "WINEDEBUG": "-all", "DISPLAY": ""}
    environment = ["env", *(f"{name}={value}" for name, value in variables.items())]
    server = program("wineserver", "/usr/lib/wine/wineserver")
    run(*environment, command, "wineboot", "--init")
    run(*environment, server, "--wait")  # until all settings are written
    yield [*environment, command]
    subprocess.run([*environment, server, "--kill"], check=False)  # it may have ended by itself


@pytest.fixture(scope="session")
def musl(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs a program of musl."""
    root = unpack_packages(tmp_path_factory.mktemp("musl"), "amd64", "musl")
    return [str(root / "lib/ld-musl-x86_64.so.1")]


@pytest.fixture(scope="session")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs a program for ARM, of glibc or musl."""
    emulator = program("qemu-aarch64", "qemu-aarch64-static")
    root = unpack_packages(tmp_path_factory.mktemp("arm64"), "arm64", "libc6", "musl")
    return [emulator, "-L", str(root)]


RUNNERS = {  # fixtures with the command that runs a program of a system, by its tag
    "manylinux_2_17_x86_64": None,
    "manylinux_2_17_aarch64": "aarch64",
    "musllinux_1_2_x86_64": "musl",
    "musllinux_1_2_aarch64": "aarch64",
    "win_amd64": "wine",
}


@pytest.fixture
def runner(system: str, request: pytest.FixtureRequest) -> list[str]:
    if system.startswith("macosx"):
        pytest.skip("nothing on Linux runs programs of macOS")
    name = RUNNERS[system]
    return list(request.getfixturevalue(name)) if name else []


@pytest.mark.long
def test_library_of_a_wheel_computes_the_same(
    system: str,
    library: Path,
    runner: list[str],
    bits: int,
    tmp_path: Path,
    check: Callable[[str, int], Numbers],
    sizes_of: Callable[[int, int], list[float]],
) -> None:
    open_library = ["-ldl", "-dynamic"] if system in LINUX else []
    harness = by_zig(tmp_path / "harness.exe", system, (bits, 16), *open_library)
    for width in TARGETS[system].widths:
        found = check(run(*runner, harness, library, str(width)), bits)
        assert min(found["bytes"]) > 2**31
        assert found["bytes"] == sizes_of(bits, width)


@pytest.mark.long
@pytest.mark.parametrize("system", ["manylinux_2_17_x86_64"], indirect=True)
@pytest.mark.parametrize(("processor", "width"), [("Nehalem", 16), ("Haswell", 32)])
def test_library_takes_what_an_older_processor_has(
    library: Path,
    processor: str,
    width: int,
    bits: int,
    tmp_path: Path,
    check: Callable[[str, int], Numbers],
) -> None:
    emulator = program("qemu-x86_64", "qemu-x86_64-static")
    harness = compiled(
        tmp_path / "harness", [program("gcc")], (bits, 16), *STRICT, "-pthread", "-ldl"
    )
    found = check(run(emulator, "-cpu", processor, harness, library, str(width)), bits)
    assert found["widest"] == [width]
