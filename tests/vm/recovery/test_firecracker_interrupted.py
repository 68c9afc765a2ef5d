"""What interrupts Firecracker or the ramet that uses it: neither leaves a wrong state, a limit or a file."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import ramet
from ramet.drivers.interface import Driver
from ramet.engine.agent.session import agent_of
from ramet.engine.capture import publish, suspend
from ramet.engine.vmm.record import booted_vmm
from ramet.errors import FilesystemError
from ramet.model import protocols
from ramet.model.record import RunningVmm
from ramet.paths import CONSOLE_LOG, MANIFEST_FILE, MEM_FILE, VMM_LOG, VMSTATE_FILE
from ramet.system import bounded_log, liveness, process_ref, processes, rlimits
from ramet.units import MIB

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(120)]

_LIMIT_BYTES = 16 * MIB


def limit_of(pid: int) -> int:
    return resource.prlimit(pid, resource.RLIMIT_FSIZE)[0]


async def pid_of(vm: protocols.VM) -> int:
    pid = (await vm.inspect()).pid
    assert pid is not None
    return pid


async def state_of(host: protocols.Host, vm: protocols.VM) -> tuple[str, str | None]:
    """As `ps` has it: looked at, not touched."""
    (found,) = [instance for instance in await host.list(everything=True) if instance.id == vm.id]
    return found.state, found.reason


async def until_saving(directory: Path) -> None:
    with anyio.fail_after(30):
        while not list(directory.glob(f".tmp-{MEM_FILE}-*")):
            await anyio.sleep(0.002)


async def assert_as_before(vm: ramet.VM, pid: int) -> None:
    """It runs on, in the same VMM, with nothing of the template beside it and its files bounded."""
    assert (await vm.exec("peek", "1000000", timeout=30, check=True)).text
    assert await pid_of(vm) == pid
    assert limit_of(pid) == _LIMIT_BYTES
    left = {path.name for path in vm.directory.iterdir()}
    assert not [name for name in left if name.startswith(".tmp-")]
    assert left.isdisjoint({MEM_FILE, VMSTATE_FILE, MANIFEST_FILE})


async def test_cancelled_while_its_memory_is_saved(probes: ramet.Host) -> None:
    vm = await probes.run("probe", driver="firecracker", memory="512M")
    await vm.exec("fill", "1000000", "10000", "1", check=True)  # 256 MiB
    pid = await pid_of(vm)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(vm.template)
        await until_saving(vm.directory)
        tasks.cancel_scope.cancel()
    assert await state_of(probes, vm) == ("running", None)
    await assert_as_before(vm, pid)


async def test_template_that_fails_late_gives_its_space_back(
    probes: ramet.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await probes.run("probe", driver="firecracker", memory="64M")
    pid = await pid_of(vm)

    def no_room(*_arguments: object) -> None:
        assert (vm.directory / MEM_FILE).exists()
        raise FilesystemError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(publish, "_described", no_room)
        with pytest.raises(FilesystemError, match="no room"):
            await vm.template()
    await assert_as_before(vm, pid)
    await vm.template()


async def test_interrupt_that_comes_after_the_row_undoes_nothing(
    probes: ramet.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await probes.run("probe", driver="firecracker", memory="64M")
    await vm.detach()
    running = vm._context.store.get(vm.id)
    vmm = vm._context.vmm(running)
    store = vm._context.store
    change = store.change

    def interrupted(*arguments: object, durable: bool = False, **columns: object) -> object:
        made = change(*arguments, durable=durable, **columns)  # type: ignore[arg-type]
        if durable:
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patch:
        patch.setattr(store, "change", interrupted)
        with pytest.raises(KeyboardInterrupt):
            await suspend.promote(vm._context, store.get(vm.id))
    assert await state_of(probes, vm) == ("template", None)
    assert await vmm.status() == "paused", "it has the template's disks open"
    async with ramet.Host(probes.home) as next_ramet:
        assert not liveness.is_alive(vmm.process)
        again = await next_ramet.get(vm.id)
        async with again.fork(1) as (child,):
            assert (await child.exec("true")).ok
        await again.remove()


async def test_vmm_that_dies_after_a_second_start_has_failed(probes: protocols.Host) -> None:
    vm = await probes.run("probe", driver="firecracker", memory="64M")
    await vm.stop()
    await vm.start()
    pid = await pid_of(vm)
    os.kill(pid, signal.SIGKILL)
    await wait_until_gone(pid)
    state, reason = await state_of(probes, vm)
    assert state == "failed"
    assert "died" in str(reason)


async def test_what_a_quick_guest_says_at_once_is_its_own(
    probes: ramet.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its console begins where it was before its VMM was there, however late that is written down."""

    def late(driver: Driver, directory: Path, *told: Any, **more: Any) -> RunningVmm:
        while not (directory / CONSOLE_LOG).stat().st_size:
            time.sleep(0.01)
        return booted_vmm(driver, directory, *told, **more)

    monkeypatch.setattr("ramet.engine.lifecycle.boot.booted_vmm", late)
    vm = await probes.run("probe", driver="firecracker", memory="64M")
    running = vm._record.vmm
    assert running is not None
    assert running.console_start == 0
    await vm.remove(force=True)


async def test_power_off_is_told_from_death_when_the_log_is_full(probes: ramet.Host) -> None:
    vm = await probes.run("probe", driver="firecracker", memory="64M")
    process = process_ref.reference(await pid_of(vm))
    rlimits.limit_files(process, (vm.directory / VMM_LOG).stat().st_size)
    os.truncate(vm.directory / VMM_LOG, _LIMIT_BYTES)
    (vm.directory / "console.log").write_text("")  # the limit is its, too
    await power_off(vm)
    await wait_until_gone(process.pid)
    assert b"exiting" not in bounded_log.last_bytes(vm.directory / VMM_LOG, _LIMIT_BYTES)
    assert await state_of(probes, vm) == ("stopped", "the guest powered off")


async def power_off(vm: ramet.VM) -> None:
    """As the guest's own decision: no ramet stops it."""
    record = vm._context.store.get(vm.id)
    assert record.vmm is not None
    asked = False
    try:
        async with agent_of(vm._context, record, record.vmm.process, timeout_s=30) as agent:
            await agent.shutdown()
            asked = True
    except ramet.VmmError:
        assert asked  # its VMM may have ended by the time it is left


async def wait_until_gone(pid: int) -> None:
    try:
        process = process_ref.reference(pid)
    except ProcessLookupError:
        return
    assert await processes.wait_ended(process, timeout_s=30)


async def test_log_that_is_not_appended_to_is_trimmed_once(probes: ramet.Host) -> None:
    vm = await probes.run("probe", driver="firecracker", memory="64M")
    log = vm.directory / VMM_LOG
    noise = b"noise\n" * (2 * MIB // 6)
    with log.open("r+b") as file:
        file.write(noise)
    assert bounded_log.trim(log)
    with log.open("r+b") as file:  # as Firecracker goes on: where it was
        file.seek(len(noise))
        file.write(b"the end\n")
    assert not bounded_log.trim(log)
    assert bounded_log.tail(log, 8) == b"the end\n"
    assert bounded_log.last_bytes(bounded_log.previous(log), 6) == b"noise\n"
