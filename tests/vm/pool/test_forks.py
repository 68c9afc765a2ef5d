"""Forks that are made from warm VMMs: as any other ones, only sooner."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio
import pytest

import ramet
import ramet.sync
from ramet.engine.manifest import read_manifest
from ramet.errors import NotSharedError
from ramet.memory.integrity import check
from ramet.paths import WARM_FILE
from ramet.system import rlimits, spawn
from tests.vm.pool.conftest import (
    DISK_VALUE,
    FIRECRACKER,
    MEMORY_VALUE,
    QEMU_IN_THE_DEEP_TIER,
    Guests,
    filled,
    fork,
    idle_pool,
)

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


@pytest.mark.proves("I5")
@pytest.mark.core
async def test_a_loaded_vmm_is_claimed_and_has_proved_its_identity(pool_home: Path, guests: Guests) -> None:
    async with ramet.Host(pool_home, warm=2) as host:
        await fork(host, count=2)
        waiting = {entry.id: entry.pid for entry in await filled(host, 2)}
        base = await host.get("base")
        forks = await base.fork(2)
        assert {vm.id: vm.receipt.pid for vm in forks} == waiting
        for vm in forks:
            receipt = vm.receipt
            assert receipt.warm == "loaded"
            assert receipt.memory.mode == "shared"
            assert receipt.memory.inode == (base.directory / "mem").stat().st_ino
            assert (receipt.identity.hostname, receipt.identity.generation) == (vm.name, 2)
            assert receipt.timings_ms.spawn == receipt.timings_ms.load == 0.0
            assert (await vm.info()).state == "running"
            assert spawn.spawned_in(vm.directory)[0].pid == receipt.pid
            assert not (vm.directory / WARM_FILE).exists()
            assert vm.directory.stat().st_mode & 0o777 == 0o700
        drawn = {vm.receipt.identity.boot_random for vm in forks}
        assert len(drawn | {vm.receipt.identity.machine_id for vm in forks}) == 4


async def test_memory_and_disks_are_each_ones_own(pool_home: Path, guests: Guests) -> None:
    async with ramet.Host(pool_home, warm=3) as host:
        base = await host.get("base")
        await fork(host, count=3)
        await filled(host, 3)
        one, other, third = await base.fork(3)
        assert [vm.receipt.warm for vm in (one, other, third)] == ["loaded"] * 3
        for vm in (one, other, third):
            assert await guests.read(vm) == MEMORY_VALUE
            assert await guests.read_disk(vm) == DISK_VALUE
        await guests.write(one, 0x31)
        await guests.write_disk(one, 0x32)
        await guests.write_disk(other, 0x42)
        assert [await guests.read(vm) for vm in (one, other)] == [0x31, MEMORY_VALUE]
        assert [await guests.read_disk(vm) for vm in (one, other, third)] == [0x32, 0x42, DISK_VALUE]
        manifest = read_manifest(base.directory)
        for name, part in manifest.parts.items():
            check(base.directory / name, part.facts)  # nothing that is shared was written (I1)
        (fresh,) = await base.fork(1)
        assert await guests.read(fresh) == MEMORY_VALUE
        assert await guests.read_disk(fresh) == DISK_VALUE


@QEMU_IN_THE_DEEP_TIER
async def test_what_there_is_for_the_first_ones_and_the_rest_in_the_ordinary_way(
    pool_home: Path, guests: Guests
) -> None:
    async with ramet.Host(pool_home, warm=2) as host:
        await fork(host, count=2)
        await filled(host, 2)
        forks = await fork(host, count=4)
        assert [vm.receipt.warm for vm in forks] == ["loaded", "loaded", None, None]
        for vm in forks:
            assert await guests.read(vm) == MEMORY_VALUE


async def test_a_warm_fork_lives_the_life_of_any_other(pool_home: Path, guests: Guests) -> None:
    """Its RAM was located before it was claimed, by another VMM's parent perhaps."""
    async with ramet.Host(pool_home, warm=6) as host:
        await fork(host)
        await filled(host, 1)
        (vm,) = await fork(host)
        assert vm.receipt.warm == "loaded"
        await guests.write(vm, 0x51)
        (branch,) = await vm.fork(1)
        assert await guests.read(branch) == 0x51
        snapshot = await vm.snapshot("then")
        await guests.write(vm, 0x52)
        await vm.standby()
        await vm.restore()
        assert await guests.read(vm) == 0x52
        await vm.rewind("then")
        assert await guests.read(vm) == 0x51
        await branch.template()
        (child,) = await branch.fork(1)
        assert await guests.read(child) == 0x51
        await filled(host, 1, source=branch.name)
        (warm_child,) = await branch.fork(1)
        assert (warm_child.receipt.warm, warm_child.receipt.memory.mode) == ("loaded", "delta")
        assert await guests.read(warm_child) == 0x51
        await filled(host, 1, source=vm.name)
        (of_snapshot,) = await snapshot.fork(1)
        assert of_snapshot.receipt.warm == "loaded"
        assert await guests.read(of_snapshot) == 0x51
        await snapshot.remove()


