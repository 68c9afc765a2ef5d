"""Start, pause, resume, end: of a booted VM and of a restored one, by this process and by another."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest

from ramet.drivers.interface import Ability, Ending, ResumesOnLoad, SavesState, TellsVersion
from ramet.errors import GuestError, GuestLostError, GuestTimeoutError, VmmError, VmmTimeoutError
from ramet.memory.mappings import areas, identity_of
from ramet.model.record import ProcessRef
from ramet.paths import MEM_FILE, VMSTATE_FILE
from ramet.system import liveness, process_ref, processes
from ramet.testing.driver_contract import another_process
from ramet.testing.driver_contract.subject import Frozen, Running, Subject, booted, introduce, restored
from ramet.testing.leftovers import living_in

pytestmark = [pytest.mark.anyio]


async def test_a_booted_vm_runs_in_its_directory_and_answers(subject: Subject, place: Path) -> None:
    async with booted(subject, place / "vm") as vm:
        assert await vm.vmm.status() == "running"
        assert living_in(place) == [vm.vmm.process.pid]
        assert Path(f"/proc/{vm.vmm.process.pid}/cwd").readlink() == vm.directory
        async with subject.agent(vm) as agent:
            reply = await introduce(agent, "booted")
            assert reply.hostname == "booted"
            assert len(set(reply.boot_random)) > 1
            await subject.write(agent, 77)
            assert await subject.read(agent) == (77, 77)
        await vm.vmm.kill()
        assert living_in(place) == []
        await vm.vmm.kill()  # nothing happens


async def test_abilities_are_what_the_vmm_does(subject: Subject, frozen: Frozen, place: Path) -> None:
    """A delta can be written into RAM before vmstate is loaded where RAM is mapped before, and only there."""
    machine = subject.link(frozen, place / "vm")
    vmm = await subject.driver.restore(place / "vm", machine)
    try:
        assert isinstance(vmm, SavesState)
        mem = identity_of(place / "vm" / MEM_FILE)
        mapped = mem in {area.identity for area in areas(vmm.process.pid)}
        assert mapped == (Ability.LOADS_DELTA_BEFORE_VMSTATE in subject.driver.abilities)
        await vmm.load_vmstate(VMSTATE_FILE)
        assert mem in {area.identity for area in areas(vmm.process.pid)}
    finally:
        await vmm.kill()


async def test_a_restored_vm_waits_paused_until_it_is_resumed(
    subject: Subject, frozen: Frozen, place: Path
) -> None:
    async with restored(subject, frozen, place / "vm", resume=False) as vm:
        assert await vm.vmm.status() != "running"
        with pytest.raises(GuestError):
            await answer(subject, vm, limit_s=0.5)
        await vm.vmm.resume()
        assert await vm.vmm.status() == "running"
        await answer(subject, vm, limit_s=60)


async def test_load_and_resume_in_one(subject: Subject, frozen: Frozen, place: Path) -> None:
    machine = subject.link(frozen, place / "vm")
    vmm = await subject.driver.restore(place / "vm", machine)
    try:
        assert isinstance(vmm, ResumesOnLoad)
        await vmm.load_and_resume(VMSTATE_FILE)
        assert await vmm.status() == "running"
        vm = Running(place / "vm", machine, vmm)
        await answer(subject, vm, limit_s=60)
        async with subject.agent(vm) as agent:
            assert await subject.read(agent) == (1, 1)
    finally:
        await vmm.kill()


async def test_pause_stops_the_guest_and_resume_lets_it_go_on(
    subject: Subject, frozen: Frozen, place: Path
) -> None:
    async with restored(subject, frozen, place / "vm") as vm, subject.agent(vm) as agent:
        await agent.ping(timeout_s=60)
        await vm.vmm.pause()
        assert await vm.vmm.status() == "paused"
        with pytest.raises(GuestTimeoutError):
            await agent.ping(timeout_s=0.5)
        await vm.vmm.resume()
        try:
            await agent.ping(timeout_s=60)
        except GuestLostError:
            assert subject.driver.standing().advice, "its connections were cut without need"
        async with subject.agent(vm) as again:
            assert await subject.read(again) == (1, 1)
        await vm.vmm.resume()
        await answer(subject, vm, limit_s=60)


async def test_a_vmm_tells_its_own_version(subject: Subject, frozen: Frozen, place: Path) -> None:
    async with restored(subject, frozen, place / "vm") as vm:
        assert isinstance(vm.vmm, TellsVersion)
        assert await vm.vmm.own_version() == await subject.driver.version()


async def answer(subject: Subject, vm: Running, *, limit_s: float) -> None:
    """Await the guest's answer to a new client. `GuestTimeoutError` when there is none in time."""
    with anyio.move_on_after(limit_s):
        async with subject.agent(vm) as agent:
            await agent.ping(timeout_s=limit_s)
            return
    raise GuestTimeoutError("no answer")


