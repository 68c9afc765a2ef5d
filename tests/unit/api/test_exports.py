"""The public surface is whole: what a signature, a shape's field or a docstring names can be imported from
`ramet` and `ramet.sync`, and nothing else is shown there.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from functools import cache
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import msgspec
import pytest

import ramet
import ramet.sync
from ramet import errors
from tests.unit.api.surface import defining_module

_SURFACES = pytest.mark.parametrize("module", [ramet, ramet.sync], ids=["ramet", "ramet.sync"])
_MADE_BY_USERS = {"Host"}
"""Of the other handles and of the shapes the constructor isn't for users."""
_NOT_IN_SYNC = {"__version__", "sync", "ForkCall"}
_NO_NAMES = {"RAMET_HOME", "SIGTERM", "PATH", "PATH:SIZE", "SIZE:PATH", "SOURCE/NAME"}


class Part(NamedTuple):
    """A class or a function of the surface, or a class that one inherits from, where it is defined."""

    thing: Any
    module: ModuleType
    definition: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def definitions(module: ModuleType) -> dict[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The classes and functions at the top of a module."""
    return {
        node.name: node
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }


@cache
def parts(surface: ModuleType) -> list[Part]:
    """All that is public of a surface, with the source of each."""
    found: dict[Any, Part] = {}
    for name in surface.__all__:
        thing = getattr(surface, name)
        ours = [kind for kind in getattr(thing, "__mro__", [thing]) if is_ours(kind)]
        for kind in ours:
            module = defining_module(kind)
            found[kind] = Part(kind, module, definitions(module)[kind.__name__])
    return list(found.values())


def is_ours(thing: Any) -> bool:
    """Tell ramet's own classes and functions from Python's and from aliases of types."""
    return getattr(thing, "__module__", "").split(".")[0] == "ramet"


def members(part: Part) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions of a part that users call."""
    if not isinstance(part.definition, ast.ClassDef):
        yield part.definition
        return
    for node in part.definition.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = part.definition.name
            special = name in _MADE_BY_USERS and node.name in {"__init__", "__aenter__", "__aexit__"}
            if special or not node.name.startswith("_"):
                yield node


def annotated(part: Part) -> Iterator[ast.expr]:
    """The annotations of a part: of its functions' parameters and results, and of its fields."""
    for function in members(part):
        given = function.args
        each = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        yield from (
            parameter.annotation
            for parameter in each
            if parameter is not None and parameter.annotation is not None
        )
        if function.returns is not None:
            yield function.returns
    if isinstance(part.definition, ast.ClassDef):
        for node in part.definition.body:
            if isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_"):
                yield node.annotation


def names_in(annotation: ast.expr) -> Iterator[str]:
    """The names in an annotation, also where it is text."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "[" in node.value:
            yield from names_in(ast.parse(node.value, mode="eval").body)


@_SURFACES
def test_what_annotations_name_is_exported(module: ModuleType) -> None:
    """As they are written: an alias such as `Word` counts, and not only what it stands for."""
    missing = set()
    for part in parts(module):
        for annotation in annotated(part):
            for name in names_in(annotation):
                meant = vars(part.module).get(name)
                if meant is None or isinstance(meant, typing.TypeVar | ModuleType) or hasattr(builtins, name):
                    continue  # a word of a Literal; a type's parameter; `builtins.list`
                ours = is_ours(meant) or is_alias(part.module, name)
                if ours and name not in module.__all__:
                    missing.add(f"{name} in {part.module.__name__}")
    assert missing == set()


def is_alias(module: ModuleType, name: str) -> bool:
    """Whether a module defines the name, or imports it from a module of ramet's."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and any(
            name == (alias.asname or alias.name) for alias in node.names
        ):
            return (node.module or "").split(".")[0] == "ramet"
        if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets):
            return True
    return False


def _classes(hint: Any, seen: set[Any]) -> set[Any]:
    """The classes of ramet's in an annotation, in its arguments, and in the fields of its shapes."""
    if isinstance(hint, type) and is_ours(hint) and hint not in seen:
        seen.add(hint)
        if issubclass(hint, msgspec.Struct):
            for field in typing.get_type_hints(hint).values():
                _classes(field, seen)
    for argument in typing.get_args(hint):
        _classes(argument, seen)
    return seen


@_SURFACES
def test_what_annotations_mean_is_exported(module: ModuleType) -> None:
    """Also what is nested in shapes, however deep."""
    seen: set[Any] = set()
    for part in parts(module):
        for node in members(part):
            member = vars(part.thing)[node.name] if isinstance(part.thing, type) else part.thing
            function = member.fget if isinstance(member, property) else member
            assert isinstance(function, FunctionType)
            names = {name: getattr(module, name) for name in module.__all__}
            for hint in typing.get_type_hints(function, localns=names).values():
                _classes(hint, seen)
        if isinstance(part.thing, type):
            for name, hint in typing.get_type_hints(part.thing).items():
                if not name.startswith("_"):
                    _classes(hint, seen)
    assert {kind.__name__ for kind in seen} - set(module.__all__) <= _NOT_IN_SYNC
    assert len(seen) > 20


def texts(surface: ModuleType) -> Iterator[tuple[str, str]]:
    """The docstrings of a surface, with where each is: of modules, classes, functions and fields."""
    yield surface.__name__, surface.__doc__ or ""
    for part in parts(surface):
        name = part.definition.name
        yield name, ast.get_docstring(part.definition) or ""
        for function in members(part):
            yield f"{name}.{function.name}", ast.get_docstring(function) or ""
        for node in part.definition.body:
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield f"{name}, line {node.lineno}", text


@_SURFACES
def test_what_docstrings_name_is_exported(module: ModuleType) -> None:
    """A class, or a member of one: `NotFoundError`, `Host.get`, `ramet.Host`."""
    missing = []
    for place, text in texts(module):
        for name in re.findall(r"`(?:await |ramet\.)?([A-Z]\w*(?:\.\w+)*)", text):
            if name in _NO_NAMES or (name.isupper() and name not in module.__all__):
                continue
            first = name.split(".")[0]
            value: Any = module if first in module.__all__ else builtins
            for step in name.split("."):
                fields = getattr(value, "__annotations__", {})
                value = getattr(value, step, fields.get(step))
            if value is None:
                missing.append(f"{place}: {name}")
    assert missing == []


def test_every_error_is_exported() -> None:
    tree = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert tree <= set(ramet.__all__)
    assert tree <= set(ramet.sync.__all__)


@_SURFACES
def test_what_is_exported_is_there(module: ModuleType) -> None:
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(ramet.__all__) - _NOT_IN_SYNC == set(ramet.sync.__all__)


@_SURFACES
def test_nothing_internal_is_shown(module: ModuleType) -> None:
    """Not even after everything was imported: the import system puts rooms into their parent's names."""
    shown = {name for name in dir(module) if not (name.startswith("__") and name.endswith("__"))}
    assert shown == set(module.__all__) - {"__version__"}
    modules = {name for name in shown if isinstance(getattr(module, name), ModuleType)}
    assert modules == ({"sync"} if module is ramet else set())
    assert "ramet.engine" in sys.modules


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Hosts'"):
        _ = ramet.Hosts  # type: ignore[attr-defined]
