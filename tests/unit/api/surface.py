"""The public surface, found by introspection: classes, methods, parameters; hostile values for each."""

from __future__ import annotations

import datetime
import inspect
import io
import sys
from collections.abc import Iterator
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import ramet
import ramet.sync

HANDLES = ("Host", "VM", "Snapshot", "Forks", "Process")


class Call(NamedTuple):
    """One public method."""

    kind: str
    name: str
    function: Any

    def __str__(self) -> str:
        return f"{self.kind}.{self.name}"

    def parameters(self) -> list[inspect.Parameter]:
        """All but `self`."""
        return list(inspect.signature(self.function).parameters.values())[1:]


def members(kind: type) -> dict[str, Any]:
    """The members of a class, and those that it inherits from other classes of ramet's."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("ramet"):
            found |= vars(base)
    return found


def calls(module: Any = ramet) -> list[Call]:
    """Every public method of every handle, and `Host` itself."""
    found = [Call("Host", "__init__", module.Host.__init__)]
    for kind in HANDLES:
        for name, member in members(getattr(module, kind)).items():
            if not name.startswith("_") and inspect.isfunction(member):
                found.append(Call(kind, name, member))
    return found


class Rude:
    """An object that fails whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self, *_: object) -> str:
        raise RuntimeError("repr")

    __str__ = __repr__
    __index__ = __float__ = __fspath__ = __len__ = __iter__ = __bool__ = __eq__ = __hash__ = __repr__  # type: ignore[assignment]


def endless() -> Iterator[str]:
    """A sequence without an end."""
    while True:
        yield "1M"


def hostile() -> list[Any]:
    """Values that a parameter may be given by mistake; none of them is right for every parameter."""
    return [
        *(0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), True, False),
        *(0.0, 1.5, -1.0, float("nan"), float("inf"), -float("inf"), 1e308, 1j),
        *(
            "",
            " ",
            "\0",
            "a\0b",
            "\n",
            "\udcff",
            "x" * 100_000,
            "9" * 5000,
            "../..",
            "é",
            "1e3",
            "-",
            "nan",
            "\x1b[2J",
        ),
        *(b"", b"\xff", bytearray(b"x"), memoryview(b"x")),
        *([], ["a"], ["a=b"], [1], ("a", "b"), {1}, {"a": 1}, {1: "a"}, {"": "a"}, {"a=b": "c"}, {"a": "\0"}),
        *(
            {"a": "\udcff"},
            {"a": None},
            {"a": b"\xff"},
            {str(n): "" for n in range(5000)},
            {"k": "v" * 100_000},
        ),
        *(
            object(),
            Rude(),
            {"a": Rude()},
            [Rude()],
            Ellipsis,
            NotImplemented,
            int,
            len,
            datetime.timedelta(seconds=1),
        ),
        *(io.StringIO("text"), io.BytesIO(b"bytes"), endless(), (n for n in range(10**9))),
    ]


def defining_module(thing: Any) -> ModuleType:
    """The module that defines a class or a function, whatever its `__module__` says."""
    if isinstance(thing, FunctionType):
        return sys.modules[inspect.unwrap(thing).__globals__["__name__"]]
    name = thing.__module__
    return import_module(ramet._HOMES.get(thing.__name__, "ramet.errors") if name == "ramet" else name)
