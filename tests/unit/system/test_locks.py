"""Locks between tasks and processes, on real files."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from ramet.errors import LockBusyError, VmmTimeoutError
from ramet.system.locks import file_lock, file_lock_sync

_HOLDER = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lease.lock"


@pytest.fixture
def holder(lock: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-I", "-S", "-c", _HOLDER, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.timing
async def test_one_at_a_time_and_everyone_has_a_turn(lock: Path) -> None:
    inside = 0
    turns = []

    async def lease(number: int) -> None:
        nonlocal inside
        async with file_lock(lock, wait_s=30):
            inside += 1
            assert inside == 1
            await anyio.sleep(0.01)
            inside -= 1
            turns.append(number)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(lease, number)
    assert sorted(turns) == list(range(20))


@pytest.mark.timing
async def test_another_process_keeps_us_out_until_it_dies(
    lock: Path, holder: subprocess.Popen[bytes]
) -> None:
    started = time.monotonic()
    with pytest.raises(LockBusyError, match=r"lease\.lock"):
        async with file_lock(lock, wait_s=0.1):
            pytest.fail("two holders")
    assert 0.1 <= time.monotonic() - started < 5
    holder.kill()
    async with file_lock(lock, wait_s=10):
        pass


@pytest.mark.usefixtures("holder")
async def test_the_callers_own_error(lock: Path) -> None:
    with pytest.raises(VmmTimeoutError, match="the monitor is leased"):
        async with file_lock(lock, wait_s=0, busy=VmmTimeoutError("the monitor is leased")):
            pytest.fail("two holders")
    with pytest.raises(VmmTimeoutError), file_lock_sync(lock, wait_s=0.01, busy=VmmTimeoutError("leased")):
        pytest.fail("two holders")


@pytest.mark.timing
async def test_cancelled_while_waiting_it_holds_nothing(lock: Path) -> None:
    with file_lock_sync(lock, wait_s=0):
        with anyio.move_on_after(0.02) as scope:
            async with file_lock(lock, wait_s=10):
                pytest.fail("two holders")
        assert scope.cancelled_caught
    async with file_lock(lock, wait_s=0):
        pass


@pytest.mark.timing
async def test_cancelled_or_failed_inside_it_lets_go(lock: Path) -> None:
    with anyio.move_on_after(0.02):
        async with file_lock(lock, wait_s=0):
            await anyio.sleep_forever()
    with pytest.raises(ZeroDivisionError), file_lock_sync(lock, wait_s=0):
        raise ZeroDivisionError
    async with file_lock(lock, wait_s=0):
        pass


def test_a_child_that_goes_on_doesnt_keep_the_lock(lock: Path) -> None:
    with file_lock_sync(lock, wait_s=0):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with file_lock_sync(lock, wait_s=0):
            pass
    finally:
        child.kill()
        child.wait()


async def test_a_file_that_lost_its_name_is_no_lock(lock: Path) -> None:
    async with file_lock(lock, wait_s=0):
        lock.unlink()
        async with file_lock(lock, wait_s=0):
            with pytest.raises(LockBusyError):
                async with file_lock(lock, wait_s=0):
                    pytest.fail("two holders of one name")


async def test_without_its_directory_there_is_no_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with file_lock(tmp_path / "gone" / "lease.lock", wait_s=1):
            pytest.fail("a lock on nothing")