async def test_a_driver_takes_what_its_own_version_saved(subject: Subject) -> None:
    driver, version = subject.driver, await subject.driver.version()
    assert driver.takes_vmstate_of(version)
    assert driver.as_of(version).takes_vmstate_of(version)
    assert not driver.takes_vmstate_of("0.1.0")


async def test_another_process_adopts_it(subject: Subject, frozen: Frozen, place: Path) -> None:
    async with restored(subject, frozen, place / "vm") as vm:
        with another_process.start("adopt", subject, vm) as adopting:
            stdout, stderr = adopting.communicate(timeout=300)
        assert stdout.split() == ["running", "paused", "running"], stdout + stderr
        assert liveness.is_dead(vm.vmm.process)


async def test_a_vmm_that_was_killed_has_died(subject: Subject, frozen: Frozen, place: Path) -> None:
    async with restored(subject, frozen, place / "vm") as vm:
        await answer(subject, vm, limit_s=60)
        os.kill(vm.vmm.process.pid, signal.SIGKILL)
        assert await processes.wait_ended(vm.vmm.process, timeout_s=10)
        assert subject.driver.ending(vm.directory) is Ending.DIED
        with pytest.raises(VmmError):
            await vm.vmm.status()


@pytest.mark.parametrize(("reboot", "ending"), [(False, Ending.POWERED_OFF), (True, Ending.REBOOTED)])
async def test_how_a_guest_ended(
    subject: Subject, frozen: Frozen, place: Path, reboot: bool, ending: Ending
) -> None:
    async with restored(subject, frozen, place / "vm") as vm:
        async with subject.agent(vm) as agent:
            await agent.shutdown(reboot=reboot, timeout_s=60)
        assert await processes.wait_ended(vm.vmm.process, timeout_s=60)
        assert subject.driver.ending(vm.directory) is ending


async def test_a_vmm_that_hangs_is_a_timeout_and_not_a_wait_for_ever(
    subject: Subject, frozen: Frozen, place: Path
) -> None:
    async with restored(subject, frozen, place / "vm") as vm:
        os.kill(vm.vmm.process.pid, signal.SIGSTOP)
        with anyio.fail_after(60), pytest.raises(VmmTimeoutError):
            await vm.vmm.status()
        os.kill(vm.vmm.process.pid, signal.SIGCONT)
        await answer(subject, vm, limit_s=60)


async def test_a_vmm_killed_between_load_and_resume(subject: Subject, frozen: Frozen, place: Path) -> None:
    async with (
        restored(subject, frozen, place / "sibling") as sibling,
        restored(subject, frozen, place / "vm", resume=False) as vm,
    ):
        await processes.kill(vm.vmm.process)
        with pytest.raises(VmmError):
            await vm.vmm.resume()
        await answer(subject, sibling, limit_s=60)


async def test_a_pid_that_is_somebody_elses_now_is_left_alone(subject: Subject, place: Path) -> None:
    """A pid with another start time isn't the VMM."""
    ours = process_ref.reference(os.getpid())
    stranger = ProcessRef(ours.pid, ours.started - 1, ours.boot_id)
    (place / "vm").mkdir()
    vmm = subject.driver.attach(place / "vm", stranger, subject.machine())
    await vmm.kill()
    assert liveness.is_alive(ours)
    with pytest.raises(VmmError):
        await vmm.status()
    assert not (place / "vm" / VMSTATE_FILE).exists()
