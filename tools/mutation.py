"""Mutation testing: change the code in many small ways, each of which should fail a test.

    hatch run mutation:run                     # every module of MODULES: half an hour
    hatch run mutation:run sampling            # one of them, or any other module
    hatch run mutation:run storage.commit
    hatch run mutation:show NAME               # the change of a mutant that survived

Works on a copy, where the library is at the place that mutmut expects. Fails below 90 %.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build/mutation"
MODULES = (
    *("autograd", "model", "sampling", "engines.decoding"),
    *("storage.commit", "storage.model_directory", "storage.weights"),
)
LEAST_KILLED = 0.9
CAUGHT = {"killed", "timeout", "caught by type check", "suspicious", "segfault"}

SETTINGS = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = {mutated}
pytest_add_cli_args_test_selection = {tests}
also_copy = ["src"]

[tool.pytest.ini_options]
# Fault injection starts processes by the hundred: minutes for each mutant.
addopts = ["--import-mode=importlib", "-m", "not long", "-k", "not system_call"]
pythonpath = ["src", "tests"]
markers = ["long"]
filterwarnings = ["error"]
"""


def tests_of(module: str) -> Path:
    """Return the tests of a module: a file of its name, or all tests of its folder."""
    *folders, name = module.split(".")
    folder = Path("tests/lib", *folders)
    file = folder / f"test_{name}.py"
    return file if (ROOT / file).exists() else folder


def prepare(modules: list[str]) -> None:
    """Copy the library and its tests, without built files."""
    shutil.rmtree(COPY, ignore_errors=True)
    built = shutil.ignore_patterns("*.so", "*.sha256", "__pycache__")
    shutil.copytree(ROOT / "libs/microgpt/src", COPY / "src", ignore=built)
    shutil.copytree(ROOT / "tests", COPY / "tests", ignore=built)
    mutated = [f"src/microgpt/{module.replace('.', '/')}.py" for module in modules]
    tests = sorted({str(tests_of(module)) for module in modules})
    settings = SETTINGS.format(mutated=json.dumps(mutated), tests=json.dumps(tests))
    (COPY / "pyproject.toml").write_text(settings, encoding="utf-8", newline="\n")


def mutmut(*arguments: str) -> str:
    """Return the output of a mutmut command."""
    program = Path(sys.executable).with_name("mutmut")
    done = subprocess.run(
        [program, *arguments], cwd=COPY, stdout=subprocess.PIPE, encoding="utf-8", check=False
    )
    return done.stdout


def report() -> bool:
    """Print the share of mutants that tests caught, of each module; return whether it is enough."""
    counts: dict[str, Counter[str]] = {}
    for module, status in re.findall(
        r"microgpt\.([\w.]+)\.\w+: ([\w ]+)", mutmut("results", "--all", "true")
    ):
        counts.setdefault(module, Counter())[status] += 1
    enough = bool(counts)
    for module, statuses in counts.items():
        caught = sum(number for status, number in statuses.items() if status in CAUGHT)
        total = statuses.total()
        enough &= caught >= LEAST_KILLED * total
        print(f"{module:<24}{caught:>6} of {total} caught, {caught / total:.1%}  {dict(statuses)}")
    return enough


def main() -> None:
    """Mutate the named modules, by default those of MODULES."""
    if sys.argv[1:2] == ["show"]:
        print(mutmut("show", *sys.argv[2:]))
        return
    modules = sys.argv[1:] or list(MODULES)
    prepare(modules)
    print(mutmut("run").splitlines()[-1:])
    survivors = mutmut("results")
    print(survivors)
    if not report():
        sys.exit(f"error: fewer than {LEAST_KILLED:.0%} of the mutants were caught")


if __name__ == "__main__":
    main()
