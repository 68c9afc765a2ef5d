"""Disks of a living QEMU: put under overlays in a pause, all or none, and their chains shortened."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import pytest

from ramet.disk.chains import chain_of
from ramet.disk.qcow2 import make_qcow2
from ramet.disk.volumes import files_of, sync_disks
from ramet.drivers.qemu.vmm import QemuVmm
from ramet.errors import VmmError
from ramet.model.record import Disk, Machine
from ramet.system.share import link_or_copy
from ramet.testing.driver_contract.subject import Running, Subject, booted
from ramet.units import MIB
from tests import machines

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300)]

Pairs = list[tuple[Disk, Disk]]


_numbers = itertools.count(1)
"""Of overlays: the tests of this file share a VM, and its directory."""


class TwoDisks(Subject):
    """The built-in guest with two disks."""

    def machine(self) -> Machine:
        """Two disks, two virtual CPUs."""
        return self.driver.machine(
            accelerator=self.accelerator,
            memory_bytes=self.memory_bytes,
            cpus=2,
            disk_bytes=(64 * MIB, 32 * MIB),
        )

    async def put(self, vm: Running, device: str, at: int, text: str) -> None:
        async with self.agent(vm) as agent:
            script = f"echo {text} | dd of=/dev/{device} bs=4k seek={at} conv=notrunc,fsync"
            await self.run(agent, "sh", "-c", script)

    async def get(self, vm: Running, device: str, at: int) -> str:
        async with self.agent(vm) as agent:
            script = (
                f"echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/{device} bs=4k skip={at} count=1 | head -n 1"
            )
            return (await self.run(agent, "sh", "-c", script)).strip()


@pytest.fixture(scope="module")
async def subject(anyio_backend: str) -> Subject:
    found = await machines.require("qemu", "builtin")
    return TwoDisks(found.driver, found.image, "tcg")


@pytest.fixture(scope="module")
async def vm(subject: TwoDisks, homes: Path) -> AsyncIterator[Running]:
    """A running guest, whose disks lie over more and more files."""
    with tempfile.TemporaryDirectory(dir=homes) as directory:
        async with booted(subject, Path(directory) / "vm") as running:
            yield running


@pytest.fixture
async def disks(vm: Running) -> tuple[Disk, ...]:
    """The guest's disks as QEMU has them."""
    files = await qemu(vm).active_files()
    chains = {name: chain_of(vm.directory, file) for name, file in files.items()}
    return tuple(
        msgspec.structs.replace(disk, file=files[disk.name], backing=chains[disk.name][:-1])
        for disk in vm.machine.disks
    )


def overlays(vm: Running, disks: tuple[Disk, ...]) -> Pairs:
    """An overlay for each disk, on the medium."""
    pairs = []
    for disk in disks:
        file = f"{disk.name}-{next(_numbers)}.qcow2"
        make_qcow2(vm.directory / file, disk.size_bytes, backing=disk.file)
        pairs.append((disk, msgspec.structs.replace(disk, file=file, backing=files_of(disk))))
    return pairs


def qemu(vm: Running) -> QemuVmm:
    assert isinstance(vm.vmm, QemuVmm)
    return vm.vmm


async def freeze(vm: Running, disks: tuple[Disk, ...]) -> tuple[Disk, ...]:
    """Put overlays over the disks, in a pause."""
    pairs = overlays(vm, disks)
    async with vm.vmm.session():
        await qemu(vm).prepare_overlays(pairs)
        sync_disks(vm.directory, disks)
        await vm.vmm.pause()
        await qemu(vm).switch_overlays(pairs)
        await vm.vmm.resume()
    return tuple(after for _, after in pairs)


