"""The rules of the layout: what is public, who may import whom, what the library never does."""

import ast
import inspect
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import microgpt
import pytest
from microgpt import TrainConfig
from microgpt.engines.base import Engine
from microgpt.parameters import Parameters
from microgpt.version import VERSION
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "libs/microgpt"
APPLICATIONS = [ROOT / "apps/microgpt_cli", ROOT / "apis/microgpt_serve"]

OWN = {"self", "cls"}  # parameters that callers do not give
MAX_WING_LINES = 850
MAX_MODULE_LINES, MAX_BODY_LINES = 450, 50
OF_APPLICATIONS = {"hypercorn", "microgpt_cli", "microgpt_serve", "rich", "starlette", "typer"}

# The rooms of the library in the order of their imports: each imports only those before it.
WING = ("autograd", "data", "model", "train", "sampling")  # the algorithm, in plain Python
ROOMS = (
    *("version", "errors", "checks", *WING, "parameters", "notebook", "drawing", "history"),
    *("corpus", "storage", "engines", "inference", "training"),
)


def project_of(distribution: Path) -> dict[str, Any]:
    content = tomllib.loads((distribution / "pyproject.toml").read_text())
    project: dict[str, Any] = content["project"]
    return project


def sources_of(distribution: Path) -> list[Path]:
    sources = sorted((distribution / "src").rglob("*.py"))
    assert sources
    return sources


def nodes_of(source: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))


def imports_of(source: Path) -> Iterator[tuple[str, str | None]]:
    """Yield (module, name) of `from module import name`, and (module, None) of `import module`."""
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno} imports relatively"
            yield from ((node.module or "", alias.name) for alias in node.names)


def outsiders(modules: set[str], own: str) -> set[str]:
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {own}


def module_of(source: Path) -> str:
    parts = source.relative_to(LIBRARY / "src/microgpt").with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def room_of(source: Path) -> str:
    return module_of(source).partition(".")[0]


library_sources = pytest.mark.parametrize(
    "source",
    sources_of(LIBRARY),
    ids=lambda path: str(path.relative_to(LIBRARY / "src/microgpt")),
)
application_sources = pytest.mark.parametrize(
    "source",
    [source for application in APPLICATIONS for source in sources_of(application)],
    ids=lambda path: "/".join(path.parts[-2:]),
)


# ---------------------------------------------------------------- the public surface


def test_public_names_are_sorted_and_each_is_listed_once() -> None:
    def constants_classes_functions(name: str) -> tuple[int, str]:  # as ruff sorts `__all__`
        kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
        return kind, name

    assert microgpt.__all__ == sorted(set(microgpt.__all__), key=constants_classes_functions)


def test_what_is_imported_for_users_is_exactly_what_is_listed() -> None:
    imported = {name for _, name in imports_of(LIBRARY / "src/microgpt/__init__.py")}
    assert imported == set(microgpt.__all__)


@pytest.mark.parametrize("name", microgpt.__all__)
def test_public_name_exists_and_is_described(name: str) -> None:
    public = getattr(microgpt, name)
    if inspect.isroutine(public):
        assert public.__doc__
    if inspect.isclass(public) and public.__module__.startswith("microgpt."):
        methods = [
            member
            for attribute, member in vars(public).items()
            if not attribute.startswith("_")
            and hasattr(member, "__get__")
            and not inspect.ismemberdescriptor(member)  # a slot
        ]
        for described in (public, *methods):
            assert described.__doc__, described
            # A dataclass without a docstring is given its signature for one.
            assert not described.__doc__.startswith(f"{name}("), described


# ---------------------------------------------------------------- who imports whom


def modules_imported_by(source: Path) -> Iterator[str]:
    """Yield the modules of the library that a source imports, without the package's name."""
    for module, name in imports_of(source):
        package, _, inner = module.partition(".")
        if package == "microgpt":
            is_module = (LIBRARY / "src" / module.replace(".", "/") / f"{name}.py").exists()
            yield ".".join(filter(None, (inner, name if is_module else None))) or "__init__"


@library_sources
def test_library_module_imports_only_rooms_before_its_own(source: Path) -> None:
    room = room_of(source)
    if room in {"__init__", "__main__"}:
        return
    rooms = {module.partition(".")[0] for module in modules_imported_by(source)}
    assert rooms <= {*ROOMS[: ROOMS.index(room) + 1]}


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {module_of(source): set(modules_imported_by(source)) for source in sources_of(LIBRARY)}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("name", WING)
def test_algorithm_needs_only_the_standard_library(name: str) -> None:
    source = LIBRARY / f"src/microgpt/{name}.py"
    assert not outsiders({module for module, _ in imports_of(source)}, own="microgpt")
    rooms = {module.partition(".")[0] for module in modules_imported_by(source)}
    assert rooms <= {"errors", "checks", *WING}


