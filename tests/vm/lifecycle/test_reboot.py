"""A guest that was restored reboots: its BIOS isn't in the mem-file, so the engine starts it cold."""

from __future__ import annotations

import anyio
import pytest

from ramet.model import protocols
from tests.conftest import SHORTLY
from tests.support.guests import Guest, pid_of
from tests.vm.conftest import host_and_snapshots

host = host_and_snapshots

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300), pytest.mark.deep]


async def said(vm: protocols.VM, script: str) -> str:
    return (await vm.exec("sh", "-c", script, check=True, timeout=60)).text.strip()


async def reboot(vm: protocols.VM) -> None:
    """Have the guest do it, and wait until it is back."""
    pid = await pid_of(vm)
    await vm.spawn(*SHORTLY, "reboot", "-f")
    with anyio.fail_after(120):
        while True:
            info = await vm.info()
            if info.state == "running" and info.pid not in (None, pid):
                return
            await anyio.sleep(0.1)


async def test_branch_snapshot_and_restored(linux: Guest, host: protocols.Host) -> None:
    source = await host.run(linux.image, driver=linux.driver, memory="192M", disks=["64M:/data"])
    await said(source, "echo kept > /data/kept && echo gone > /run/gone && sync")
    boot_id = await said(source, "cat /proc/sys/kernel/random/boot_id")
    (branch,) = await source.fork(1)
    (restored,) = await (await source.snapshot()).fork(1)
    await restored.standby()
    await restored.restore()
    for vm in (branch, restored):
        await said(vm, f"echo {vm.name} > /data/mine && sync")
        await reboot(vm)
        assert await said(vm, "cat /data/kept /data/mine; cat /run/gone 2> /dev/null || echo cold") == (
            f"kept\n{vm.name}\ncold"
        )
        assert await said(vm, "cat /proc/sys/kernel/random/boot_id") != boot_id
        assert await said(vm, "hostname") == vm.name
    assert await said(source, "cat /data/mine 2> /dev/null || cat /run/gone") == "gone"
    # What was started cold is captured as ever.
    (again,) = await branch.fork(1)
    assert await said(again, "cat /data/mine") == branch.name
