"""Disks that become larger: of a guest that runs, and of one that is off; and what doesn't change then."""

from __future__ import annotations

import anyio
import msgspec
import pytest

import ramet
from ramet.disk.volumes import size_of
from ramet.engine.lifecycle import resize
from ramet.errors import GuestError, NotFoundError, UsageError, WrongStateError
from ramet.model import protocols
from ramet.model.record import Intent, Record
from ramet.system import processes, spawn
from ramet.units import MIB
from tests.support.qemu_tools import needs_qemu_img, qemu_img
from tests.support.ready import Ready
from tests.unit.disk.test_filesystem import require_clean
from tests.vm.conftest import host_and_snapshots
from tests.vm.disks.test_mounted_disks import said, top_of

host = host_and_snapshots

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


async def device_mib(vm: protocols.VM) -> int:
    return int(await said(vm, "cat /sys/block/vda/size")) * 512 // MIB


async def filesystem_mib(vm: protocols.VM) -> int:
    blocks, size = (await said(vm, "stat -f -c '%b %S' /data")).split()
    return int(blocks) * int(size) // MIB


def disk_of(vm: ramet.VM) -> tuple[int, int]:
    """Its size in the record, and in its uppermost file, in MiB."""
    [disk] = vm._record.machine.disks
    return disk.size_bytes // MIB, size_of(vm.directory, disk) // MIB


@pytest.mark.deep
@pytest.mark.core
@pytest.mark.proves("I1")
async def test_while_it_runs(host: ramet.Host, ready: Ready) -> None:
    vm = await ready(host, disks=("64M:/data",))
    await said(vm, "head -c 20000000 /dev/urandom > /data/old; sync")
    digest = await said(vm, "md5sum < /data/old")
    before = await vm.snapshot("before")
    frozen = {path.name: path.read_bytes() for path in before.directory.glob("disk-*")}
    resized = await vm.resize_disk("disk", "192M")
    assert (resized.size_bytes, resized.path, resized.filesystem_bytes) == (192 * MIB, "/data", 192 * MIB)
    assert await device_mib(vm) == 192
    assert disk_of(vm) == (192, 192)
    # More than the disk had: neither the guest's filesystem nor the limit on the VMM's files is in the way.
    await said(vm, "head -c 120000000 /dev/zero | tr '\\0' x > /data/new; sync")
    assert await said(vm, "md5sum < /data/old") == digest
    (after,) = await vm.fork(1, require_shared=True)
    assert (await device_mib(after), await said(after, "wc -c < /data/new")) == (192, "120000000")
    (earlier,) = await before.fork(1, require_shared=True)
    assert (await device_mib(earlier), await filesystem_mib(earlier) < 64) == (64, True)
    assert await said(earlier, "md5sum < /data/old") == digest
    assert {path.name: path.read_bytes() for path in before.directory.glob("disk-*")} == frozen
    await vm.rewind("before")
    assert (await device_mib(vm), disk_of(vm)) == (64, (64, 64))


@needs_qemu_img
async def test_of_one_that_is_off(host: ramet.Host, ready: Ready, tmp_path: object) -> None:
    vm = await ready(host, disks=("64M:/data", "1M"))
    await said(vm, "echo kept > /data/file")
    await vm.stop()
    assert (await vm.resize_disk("disk", "96M")).filesystem_bytes is None
    assert (await vm.resize_disk("disk1", "8M")).path is None
    await vm.start()
    assert await said(vm, "cat /data/file; cat /sys/block/vdb/size") == "kept\n16384"
    assert (await device_mib(vm), await filesystem_mib(vm) > 80) == (96, True)
    await vm.stop()
    raw = vm.directory.parent / "raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", top_of(vm), raw)
    try:
        require_clean(raw)
    finally:
        raw.unlink()


