"""Describe the public names of a package as Python text, and compare two descriptions.

A description holds what callers rely on: names, parameters with kind and default, methods,
attributes and public base classes. It omits types and modules, which may change.
"""

import ast
import inspect
import textwrap
from inspect import Parameter
from pathlib import Path
from types import ModuleType
from typing import Any

import griffe

# Special names that callers do not use; a class's signature shows its constructor.
HIDDEN = {"__init__", "__new__", "__post_init__", "__reduce__", "__slots__"}


def describe(package: ModuleType) -> str:
    """Return the description of the names in a package's `__all__`."""
    public = {name: getattr(package, name) for name in package.__all__}
    return "\n".join(describe_name(package, name, value) for name, value in public.items())


def describe_name(package: ModuleType, name: str, value: Any) -> str:
    """Return the lines that describe one public name."""
    if inspect.isclass(value):
        return describe_class(package, name, value)
    return describe_function(name, value) if inspect.isroutine(value) else f"{name}: ...\n"


def describe_function(name: str, function: Any, *leading: Parameter) -> str:
    """Return a function's name and parameters, without types."""
    signature = inspect.signature(function)
    untyped = [
        each.replace(annotation=each.empty, default=literal_default(each))
        for each in [*leading, *signature.parameters.values()]
    ]
    parameters = signature.replace(parameters=untyped, return_annotation=signature.empty)
    return textwrap.fill(f"def {name}{parameters}: ...", 92, subsequent_indent="    " * 2) + "\n"


class Code(str):
    """Text that a signature prints without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def literal_default(parameter: Parameter) -> Any:
    """Return a parameter's default as a literal; an ellipsis for an object, which has none."""
    if parameter.default is parameter.empty:
        return parameter.empty
    text = repr(parameter.default)
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return Code("...")
    return Code(text)


def describe_class(package: ModuleType, name: str, described: type) -> str:
    """Return a class's public bases, constructor, methods and attributes, inherited ones too."""
    bases = [base.__name__ for base in described.__mro__[1:] if is_public(package, base)]
    own = [base for base in described.__mro__ if base.__module__.startswith(package.__name__)]
    lines = []
    is_struct = hasattr(described, "__struct_fields__")  # has no constructor of its own
    if is_struct or any({"__init__", "__new__"} & vars(base).keys() for base in own):
        itself = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
        lines.append(describe_function("__init__", described, itself))
    for member in sorted({member for base in own for member in members_of(base)}):
        found = inspect.getattr_static(described, member, None)
        if isinstance(found, classmethod | staticmethod):
            lines.append(f"@{type(found).__name__}\n")
            found = found.__func__
        is_method = inspect.isfunction(found)
        lines.append(describe_function(member, found) if is_method else f"{member}: ...\n")
    title = f"{name}({', '.join(bases)})" if bases else name
    return f"class {title}:\n" + textwrap.indent("".join(lines) or "...\n", "    ")


def is_public(package: ModuleType, base: type) -> bool:
    """Return whether callers may rely on a base class."""
    listed = base.__name__ in package.__all__ or base.__module__ in {"builtins", "collections.abc"}
    return listed and base not in {BaseException, object}


def members_of(described: type) -> set[str]:
    """Return the public names that a class's source defines, in its body or on `self`."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(described))).body
    assert isinstance(tree, ast.ClassDef)
    names = set()
    for statement in tree.body:
        match statement:
            case (
                ast.FunctionDef(name=name)
                | ast.AnnAssign(target=ast.Name(id=name))
                | ast.Assign(targets=[ast.Name(id=name)])
            ):
                names.add(name)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                names.add(name)
    return {name for name in names - HIDDEN if not name.startswith("_") or name.endswith("__")}


def breaking_changes(old: str, new: str) -> list[str]:
    """Return what callers of the names in one description miss in another, one line each."""
    before, now = (griffe.visit("microgpt", Path("microgpt.pyi"), text) for text in (old, new))
    changes = [
        change.explain(griffe.ExplanationStyle.MARKDOWN)
        for change in griffe.find_breaking_changes(before, now)
        if change.kind is not griffe.BreakageKind.CLASS_REMOVED_BASE  # it only counts them
    ]
    for name in sorted(before.classes.keys() & now.classes.keys()):
        lost = {*map(str, before[name].bases)} - {*map(str, now[name].bases)}
        changes += [f"- `{name}`: *Base class was removed*: `{base}`" for base in lost]
    return changes
