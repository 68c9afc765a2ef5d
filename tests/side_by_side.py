"""What the tests of one run share when they run side by side, in the workers of pytest-xdist: an order, turns
for those that can't stand company, and what they tell the reader of the run.

A worker is given a group of tests at a time: a file, or a part of one that `_SPLIT` names. Which group comes
next follows from the recorded durations: the longest first, so that none that is long begins last.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from _pytest.terminal import TerminalReporter

from tests import durations

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

_VARIABLE: Final = "RAMET_TESTS_SHARED"
_FAILED_VARIABLE: Final = "RAMET_TESTS_FAILED"
"""Names a file for the ids of tests that fail, written at once: whoever ends a run early finds them there."""

_SPLIT: Final = {
    "test_every_point.py": re.compile(r"[a-z]+"),
    **dict.fromkeys(
        ("test_bases.py", "test_captures.py", "test_errors.py", "test_life.py", "test_memory_and_disks.py"),
        re.compile(r"(qemu|firecracker)-(builtin|probe)"),
    ),
}
"""Files of which each parameter is a group of its own: the part of a test's parameters that tells groups
apart. What a group needs, it makes for itself.
"""

_NO_VM: Final = re.compile(r"not vm( and not \w+)*")
_ALL_VM: Final = re.compile(r"^pytestmark = (pytest\.mark\.vm$|\[[^\]]*\bmark\.vm\b)", re.MULTILINE)


def _shared() -> Path:
    return Path(os.environ[_VARIABLE])


@contextmanager
def shared_directory(name: str) -> Iterator[Path]:
    """A directory for all workers of this run, who enter it in turn; it goes with the run."""
    directory = _shared() / name
    directory.mkdir(exist_ok=True)
    with (_shared() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


def tell(text: str) -> None:
    """Have the text printed at the end of the run, whichever worker found it out."""
    _append(_shared() / "told", text)


def _append(file: Path, line: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-durations", action="store_true", help="write tests/durations.json anew")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # in a worker it is inherited
        os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="ramet-tests-")
        if config.getoption("record_durations", default=False):
            config.pluginmanager.register(durations.Recorder())
        if file := os.environ.pop(_FAILED_VARIABLE, None):
            config.pluginmanager.register(_Failures(Path(file)))


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(_VARIABLE), ignore_errors=True)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    told = _shared() / "told"
    if told.exists():
        terminalreporter.section("told by tests")
        terminalreporter.write(told.read_text())


class _Failures:
    """Writes the id of each test that fails into a file, as it does."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            _append(self._file, report.nodeid)


def group_of(nodeid: str) -> str:
    """The group that a test belongs to."""
    path, _, name = nodeid.partition("::")
    apart = _SPLIT.get(path.rpartition("/")[2])
    found = apart.search(name.partition("[")[2]) if apart else None
    return f"{path}[{found[0]}]" if found else path


def in_order(nodeids: Sequence[str], known: dict[str, float]) -> list[int]:
    """Positions in `nodeids`, the group that takes longest first; within a group as they were."""
    totals: dict[str, float] = {}
    for nodeid in nodeids:
        group = group_of(nodeid)
        totals[group] = totals.get(group, 0) + known.get(durations.key_of(nodeid), durations.UNKNOWN_S)

    def place(position: int) -> tuple[float, str]:
        group = group_of(nodeids[position])
        return -totals[group], group

    return sorted(range(len(nodeids)), key=place)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where all tests of a file need a VM, don't import it for a run (`-m`) of those that need none: each
    worker would take seconds for that.
    """
    if collection_path.name.startswith("test_") and _NO_VM.fullmatch(config.option.markexpr):
        return _ALL_VM.search(collection_path.read_text()) is not None or None
    return None


@pytest.hookimpl(tryfirst=True, specname="pytest_collection_modifyitems")
def pytest_mark_core(items: list[pytest.Item]) -> None:
    """Before marks are asked for: what needs no VM and isn't long is of the core, too."""
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("vm", "deep", "soak")):
            item.add_marker("core")


# After pytest's own, which puts together what shares a parameter of a session's fixture.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [items[at] for at in in_order([item.nodeid for item in items], durations.load())]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        """A group at a time, in the order of collection."""

        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


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
