"""The systems that the kernel is built for: rows of TARGETS in hatch_build.py."""

import re
import runpy

from e2e.environments import ROOT

__all__ = ["BUILD", "KERNEL", "LIBRARY", "LINUX", "SYSTEMS", "TARGETS", "exports_of"]

BUILD = runpy.run_path(str(ROOT / "libs/microgpt/hatch_build.py"))
TARGETS = BUILD["TARGETS"]
SYSTEMS = BUILD["SYSTEMS"]
LINUX = [tag for tag in SYSTEMS if "linux" in tag]
ENGINES = ROOT / "libs/microgpt/src/microgpt/engines"
KERNEL = ENGINES / "kernel"
LIBRARY = "microgpt/engines/kernel/libmicrogpt.so"  # in a wheel


def exports_of(tag: str) -> set[str]:
    """Return the functions of a library for a system: those that library.py knows."""
    source = (ENGINES / "library.py").read_text(encoding="utf-8")
    signatures = source.partition("_SIGNATURES")[2].partition("\n}")[0]
    names = re.findall(r'^    "(\w+)": \(', signatures, re.MULTILINE)
    kinds = [f"{bits}_{width}" for bits in (32, 64) for width in TARGETS[tag].widths]
    plain = {"microgpt_abi", "microgpt_constant", "microgpt_vector_bytes"}
    return plain | {f"{name}_{kind}" for name in names for kind in kinds}
