"""Shared and separate files of forks: one inode, mapped privately; own files under relative names."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest

from ramet.drivers.interface import Ability, SavesSnapshot, SavesState
from ramet.drivers.log_limits import LARGEST_LOG_BYTES
from ramet.errors import VmmError
from ramet.memory.integrity import digest
from ramet.memory.mappings import areas, find_mapping, identity_of
from ramet.paths import KERNEL_FILE, MEM_FILE, VMSTATE_FILE
from ramet.system.files import allocated_bytes
from ramet.testing.driver_contract.subject import Frozen, Subject, booted, introduce, restored
from ramet.units import MIB

pytestmark = [pytest.mark.anyio]


async def test_the_mem_file_is_mapped_privately_and_whole(
    subject: Subject, frozen: Frozen, place: Path
) -> None:
    if Ability.MAPS_PRIVATELY not in subject.driver.abilities:
        pytest.skip(f"{subject.driver.name} doesn't map memory privately: forks get a copy")
    async with restored(subject, frozen, place / "vm") as vm:
        identity = identity_of(frozen.directory / MEM_FILE)
        mappings = find_mapping(vm.vmm.process.pid, identity)
        assert sum(mapping.length_bytes for mapping in mappings) == vm.machine.memory_bytes
        assert all(area.private for area in areas(vm.vmm.process.pid) if area.identity == identity)
        if Ability.OPENS_MEM_FILE_READ_ONLY in subject.driver.abilities:
            opened = opened_by(vm.vmm.process.pid)
            mem_files = [flags for path, flags in opened.items() if path.name == MEM_FILE]
            assert all(flags & os.O_ACCMODE == os.O_RDONLY for flags in mem_files)


def opened_by(pid: int) -> dict[Path, int]:
    """Return the files that a process has open, and the flags of open(2) of each."""
    flags = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = entry.readlink()
            lines = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().splitlines()
        except FileNotFoundError:
            continue  # closed meanwhile: a connection to its API
        flags[target] = int(next(line.split()[1] for line in lines if line.startswith("flags")), 8)
    return flags


async def test_forks_see_the_source_and_then_only_themselves(
    subject: Subject, frozen: Frozen, place: Path
) -> None:
    before = digest(frozen.directory / MEM_FILE)
    async with (
        restored(subject, frozen, place / "one") as first,
        restored(subject, frozen, place / "two") as two,
    ):
        drawn = set()
        for number, vm in ((10, first), (20, two)):
            async with subject.agent(vm) as agent:
                assert await subject.read(agent) == (1, 1)
                reply = await introduce(agent, f"fork-{number}")
                assert (reply.hostname, reply.generation) == (f"fork-{number}", 2)
                drawn.add(reply.boot_random)
                await subject.write(agent, number)
        assert len(drawn) == 2
        for number, vm in ((10, first), (20, two)):
            async with subject.agent(vm) as agent:
                assert await subject.read(agent) == (number, number)
    assert digest(frozen.directory / MEM_FILE) == before
    async with restored(subject, frozen, place / "three") as three, subject.agent(three) as agent:
        assert await subject.read(agent) == (1, 1)


async def test_every_path_is_its_own(subject: Subject, frozen: Frozen, place: Path) -> None:
    """No file, socket or mapping of a fork lies in its source's directory, for any path in the vmstate."""
    async with restored(subject, frozen, place / "vm") as vm:
        pid = vm.vmm.process.pid
        opened = [str(path) for path in opened_by(pid)]
        assert not [path for path in opened if path.startswith(str(frozen.directory))]
        bound = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()]
        assert not [path for path in bound if path.startswith(str(frozen.directory))]
        ours = [path for path in opened if path.startswith(str(vm.directory))]
        for disk in vm.machine.disks:
            assert str(vm.directory / disk.file) in ours
        mem = identity_of(vm.directory / MEM_FILE)
        assert mem == identity_of(frozen.directory / MEM_FILE)
        assert mem in {area.identity for area in areas(pid)}


async def test_a_fork_outlives_its_source(subject: Subject, frozen: Frozen, place: Path) -> None:
    """The source's directory goes while a fork runs: it reads pages and sectors that it had not touched."""
    async with restored(subject, frozen, place / "source") as source:
        async with subject.agent(source) as agent:
            await subject.write(agent, 5)
        again = await subject.freeze(source)
    async with restored(subject, again, place / "vm", resume=False) as vm:
        again.remove()
        await vm.vmm.resume()
        async with subject.agent(vm) as agent:
            assert await subject.read(agent) == (5, 5)
            await subject.write(agent, 6)
            assert await subject.read(agent) == (6, 6)


