"""Kill -9 of ramet while a guest is paused to become a template, or to go into standby: it goes on.

Nobody opens the home: what is asked is the VMM, and what wakes the guest is the process that was started for
that beforehand (`system/pause_watchdog.py`).
"""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.to_thread
import pytest

import ramet
from ramet.engine.drivers import installed_drivers
from ramet.paths import Home
from ramet.store.records import Store
from ramet.system import liveness
from tests.endurance.crash.test_every_point import (
    FIRECRACKER,
    QEMU,
    crash_home,
    crash_homes,
    inject,
    prepare,
)

__all__ = ["crash_home", "crash_homes"]
pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300)]

_LIMIT_S = 30
_PAUSED = {
    "qemu": "after qmp stop",
    "firecracker": "after PATCH /vm",
    "cloud-hypervisor": "after PUT /api/v1/vm.pause",
}
_SAVING = {
    "qemu": "before qmp xen-save-devices-state",
    "firecracker": "before PUT /snapshot/create",
    "cloud-hypervisor": "before PUT /api/v1/vm.snapshot",
}
TRIALS = [
    pytest.param(home, what, id=f"{home[0]}-{what}", marks=marks)
    for home, what, marks in (
        (QEMU, "template", pytest.mark.deep),
        (QEMU, "standby", ()),
        (FIRECRACKER, "template", ()),
        (FIRECRACKER, "standby", pytest.mark.deep),
    )
]


async def status(home: Path) -> str:
    """What the VMM of `x` says."""
    opened = Home(home)
    store = Store(opened.database)
    try:
        [record] = [row for row in store.all() if row.name == "x"]
    finally:
        store.close()
    assert record.vmm is not None
    assert liveness.is_alive(record.vmm.process)
    [driver] = [driver for driver in installed_drivers() if driver.name == record.driver]
    vmm = driver.attach(opened.instance(record.id), record.vmm.process, record.machine)
    return await vmm.status()


@pytest.mark.parametrize(("crash_home", "operation"), TRIALS, indirect=["crash_home"])
async def test_the_guest_goes_on_without_another_ramet(operation: str, crash_home: Path) -> None:
    await goes_on(operation, crash_home)


async def goes_on(operation: str, crash_home: Path) -> None:
    """Kill ramet between the pause and the end of the operation: the guest runs again, and is whole."""
    await prepare(crash_home, operation)
    whole = await anyio.to_thread.run_sync(inject, crash_home, operation, 0)
    assert whole.returncode == 0, whole.stderr
    points = whole.stdout.splitlines()
    async with ramet.Host(crash_home) as host:
        x = await host.get("x")
        driver = (await x.info()).driver
        await x.remove(force=True)
    saved = points.index(_SAVING[driver]) + 1
    published = points.index("after fsync", saved)
    await prepare(crash_home, operation)
    try:
        for number in (points.index(_PAUSED[driver]), saved, published):
            killed = await anyio.to_thread.run_sync(inject, crash_home, operation, number + 1)
            assert killed.returncode == -9, killed.stderr
            with anyio.fail_after(_LIMIT_S):
                while await status(crash_home) != "running":
                    await anyio.sleep(0.02)
            # The next command finds it so, and the one after that finishes what was begun.
            async with ramet.Host(crash_home) as host:
                x = await host.get("x")
                assert (await x.info()).state == "running"
                assert (await x.exec("hostname", timeout=30)).text == "x\n"
        done = await anyio.to_thread.run_sync(inject, crash_home, operation, 0)
        assert done.returncode == 0, done.stderr
    finally:
        async with ramet.Host(crash_home) as host:
            await (await host.get("x")).remove(force=True)
