"""What forks share and what they don't: one inode, mapped privately; own files under relative names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ramet.drivers.api import Ability, SavesSnapshot, SavesState
from ramet.errors import VmmError
from ramet.host.files import allocated_bytes
from ramet.memory.integrity import digest
from ramet.memory.mappings import areas, find_mapping, identity_of
from ramet.paths import KERNEL_FILE, MEM_FILE, VMSTATE_FILE
from ramet.units import MIB
from tests.contract.subject import Frozen, Subject, booted, introduce, restored

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600)]


async def test_the_mem_file_is_mapped_privately_and_whole(
    subject: Subject, frozen: Frozen, place: Path
) -> None:
    if Ability.MAPS_PRIVATELY not in subject.driver.abilities:
        pytest.skip(f"{subject.driver.name} doesn't map memory privately: forks get a copy")
    async with restored(subject, frozen, place / "vm") as vm:
        identity = identity_of(frozen.directory / MEM_FILE)
        mappings = find_mapping(vm.vmm.process.pid, identity)
        assert sum(one.length_bytes for one in mappings) == vm.machine.memory_bytes
        assert all(area.private for area in areas(vm.vmm.process.pid) if area.identity == identity)
        if Ability.OPENS_MEM_FILE_READ_ONLY in subject.driver.abilities:
            assert opened_for_writing(vm.vmm.process.pid, identity.inode) == []


def opened_for_writing(pid: int, inode: int) -> list[str]:
    """Descriptors of the process through which it could write that file."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inode_of_entry = entry.stat().st_ino
            lines = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().splitlines()
        except FileNotFoundError:
            continue  # closed meanwhile: a connection to its API
        flags = next(line.split()[1] for line in lines if line.startswith("flags"))
        if inode_of_entry == inode and int(flags, 8) & 0o3:
            found.append(entry.name)
    return found


async def test_forks_see_the_source_and_then_only_themselves(
    subject: Subject, frozen: Frozen, place: Path
) -> None:
    before = digest(frozen.directory / MEM_FILE)
    async with (
        restored(subject, frozen, place / "one") as one,
        restored(subject, frozen, place / "two") as two,
    ):
        drawn = set()
        for number, vm in ((10, one), (20, two)):
            async with subject.agent(vm) as agent:
                assert await subject.read(agent) == (1, 1)
                reply = await introduce(agent, f"fork-{number}")
                assert (reply.hostname, reply.generation) == (f"fork-{number}", 2)
                drawn.add(reply.boot_random)
                await subject.write(agent, number)
        assert len(drawn) == 2
        for number, vm in ((10, one), (20, two)):
            async with subject.agent(vm) as agent:
                assert await subject.read(agent) == (number, number)
    assert digest(frozen.directory / MEM_FILE) == before
    async with restored(subject, frozen, place / "three") as three, subject.agent(three) as agent:
        assert await subject.read(agent) == (1, 1)


async def test_every_path_is_its_own(subject: Subject, frozen: Frozen, place: Path) -> None:
    """No file, socket or mapping of a fork lies in its source's directory, whatever the vmstate embeds."""
    async with restored(subject, frozen, place / "vm") as vm:
        pid = vm.vmm.process.pid
        opened = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        mapped = Path(f"/proc/{pid}/maps").read_text()
        sources = str(frozen.directory)
        # A hard link may be shown by either of its names in maps; descriptors know by which they were opened.
        assert not [one for one in opened if one.startswith(sources)]
        ours = [one for one in opened if one.startswith(str(vm.directory))]
        for disk in vm.machine.disks:
            assert str(vm.directory / disk.file) in ours
        assert f"{vm.directory / MEM_FILE}" in mapped or MEM_FILE in mapped


async def test_a_fork_outlives_its_source(subject: Subject, place: Path) -> None:
    """The source's directory goes while a fork runs: it reads pages and sectors that it had not touched."""
    async with booted(subject, place / "source") as source:
        async with subject.agent(source) as agent:
            await subject.write(agent, 5)
        frozen = await subject.freeze(source)
    async with restored(subject, frozen, place / "vm", resume=False) as vm:
        frozen.remove()
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


async def test_state_is_saved_under_new_names_only(subject: Subject, frozen: Frozen, place: Path) -> None:
    async with restored(subject, frozen, place / "vm") as vm:
        await vm.vmm.pause()
        before = (vm.directory / VMSTATE_FILE).read_bytes()
        with pytest.raises(VmmError, match="exists"):
            if isinstance(vm.vmm, SavesState):
                await vm.vmm.save_vmstate(VMSTATE_FILE)
            else:
                assert isinstance(vm.vmm, SavesSnapshot)
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


async def test_a_frozen_mem_file_has_holes(subject: Subject, frozen: Frozen) -> None:
    """Zeros aren't kept as blocks, whoever wrote them."""
    mem = frozen.directory / MEM_FILE
    assert mem.stat().st_size == frozen.machine.memory_bytes
    assert allocated_bytes(mem) < 0.75 * frozen.machine.memory_bytes
    assert (frozen.directory / KERNEL_FILE).exists()


async def test_a_disk_holds_what_it_promises(subject: Subject, place: Path) -> None:
    """To its last sector: what bounds the VMM's logs doesn't bound its disks."""
    size = 40 * MIB
    async with booted(replace(subject, disk_bytes=size), place / "vm") as vm, subject.agent(vm) as agent:
        if subject.is_linux:
            written = await subject.run(
                agent, "sh", "-c", f"head -c {size} /dev/urandom | tee /dev/vda | md5sum; sync"
            )
            again = "echo 3 > /proc/sys/vm/drop_caches; md5sum < /dev/vda"
            kept = await subject.run(agent, "sh", "-c", again)
            assert kept == written
        else:
            last = hex(size // 512 - 1)
            await subject.run(agent, "bpoke", last, "5")
            assert (await subject.run(agent, "bpeek", last)).split()[0] == f"{5:016x}"
