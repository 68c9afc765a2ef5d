"""Public classes and functions say `ramet`, wherever they are defined: in representations, tracebacks and
pickles; and their annotations can still be read.
"""

from __future__ import annotations

import ast
import enum
import inspect
import pickle
import subprocess
import sys
import traceback
import typing
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import msgspec
import pytest

import ramet
import ramet.sync
from tests.unit.api.surface import defining_module

_ALIASES = {"Word", "ShareMode", "CompressionState", "WarmState"}
_PLAIN = {"Host", "VM", "Snapshot", "Forks", "Process", "ForkError", "doctor"}
"""Those that `ramet.sync` has of its own."""
NAMES = [name for name in ramet.__all__ if name not in {*_ALIASES, "__version__", "sync"}]
SHAPES = [name for name in NAMES if issubclass(type(getattr(ramet, name)), type(msgspec.Struct))]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_where_users_find_it(name: str) -> None:
    thing = getattr(ramet, name)
    assert (thing.__module__, thing.__qualname__) == ("ramet", name)
    if isinstance(thing, type) and not issubclass(thing, enum.Enum):  # those of Python's say no module
        assert repr(thing) == f"<class 'ramet.{name}'>"
    assert pickle.loads(pickle.dumps(thing)) is thing
    assert f"ramet\n{name}\n".encode() in pickle.dumps(thing, protocol=2)


@pytest.mark.parametrize("name", ramet.sync.__all__)
def test_the_plain_ones_say_that_they_are(name: str) -> None:
    thing = getattr(ramet.sync, name)
    if name in _PLAIN:
        assert (thing.__module__, thing.__qualname__) == (ramet.sync.__name__, name)
        assert pickle.loads(pickle.dumps(thing)) is thing
    else:
        assert thing is getattr(ramet, name)


def test_what_is_marked_is_what_is_exported() -> None:
    """Every class and function that is decorated with `exported`, and no other."""
    source = Path(ramet.__file__).parent
    marked = {
        node.name
        for path in source.rglob("*.py")
        if "exported" in (text := path.read_text())
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and "exported" in map(ast.unparse, node.decorator_list)
    }
    assert marked == set(NAMES)


@pytest.mark.parametrize("module", [ramet, ramet.sync], ids=["ramet", "ramet.sync"])
def test_annotations_can_be_read(module: ModuleType) -> None:
    """Of classes too, whose annotations are looked up in the module that they say."""
    for name in set(module.__all__) - {*_ALIASES, "__version__", "sync"}:
        thing = getattr(module, name)
        typing.get_type_hints(thing)
        for member in vars(thing).values() if isinstance(thing, type) else ():
            function = member.fget if isinstance(member, property) else member
            if isinstance(function, FunctionType) and not function.__name__.startswith("_"):
                typing.get_type_hints(function, localns=dict(vars(defining_module(function))))
                inspect.signature(function)


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_shape_holds_is_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing else has been asked of `ramet`: no other class is in its names yet."""
    kind = getattr(ramet, name)
    for other in NAMES:
        monkeypatch.delitem(vars(ramet), other, raising=False)
    hints = typing.get_type_hints(kind)
    assert {field.name: field.type for field in msgspec.structs.fields(kind)} == hints
    assert not any(isinstance(hint, str | typing.ForwardRef) for hint in hints.values())


def test_a_shape_is_the_same_after_json_and_pickle() -> None:
    node = ramet.LineageNode(
        instance=_instance("a"), forks=[ramet.LineageNode(instance=_instance("b"), forks=[])]
    )
    assert pickle.loads(pickle.dumps(node)) == node
    assert msgspec.json.decode(msgspec.json.encode(node), type=ramet.LineageNode) == node


def _instance(name: str) -> ramet.Instance:
    fields: dict[str, Any] = {
        field.name: {"int": 0, "str": name}.get(getattr(field.type, "__name__", ""))
        for field in msgspec.structs.fields(ramet.Instance)
        if field.required
    }
    return ramet.Instance(**{**fields, "state": ramet.State.RUNNING, "labels": {}})


def test_a_traceback_names_the_public_class() -> None:
    error = ramet.NotFoundError("no instance 'x'", hint="`ramet ps`")
    assert traceback.format_exception_only(error) == ["ramet.NotFoundError: no instance 'x' (`ramet ps`)\n"]
    script = "import ramet.sync\nwith ramet.sync.Host('/dev/null/x') as host: pass"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert "\nramet.UnavailableError: " in done.stderr, done.stderr
    assert issubclass(ramet.sync.ForkError, ramet.ForkError)


def test_pickles_of_the_version_before_are_read() -> None:
    """They name the modules in which the classes are defined."""
    for name in NAMES:
        module = defining_module(getattr(ramet, name))
        assert pickle.loads(f"c{module.__name__}\n{name}\n.".encode()) is getattr(ramet, name)
    assert pickle.loads(b"cramet.model.lifecycle\nState\n(Vrunning\ntR.") is ramet.State.RUNNING