async def test_an_empty_one_takes_any_guest(probe_home: Path) -> None:
    guests = FIRECRACKER
    async with ramet.Host(probe_home, warm=2) as host:
        waiting = {entry.pid for entry in await filled(host, 2, source=None)}
        (vm,) = await fork(host)
        assert vm.receipt.warm == "empty"
        assert vm.receipt.pid in waiting
        assert await guests.read(vm) == MEMORY_VALUE
        assert await guests.read_disk(vm) == DISK_VALUE
        process = spawn.spawned_in(vm.directory)[0]
        assert (rlimits.limit_of_files(process) or 0) > 0
        await guests.write(vm, 0x61)
        (branch,) = await vm.fork(1)
        assert branch.receipt.warm in {"empty", None}
        assert await guests.read(branch) == 0x61
        await vm.standby()
        await vm.restore()
        assert await guests.read(vm) == 0x61


async def test_copying_takes_no_loaded_one_and_required_sharing_none_that_was_copied(
    probe_home: Path,
) -> None:
    async with ramet.Host(probe_home, warm=1) as host:
        base = await host.get("base")
        await fork(host)
        (waiting,) = await filled(host, 1)
        (copied,) = await base.fork(1, share_memory=False)
        assert copied.receipt.memory.mode == "copied"
        assert copied.receipt.warm != "loaded"
        (kept,) = await filled(host, 1)
        assert kept.id == waiting.id
        # Its raw disk was copied: that isn't sharing, and it is said (I4).
        with pytest.raises(ramet.ForkError) as refused:
            await base.fork(1, require_shared=True)
        assert isinstance(next(iter(refused.value.errors.values())), NotSharedError)
        assert [entry.id for entry in await filled(host, 1)] == [waiting.id]


async def test_a_name_that_is_taken_costs_no_warm_one(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=1) as host:
        await fork(host)
        (waiting,) = await filled(host, 1)
        with pytest.raises(ramet.NameTakenError):
            await (await host.get("base")).fork(1, name="base")
        assert [entry.id for entry in await filled(host, 1)] == [waiting.id]


async def test_without_a_pool_there_is_none(probe_home: Path) -> None:
    async with ramet.Host(probe_home) as host:
        (vm,) = await fork(host)
        assert vm.receipt.warm is None
        assert not (probe_home / "pool").exists()
        assert (await host.pool()).entries == []


async def test_several_hosts_fork_at_once_and_each_gets_another_one(probe_home: Path) -> None:
    async with (
        ramet.Host(probe_home, warm=6) as warm_host,
        ramet.Host(probe_home) as one,
        ramet.Host(probe_home) as other,
    ):
        await fork(warm_host, count=6)
        await filled(warm_host, 6)
        got: list[ramet.VM] = []

        async def take(host: ramet.Host) -> None:
            got.extend(await fork(host, count=4))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take, one)
            tasks.start_soon(take, other)
        warm = [vm.id for vm in got if vm.receipt.warm == "loaded"]
        assert len(warm) == len(set(warm))
        assert len(warm) >= 6
        assert len({vm.receipt.pid for vm in got}) == 8
        assert (await idle_pool(warm_host)).controllers[0].pid == os.getpid()


@pytest.mark.timing
@pytest.mark.parametrize("stage", ["loaded", "empty"])
async def test_a_call_that_is_cancelled_leaves_nothing_of_what_it_took(probe_home: Path, stage: str) -> None:
    async with ramet.Host(probe_home, warm=3) as host, ramet.Host(probe_home) as other:
        base = await other.get("base")
        for delay_s in (0.0, 0.001, 0.002, 0.004, 0.006, 0.010, 0.020):
            if stage == "loaded":
                await fork_and_remove(host)
            await filled(host, 1, source="base" if stage == "loaded" else None)
            with anyio.move_on_after(delay_s) as limit:
                await base.fork(3)
            if limit.cancelled_caught:
                assert [instance.id for instance in await host.list(everything=True)] == [base.id]
            for instance in await host.list(everything=True):
                if instance.id != base.id:
                    await (await other.get(instance.id)).remove(force=True)
            assert {path.name for path in (probe_home / "instances").iterdir()} == {base.id}


async def fork_and_remove(host: ramet.Host) -> None:
    """So that it is warm."""
    (vm,) = await fork(host)
    await vm.remove(force=True)


@pytest.mark.timing
def test_plain_code_has_a_pool_too(probe_home: Path) -> None:
    with ramet.sync.Host(probe_home, warm=1) as host:
        base = host.get("base")
        with base.fork(1):
            pass
        while not any(entry.warm == "loaded" for entry in host.pool(wait=30).entries):
            time.sleep(0.02)
        with base.fork(1) as (vm,):
            assert vm.receipt.warm == "loaded"