def test_algorithm_is_read_in_one_sitting() -> None:
    sources = [LIBRARY / f"src/microgpt/{name}.py" for name in WING]
    assert sum(len(source.read_text().splitlines()) for source in sources) <= MAX_WING_LINES


def test_engines_do_not_know_each_other() -> None:
    engines = {f"engines.{name}" for name in ("scalar", "vectorized", "native")}
    for source in sources_of(LIBRARY):
        if module_of(source) in engines:
            assert engines.isdisjoint(modules_imported_by(source))


@application_sources
def test_application_uses_only_public_names_of_the_library(source: Path) -> None:
    for module, name in imports_of(source):
        assert not module.startswith("microgpt."), f"{module} is a module of the library"
        if module == "microgpt":
            assert name is None or name in microgpt.__all__
    used = {
        node.attr
        for node in nodes_of(source)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "microgpt"
    }
    assert used <= set(microgpt.__all__)


@pytest.mark.parametrize("distribution", [LIBRARY, *APPLICATIONS], ids=lambda path: path.name)
def test_distribution_imports_only_what_it_depends_on(distribution: Path) -> None:
    project = project_of(distribution)
    optional = project.get("optional-dependencies", {}).values()
    requirements = map(Requirement, chain(project["dependencies"], *optional))
    declared = {
        requirement.name.removesuffix("-lib").replace("-", "_") for requirement in requirements
    }
    modules = {module for source in sources_of(distribution) for module, _ in imports_of(source)}
    assert outsiders(modules, own=next((distribution / "src").iterdir()).name) <= declared


# ---------------------------------------------------------------- what the library never does


@library_sources
def test_library_leaves_the_process_alone(source: Path) -> None:
    if source.name == "__main__.py":  # a program
        return
    modules = {module.partition(".")[0] for module, _ in imports_of(source)}
    assert modules.isdisjoint({"logging", "warnings", *OF_APPLICATIONS})
    names = {node.id for node in nodes_of(source) if isinstance(node, ast.Name)}
    assert names.isdisjoint({"print", "input"})
    dotted = {
        f"{node.value.id}.{node.attr}"
        for node in nodes_of(source)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    } | {f"{module}.{name}" for module, name in imports_of(source) if name}
    assert dotted.isdisjoint({"os.environ", "os.getenv", "sys.stdout", "sys.stderr", "np.random"})
    # The module's own functions share one hidden generator; a generator is passed instead.
    from_random = {name for name in dotted if name.startswith("random.")}
    assert from_random <= {"random.Random"}


USES_THE_LIBRARY = """
import logging, os, random, sys
import numpy as np
before = set(sys.modules), random.getstate(), np.random.get_state()[1].tolist()
import microgpt
model = microgpt.fit(["anna", "bob"], steps=3)
model.generate(2)
modules, state, numpy_state = before
assert random.getstate() == state, "global random"
assert np.random.get_state()[1].tolist() == numpy_state, "global numpy random"
assert not logging.getLogger().handlers, "logging"
os.write(1, " ".join(set(sys.modules) - modules).encode())
"""