async def test_a_fork_can_be_frozen_and_forked(subject: Subject, frozen: Frozen, place: Path) -> None:
    before = digest(frozen.directory / MEM_FILE)
    async with restored(subject, frozen, place / "child") as child:
        async with subject.agent(child) as agent:
            await subject.write(agent, 2)
        again = await subject.freeze(child)
    assert (again.directory / MEM_FILE).stat().st_ino != (frozen.directory / MEM_FILE).stat().st_ino
    assert digest(frozen.directory / MEM_FILE) == before
    async with restored(subject, again, place / "grandchild") as vm, subject.agent(vm) as agent:
        assert await subject.read(agent) == (2, 2)


async def test_state_is_saved_to_empty_files_only(subject: Subject, frozen: Frozen, place: Path) -> None:
    async with restored(subject, frozen, place / "vm") as vm:
        assert isinstance(vm.vmm, SavesState)
        await vm.vmm.pause()
        before = (vm.directory / VMSTATE_FILE).read_bytes()
        with (vm.directory / VMSTATE_FILE).open("rb") as file, pytest.raises(VmmError, match="empty"):
            await vm.vmm.save_vmstate(file.fileno())
        if isinstance(vm.vmm, SavesSnapshot):
            with pytest.raises(VmmError, match="exists"):
                await vm.vmm.save_snapshot(VMSTATE_FILE, "new-mem")
        assert (vm.directory / VMSTATE_FILE).read_bytes() == before
        assert not (vm.directory / "new-mem").exists()
        await vm.vmm.resume()
        async with subject.agent(vm) as agent:
            assert await subject.read(agent) == (1, 1)


async def test_a_difference_holds_what_changed(subject: Subject, frozen: Frozen, place: Path) -> None:
    """A VMM that keeps a list of changed pages writes those alone, as soon as it has been restored."""
    async with restored(subject, frozen, place / "vm") as vm:
        if not isinstance(vm.vmm, SavesSnapshot):
            pytest.skip(f"{subject.driver.name} saves no differences by itself")
        async with subject.agent(vm) as agent:
            await subject.write(agent, 3)
        await vm.vmm.pause()
        await vm.vmm.save_snapshot("vmstate-2", "mem-2", diff=True)
        assert (vm.directory / "mem-2").stat().st_size == vm.machine.memory_bytes
        assert 0 < allocated_bytes(vm.directory / "mem-2") < vm.machine.memory_bytes / 4
        await vm.vmm.resume()
        async with subject.agent(vm) as agent:
            assert await subject.read(agent) == (3, 3)


async def test_a_disk_can_be_filled_to_its_end(subject: Subject, place: Path) -> None:
    """It is larger than what the VMM's logs are bounded by."""
    mib = LARGEST_LOG_BYTES // MIB + 8
    large = dataclasses.replace(subject, disk_bytes=mib * MIB)
    block = b"12345678\n" * (MIB // 9 + 1)
    async with booted(large, place / "source") as source:
        async with large.agent(source) as agent:
            if large.is_linux:
                fill = (
                    "yes 12345678 | head -c 1048576 > /run/block; i=0;"
                    f" while [ $i -lt {mib} ]; do cat /run/block; i=$((i + 1)); done"
                    f" | dd of=/dev/vda bs=1M count={mib} iflag=fullblock conv=fsync; rm /run/block"
                )
                await large.run(agent, "sh", "-c", fill)
            await large.write_at_the_end(agent, 9)
        frozen = await large.freeze(source)
    async with restored(large, frozen, place / "vm") as vm, large.agent(vm) as agent:
        assert await large.read_at_the_end(agent) == 9
        if large.is_linux:
            but_its_last_mib = f"dd if=/dev/vda bs=1M count={mib - 1} 2> /dev/null | md5sum"
            content = hashlib.md5(block[:MIB] * (mib - 1)).hexdigest()
            assert (await large.run(agent, "sh", "-c", but_its_last_mib)).split()[0] == content


async def test_a_frozen_mem_file_has_holes(subject: Subject, frozen: Frozen) -> None:
    """Zeros aren't kept as blocks, regardless of their writer."""
    mem = frozen.directory / MEM_FILE
    assert mem.stat().st_size == frozen.machine.memory_bytes
    assert allocated_bytes(mem) < 0.75 * frozen.machine.memory_bytes
    assert (frozen.directory / KERNEL_FILE).exists()
