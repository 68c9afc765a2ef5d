"""ramet uses of an event loop what every event loop has, so that it runs on uvloop's, too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import qemu.qmp

import ramet
from ramet.drivers.qemu.monitor import _Client

SOURCE = Path(ramet.__file__).parent

OF_A_LOOP = {
    "add_reader",  # of sockets, pipes, inotify and pidfds; epoll has no regular files on any loop
    "add_signal_handler",
    "add_writer",
    "call_later",
    "call_soon_threadsafe",
    "create_future",
    "default_exception_handler",
    "create_task",
    "is_closed",
    "remove_reader",
    "remove_signal_handler",
    "remove_writer",
    "set_exception_handler",
}
OF_ASYNCIO = {
    "AbstractEventLoop",
    "CancelledError",
    "Event",
    "Future",
    "InvalidStateError",
    "Task",
    "create_task",
    "current_task",
    "ensure_future",
    "gather",
    "get_running_loop",
    "shield",
    "wait",
}


def _attributes(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Of whose object, as the source has it, which attribute is used."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node.value), node.attr


def test_only_what_every_event_loop_has() -> None:
    used = {
        (str(path.relative_to(SOURCE)), owner, name)
        for path in SOURCE.rglob("*.py")
        for owner, name in _attributes(ast.parse(path.read_text()))
    }
    of_loops = {use for use in used if use[1].rpartition(".")[2] in {"loop", "_loop"}}
    of_asyncio = {use for use in used if use[1] == "asyncio"}
    assert of_loops
    assert of_asyncio
    assert {use for use in of_loops if use[2] not in OF_A_LOOP} == set()
    assert {use for use in of_asyncio if use[2] not in OF_ASYNCIO} == set()
    # What a transport says of its socket differs from loop to loop. httpcore2's streams have a method of that
    # name, too, which asks anyio.
    of_transports = {use for use in used if use[2] in {"get_extra_info", "transport"}}
    assert of_transports == {("oci/transport.py", "details['return_value']", "get_extra_info")}


def test_the_monitors_library_needs_no_private_socket() -> None:
    """Its only use of one is in a method that ramet has made its own."""
    found = []
    for path in Path(qemu.qmp.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                private = {name for _, name in _attributes(ast.Module([function], [])) if name == "_sock"}
                found += [function.name for _ in private]
    assert [name for name in found if name not in vars(_Client)] == []


@pytest.mark.parametrize("name", sorted(OF_ASYNCIO))
def test_the_python_that_runs_this_has_it(name: str) -> None:
    import asyncio
    import warnings

    with warnings.catch_warnings(action="error"):
        assert hasattr(asyncio, name)
