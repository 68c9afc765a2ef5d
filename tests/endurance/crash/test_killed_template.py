"""Kill -9 of ramet at every point of making a template of a *booted* Firecracker, which has no mem-file
before, and whose files' limit is lifted meanwhile. `test_every_point.py` has the other operations.
"""

from __future__ import annotations

import itertools
import resource
from pathlib import Path

import anyio.to_thread
import pytest

import ramet
from ramet.paths import MANIFEST_FILE, MEM_FILE, VMSTATE_FILE
from ramet.system import spawn
from ramet.units import MIB
from tests.endurance.crash.test_every_point import inject

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600)]


async def prepare(host: ramet.Host) -> None:
    x = await host.run("probe", driver="firecracker", memory="64M", name="x")
    await x.detach()


async def verify(home: Path) -> None:
    """All that is listed is true, nothing else is there; `x` is removed."""
    async with ramet.Host(home) as host:
        (x,) = await host.list(everything=True)
        vm = await host.get("x")
        left = {path.name for path in vm.directory.iterdir()}
        assert not [name for name in left if name.startswith(".tmp-")]
        running = [process for found in spawn.spawned_below(home / "instances").values() for process in found]
        assert [process.pid for process in running] == ([x.pid] if x.pid else [])
        assert x.state in {"running", "template"}
        if x.state == "template":
            async with vm.fork(1) as (child,):
                assert (await child.exec("true")).ok
        else:
            assert left.isdisjoint({MEM_FILE, VMSTATE_FILE, MANIFEST_FILE})
        if x.pid is not None:
            assert (await vm.exec("true", timeout=30)).ok
            assert resource.prlimit(x.pid, resource.RLIMIT_FSIZE)[0] == 16 * MIB
        await vm.remove(force=True)
        assert list((home / "instances").iterdir()) == []


@pytest.mark.proves("I2")
@pytest.mark.deep
async def test_kill_at_every_point(probes: ramet.Host) -> None:
    """Until it comes to its end: how many points there are isn't the same each time (the first ramet on a
    machine asks a VMM's program for its version, and writes it down).
    """
    home = probes.home
    for point in itertools.count(1):
        await prepare(probes)
        tried = await anyio.to_thread.run_sync(inject, home, "template", point)
        passed = tried.stdout.splitlines()
        assert tried.returncode in {-9, 0}, tried.stderr
        assert len(passed) < point, "a point that was to be its last wasn't"
        try:
            await verify(home)
        except BaseException as error:
            error.add_note(f"killed at point {point}, or later than the last of {passed}")
            raise
        if tried.returncode == 0:
            break
    assert len(passed) >= 8, passed
