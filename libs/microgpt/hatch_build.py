"""Compile the native engine when the distribution is built or installed.

Without a C compiler the distribution is pure Python and computes with NumPy. Environment variables:
MICROGPT_REQUIRE_NATIVE=1 makes a missing compiler an error, MICROGPT_PURE=1 compiles nothing, CC
names the compiler, MICROGPT_CFLAGS adds flags, and MICROGPT_TARGET names a row of TARGETS: a wheel
for that system, compiled on any other by the package `ziglang`.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNEL = Path("src/microgpt/engines/kernel")
LIBRARY = "libmicrogpt.so"  # on every system: loaders take any name
DIGEST = "libmicrogpt.sha256"

# Not -ffast-math: it changes the treatment of subnormal numbers in the whole process. Not -O3: the
# vectors are written out, so it adds half to the size of the library and nothing to its speed.
FLAGS = ["-std=gnu11", "-O2", "-fvisibility=hidden", "-ffp-contract=fast"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
FLAGS += ["-fno-asynchronous-unwind-tables"]  # smaller wheels; nothing unwinds through C
X86_FLAGS = {  # by bytes of a vector
    16: [],  # any processor
    32: ["-mavx2", "-mfma"],
    64: ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"],
}
OTHER_FLAGS: dict[int, list[str]] = {16: []}
# Clang unrolls more loops than those that ask for it: a quarter of the size, no speed.
ZIG_FLAGS = ["-fno-unroll-loops"]
SHARED = ["-shared", "-s", "-pthread"]
WASM = ["-msimd128", "-DMICROGPT_THREADS=0"]
MODULE = ["-mexec-model=reactor", "-s", "-Wl,--export-dynamic"]


class Target(NamedTuple):
    """A system that the kernel is compiled for on another one."""

    zig: str  # its name, with the oldest version of its C library or of the system
    widths: dict[int, list[str]]  # flags by bytes of a vector
    flags: list[str] = ["-fPIC", "-pthread"]  # noqa: RUF012 - never changed
    link: list[str] = SHARED
    compiled_by_zig: bool = True  # where it is not the system that compiles


_MAC = [*SHARED, f"-Wl,-install_name,@rpath/{LIBRARY}"]

TARGETS = {  # by the platform tag of the wheel; WebAssembly has none
    # gcc's code is faster by 4 % where vectors have 16 or 32 bytes and the model is 128 wide
    "manylinux_2_17_x86_64": Target("x86_64-linux-gnu.2.17", X86_FLAGS, compiled_by_zig=False),
    "manylinux_2_17_aarch64": Target("aarch64-linux-gnu.2.17", OTHER_FLAGS),
    "musllinux_1_2_x86_64": Target("x86_64-linux-musl", X86_FLAGS),
    "musllinux_1_2_aarch64": Target("aarch64-linux-musl", OTHER_FLAGS),
    "macosx_11_0_arm64": Target("aarch64-macos.11.0", OTHER_FLAGS, link=_MAC),
    "win_amd64": Target("x86_64-windows-gnu", X86_FLAGS, ["-pthread"]),
    "wasm32": Target("wasm32-wasi", OTHER_FLAGS, WASM, MODULE),
    "wasm32_relaxed": Target("wasm32-wasi", OTHER_FLAGS, [*WASM, "-mrelaxed-simd"], MODULE),
}
SYSTEMS = [tag for tag in TARGETS if not tag.startswith("wasm")]  # rows that have a wheel


class CompileError(Exception):
    """The native engine cannot be built here."""


def _words_of(variable: str) -> list[str]:
    value = os.environ.get(variable, "")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise CompileError(f"{variable} is {value!r}: {error}") from error


def _compiler() -> list[str]:
    for command in (_words_of("CC"), ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    raise CompileError("no C compiler found (tried $CC, cc, gcc and clang)")


def _run(command: list[str]) -> None:
    result = subprocess.run(  # noqa: S603
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if result.returncode:
        raise CompileError(f"{shlex.join(command)} failed:\n{result.stderr[-4000:]}")


def _apple() -> tuple[str, str]:
    """Return the oldest macOS that a library compiled here runs on, and its processor."""
    # One processor, also where Python is made for two (universal2) and names a macOS that only
    # knew the other.
    processor, oldest = platform.machine(), sysconfig.get_platform().split("-")[1]
    if processor == "arm64" and oldest.startswith("10."):
        oldest = "11.0"
    return (oldest if "." in oldest else f"{oldest}.0"), processor


def _here() -> Target:
    """Return the system that compiles, as a target of its own compiler."""
    if sys.platform == "win32":  # stacks are aligned to 16 bytes there: gcc.gnu.org/PR54412
        raise CompileError(
            "gcc makes libraries that end Windows programs: install a wheel of the library, "
            "or build one with MICROGPT_TARGET=win_amd64 and the package ziglang"
        )
    is_x86 = platform.machine().lower() in {"x86_64", "amd64"}
    flags, link = ["-fPIC", "-pthread"], SHARED
    if sys.platform == "darwin":
        oldest, processor = _apple()
        both = ["-arch", processor, f"-mmacosx-version-min={oldest}"]
        flags, link = flags + both, link + both
    return Target("", X86_FLAGS if is_x86 else OTHER_FLAGS, flags, link)


def _tag_here() -> str:
    """Return the platform tag of a wheel for the system that compiles."""
    name = sysconfig.get_platform()
    if name.startswith("macosx-"):
        name = "-".join(["macosx", *_apple()])
    return name.replace("-", "_").replace(".", "_")


def target_of(tag: str) -> Target:
    """Return a row of TARGETS that has a wheel."""
    if tag not in SYSTEMS:
        raise CompileError(f"MICROGPT_TARGET is {tag!r}, expected one of {', '.join(SYSTEMS)}")
    return TARGETS[tag]


def _compilers(target: Target) -> tuple[list[str], list[str]]:
    """Return the commands that compile and that link for a target."""
    if not target.zig:
        return _compiler(), _compiler()
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", target.zig]
    processor, system = target.zig.split("-")[:2]
    is_this = (platform.machine(), sys.platform) == (processor, system)
    if is_this and not target.compiled_by_zig:
        return _compiler(), zig
    return zig + ZIG_FLAGS, zig


def compile_kernel(
    source: Path, to: Path, extra_flags: list[str], target: Target | None = None
) -> None:
    """Compile `source` for both types of numbers and every width of vectors, and link it.

    Without a target, for the system that compiles.
    """
    target = target or _here()
    compiler, linker = _compilers(target)
    flags = [*FLAGS, *target.flags, *extra_flags]
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(2) as pool:
        objects, jobs = [], []
        for bits in (32, 64):
            for width, width_flags in target.widths.items():
                objects.append(f"{directory}/kernel_{bits}_{width}.o")
                kind = [f"-DREAL_BITS={bits}", f"-DVECTOR_BYTES={width}"]
                what = ["-c", str(source), "-o", objects[-1]]
                jobs.append([*compiler, *flags, *width_flags, *kind, *what])
        list(pool.map(_run, jobs))
        built = f"{directory}/{LIBRARY}"
        _run([*linker, *target.link, *extra_flags, *objects, "-lm", "-o", built])
        new = to.with_suffix(f".{os.getpid()}")  # several builds may run at once
        shutil.copy(built, new)
    new.replace(to)


class KernelHook(BuildHookInterface):
    """Add the shared library to wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add the library to the files of the wheel."""
        folder = kernel = Path(self.root) / KERNEL
        tag = os.environ.get("MICROGPT_TARGET", "")
        # Among the sources is what this system runs, for editable installs.
        if version == "standard" and (tag or not os.access(kernel, os.W_OK)):
            self._elsewhere = tempfile.TemporaryDirectory()  # until the wheel has been written
            folder = Path(self._elsewhere.name)
        library, digest = folder / LIBRARY, folder / DIGEST
        if os.environ.get("MICROGPT_PURE") == "1":
            if version == "editable":
                library.unlink(missing_ok=True)
            return
        try:
            target = target_of(tag) if tag else None
            compile_kernel(kernel / "kernel.c", library, _words_of("MICROGPT_CFLAGS"), target)
            content = hashlib.sha256(library.read_bytes()).hexdigest() + "\n"
            digest.write_bytes(content.encode())  # the same on every system
        except (CompileError, OSError) as error:
            if tag or os.environ.get("MICROGPT_REQUIRE_NATIVE") == "1":
                raise
            with suppress(OSError):
                library.unlink()
            self.app.display_warning(f"without the native engine: {error}")
            return
        for built in (library, digest):
            if folder == kernel:
                build_data["artifacts"].append(f"/{KERNEL / built.name}")
            else:
                build_data["force_include"][str(built)] = str(
                    KERNEL.relative_to("src") / built.name
                )
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag or _tag_here()}"
