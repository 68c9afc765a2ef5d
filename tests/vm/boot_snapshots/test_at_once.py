"""Eight processes that run one new image at once, two homes, and prunes meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.engine.boot_snapshots import cache
from ramet.errors import LockBusyError
from ramet.paths import Home
from tests.support.guests import Guest

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.deep, pytest.mark.timeout(300)]

_RUN = """
import asyncio, sys, ramet
async def main():
    async with ramet.Host(sys.argv[1]) as host:
        vm = await host.run(sys.argv[2], driver=sys.argv[3])
        await vm.detach()
        print((await vm.info()).boot.detail)
asyncio.run(main())
"""


def begin(home: Path, guest: Guest) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAMET_BOOT_SNAPSHOTS"}
    words = [sys.executable, "-c", _RUN, str(home), guest.image, guest.driver]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)


async def test_eight_processes_boot_once(guest: Guest, host: ramet.Host) -> None:
    processes = [begin(host.home, guest) for _ in range(8)]
    said = [(await anyio.to_thread.run_sync(process.communicate))[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    assert sum("first run of this shape" in line for line in said) == 1, said
    assert sum(line == "a fork of the boot snapshot\n" for line in said) == 7, said
    assert len(cache.entries(Home(host.home))) == 1
    instances = await host.list()
    assert len({(Path(instance.directory) / "mem").stat().st_ino for instance in instances}) == 1
    for instance in instances:
        await (await host.get(instance.id)).remove(force=True)


async def test_each_home_has_its_own(probe: Guest, host: ramet.Host, homes: Path, tmp_path: Path) -> None:
    other = homes / f"other-{tmp_path.name}"
    async with ramet.Host(other) as second:
        both = [begin(host.home, probe), begin(other, probe)]
        said = [(await anyio.to_thread.run_sync(process.communicate))[0] for process in both]
        assert all("first run of this shape" in line for line in said), said
        for opened in (host, second):
            assert len(cache.entries(Home(opened.home))) == 1
            for instance in await opened.list():
                await (await opened.get(instance.id)).remove(force=True)


async def test_prunes_while_runs_fork_from_it(
    probe: Guest, host: ramet.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run finds it, waits for it, or boots; it never fails."""
    monkeypatch.delenv("RAMET_BOOT_SNAPSHOTS")
    removed = 0
    over = anyio.Event()

    async def prune() -> None:
        nonlocal removed
        while not over.is_set():
            for entry in cache.entries(Home(host.home)):
                try:
                    await cache.remove(host._opened, entry.key)
                    removed += 1
                except LockBusyError:
                    pass  # in use
            await anyio.sleep(0.005)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(prune)
        for _ in range(25):
            vm = await host.run(probe.image, driver=probe.driver)
            boot = (await vm.info()).boot
            assert boot is not None
            assert boot.how == "snapshot", boot
            await vm.remove(force=True)
        over.set()
    assert removed > 0
