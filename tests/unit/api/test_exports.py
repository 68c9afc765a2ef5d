"""What a public signature, shape or docstring names can be imported from `ramet` and `ramet.sync`."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import ramet
import ramet.sync
from ramet import errors
from tests.unit.api.surface import HANDLES, INTERNAL, members

_NO_NAMES = {"RAMET_HOME", "SIGTERM"}


def _members(kind: Any) -> Iterator[Any]:
    for name, member in members(kind).items():
        if name.startswith("_") and (kind.__name__ != "Host" or name not in {"__init__", "__aenter__"}):
            continue
        function = member.fget if isinstance(member, property) else member
        if callable(function) and name not in INTERNAL.get(kind.__name__, ()):
            yield function


def _classes(hint: Any, seen: set[type]) -> set[type]:
    """The classes of ramet's in an annotation, and in the fields of its shapes."""
    if isinstance(hint, type) and hint.__module__.startswith("ramet") and hint not in seen:
        seen.add(hint)
        if issubclass(hint, msgspec.Struct):
            for field in typing.get_type_hints(hint).values():
                _classes(field, seen)
    for argument in typing.get_args(hint):
        _classes(argument, seen)
    return seen


@pytest.mark.parametrize("module", [ramet, ramet.sync], ids=["ramet", "ramet.sync"])
def test_what_signatures_name_is_exported(module: Any) -> None:
    exported = {name: getattr(ramet, name) for name in ramet.__all__}
    seen: set[type] = set()
    for kind in HANDLES:
        for function in _members(getattr(module, kind)):
            for hint in typing.get_type_hints(function, localns=exported).values():
                _classes(hint, seen)
    for name in module.__all__:
        _classes(getattr(module, name), seen)
    missing = {one.__name__ for one in seen} - set(module.__all__) - {"ForkCall"}
    assert missing == set()


def test_what_docstrings_name_is_exported() -> None:
    named: set[str] = set()
    for kind in (*HANDLES, "ForkError", "ExecResult", "Receipt"):
        members = [getattr(ramet, kind), *_members(getattr(ramet, kind))]
        for member in members:
            named |= set(re.findall(r"`([A-Z]\w+)`", inspect.getdoc(member) or ""))
    assert named - set(ramet.__all__) - _NO_NAMES == set()


def test_every_error_is_exported() -> None:
    tree = {
        name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)
    }
    assert tree <= set(ramet.__all__)
    assert tree <= set(ramet.sync.__all__)


@pytest.mark.parametrize("module", [ramet, ramet.sync], ids=["ramet", "ramet.sync"])
def test_what_is_exported_is_there(module: Any) -> None:
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(ramet.__all__) - {"__version__", "sync", "ForkCall"} == set(ramet.sync.__all__)
