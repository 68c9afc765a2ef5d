"""A large delta is compacted by the home's worker while forks are made: none of them notices."""

from __future__ import annotations

import anyio
import pytest

import ramet
from ramet.engine.manifest import read_manifest
from ramet.errors import LockBusyError
from ramet.memory.integrity import digest
from ramet.paths import MEM_FILE, Home
from ramet.system.locks import file_lock
from tests.side_by_side import tell
from tests.support.guests import Guest
from tests.vm.conftest import host_and_snapshots

host = host_and_snapshots

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

_MIB = 9
"""Above the threshold."""
_LIMIT_S = 60


@pytest.mark.proves("I1")
@pytest.mark.core
async def test_forks_before_during_and_after(guest: Guest, source: ramet.VM, host: ramet.Host) -> None:
    await guest.change(source, _MIB)
    expected = await guest.sum(source, _MIB)
    busy = LockBusyError("the worker is at work already")
    async with file_lock(Home(host.home).worker_lock, wait_s=_LIMIT_S, busy=busy):
        snapshot = await source.snapshot("large")
        (before,) = await snapshot.fork(1)
    assert before.receipt.memory.mode == "delta"
    assert before.receipt.memory.delta_bytes >= _MIB << 20
    mem = before.directory / MEM_FILE
    inode, content = mem.stat().st_ino, digest(mem)
    modes: list[str] = []
    with anyio.fail_after(_LIMIT_S):
        while not modes or read_manifest(snapshot.directory).memory.delta is not None:
            (during,) = await snapshot.fork(1)
            modes.append(during.receipt.memory.mode)
            assert await guest.sum(during, _MIB) == expected
            await during.remove(force=True)
    after, another = await snapshot.fork(2, require_shared=guest.is_linux)
    tell(f"{guest.driver}: {len(modes)} forks while a delta was compacted: {', '.join(modes)}")
    for vm in (after, another):
        assert (vm.receipt.memory.mode, vm.receipt.memory.delta_bytes) == ("shared", 0)
        assert vm.receipt.memory.inode != inode
    assert after.receipt.memory.inode == another.receipt.memory.inode
    assert (mem.stat().st_ino, digest(mem)) == (inode, content)
    for vm in (before, after, another, source):
        assert await guest.sum(vm, _MIB) == expected
    assert (await snapshot.verify()).ok
    # What forks of before and of after are made of goes on being captured.
    (child,) = await before.fork(1)
    (other,) = await after.fork(1)
    assert await guest.sum(child, _MIB) == await guest.sum(other, _MIB) == expected
