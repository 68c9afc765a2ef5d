"""Needs of a capture: one lease for many calls, a guest that can't stay frozen, an owner tag."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import msgspec
import pytest

from ramet.drivers.interface import LoadsDelta, SavesState
from ramet.errors import VmmError
from ramet.memory.delta import open_delta, write_delta
from ramet.memory.mappings import find_mapping, identity_of
from ramet.memory.pagemap import changed_runs
from ramet.memory.pages import LivePages
from ramet.paths import MEM_FILE, VMSTATE_FILE
from ramet.system import process_ref, processes, spawn
from ramet.system.files import new_file
from ramet.system.pause_watchdog import resume_on_death
from ramet.testing.driver_contract import another_process
from ramet.testing.driver_contract.subject import Frozen, Running, Subject, restored

pytestmark = [pytest.mark.anyio]


async def test_a_session_holds_all_that_a_capture_says(subject: Subject, frozen: Frozen, place: Path) -> None:
    async with restored(subject, frozen, place / "vm") as vm:
        assert isinstance(vm.vmm, SavesState)
        sizes = []
        for _ in range(2):
            vmstate = os.memfd_create("vmstate")
            try:
                async with vm.vmm.session():
                    await vm.vmm.pause()
                    async with vm.vmm.session():  # nested: the same
                        await vm.vmm.save_vmstate(vmstate)
                    assert await vm.vmm.status() == "paused"
                    await vm.vmm.resume()
                sizes.append(os.fstat(vmstate).st_size)
            finally:
                os.close(vmstate)
        assert min(sizes) > 1000
        async with subject.agent(vm) as agent:
            assert await subject.read(agent) == (1, 1)


async def test_another_task_is_served_after_a_session_or_beside_it(
    subject: Subject, frozen: Frozen, place: Path
) -> None:
    """It never gets between, and it isn't lost."""
    async with restored(subject, frozen, place / "vm") as vm:
        answers: list[str] = []

        async def ask() -> None:
            answers.append(await vm.vmm.status())

        async with anyio.create_task_group() as tasks, vm.vmm.session():
            await vm.vmm.pause()
            tasks.start_soon(ask)
            for _ in range(5):
                assert await vm.vmm.status() == "paused"
            await vm.vmm.resume()
        assert answers in (["paused"], ["running"])


async def test_a_refusal_leaves_the_session_usable(subject: Subject, frozen: Frozen, place: Path) -> None:
    async with restored(subject, frozen, place / "vm") as vm, vm.vmm.session():
        await vm.vmm.pause()
        with pytest.raises(VmmError):
            await vm.vmm.load_vmstate(VMSTATE_FILE)  # it has one
        await vm.vmm.resume()
        assert await vm.vmm.status() == "running"


async def test_a_cancelled_session_can_still_clean_up(subject: Subject, frozen: Frozen, place: Path) -> None:
    async with restored(subject, frozen, place / "vm") as vm:
        with anyio.move_on_after(0.2) as scope:
            async with vm.vmm.session():
                await vm.vmm.pause()
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await vm.vmm.resume()
        assert scope.cancelled_caught
        assert await vm.vmm.status() == "running"


async def test_state_that_was_saved_alone_fits_the_ram_that_is_there(
    subject: Subject, frozen: Frozen, place: Path
) -> None:
    """Saving state changes RAM, if at all, before it returns."""
    async with restored(subject, frozen, place / "vm") as vm:
        assert isinstance(vm.vmm, SavesState)
        async with subject.agent(vm) as agent:
            await subject.write(agent, 8)
        pid = vm.vmm.process.pid
        mem = identity_of(vm.directory / MEM_FILE)
        vmstate = os.memfd_create("vmstate")
        try:
            async with vm.vmm.session():
                await vm.vmm.pause()
                await vm.vmm.save_vmstate(vmstate)
                first = changed_runs(pid, find_mapping(pid, mem))
                await vm.vmm.status()
                assert changed_runs(pid, find_mapping(pid, mem)) == first
        finally:
            os.close(vmstate)
        again = await subject.freeze(vm)
    async with restored(subject, again, place / "child") as child, subject.agent(child) as agent:
        assert await subject.read(agent) == (8, 8)


