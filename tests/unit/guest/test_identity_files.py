"""Files that each identity writes anew: the agent's code for them, told of changes by the kernel or not."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import shared_library, with_events


class File(ctypes.Structure):
    """`struct identity_file` of identity/identity_files.h."""

    _fields_ = (
        ("path", ctypes.c_char_p),
        ("mode", ctypes.c_uint32),
        ("fd", ctypes.c_int),
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("known_at", ctypes.c_uint),
    )


class Agent:
    """The agent's code, in a copy of its own, and one file of it."""

    def __init__(self, library: Path, path: Path) -> None:
        self.path = path
        self.file = File(os.fsencode(path), 0o644, -1, 0, 0, 0)
        self._code = ctypes.CDLL(str(library))
        self._code.identity_file_write.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        self._code.identity_file_read.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        self._code.identity_file_read.restype = ctypes.c_ssize_t

    def refuse(self) -> None:
        """The kernel tells of nothing."""
        ctypes.c_int.in_dll(self._code, "refuse").value = 1

    def turn(self) -> bool:
        """A turn of its loop. Whether there was news."""
        events = self._code.turn(False)
        assert events >= 0
        for _ in range(events):
            self._code.identity_files_event()
        return bool(events)

    def write(self, text: bytes) -> None:
        self.turn()
        assert self._code.identity_file_write(ctypes.byref(self.file), text, len(text)) == 0
        assert self.path.read_bytes() == text

    def read(self) -> bytes:
        self.turn()
        text = ctypes.create_string_buffer(100)
        length = self._code.identity_file_read(ctypes.byref(self.file), text, len(text))
        return text.raw[:length]


@pytest.fixture
def place() -> Iterator[Path]:
    """With a short name: the agent's files have."""
    with tempfile.TemporaryDirectory(prefix="kept-", dir="/tmp") as directory:
        yield Path(directory, "etc")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Each test has the code's static variables to itself."""
    return shared_library(tmp_path, "identity/identity_files.c", "init/files.c", with_events(tmp_path))


@pytest.fixture(params=["told", "not told"])
def agent(library: Path, place: Path, request: pytest.FixtureRequest) -> Agent:
    """It has written its file."""
    place.mkdir()
    made = Agent(library, place / "name")
    if request.param == "not told":
        made.refuse()
    made.write(b"first\n")
    return made


def _replaced(path: Path) -> None:
    path.with_name("new").write_bytes(b"another's\n")
    path.with_name("new").rename(path)


def _moved_away(path: Path) -> None:
    """As an editor that keeps a backup."""
    path.rename(path.with_name("name~"))
    path.write_bytes(b"another's\n")


def _linked(path: Path) -> None:
    path.with_name("backup").hardlink_to(path)


def _unlinked(path: Path) -> None:
    path.unlink()


def _its_directory_moved(path: Path) -> None:
    path.parent.rename(path.parent.with_name("etc~"))
    path.parent.mkdir()


@pytest.mark.parametrize("change", [_replaced, _moved_away, _linked, _unlinked, _its_directory_moved])
def test_another_file_in_its_place_is_written_and_the_old_one_is_not(
    agent: Agent, change: Callable[[Path], None]
) -> None:
    with agent.path.open("rb") as old:
        change(agent.path)
        agent.write(b"second, and longer\n")
        assert old.read() == b"first\n"
    assert agent.read() == b"second, and longer\n"
    agent.write(b"3\n")
    assert agent.read() == b"3\n"


def test_it_is_written_in_place_while_it_is_the_same(agent: Agent) -> None:
    inode = agent.path.stat().st_ino
    for text in b"short\n", b"a longer one\n", b"", b"x\n":
        agent.write(text)
        assert agent.path.stat().st_ino == inode
    agent.path.write_bytes(b"by somebody else, in place, and longer\n")
    assert agent.read() == b"by somebody else, in place, and longer\n"
    agent.write(b"ours\n")
    assert agent.path.stat().st_ino == inode


def test_nothing_is_looked_at_while_nothing_is_told(library: Path, place: Path) -> None:
    """Without a turn of the loop the old file is written: that it isn't looked at is what this is for."""
    place.mkdir()
    agent = Agent(library, place / "name")
    agent.write(b"first\n")
    assert not agent.turn()
    with agent.path.open("rb") as old:
        _replaced(agent.path)
        text = b"second\n"
        assert agent._code.identity_file_write(ctypes.byref(agent.file), text, len(text)) == 0
        assert old.read() == b"second\n"
    assert agent.turn()
    assert not agent.turn()
    agent.write(b"third\n")


def test_a_directory_that_is_a_symbolic_link_which_is_switched(library: Path, place: Path) -> None:
    """Of that the kernel tells nothing: so it is looked at each time."""
    for name in "a", "b":
        place.with_name(name).mkdir()
    place.symlink_to("a")
    agent = Agent(library, place / "name")
    agent.write(b"first\n")
    place.unlink()
    place.symlink_to("b")
    agent.write(b"second\n")
    assert place.with_name("a").joinpath("name").read_bytes() == b"first\n"


_OVER = """
import subprocess, sys
from pathlib import Path
from tests.unit.guest.test_identity_files import Agent
library, place = map(Path, sys.argv[1:])
agent = Agent(library, place / "name")
agent.write(b"first\\n")
below = (place / "name").open("rb")
subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
assert agent.turn()
agent.write(b"second\\n")
assert below.read() == b"first\\n"
subprocess.run(["umount", "-l", place], check=True)
assert (place / "name").read_bytes() == b"first\\n"
agent.write(b"third\\n")
"""


def test_a_mount_above_it(library: Path, place: Path) -> None:
    apart = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no mount namespace can be made here")
    place.mkdir()
    words = [sys.executable, "-c", _OVER, str(library), str(place)]
    done = subprocess.run([*apart, *words], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
