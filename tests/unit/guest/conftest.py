"""The real agent as an ordinary process, on a UNIX socket: no VM, the same protocol."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ramet.guest
from ramet.errors import UnavailableError
from ramet.guest.agent_binary import agent_path
from tests import side_by_side
from tests.support.unix_sockets import listening

SOURCES = Path(ramet.guest.__file__).parent / "agent"


# The agent's event loop is a test: it watches what the agent would, and as it would (loop/events.c).
_EVENTS = """
#include <sys/epoll.h>
#include "loop/events.h"
int set = -1, refuse;
int events_watch(int fd, enum event_kind kind, unsigned index, unsigned mask) {
    struct epoll_event event = {.events = mask | EPOLLET, .data.u32 = kind};
    (void)index;
    if (set < 0)
        set = epoll_create1(EPOLL_CLOEXEC);
    return refuse ? -1 : epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}
int turn(int addresses) {
    struct epoll_event events[4];
    int count = set < 0 ? 0 : epoll_wait(set, events, 4, 0);
    for (int i = 0; i < count; i++)
        if (events[i].data.u32 != (addresses ? E_ADDRESSES : E_IDENTITY_FILES))
            return -1;
    return count;
}
"""


def shared_library(directory: Path, *sources: str, option: str = "-D_GNU_SOURCE") -> Path:
    """The code of some of the agent's files, for ctypes. Skips where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    library = directory / Path(sources[0]).with_suffix(".so").name
    flags = ["-std=c11", option, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(
        [compiler, *flags, f"-I{SOURCES}", "-o", library, *(SOURCES / name for name in sources)],
        check=True,
        timeout=60,
    )
    return library


def with_events(directory: Path) -> str:
    """A source file, for `shared_library`, with an event loop of the test's: `turn`, `refuse`."""
    events = directory / "events.c"
    events.write_text(_EVENTS)
    return str(events)


@pytest.fixture(scope="session")
def agent_program() -> Path:
    """Built from the sources where a compiler is, else the one that was built before."""
    if shutil.which("musl-gcc") and shutil.which("make"):
        with side_by_side.shared_directory("agent") as directory:
            out = directory / "agent"
            if not out.exists():  # another worker has built it
                subprocess.run(["make", "-C", SOURCES, "CC=musl-gcc", f"OUT={out}"], check=True, timeout=120)
        return out
    try:
        return agent_path()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def agent_process(agent_program: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An agent that listens on `tmp_path / "agent0.sock"`."""
    socket = tmp_path / "agent0.sock"
    with subprocess.Popen([agent_program, "--socket", socket]) as process:
        try:
            deadline = time.monotonic() + 10
            while not listening(socket):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
            yield process
        finally:
            process.kill()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
