"""Data disks that are mounted: written, forked, started cold, cut off; and what a bad one does to a start."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.disk.filesystem import find_mke2fs
from ramet.errors import UnavailableError
from ramet.model import protocols
from ramet.system import process_ref, processes
from tests.conftest import SHORTLY, living_in
from tests.support.qemu_tools import needs_qemu_img, qemu_img, write
from tests.support.ready import Ready
from tests.unit.disk.test_filesystem import require_clean

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


@pytest.fixture(autouse=True)
def _has_mke2fs() -> None:
    try:
        find_mke2fs()
    except UnavailableError as error:
        pytest.skip(str(error))


async def said(vm: protocols.VM, script: str) -> str:
    return (await vm.exec("sh", "-c", script, check=True)).text.strip()


def top_of(vm: ramet.VM, disk: str = "disk") -> Path:
    """The file that is written: the one with the highest number."""
    return max(vm.directory.glob(f"{disk}-*.qcow2"), key=lambda path: int(path.stem.rpartition("-")[2]))


async def test_each_is_where_it_was_asked_for(host: protocols.Host) -> None:
    vm = await host.run("builtin", memory="128M", disks=["64M:/srv/a/b", 1 << 20, "32M:/srv/a"])
    mounts = (await said(vm, "grep '^/dev/vd' /proc/mounts")).splitlines()
    assert [line.split()[:3] for line in mounts] == [
        ["/dev/vdc", "/srv/a", "ext4"],
        ["/dev/vda", "/srv/a/b", "ext4"],
    ]
    # Else the guest's kernel writes zeros over zeros until the disk's file holds every inode table.
    assert all("noinit_itable" in line.split()[3].split(",") for line in mounts)
    for name, size in (("vda", 64 << 20), ("vdb", 1 << 20), ("vdc", 32 << 20)):
        assert int(await said(vm, f"cat /sys/block/{name}/size")) * 512 == size
    assert (await said(vm, "ls -A /srv/a /srv/a/b")).split() == [
        *("/srv/a:", "b", "lost+found", "/srv/a/b:", "lost+found")
    ]


@pytest.mark.core
async def test_forks_have_what_was_there_and_then_their_own(host: ramet.Host, ready: Ready) -> None:
    vm = await ready(host, disks=("64M:/data",))
    await said(vm, "head -c 4000000 /dev/urandom > /data/old; echo source > /data/who")  # nothing is synced
    digest = await said(vm, "md5sum < /data/old")
    template = await vm.template()
    frozen = {path.name: path.read_bytes() for path in template.directory.glob("disk-*")}
    forks = await template.fork(3, require_shared=True)
    for number, fork in enumerate(forks):
        assert await said(fork, "md5sum < /data/old; cat /data/who") == f"{digest}\nsource"
        await said(fork, f"echo fork-{number} > /data/who; echo {number} > /data/new-{number}; sync")
    for number, fork in enumerate(forks):
        assert (
            await said(fork, "cat /data/who; ls /data")
            == f"fork-{number}\nlost+found\nnew-{number}\nold\nwho"
        )
    assert {path.name: path.read_bytes() for path in template.directory.glob("disk-*")} == frozen
    # A fork of a fork, when what they came from is gone; then cold, on the whole chain of its disk.
    again = await forks[1].template()
    await template.remove()
    (grandchild,) = await again.fork(1)
    await again.remove()
    await said(grandchild, "echo grandchild > /data/who")
    await grandchild.stop()
    await grandchild.start()
    assert await said(grandchild, "md5sum < /data/old; cat /data/who") == f"{digest}\ngrandchild"
    assert await said(forks[2], "cat /data/who") == "fork-2"


@needs_qemu_img
async def test_a_stop_and_a_reboot_leave_it_clean(host: ramet.Host, ready: Ready, tmp_path: Path) -> None:
    vm = await ready(host, disks=("64M:/data",))
    # Something has it open: it is ended first.
    await said(vm, "echo one > /data/file; (cd /data; exec sleep 1000 < /data/file > /dev/null 2>&1) &")
    await vm.stop()
    qemu_img("convert", "-f", "qcow2", "-O", "raw", top_of(vm), tmp_path / "raw")
    require_clean(tmp_path / "raw")
    await vm.start()
    assert await said(vm, "cat /data/file; grep -c ' /data ' /proc/mounts") == "one\n1"
    assert "recovery" not in await said(vm, "dmesg | grep EXT4-fs")
    await said(vm, "echo two > /data/file")
    pid = (await vm.info()).pid
    assert pid is not None
    await vm.spawn(*SHORTLY, "reboot")
    with anyio.fail_after(90):
        await processes.wait_ended(process_ref.reference(pid))
    assert await said(vm, "cat /data/file") == "two"
    assert "recovery" not in await said(vm, "dmesg | grep EXT4-fs")


async def test_after_a_vmm_that_was_killed_the_journal_is_replayed(host: ramet.Host, ready: Ready) -> None:
    vm = await ready(host, disks=("64M:/data",))
    await said(vm, "for i in 1 2 3; do mkdir /data/$i; echo $i > /data/$i/f; done; sync")
    pid = (await vm.info()).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with anyio.fail_after(30):
        while (await vm.info()).state != "failed":
            await anyio.sleep(0.05)
    await vm.stop()
    await vm.start()
    assert await said(vm, "cat /data/*/f") == "1\n2\n3"
    assert "recovery" in await said(vm, "dmesg | grep EXT4-fs"), "it was not clean"


@needs_qemu_img
async def test_a_start_without_its_disk_is_an_error(host: ramet.Host, ready: Ready) -> None:
    vm = await ready(host, name="one", disks=("64M:/data",))
    await vm.stop()
    kept = top_of(vm).read_bytes()
    write(top_of(vm), 0, 7, 4 << 20)
    with pytest.raises(ramet.GuestError, match="its disk `disk` can't be mounted at /data: ") as caught:
        await vm.start()
    assert top_of(vm).name in str(caught.value.hint)
    assert living_in(host.home) == []
    assert "can't be mounted" in (vm.directory / "console.log").read_text(errors="replace")
    # As it was: stopped, and it starts when the disk is whole again.
    assert (await vm.info()).state == "stopped"
    top_of(vm).write_bytes(kept)
    await vm.start()
    assert await said(vm, "ls /data") == "lost+found"


async def test_a_place_that_is_no_directory_is_an_error(host: protocols.Host) -> None:
    with pytest.raises(ramet.GuestError, match="can't be mounted at /etc/passwd: Not a directory"):
        await host.run("builtin", memory="128M", disks=["64M:/etc/passwd"])
    assert await host.list(everything=True) == []


async def test_only_linux_guests_mount(host: protocols.Host) -> None:
    with pytest.raises(ramet.UsageError, match="probe mounts no disk at /data"):
        await host.run("probe", driver="firecracker", disks=["64M:/data"])
    assert await host.list(everything=True) == []