def test_library_in_use_says_nothing_and_loads_little() -> None:
    command = [sys.executable, "-W", "error", "-c", USES_THE_LIBRARY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    loaded = set(done.stdout.split())
    assert "microgpt.inference.language_model" in loaded
    assert outsiders(loaded, own="microgpt").isdisjoint(OF_APPLICATIONS)


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize("distribution", [LIBRARY, *APPLICATIONS], ids=lambda path: path.name)
def test_installed_version_is_the_one_in_the_project_file(distribution: Path) -> None:
    project = project_of(distribution)
    assert version(project["name"]) == project["version"]


def test_library_knows_its_own_version() -> None:
    assert version("microgpt-lib") == VERSION


@pytest.mark.parametrize("application", APPLICATIONS, ids=lambda path: path.name)
def test_application_accepts_this_version_of_the_library_and_no_next_minor(
    application: Path,
) -> None:
    requirements = map(Requirement, project_of(application)["dependencies"])
    (wanted,) = (requirement for requirement in requirements if requirement.name == "microgpt-lib")
    installed = project_of(LIBRARY)["version"]
    major, minor, *_ = map(int, installed.split("."))
    assert wanted.specifier.contains(installed)
    assert wanted.specifier.contains(f"{major}.{minor}.99")
    assert not wanted.specifier.contains(f"{major}.{minor + 1}.0")


# ---------------------------------------------------------------- docstrings


def described_functions() -> list[Any]:
    """Return the public functions, and the public methods of public classes."""
    functions = []
    for name in microgpt.__all__:
        public = getattr(microgpt, name)
        members = vars(public).values() if inspect.isclass(public) else [public]
        plain = (getattr(each, "__func__", each) for each in members)  # of class methods
        functions += [each for each in plain if inspect.isfunction(each)]
    return [each for each in functions if not each.__name__.startswith("_")]


def described_classes() -> list[Any]:
    """Return the public classes that users make, or are given, with named parts."""
    public = (getattr(microgpt, name) for name in microgpt.__all__)
    return [
        each
        for each in public
        if inspect.isclass(each)
        and each.__module__.startswith("microgpt.")
        and not issubclass(each, Exception)
    ]


def test_functions_that_are_checked_include_methods_of_classes_and_objects() -> None:
    names = {function.__qualname__ for function in described_functions()}
    assert {"fit", "Value.exp", "Dataset.from_documents"} <= names


@pytest.mark.parametrize(
    "public", [*described_functions(), *described_classes()], ids=lambda each: each.__qualname__
)
def test_docstring_describes_every_parameter_and_no_other(public: Any) -> None:
    section = re.search(r"^Args:\n((?:    .*\n?|\n)*)", inspect.getdoc(public) or "", re.MULTILINE)
    described = re.findall(r"^    \*{0,2}(\w+): ", section[1], re.MULTILINE) if section else []
    parameters = [name for name in inspect.signature(public).parameters if name not in OWN]
    schema = set(TrainConfig.__struct_fields__) if public in {TrainConfig, microgpt.fit} else set()
    assert described == [name for name in parameters if name not in schema]


@pytest.mark.parametrize("function", described_functions(), ids=lambda each: each.__qualname__)
def test_docstring_says_what_is_returned(function: Any) -> None:
    if inspect.signature(function).return_annotation not in {None, "None"}:
        summary = function.__doc__.partition("\n")[0]
        assert re.search(r"\b([Rr]eturn|[Yy]ield)\b", summary) or "Returns:" in function.__doc__


@pytest.mark.parametrize("function", described_functions(), ids=lambda each: each.__qualname__)
def test_docstring_names_every_error_raised(function: Any) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = {
        node.exc.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
    }
    assert all(error in function.__doc__ for error in raised), raised


@pytest.mark.parametrize("room", ["libs", "apps", "apis", "tools"])
def test_text_files_do_not_depend_on_the_system(room: str) -> None:
    """Windows has an encoding and line ends of its own; ruff does not recognise every file."""
    needed = {"write_text": {"encoding", "newline"}, "read_text": {"encoding"}}
    for source in (ROOT / room).rglob("*.py"):
        content = source.read_text(encoding="utf-8")
        assert "text=True" not in content, f"{source}: give an encoding"
        for node in ast.walk(ast.parse(content)) if "_text(" in content else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                given = {word.arg for word in node.keywords}
                assert needed.get(node.func.attr, set()) <= given, f"{source}: {node.lineno}"


@pytest.mark.parametrize("function", described_functions(), ids=lambda each: each.__qualname__)
def test_docstring_tells_shapes_of_arrays(function: Any) -> None:
    if "Array" in str(inspect.signature(function).return_annotation):
        assert "shape" in function.__doc__


def test_actions_of_workflows_are_pinned_by_hash() -> None:
    workflows = list((ROOT / ".github/workflows").glob("*.yml"))
    assert workflows
    for workflow in workflows:
        for used in re.findall(r"uses: (\S+)", workflow.read_text()):
            assert re.fullmatch(r"[\w/.-]+@[0-9a-f]{40}", used), used


# ---------------------------------------------------------------- sizes and names


all_sources = pytest.mark.parametrize(
    "source",
    [
        *(source for each in (LIBRARY, *APPLICATIONS) for source in sources_of(each)),
        *sorted((ROOT / "tools").rglob("*.py")),
    ],
    ids=lambda path: "/".join(path.parts[-3:]),
)


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without signature and docstring, which may list flags."""
    has_docstring = ast.get_docstring(function) is not None
    body = function.body[has_docstring:] or function.body
    return (function.end_lineno or 0) - body[0].lineno + 1


@all_sources
def test_modules_and_functions_are_short(source: Path) -> None:
    assert len(source.read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES
    functions = (
        node
        for node in nodes_of(source)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    long = {each.name: body_lines(each) for each in functions if body_lines(each) > MAX_BODY_LINES}
    assert not long


@library_sources
def test_documentation_names_attributes_that_exist(source: Path) -> None:
    for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)`", source.read_text(encoding="utf-8")):
        found = Engine if owner == "Engine" else Parameters if owner == "Parameters" else None
        kind = found or getattr(microgpt, owner)
        assert hasattr(kind, name) or f"self.{name} = " in inspect.getsource(kind), (owner, name)
