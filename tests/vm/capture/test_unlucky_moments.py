"""Captures, and what comes of them when something goes wrong at an unlucky moment: the probe, Firecracker."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import ramet
from ramet.engine.drivers import installed_drivers
from ramet.engine.maintenance import compaction
from ramet.engine.manifest import read_manifest, require_restorable
from ramet.engine.snapshots import create
from ramet.engine.snapshots.validation import require_harmless
from ramet.errors import DamagedError, UnavailableError
from ramet.model import protocols
from ramet.model.schema import ForkFailure, ForkReport
from ramet.paths import MANIFEST_FILE
from ramet.system import share, spawn
from ramet.system.publishing import write_durably
from ramet.units import TIB
from tests.support.probes import DATA_ADDRESS

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


async def fill(vm: protocols.VM, value: int, *, pages: int = 16) -> None:
    """Have the probe write `value` all over some of its RAM."""
    await vm.exec("fill", hex(DATA_ADDRESS), hex(pages), hex(value), check=True)


async def value_in(vm: protocols.VM) -> int:
    """What it has there."""
    return int((await vm.exec("peek", hex(DATA_ADDRESS), check=True)).stdout, 16)


@pytest.fixture
async def probe_source(probes: protocols.Host) -> AsyncIterator[protocols.VM]:
    """A running probe with 1 in its RAM. Its snapshots go with the test."""
    vm = await probes.run("probe", driver="firecracker", memory="128M", name="source")
    await fill(vm, 1)
    yield vm
    for snapshot in await probes.snapshots():
        await (await probes.snapshot(snapshot.id)).remove()


source = probe_source


async def test_one_whose_ram_was_never_noted_is_captured_all_the_same(
    probes: ramet.Host, source: ramet.VM
) -> None:
    # A VMM that an earlier ramet started: its record says nothing of where its guest's RAM is.
    store = probes._context.store  # type: ignore[union-attr]
    noted = store.get(source.id).vmm
    assert noted is not None
    assert noted.ram
    unknown = msgspec.structs.replace(noted, ram=())
    store.change(source.id, lambda row: msgspec.structs.replace(row, vmm=unknown))
    await source.template()
    (fork,) = await source.fork(1)
    assert await value_in(fork) == 1


@pytest.fixture
async def large(source: protocols.VM, monkeypatch: pytest.MonkeyPatch) -> protocols.Snapshot:
    """A snapshot with a delta that is to be compacted, which nobody does."""
    monkeypatch.setattr(create, "request_for_capture", lambda *_: None)
    await source.standby()
    await source.restore()
    await fill(source, 2, pages=2304)
    return await source.snapshot("large")


def killed_in_compaction(directory: Path, *, published: bool) -> None:
    """Compact in a process that is killed right before or after it replaces the manifest."""

    def dies(*arguments: Any) -> None:
        if published:
            write_durably(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            setattr(compaction, "write_durably", dies)  # noqa: B010
            compaction._compact(directory, firecracker())
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def files_in(snapshot: ramet.Snapshot) -> set[str]:
    """The names of what lies in its directory."""
    return {path.name for path in snapshot.directory.iterdir()}


def firecracker() -> Any:
    """The driver."""
    return next(driver for driver in installed_drivers() if driver.name == "firecracker")


async def test_a_killed_compaction_costs_forks_nothing_and_is_cleared_away(large: ramet.Snapshot) -> None:
    for published in (False, True):
        before = files_in(large)
        killed_in_compaction(large.directory, published=published)
        assert len(files_in(large) - before) == 1
        (fork,) = await large.fork(1)
        assert [path.name for path in fork.directory.glob("mem*")] == ["mem"]
        assert await value_in(fork) == 2
    driver = firecracker()
    assert not await compaction.compact_capture(large.directory, driver), "it was published"
    assert files_in(large) == {MANIFEST_FILE, *read_manifest(large.directory).parts}
    assert (await large.verify()).ok


async def test_a_compaction_does_not_make_another_machine_fit(large: ramet.Snapshot) -> None:
    manifest = read_manifest(large.directory)
    other = msgspec.structs.replace(manifest, arguments=["of", "another", "machine"])
    write_durably(large.directory / MANIFEST_FILE, other.encoded())
    driver = firecracker()
    assert not await compaction.compact_capture(large.directory, driver)
    with pytest.raises(UnavailableError, match="another machine"):
        await require_restorable(read_manifest(large.directory), driver, name="it")


async def test_one_with_more_memory_than_the_host_is_not_brought_up(source: ramet.VM) -> None:
    manifest = read_manifest((await source.snapshot("now")).directory)
    machine = msgspec.structs.replace(manifest.machine, memory_bytes=16 * TIB)
    driver = firecracker()
    await driver.version()
    larger = msgspec.structs.replace(manifest, machine=machine, arguments=driver.arguments(machine))
    with pytest.raises(UnavailableError, match="more than this machine"):
        await require_restorable(larger, driver, name="it")


async def test_a_snapshot_that_had_to_be_copied_is_whole(
    source: protocols.VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    await source.standby()
    with monkeypatch.context() as patched:
        patched.setattr(share, "_link", lambda *_: "link limit reached")
        copied = await source.snapshot("copied")
    assert (await copied.verify()).ok
    (fork,) = await copied.fork(1)
    assert await value_in(fork) == 1


async def test_an_import_whose_disks_are_other_parts_is_refused(source: ramet.VM) -> None:
    manifest = read_manifest((await source.snapshot("now")).directory)
    require_harmless(manifest, "it")
    (disk,) = manifest.machine.disks
    kernel = msgspec.structs.replace(disk, file="kernel")
    second = msgspec.structs.replace(disk, name="disk1")
    for disks in ((kernel,), (disk, second), (msgspec.structs.replace(disk, format="qcow2"),)):
        machine = msgspec.structs.replace(manifest.machine, disks=disks)
        with pytest.raises(DamagedError, match="disks"):
            require_harmless(msgspec.structs.replace(manifest, machine=machine), "it")


@pytest.mark.timing
async def test_a_fork_that_is_removed_before_it_is_made_leaves_no_vmm(
    probes: ramet.Host, source: ramet.VM
) -> None:
    """Its row goes while it waits for its turn, which is far off: there is nothing to end yet. Then it is
    made all the same.
    """
    await source.template()
    store = probes._context.store  # type: ignore[union-attr]
    outcome: list[ForkReport] = []

    async def fork() -> None:
        outcome.append(await source.fork_report(60, name="f"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fork)
        while len(waiting := [row for row in store.all() if row.name in {"f-59", "f-60"}]) < 2:
            await anyio.sleep(0.001)
        for record in waiting:
            assert record.state is ramet.State.CREATED
            await (await probes.get(record.id)).remove(force=True)
    failed = [vm for vm in outcome[0].forks if isinstance(vm, ForkFailure)]
    assert [error.name for error in failed] == ["f-59", "f-60"]
    rows = {row.id for row in store.all()}
    instances = source.directory.parent
    assert {path.name for path in instances.iterdir()} == rows
    assert {path.name for path in spawn.spawned_below(instances)} == rows - {source.id}
