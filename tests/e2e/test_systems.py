"""The library's wheels for every system, as far as they can be looked at on this one."""

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.environments import ROOT
from e2e.systems import LINUX, exports_of

MAX_BYTES = 500_000
NEEDED = {"manylinux": {"libc.so.6", "libm.so.6", "libpthread.so.0"}, "musllinux": {"libc.so"}}

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="all systems are built on Linux"),
]


def printed(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_wheel_is_small_and_tells_nothing_of_where_it_was_built(wheel: Path, library: Path) -> None:
    assert wheel.stat().st_size < MAX_BYTES
    content = library.read_bytes()
    for folder in (str(ROOT), "/tmp/", str(Path.home()), sys.prefix, "ziglang"):  # noqa: S108
        assert folder.encode() not in content


def elf(library: Path) -> tuple[set[str], set[str]]:
    """Return what a library exports and what it needs."""
    symbols = printed("readelf", "--dyn-syms", "--wide", library)
    needed = re.findall(r"NEEDED.*\[(.*)\]", printed("readelf", "--dynamic", library))
    return set(re.findall(r"GLOBAL DEFAULT +\d+ (\w+)$", symbols, re.MULTILINE)), set(needed)


def mach(library: Path) -> tuple[set[str], str, str]:
    """Return what a library exports, the oldest macOS that it loads on, and its own name."""
    content = library.read_bytes()
    magic, processor, _, kind, n_commands, *_ = struct.unpack_from("<8I", content)
    assert (magic, processor, kind) == (0xFEEDFACF, 0x0100000C, 6)  # 64 bits, arm64, a library
    names, oldest, name, at = set(), "", "", 32
    for _ in range(n_commands):
        command, size = struct.unpack_from("<2I", content, at)
        if command == 0x2:  # LC_SYMTAB
            symbols, n_symbols, strings, _ = struct.unpack_from("<4I", content, at + 8)
            for i in range(n_symbols):
                start, type_and_scope = struct.unpack_from("<IB", content, symbols + 16 * i)
                if type_and_scope & 0x0F == 0x0F:  # defined in a section, external
                    end = content.index(b"\0", strings + start)
                    names.add(content[strings + start + 1 : end].decode())
        elif command == 0x32:  # LC_BUILD_VERSION
            version = struct.unpack_from("<I", content, at + 12)[0]
            oldest = f"{version >> 16}.{version >> 8 & 0xFF}"
        elif command == 0xD:  # LC_ID_DYLIB
            name = content[at + 24 : at + size].rstrip(b"\0").decode()
        at += size
    return names, oldest, name


def test_library_exports_its_functions_and_needs_the_system_alone(
    system: str, library: Path
) -> None:
    if system in LINUX:
        found, needed = elf(library)
        assert needed <= NEEDED[system.partition("_")[0]]
    elif system == "win_amd64":
        described = printed("objdump", "--private-headers", library)
        found = set(
            re.findall(r"^\t\[ *\d+\](?: \+base\[ *\d+\] +\w+)? (\w+)$", described, re.MULTILINE)
        )
        needed = {name.lower() for name in re.findall(r"DLL Name: (\S+)", described)}
        assert all(
            re.fullmatch(r"kernel32\.dll|api-ms-win-crt-\w+-l1-1-0\.dll", name) for name in needed
        )
    else:
        found, oldest, name = mach(library)
        found -= {"__dso_handle", "_mh_dylib_header"}  # the linker's, in every library
        assert (oldest, name) == ("11.0", "@rpath/libmicrogpt.so")
    assert found == exports_of(system)


@pytest.mark.parametrize(
    "system", [name for name in LINUX if name.startswith("many")], indirect=True
)
def test_wheel_runs_on_the_c_library_of_its_name(system: str, wheel: Path) -> None:
    auditwheel = Path(sys.executable).with_name("auditwheel")
    described = " ".join(printed(auditwheel, "show", wheel).split())
    assert f'consistent with the following platform tag: "{system}"' in described
