from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from ramet.errors import GuestError, PortsBusyError
from ramet.guest.ports import claim_port

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Two listening sockets, deeper than sun_path could name."""
    deep = tmp_path.joinpath(*["a-long-name-of-a-directory"] * 6)
    deep.mkdir(parents=True)
    directory_fd = os.open(deep, os.O_PATH)
    with ExitStack() as stack:
        stack.callback(os.close, directory_fd)
        for number in range(2):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(f"/proc/self/fd/{directory_fd}/agent{number}.sock")
            listener.listen()
        yield deep


def is_locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def open_descriptors() -> set[str]:
    return {str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


@pytest.mark.timing
async def test_each_claim_has_a_port_of_its_own(directory: Path) -> None:
    async with claim_port(directory, 2, 0), claim_port(directory, 2, 0):
        assert is_locked(directory / "agent0.lock")
        assert is_locked(directory / "agent1.lock")
        began = time.monotonic()
        with pytest.raises(PortsBusyError, match="all 2 agent ports"):
            async with claim_port(directory, 2, 0.1):
                pass
        assert time.monotonic() - began < 2
    assert not is_locked(directory / "agent0.lock")
    assert not is_locked(directory / "agent1.lock")


async def test_a_port_that_becomes_free_is_taken(directory: Path) -> None:
    released = anyio.Event()

    async def hold() -> None:
        async with claim_port(directory, 1, 0):
            await released.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await anyio.wait_all_tasks_blocked()
        assert is_locked(directory / "agent0.lock")
        tasks.start_soon(lambda: _set_later(released))
        async with claim_port(directory, 1, 5):
            assert released.is_set()


async def _set_later(event: anyio.Event) -> None:
    await anyio.sleep(0.05)
    event.set()


@pytest.mark.timing
async def test_failure_and_cancellation_leave_nothing_open(directory: Path) -> None:
    before = open_descriptors()
    with pytest.raises(ZeroDivisionError):
        async with claim_port(directory, 1, 0):
            raise ZeroDivisionError
    assert not is_locked(directory / "agent0.lock")
    with anyio.move_on_after(0.05) as scope:
        async with claim_port(directory, 1, 0):
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not is_locked(directory / "agent0.lock")
    async with claim_port(directory, 1, 0):
        with anyio.move_on_after(0.05) as scope:
            async with claim_port(directory, 1, 60):
                pass
        assert scope.cancelled_caught
    assert open_descriptors() == before


async def test_without_a_listener_it_says_so_and_holds_nothing(directory: Path) -> None:
    (directory / "agent0.sock").unlink()
    with pytest.raises(GuestError, match=r"agent0\.sock"):
        async with claim_port(directory, 1, 0):
            pass
    assert not is_locked(directory / "agent0.lock")
    with pytest.raises(GuestError, match="gone"):
        async with claim_port(directory / "gone", 1, 0):
            pass


async def test_a_lock_that_is_a_symbolic_link_is_not_followed(directory: Path, tmp_path: Path) -> None:
    (directory / "agent0.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GuestError, match=r"agent0\.lock"):
        async with claim_port(directory, 1, 0):
            pass
    assert not (tmp_path / "elsewhere").exists()