async def test_what_is_refused(host: ramet.Host, ready: Ready) -> None:
    vm = await ready(host, disks=("64M:/data",))
    for size, error, words in (
        ("32M", UsageError, "can't be made smaller"),
        (64 * MIB + 1, UsageError, "sectors of 512 bytes"),
        ("20T", UsageError, "at most"),
    ):
        with pytest.raises(error) as refused:
            await vm.resize_disk("disk", size)
        assert words in f"{refused.value.message} {refused.value.hint}"
    with pytest.raises(NotFoundError, match="no disk 'data'") as unknown:
        await vm.resize_disk("data", "1G")
    assert unknown.value.hint == "it has disk"
    await vm.pause()
    with pytest.raises(WrongStateError, match="is paused"):
        await vm.resize_disk("disk", "128M")
    await vm.resume()
    assert (await device_mib(vm), disk_of(vm)) == (64, (64, 64))
    # The filesystem isn't mounted: the disk is larger, and that is said.
    await said(vm, "umount /data")
    with pytest.raises(GuestError, match="its filesystem at /data didn't grow") as half:
        await vm.resize_disk("disk", "128M")
    assert "has 128.0 MiB now" in half.value.message
    assert "isn't mounted where it was" in half.value.message
    assert (await device_mib(vm), disk_of(vm)) == (128, (128, 128))
    await said(vm, "mount -t ext4 /dev/vda /data")
    assert (await vm.resize_disk("disk", "128M")).filesystem_bytes == 128 * MIB
    assert await filesystem_mib(vm) > 100


async def test_another_one_mounted_there(host: ramet.Host, ready: Ready) -> None:
    vm = await ready(host, disks=("64M:/data",))
    await said(vm, "mount -t tmpfs tmpfs /data")
    with pytest.raises(GuestError, match="isn't mounted where it was"):
        await vm.resize_disk("disk", "128M")


@pytest.mark.deep
@pytest.mark.parametrize("runs", [True, False], ids=["running", "stopped"])
async def test_a_killed_resize_is_finished(host: ramet.Host, ready: Ready, runs: bool) -> None:
    """The file is larger, and the record isn't: what is made of the disk next has the larger size."""
    vm = await ready(host, disks=("64M:/data",))
    if not runs:
        await vm.stop()
    [disk] = vm._record.machine.disks
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resize, "_commit", lambda *_: 1 / 0)
            await vm.resize_disk("disk", "128M")
    except ZeroDivisionError:
        pass
    gone = spawn.spawn(["true"], directory=host.home, log=host.home / "gone.log")
    await processes.wait_ended(gone, timeout_s=10)
    (host.home / "gone.log").unlink()

    def killed(row: Record) -> Record:
        return msgspec.structs.replace(row, pending=Intent(what="resize", by=gone))

    vm._context.store.change(vm.id, killed)
    assert vm._record.machine.disks == (disk,)
    async with ramet.Host(host.home):
        pass
    assert disk_of(vm) == (128, 128)
    if not runs:
        await vm.start()
    assert await device_mib(vm) == 128
    assert (await vm.resize_disk("disk", "128M")).filesystem_bytes == 128 * MIB
    await said(vm, "head -c 100000000 /dev/zero | tr '\\0' x > /data/new; sync")
    (fork,) = await vm.fork(1)
    assert (await device_mib(fork), await said(fork, "wc -c < /data/new")) == (128, "100000000")


async def test_under_load(host: ramet.Host, ready: Ready) -> None:
    vm = await ready(host, disks=("64M:/data",))
    writer = "while true; do head -c 300000 /dev/urandom > /data/x; sync; cp /data/x /data/y; done"
    await vm.spawn("sh", "-c", writer)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(vm.snapshot, "during")
        for size in (80, 96, 112):
            assert (await vm.resize_disk("disk", f"{size}M")).filesystem_bytes == size * MIB
    assert disk_of(vm) == (112, 112)
    (fork,) = await vm.fork(1)
    assert await device_mib(fork) == 112


async def test_raw_disks(probes: protocols.Host) -> None:
    """The probe reads its disk's size when it boots, and no later."""
    vm = await probes.run("probe", driver="firecracker", memory="64M", disks=["16M"])
    assert isinstance(vm, ramet.VM)
    beyond = f"{20 * MIB // 512:x}"
    await vm.exec("bpoke", "3", "0x1111", check=True)
    assert (await vm.exec("bpoke", beyond, "0x2222")).stderr == b"beyond the end of the disk\n"
    before = await vm.snapshot("before")
    assert (await vm.resize_disk("disk", "32M")).filesystem_bytes is None
    assert disk_of(vm) == (32, 32)
    (fork,) = await vm.fork(1)
    assert isinstance(fork, ramet.VM)
    assert disk_of(fork) == (32, 32)
    assert (before.directory / "disk.raw").stat().st_size == 16 * MIB
    await vm.stop(timeout=0)
    await vm.resize_disk("disk", "48M")
    await vm.start()
    assert disk_of(vm) == (48, 48)
    assert (await vm.exec("bpoke", beyond, "0x2222", check=True)).ok
    assert (await vm.exec("bpeek", "3")).text == "0000000000001111\n"
    await before.remove()
