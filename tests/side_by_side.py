"""What the tests of one run share when they run side by side, in the workers of pytest-xdist: turns for those
that can't stand company, and what they tell the reader of the run.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

_VARIABLE = "RAMET_TESTS_SHARED"


def _shared() -> Path:
    return Path(os.environ[_VARIABLE])


def tell(text: str) -> None:
    """Have the text printed at the end of the run, whichever worker found it out."""
    descriptor = os.open(_shared() / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # in a worker it is inherited
        os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="ramet-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(_VARIABLE), ignore_errors=True)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    told = _shared() / "told"
    if told.exists():
        terminalreporter.section("told by tests")
        terminalreporter.write(told.read_text())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with VMs first, as they are: a long one that begins last would keep one worker busy alone."""
    with_vms = {item.path for item in items if item.get_closest_marker("vm")}
    items.sort(key=lambda item: item.path not in with_vms)


# Outside of pytest-timeout's: a turn is awaited for as long as the tests of the others take, and those have
# limits of their own.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with _turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def _turn(*, alone: bool) -> Iterator[None]:
    """In the room with others, or alone. Who waits to be alone holds the gate: nobody new comes in then."""
    with (_shared() / "gate").open("w") as gate, (_shared() / "room").open("w") as room:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            # Said, not left to close(2): what a test has forked may have the file open for longer.
            fcntl.flock(room, fcntl.LOCK_UN)
