"""What the change that this project grew out of had to keep true, under the names that it had there."""

from __future__ import annotations

from pathlib import Path

import pytest

import ramet
from tests.vm.compression.conftest import remembers

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


def inode(path: Path) -> int:
    """As `stat -c %i` prints it."""
    return path.stat().st_ino


async def test_fork_snapshot_hardlinks_raw_memory_file(snapshot: ramet.Snapshot) -> None:
    before = (snapshot.directory / "mem").stat().st_nlink
    async with snapshot.fork(2) as forks:
        for vm in forks:
            assert inode(vm.directory / "mem") == inode(snapshot.directory / "mem")
            assert vm.receipt.memory.mode in {"shared", "delta"}
            assert await remembers(vm)
        assert (snapshot.directory / "mem").stat().st_nlink == before + 2


async def test_fork_snapshot_from_compressed_source_has_a_real_raw_file(snapshot: ramet.Snapshot) -> None:
    size_bytes = (snapshot.directory / "mem").stat().st_size
    await snapshot.compress()
    assert not (snapshot.directory / "mem").exists()
    async with snapshot.fork(1) as (vm,):
        mem = vm.directory / "mem"
        assert (mem.stat().st_size, mem.is_symlink()) == (size_bytes, False)
        assert not list(vm.directory.glob("*.zst"))
        assert await remembers(vm)
        # Once decompressed it is shared, by the snapshot and by whoever comes later.
        assert inode(mem) == inode(snapshot.directory / "mem")
        async with snapshot.fork(1) as (later,):
            assert inode(later.directory / "mem") == inode(mem)
            assert later.receipt.timings_ms.decompress == 0


@pytest.mark.proves("I3")
@pytest.mark.parametrize("compressed", [pytest.param(False, marks=pytest.mark.deep), True])
async def test_deleting_a_snapshot_strands_no_fork(snapshot: ramet.Snapshot, compressed: bool) -> None:
    if compressed:
        await snapshot.compress()
    async with snapshot.fork(2) as (one, other):
        await snapshot.remove()
        assert not snapshot.directory.exists()
        for vm in (one, other):
            await vm.exec(
                "sh", "-c", "echo 1 > /proc/sys/vm/drop_caches; head -c 99999 /dev/urandom > /run/n"
            )
            assert await remembers(vm)
        await one.standby()
        await one.restore()
        assert await remembers(one)


@pytest.mark.proves("I1")
async def test_stat_c_i_matches(warm: ramet.VM) -> None:
    """`stat -c %i` of the source's mem-file and of each fork's."""
    async with warm.fork(3) as forks:
        assert {inode(vm.directory / "mem") for vm in forks} == {inode(warm.directory / "mem")}
