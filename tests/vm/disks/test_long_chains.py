"""Disks that lie over many files: the home's worker shortens them, and what they hold stays."""

from __future__ import annotations

import shutil

import pytest

import ramet
from ramet.disk.chains import chain_of
from ramet.disk.volumes import files_of
from ramet.engine.maintenance import compaction
from ramet.engine.maintenance.worker import work
from ramet.engine.manifest import read_manifest
from ramet.model.record import Disk
from ramet.paths import Home
from tests.support.guests import Guest
from tests.vm.conftest import host_and_snapshots

host = host_and_snapshots

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

_CAPTURES = 3


def disk_of(vm: ramet.VM) -> Disk:
    """As its record has it."""
    [disk] = vm._context.store.get(vm.id).machine.disks
    return disk


def layers(vm: ramet.VM | ramet.Snapshot) -> list[str]:
    """The files of its disk that are there."""
    return sorted(path.name for path in vm.directory.glob("disk-*.qcow2"))


async def at_work(host: ramet.Host, monkeypatch: pytest.MonkeyPatch, *, above_files: int) -> int:
    """How many captures and instances the worker has changed that finds chains longer than that too long."""
    with monkeypatch.context() as patched:
        patched.setattr(compaction, "SHORTEN_ABOVE_FILES", above_files)
        return await work(Home(host.home))


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="there is no qemu-img here")
async def test_of_a_living_guest_and_of_its_snapshots(
    linux: Guest, host: ramet.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await linux.boot(host)
    snapshots = []
    for number in range(_CAPTURES):
        await linux.write(source, number, 10 + number)
        snapshots.append(await source.snapshot(f"s{number}"))
    await linux.write(source, _CAPTURES, 99)
    long = disk_of(source)
    assert len(files_of(long)) == _CAPTURES + 1 == len(layers(source))
    [branch] = await snapshots[-1].fork(1, name="before")

    # The branch's disk lies over three files, too; of the snapshots' only the last over more than one.
    assert await at_work(host, monkeypatch, above_files=_CAPTURES) == 0
    assert await at_work(host, monkeypatch, above_files=1) == 2 + 1
    assert await at_work(host, monkeypatch, above_files=1) == 0

    short = disk_of(source)
    assert (short.file, short.backing) == (long.file, long.backing[:1])
    assert chain_of(source.directory, short.file) == files_of(short)
    assert layers(source) == sorted(files_of(short)), "what it doesn't lie over any more is gone"
    for number, snapshot in enumerate(snapshots):
        [disk] = read_manifest(snapshot.directory).machine.disks
        assert len(files_of(disk)) == (1 if number >= 2 else number + 1)
        assert layers(snapshot) == sorted(files_of(disk))
        assert (await snapshot.verify()).ok

    whole = [*range(10, 10 + _CAPTURES), 99]
    assert (await linux.read(source, _CAPTURES + 1))[1] == whole
    assert (await linux.read(branch, _CAPTURES + 1))[1] == [*whole[:_CAPTURES], 0]
    for number, snapshot in enumerate(snapshots):
        async with snapshot.fork(1, require_shared=True) as (fork,):
            expected = [*whole[: number + 1], *[0] * (_CAPTURES - number)]
            assert (await linux.read(fork, _CAPTURES + 1))[1] == expected
            await linux.write(fork, 0, 7)
            assert (await linux.read(fork, 1))[1] == [7]
    # It goes on being captured, and is what it was after a cold start.
    async with source.fork(1) as (after,):
        assert (await linux.read(after, _CAPTURES + 1))[1] == whole
    await source.stop()
    await source.start()
    assert (await linux.read(source, _CAPTURES + 1))[1] == whole
