"""What goes wrong with warm VMMs, and never with forks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

import ramet
from ramet.engine.drivers import installed_drivers
from ramet.engine.maintenance.compaction import compact_capture
from ramet.engine.pool import claims
from ramet.engine.pool import directory as pool_directory
from ramet.engine.snapshots import create
from ramet.paths import MANIFEST_FILE, Home
from ramet.system import liveness, process_ref, processes, spawn
from tests.support.owners import kill_both
from tests.support.probes import DATA_ADDRESS
from tests.vm.pool.conftest import (
    FIRECRACKER,
    MEMORY_VALUE,
    QEMU_IN_THE_DEEP_TIER,
    Guests,
    filled,
    fork,
    idle_pool,
)

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

KEEP = """
import sys
import anyio
import ramet

async def main():
    async with ramet.Host(sys.argv[1], warm=int(sys.argv[2])) as host:
        await (await host.get("base")).fork(int(sys.argv[2]))
        while sum(entry.warm == "loaded" for entry in (await host.pool(wait=60)).entries) < int(sys.argv[2]):
            await anyio.sleep(0.05)
        print("warm", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""
FORK = """
import json, sys
import anyio
import ramet

async def main():
    async with ramet.Host(sys.argv[1]) as host:
        sys.stdin.readline()
        forks = await (await host.get("base")).fork(int(sys.argv[2]))
        print(json.dumps([(vm.id, vm.receipt.pid, vm.receipt.warm) for vm in forks]), flush=True)
        sys.stdin.readline()

anyio.run(main)
"""


@contextmanager
def program(text: str, home: Path, count: int) -> Iterator[subprocess.Popen[str]]:
    """One that is killed at the end, if it still runs."""
    child = subprocess.Popen(
        [sys.executable, "-c", text, str(home), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=30)


def say(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go on\n")
    child.stdin.flush()


def lives(pid: int | None) -> bool:
    """A zombie doesn't: who has inherited it may not collect it at once."""
    assert pid is not None
    try:
        return liveness.is_alive(process_ref.reference(pid))
    except ProcessLookupError:
        return False


def maps(pid: int, inode: int) -> bool:
    """Whether the process has that file mapped. One that has ended hasn't."""
    try:
        return f" {inode} " in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


async def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    with anyio.fail_after(120):
        return await anyio.to_thread.run_sync(child.stdout.readline, abandon_on_cancel=True)


@QEMU_IN_THE_DEEP_TIER
async def test_a_warm_vmm_that_was_killed_is_never_claimed(pool_home: Path, guests: Guests) -> None:
    async with ramet.Host(pool_home, warm=1) as host:
        base = await host.get("base")
        await fork(host)
        (waiting,) = await filled(host, 1)
        assert waiting.pid is not None
        os.kill(waiting.pid, signal.SIGKILL)
        # The controller hears of it no sooner than this call looks.
        (vm,) = await base.fork(1)
        assert (vm.receipt.warm, await guests.read(vm)) == (None, MEMORY_VALUE)
        assert vm.receipt.pid != waiting.pid
        (another,) = await filled(host, 1)
        assert another.id != waiting.id
        assert not Path(f"/proc/{waiting.pid}").exists(), "a zombie is left"


@pytest.mark.timing
async def test_the_controller_replaces_one_that_died(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=1) as host:
        await fork(host)
        (waiting,) = await filled(host, 1)
        assert waiting.pid is not None
        os.kill(waiting.pid, signal.SIGKILL)
        with anyio.fail_after(30):
            while (await filled(host, 1))[0].id == waiting.id:
                await anyio.sleep(0.02)
        (vm,) = await fork(host)
        assert vm.receipt.warm == "loaded"


@QEMU_IN_THE_DEEP_TIER
async def test_one_that_hangs_is_waited_for_a_while_and_then_ended(
    pool_home: Path, guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "RESUME_LIMIT_S", 0.5)
    async with ramet.Host(pool_home, warm=1) as host:
        await fork(host)
        (waiting,) = await filled(host, 1)
        assert waiting.pid is not None
        os.kill(waiting.pid, signal.SIGSTOP)
        (vm,) = await fork(host)
        assert (vm.receipt.warm, vm.id) == (None, waiting.id)
        assert vm.receipt.pid != waiting.pid
        assert vm.receipt.timings_ms.total >= 500
        assert vm.receipt.timings_ms.spawn > 0.0
        assert await guests.read(vm) == MEMORY_VALUE
        assert [process.pid for process in spawn.spawned_in(vm.directory)] == [vm.receipt.pid]


async def test_what_is_known_of_one_and_cannot_be_read_is_no_use(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=1) as host:
        await fork(host)
        (waiting,) = await filled(host, 1)
        (directory,) = (probe_home / "pool").glob(f"ready.{waiting.id}.*")
        (directory / "warm.json").write_text("{")
        (vm,) = await fork(host)
        assert vm.receipt.warm is None


async def test_damage_to_the_source_is_found_with_a_pool_as_without(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=1) as host:
        base = await host.get("base")
        await fork(host)
        await filled(host, 1)
        mem = base.directory / "mem"
        before = mem.stat()
        mem.chmod(0o600)
        os.truncate(mem, before.st_size + 4096)  # other permissions alone are no damage: the digest decides
        try:
            with pytest.raises(ramet.DamagedError, match="has changed since it was published"):
                await base.fork(1)
        finally:
            os.truncate(mem, before.st_size)
            mem.chmod(before.st_mode & 0o777)
            os.utime(mem, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_processes_that_fork_at_once_never_get_the_same_one(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=6) as host:
        await fork(host, count=6)
        await filled(host, 6)
        with (
            program(FORK, probe_home, 3) as one,
            program(FORK, probe_home, 3) as other,
            program(FORK, probe_home, 3) as third,
        ):
            children = (one, other, third)
            for child in children:
                say(child)
            got = [fork for child in children for fork in json.loads(await line_of(child))]
            assert len({made[0] for made in got}) == len({made[1] for made in got}) == 9
            assert [made[2] for made in got].count("loaded") >= 6
            # Those told the controller of what they forked: it replaces what they took.
            await filled(host, 6)
            for child in children:
                say(child)
            for child in children:
                await anyio.to_thread.run_sync(child.wait, 60)
        for made in got:
            assert not Path(f"/proc/{made[1]}").exists(), "its parent has collected each that has ended"


@QEMU_IN_THE_DEEP_TIER
async def test_a_controller_that_was_killed_with_its_watcher_leaves_nothing_to_the_next_ramet(
    pool_home: Path, guests: Guests
) -> None:
    with program(KEEP, pool_home, 2) as controller:
        assert await line_of(controller) == "warm\n"
        async with ramet.Host(pool_home) as host:
            waiting = await filled(host, 2)
            kill_both(controller)
            # Nobody keeps it, but it is as warm as before.
            (vm,) = await fork(host)
            assert (vm.receipt.warm, await guests.read(vm)) == ("loaded", MEMORY_VALUE)
            (left,) = [entry for entry in waiting if entry.id != vm.id]
            async with ramet.Host(pool_home):
                assert not (pool_home / "pool").exists()
                assert not lives(left.pid)
                assert await guests.read(vm) == MEMORY_VALUE


async def test_recovery_spares_what_living_processes_have(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=2) as host:
        await fork(host, count=2)
        waiting = await filled(host, 2)
        async with ramet.Host(probe_home):
            pass
        assert [entry.id for entry in await filled(host, 2)] == [entry.id for entry in waiting]
        mine = pool_directory.entries(pool_directory.names(Home(probe_home)))
        taken = pool_directory.take(Home(probe_home), mine[0])
        assert taken is not None
        async with ramet.Host(probe_home):
            pass
        assert (probe_home / "pool" / taken.name).is_dir()
        pool_directory.put_back(Home(probe_home), taken, mine[0])


@pytest.mark.timing
async def test_a_source_that_changes_or_goes_takes_its_warm_ones_along(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=2) as host:
        (vm,) = await fork(host)
        copy = await vm.template()
        await copy.fork(2)
        await filled(host, 2, source=copy.name)
        # As a compaction does it: another manifest, at once.
        manifest = copy.directory / MANIFEST_FILE
        text = manifest.read_text()
        manifest.with_name(".tmp-m").write_text(text + "\n")
        manifest.with_name(".tmp-m").replace(manifest)
        (one,) = await copy.fork(1)
        assert one.receipt.warm == "loaded", "the same manifest, in another file"
        decoded = json.loads(text)
        decoded["labels"] = {"changed": "yes"}
        manifest.with_name(".tmp-m").write_text(json.dumps(decoded))
        manifest.with_name(".tmp-m").replace(manifest)
        (another,) = await copy.fork(1)
        assert another.receipt.warm in {None, "empty"}
        await filled(host, 1, source=copy.name)
        for fork_ in await host.list():
            if fork_.name not in {copy.name, "base"}:
                await (await host.get(fork_.id)).remove(force=True)
        await copy.remove()
        # One that was being made at that moment goes when it is ready. `base` may have its own again by then.
        with anyio.fail_after(30):
            while any(entry.source_name == copy.name for entry in (await idle_pool(host)).entries):
                await anyio.sleep(0.02)


@pytest.mark.timing
async def test_a_source_is_compacted_while_it_is_forked(
    probe_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fork has its memory, whichever files it came from; the warm ones are replaced."""
    monkeypatch.setattr(create, "request_for_capture", lambda *_: None)
    async with ramet.Host(probe_home, warm=3) as host:
        (vm,) = await fork(host)
        await vm.exec("fill", hex(DATA_ADDRESS), hex(2304), "0x77", check=True)
        snapshot = await vm.snapshot("large")
        modes: list[str] = []
        over = False

        async def go_on() -> None:
            while not over or modes[-1] != "shared":
                (child,) = await snapshot.fork(1)
                assert await FIRECRACKER.read(child) == 0x77
                modes.append(child.receipt.memory.mode)
                await child.remove(force=True)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(go_on)
                await filled(host, 1, source=vm.name)
                driver = next(driver for driver in installed_drivers() if driver.name == "firecracker")
                assert await compact_capture(snapshot.directory, driver)
                over = True
        assert modes[0] == "delta"
        await filled(host, 1, source=vm.name)
        (child,) = await snapshot.fork(1)
        assert (child.receipt.warm, child.receipt.memory.mode) == ("loaded", "shared")
        assert await FIRECRACKER.read(child) == 0x77
        await snapshot.remove()


async def test_what_nobody_reads_is_no_more_than_a_few_files_and_is_swept(
    probe_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_directory, "_MOST_UNREAD", 2)
    (probe_home / "pool").mkdir(mode=0o700)
    gone = spawn.spawn(["true"], directory=probe_home, log=probe_home / "gone.log")
    await processes.wait_ended(gone, timeout_s=10)
    (probe_home / "gone.log").unlink()
    written = f"{gone.pid}-{gone.started}-{gone.boot_id}"
    (probe_home / "pool" / f"controller.{written}.00000000").write_bytes(msgspec.json.encode({}))
    # Of a ramet before the word changed.
    (probe_home / "pool" / f"keeper.{written}.00000000").write_bytes(msgspec.json.encode({}))
    async with ramet.Host(probe_home) as host:
        assert not (probe_home / "pool").exists()
        (probe_home / "pool").mkdir(mode=0o700)
        (probe_home / "pool" / f"controller.{written}.00000000").touch()
        await fork(host)
        assert list((probe_home / "pool").glob("wanted.*")) == [], "nobody is there to read it"
        # One that lives, and doesn't get to it.
        (probe_home / "pool" / pool_directory.controller_name(Home(probe_home))).touch()
        for expected in (1, 2, 2):
            await fork(host)
            assert len(list((probe_home / "pool").glob("wanted.*"))) == expected
        for left in (probe_home / "pool").glob("controller.*"):
            left.unlink()
    async with ramet.Host(probe_home):
        assert not (probe_home / "pool").exists()


@pytest.mark.timing
async def test_a_fork_is_not_slower_to_give_up_than_it_says(probe_home: Path) -> None:
    """The limit for one that hangs is far below that of a guest that doesn't answer."""
    assert claims.RESUME_LIMIT_S <= 5.0
    begun = time.monotonic()
    async with ramet.Host(probe_home, warm=1) as host:
        await fork(host)
        (waiting,) = await filled(host, 1)
        assert waiting.pid is not None
        os.kill(waiting.pid, signal.SIGSTOP)
    assert time.monotonic() - begun < 30, "a host is left although a warm VMM hangs"
