"""Compile the native engine when the distribution is built or installed.

Without a C compiler the distribution is pure Python and computes with NumPy. Environment variables:
MICROGPT_REQUIRE_NATIVE=1 makes a missing compiler an error, MICROGPT_PURE=1 compiles nothing, CC
names the compiler, and MICROGPT_CFLAGS adds flags.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNEL = Path("src/microgpt/engines/kernel")
LIBRARY = "libmicrogpt.so"
DIGEST = "libmicrogpt.sha256"

# Not -ffast-math: it changes the treatment of subnormal numbers in the whole process. Not -O3: the
# vectors are written out, so it adds half to the size of the library and nothing to its speed.
FLAGS = ["-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-pthread", "-Wall", "-Wextra"]
FLAGS += ["-fno-asynchronous-unwind-tables"]  # smaller wheels; nothing unwinds through C
X86_FLAGS = {  # by bytes of a vector
    16: [],  # any processor
    32: ["-mavx2", "-mfma"],
    64: ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"],
}


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
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode:
        raise CompileError(f"{shlex.join(command)} failed:\n{result.stderr[-4000:]}")


def compile_kernel(source: Path, to: Path, extra_flags: list[str]) -> None:
    """Compile `source` for both types of numbers and every width of vectors, and link it."""
    compiler = _compiler()
    is_x86 = platform.machine().lower() in {"x86_64", "amd64"}
    widths = X86_FLAGS if is_x86 else {16: []}
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(2) as pool:
        objects, jobs = [], []
        for bits in (32, 64):
            for width, flags in widths.items():
                objects.append(f"{directory}/kernel_{bits}_{width}.o")
                kind = [f"-DREAL_BITS={bits}", f"-DVECTOR_BYTES={width}"]
                what = ["-c", str(source), "-o", objects[-1]]
                jobs.append(compiler + FLAGS + flags + extra_flags + kind + what)
        list(pool.map(_run, jobs))
        built = f"{directory}/{LIBRARY}"
        _run([*compiler, "-shared", "-s", "-pthread", *extra_flags, *objects, "-lm", "-o", built])
        new = to.with_suffix(f".{os.getpid()}")  # several builds may run at once
        shutil.copy(built, new)
    new.replace(to)


class KernelHook(BuildHookInterface):
    """Add the shared library to wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add the library to the files of the wheel."""
        folder = kernel = Path(self.root) / KERNEL
        if version == "standard" and not os.access(kernel, os.W_OK):
            self._elsewhere = tempfile.TemporaryDirectory()  # until the wheel has been written
            folder = Path(self._elsewhere.name)
        library, digest = folder / LIBRARY, folder / DIGEST
        if os.environ.get("MICROGPT_PURE") == "1":
            library.unlink(missing_ok=True)
            return
        try:
            compile_kernel(kernel / "kernel.c", library, _words_of("MICROGPT_CFLAGS"))
            digest.write_text(hashlib.sha256(library.read_bytes()).hexdigest() + "\n")
        except (CompileError, OSError) as error:
            if os.environ.get("MICROGPT_REQUIRE_NATIVE") == "1":
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
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"