def open_modes(vm: Running) -> dict[str, int]:
    """How QEMU has its disk files open: O_RDONLY or O_RDWR."""
    place = Path(f"/proc/{vm.vmm.process.pid}")
    modes = {}
    for entry in (place / "fd").iterdir():
        try:
            target = entry.readlink()
            lines = (place / "fdinfo" / entry.name).read_text().splitlines()
        except FileNotFoundError:
            continue
        if target.suffix == ".qcow2":
            modes[target.name] = int(next(line.split()[1] for line in lines if line.startswith("flags")), 8)
    return {name: flags & os.O_ACCMODE for name, flags in modes.items()}


def backing_in_header(path: Path) -> str:
    """What `qemu-img` reads there, of a file that is in use."""
    said = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", path], capture_output=True, text=True, check=True
    )
    return str(msgspec.json.decode(said.stdout)["backing-filename"])


@pytest.mark.proves("I1")
async def test_what_is_frozen_is_never_written_again(
    subject: TwoDisks, vm: Running, disks: tuple[Disk, ...]
) -> None:
    await subject.put(vm, "vda", 1, "first")
    await subject.put(vm, "vdb", 1, "other")
    for round_number in range(3):
        frozen = [vm.directory / disk.file for disk in disks]
        disks = await freeze(vm, disks)
        assert await qemu(vm).active_files() == {disk.name: disk.file for disk in disks}
        before = [path.read_bytes() for path in frozen]
        await subject.put(vm, "vda", 2, f"round-{round_number}")
        await subject.put(vm, "vdb", 2, f"round-{round_number}")
        assert [path.read_bytes() for path in frozen] == before
        modes = open_modes(vm)
        for disk in disks:
            assert modes[disk.file] == os.O_RDWR
            assert {modes[name] for name in disk.backing} == {os.O_RDONLY}
    assert await subject.get(vm, "vda", 1) == "first"
    assert await subject.get(vm, "vdb", 1) == "other"
    assert await subject.get(vm, "vda", 2) == "round-2"


async def test_all_disks_are_switched_or_none(
    subject: TwoDisks, vm: Running, disks: tuple[Disk, ...]
) -> None:
    pairs = overlays(vm, disks)
    async with vm.vmm.session():
        await qemu(vm).prepare_overlays(pairs[:1])
        await vm.vmm.pause()
        with pytest.raises(VmmError):
            await qemu(vm).switch_overlays(pairs)  # the second was never opened
        assert await qemu(vm).active_files() == {disk.name: disk.file for disk in disks}
        await vm.vmm.resume()
        await qemu(vm).drop_overlays(pairs)
    await subject.put(vm, "vda", 1, "goes-on")
    assert await subject.get(vm, "vda", 1) == "goes-on"
    assert pairs[0][1].file not in open_modes(vm)
    await freeze_again(vm, pairs)
    assert await subject.get(vm, "vda", 1) == "goes-on"


async def freeze_again(vm: Running, pairs: Pairs) -> None:
    async with vm.vmm.session():
        await qemu(vm).prepare_overlays(pairs)
        await qemu(vm).prepare_overlays(pairs)  # as after a ramet that died in between
        await vm.vmm.pause()
        await qemu(vm).switch_overlays(pairs)
        await vm.vmm.resume()
        with pytest.raises(VmmError, match="in use"):
            await qemu(vm).drop_overlays(pairs)


async def test_overlay_that_is_missing_leaves_nothing_open(
    subject: TwoDisks, vm: Running, disks: tuple[Disk, ...]
) -> None:
    before = open_modes(vm)
    assert {disk.file for disk in disks} <= set(before)
    pairs = overlays(vm, disks)
    (vm.directory / pairs[1][1].file).unlink()
    with pytest.raises(VmmError):
        await qemu(vm).prepare_overlays(pairs)
    assert open_modes(vm) == before
    await subject.put(vm, "vdb", 1, "goes-on")


