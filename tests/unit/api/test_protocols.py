"""`ramet.model.protocols` has what `ramet.Host` and its handles have: mypy holds the API to it, and what mypy
can't see (that nothing is missing, names of parameters, defaults) is compared here.
"""

from __future__ import annotations

import inspect
import re
from types import FunctionType
from typing import TYPE_CHECKING, Any

import pytest

import ramet
from ramet.model import protocols
from tests.unit.api.surface import members

if TYPE_CHECKING:
    # Each assignment is an error of mypy's when the API's class lacks something, or has it otherwise.
    def _satisfied(
        host: ramet.Host,
        vm: ramet.VM,
        snapshot: ramet.Snapshot,
        forks: ramet.Forks[ramet.VM],
        call: ramet.ForkCall[ramet.VM],
        process: ramet.Process,
    ) -> None:
        _host: protocols.Host = host
        _vm: protocols.VM = vm
        _snapshot: protocols.Snapshot = snapshot
        _forkable: list[protocols.Forkable] = [vm, snapshot]
        _forks: protocols.Forks = forks
        _call: protocols.ForkCall = call
        _process: protocols.Process = process


KINDS = ("Host", "VM", "Snapshot", "Forks", "ForkCall", "Process")
OF_THIS_MACHINE = {"Host": {"home"}, "VM": {"directory"}, "Snapshot": {"directory"}}
"""Paths of the host: they mean nothing elsewhere."""
_CONTEXT = {"__aenter__", "__aexit__", "__await__"}


def public(kind: type) -> dict[str, Any]:
    """What a class has for its users: methods, properties, and what makes it a context."""
    return {
        name: member
        for name, member in members(kind).items()
        if isinstance(member, FunctionType | property) and (name in _CONTEXT or not name.startswith("_"))
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_protocol_has_all_that_users_call(name: str) -> None:
    """Neither has more. `id`, `name` and `pid` are attributes there, which `__init__` sets."""
    promised = set(public(getattr(protocols, name))) - {"id", "name", "pid"}
    assert promised == set(public(getattr(ramet, name))) - OF_THIS_MACHINE.get(name, set())


def signature(function: Any) -> tuple[list[tuple[Any, ...]], str]:
    """The parameters and the result of a function as they are written, without types' parameters."""
    found = inspect.signature(function)
    parameters = [
        (parameter.name, parameter.kind, parameter.default, parameter.annotation)
        for parameter in list(found.parameters.values())[1:]
    ]
    return parameters, re.sub(r"\[V\]", "", str(found.return_annotation))


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name in KINDS for method in public(getattr(protocols, name))]
)
def test_a_method_is_the_same(name: str, method: str) -> None:
    promised = public(getattr(protocols, name))[method]
    there = inspect.getattr_static(getattr(ramet, name), method, None)
    if isinstance(promised, property):
        if isinstance(there, property):
            assert signature(promised.fget) == signature(there.fget)
        return
    assert signature(promised) == signature(there)
    made = [inspect.iscoroutinefunction(promised), "AsyncIterator" in signature(promised)[1]]
    assert made == [inspect.iscoroutinefunction(there), inspect.isasyncgenfunction(there)]
