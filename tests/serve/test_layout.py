"""Imports of the service run one way: main, app, api, serving."""

import ast
from pathlib import Path

import microgpt_serve
import pytest

PACKAGE = Path(microgpt_serve.__file__).parent
MAY_IMPORT = {
    "serving": {"serving"},
    "api": {"api", "serving"},
    "app": {"api", "serving"},
    "main": {"app", "serving"},
    "__main__": {"main"},
    "__init__": set(),
}


@pytest.mark.parametrize("source", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_module_imports_only_what_stands_below_it(source: Path) -> None:
    room = source.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("microgpt_serve"):
            imported = [*(node.module or "").split("."), *(alias.name for alias in node.names)][1]
            assert imported in MAY_IMPORT[room], node.module