@pytest.mark.parametrize("resume", [True, False])
async def test_a_delta_that_a_vmm_loads_is_in_ram(
    subject: Subject, frozen: Frozen, place: Path, resume: bool
) -> None:
    async with restored(subject, frozen, place / "vm") as vm:
        if not isinstance(vm.vmm, LoadsDelta):
            pytest.skip(f"{subject.driver.name} loads no delta: the engine writes it")
        assert isinstance(vm.vmm, SavesState)
        async with subject.agent(vm) as agent:
            await subject.write(agent, 4)
        await vm.vmm.pause()
        (vm.directory / VMSTATE_FILE).unlink()
        with new_file(vm.directory / VMSTATE_FILE) as vmstate:
            await vm.vmm.save_vmstate(vmstate)
        pid, mem = vm.vmm.process.pid, identity_of(vm.directory / MEM_FILE)
        pages = LivePages(pid, changed_runs(pid, find_mapping(pid, mem)))
        write_delta(vm.directory / "saved-delta", pages, memory_bytes=vm.machine.memory_bytes)
        await vm.vmm.kill()
    machine = subject.link(Frozen(vm.directory, vm.machine), place / "child")
    vmm = await subject.driver.restore(place / "child", machine)
    try:
        assert isinstance(vmm, LoadsDelta)
        with (
            (vm.directory / "saved-delta").open("rb") as file,
            open_delta(file.fileno(), machine.memory_bytes) as delta,
        ):
            await vmm.load_with_delta(VMSTATE_FILE, file.fileno(), list(delta.runs()), resume=resume)
        if not resume:
            assert await vmm.status() != "running"
            await vmm.resume()
        async with subject.agent(Running(place / "child", machine, vmm)) as agent:
            assert await subject.read(agent) == (4, 4)
    finally:
        await vmm.kill()


async def test_a_guest_goes_on_when_who_paused_it_is_killed(
    subject: Subject, frozen: Frozen, place: Path
) -> None:
    async with restored(subject, frozen, place / "vm") as vm:
        with another_process.start("die", subject, vm) as dying:
            assert dying.stdout is not None
            resumer = process_ref.reference(int(dying.stdout.readline()))
            dying.kill()
        # Nobody else asks the VMM meanwhile.
        assert await processes.wait_ended(resumer, timeout_s=60)
        assert await vm.vmm.status() == "running"
        async with subject.agent(vm) as agent:
            assert await subject.read(agent) == (1, 1)


async def test_a_guest_that_is_meant_to_stand_still_does(
    subject: Subject, frozen: Frozen, place: Path
) -> None:
    async with restored(subject, frozen, place / "vm") as vm:
        async with resume_on_death(vm.directory, vm.vmm.resume_steps()):
            await vm.vmm.pause()
        assert await vm.vmm.status() == "paused"
        await vm.vmm.resume()


async def test_a_vmm_belongs_to_the_directory_that_it_works_in_whatever_it_is_called(
    subject: Subject, frozen: Frozen, place: Path
) -> None:
    (place / "staging").mkdir()
    directory, tag = place / "staging" / "vm", place / "instances" / "vm"
    machine = subject.link(frozen, directory)
    vmm = await subject.driver.restore(directory, machine, tag=tag)
    try:
        assert spawn.spawned_in(tag) == []
        assert spawn.spawned_in(directory) == [vmm.process]
        tag.parent.mkdir()
        directory.rename(tag)
        assert spawn.spawned_in(tag) == [vmm.process]
        assert spawn.spawned_in(directory) == []
        place.rename(place.with_name("moved"))
        moved = place.with_name("moved") / "instances" / "vm"
        assert spawn.spawned_in(moved) == [vmm.process]
        moved.parent.parent.rename(place)
    finally:
        await vmm.kill()


async def test_ram_lies_where_the_driver_says(subject: Subject, place: Path) -> None:
    """The regions are the whole of the mem-file, in its order."""
    machine = subject.machine()
    for memory_mib in (128, 3071, 3328, 3584, 4096, 6144):
        sized = msgspec.structs.replace(machine, memory_bytes=memory_mib << 20)
        regions = subject.driver.ram_regions(sized)
        ends = [0, *(region.file_offset + region.length_bytes for region in regions)]
        assert [region.file_offset for region in regions] == ends[:-1]
        assert ends[-1] == sized.memory_bytes
        assert all(region.guest_start == 0 or region.guest_start >= 4 << 30 for region in regions)


async def test_what_a_machine_is_made_of_is_told_without_one(subject: Subject) -> None:
    machine = subject.machine()
    arguments = subject.driver.arguments(machine)
    assert arguments == subject.driver.arguments(machine)
    more = msgspec.structs.replace(machine, cpus=machine.cpus + 1)
    assert arguments != subject.driver.arguments(more)
    assert machine.disks[0].file in "".join(arguments)