async def test_a_chain_is_shortened_under_a_running_guest(
    subject: TwoDisks, vm: Running, disks: tuple[Disk, ...], home: Path
) -> None:
    for number in range(4):
        await subject.put(vm, "vda", number, f"layer-{number}")
        disks = await freeze(vm, disks)
    before = {name: (vm.directory / name).read_bytes() for name in disks[0].backing}
    short = await qemu(vm).shorten(disks[0])
    assert short.backing == disks[0].backing[:1]
    assert {name: (vm.directory / name).read_bytes() for name in before} == before
    assert backing_in_header(vm.directory / short.file) == short.backing[0]
    assert set(open_modes(vm)) - set(files_of(disks[1])) == set(files_of(short))
    assert await qemu(vm).shorten(short) == short  # nothing left to do
    for name in disks[0].backing[1:]:
        (vm.directory / name).unlink()
    for number in range(4):
        assert await subject.get(vm, "vda", number) == f"layer-{number}"
    await anyio.run_process(["qemu-img", "check", "-U", "-q", vm.directory / short.file])
    # It can be frozen again, and read by another QEMU at another place.
    after = msgspec.structs.replace(short, file="disk-last.qcow2", backing=files_of(short))
    make_qcow2(vm.directory / after.file, after.size_bytes, backing=short.file)
    async with vm.vmm.session():
        await qemu(vm).prepare_overlays([(short, after)])
        await vm.vmm.pause()
        await qemu(vm).switch_overlays([(short, after)])
        await vm.vmm.resume()
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    for name in files_of(short):
        link_or_copy(vm.directory / name, elsewhere / name)
    convert = ["qemu-img", "convert", "-U", "-O", "raw", short.file, "raw"]
    await anyio.run_process(convert, cwd=elsewhere)
    raw = (elsewhere / "raw").read_bytes()
    assert [raw[n * 4096 :][:7] for n in range(4)] == [b"layer-%d" % n for n in range(4)]


async def test_a_capture_cancels_the_shortening(
    subject: TwoDisks, vm: Running, disks: tuple[Disk, ...]
) -> None:
    look = "dd if=/dev/vda bs=1M count=11 2> /dev/null | md5sum"
    await subject.put(vm, "vda", 0, "lowest")
    disks = await freeze(vm, disks)
    async with subject.agent(vm) as agent:
        await subject.run(
            agent, "sh", "-c", "dd if=/dev/urandom of=/dev/vda bs=1M seek=1 count=10 conv=fsync"
        )
        digest = await subject.run(agent, "sh", "-c", look)
    disks = await freeze(vm, disks)
    disks = await freeze(vm, disks)
    shortened: list[Disk] = []

    async def shorten() -> None:
        shortened.append(await qemu(vm).shorten(disks[0], bytes_per_s=MIB))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shorten)
        await anyio.sleep(0.5)
        assert shortened == []
        after = await freeze(vm, disks)
    assert shortened == [disks[0]], "its chain is as long as before"
    assert (await qemu(vm).active_files())["disk"] == after[0].file
    async with subject.agent(vm) as agent:
        assert await subject.run(agent, "sh", "-c", look) == digest
    for name in files_of(after[0]):
        await anyio.run_process(["qemu-img", "check", "-U", "-q", vm.directory / name])
    assert (await qemu(vm).shorten(after[0])).backing == after[0].backing[:1]
    async with subject.agent(vm) as agent:
        assert await subject.run(agent, "sh", "-c", look) == digest


async def test_a_shortening_that_is_cancelled_is_stopped(
    subject: TwoDisks, vm: Running, disks: tuple[Disk, ...]
) -> None:
    disks = await freeze(vm, disks)
    async with subject.agent(vm) as agent:
        await subject.run(agent, "sh", "-c", "dd if=/dev/urandom of=/dev/vda bs=1M count=10 conv=fsync")
    disks = await freeze(vm, disks)
    with anyio.move_on_after(0.5) as scope:
        await qemu(vm).shorten(disks[0], bytes_per_s=MIB)
    assert scope.cancelled_caught
    assert (await qemu(vm).shorten(disks[0])).backing == disks[0].backing[:1]
