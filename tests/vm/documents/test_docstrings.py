"""The examples in docstrings of `Host`, `VM`, `Snapshot`, `Forks` and `Driver` print what they show.

A comment behind `print(...)` is the line that it prints.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import signal
import textwrap
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

import ramet
import ramet.sync
from ramet.drivers.interface import Driver
from ramet.drivers.qemu.driver import Qemu
from ramet.testing.leftovers import living_in
from ramet.units import MIB
from tests import machines
from tests.support.ready import Ready

_ASYNC = (ramet.Host, ramet.VM, ramet.Snapshot, ramet.Forks, Driver)
_PLAIN = (ramet.sync.Host, ramet.sync.VM, ramet.sync.Snapshot, ramet.sync.Forks)


def example_of(kind: type) -> str:
    """Return the example in a class's docstring: the indented block behind a line that ends with a colon."""
    found = re.search(r":\n\n((?:    .*\n?)+)", inspect.getdoc(kind) or "")
    assert found, f"the docstring of {kind.__name__} has no example"
    return textwrap.dedent(found[1])


def _compiled(kind: type) -> CodeType:
    code: CodeType = compile(example_of(kind), kind.__name__, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return code


def shown(kind: type) -> list[str]:
    """Return the lines that the example says it prints."""
    return re.findall(r"^ *print\(.*\)  # (.+)$", example_of(kind), re.MULTILINE)


async def run(kind: type, **names: object) -> None:
    """Run the example, and compare what it prints."""
    printed: list[str] = []
    names |= {"ramet": ramet, "Qemu": Qemu, "print": lambda value: printed.append(str(value))}
    running: Any = eval(_compiled(kind), names)
    await running
    assert printed == shown(kind), f"the docstring of {kind.__name__}"


@pytest.mark.parametrize("kind", [*_ASYNC, *_PLAIN], ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_each_has_an_example_with_its_output(kind: type) -> None:
    assert _compiled(kind)
    assert shown(kind)
    assert (kind in _ASYNC) == ("await" in example_of(kind))


@pytest.mark.vm
@pytest.mark.anyio
async def test_host(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await machines.require("qemu", "builtin")
    monkeypatch.setenv("RAMET_HOME", str(home))
    monkeypatch.setenv("RAMET_DRIVER", "qemu")
    await run(ramet.Host)


@pytest.mark.vm
@pytest.mark.anyio
async def test_handles(host: ramet.Host, ready: Ready) -> None:
    """The snapshot that `VM` takes is the one that `Snapshot` forks."""
    await machines.require("qemu", "builtin")
    await ready(host, name="agent")
    for kind in (ramet.VM, ramet.Snapshot, ramet.Forks):
        await run(kind, host=host)
    await (await host.get("idea-2")).remove(force=True)  # it is kept, so the Host leaves it


@pytest.mark.vm
@pytest.mark.anyio
async def test_driver(tmp_path: Path) -> None:
    subject = await machines.require("qemu", "builtin")
    subject.memory_bytes = 256 * MIB
    directory = tmp_path / "vm"
    subject.prepare(directory)
    try:
        await run(Driver, directory=directory)
    finally:
        for pid in living_in(directory):  # the example has failed before its end
            os.kill(pid, signal.SIGKILL)
