"""What others do with a capture while its memory is compressed or decompressed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Awaitable
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.engine.maintenance import decompression
from ramet.memory.compressed import Frame, unpack_into
from ramet.memory.integrity import digest
from ramet.system.locks import inode_lock
from tests.vm.compression.conftest import LIMIT_S, Halting, letting_go, remembers

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


async def ended_with(call: Awaitable[object], errors: list[ramet.RametError]) -> None:
    try:
        await call
    except ramet.RametError as error:
        errors.append(error)


def damage(mem: Path) -> None:
    """Other content in the same file, which its facts don't tell."""
    before = mem.stat()
    mem.chmod(0o600)
    with mem.open("r+b") as opened:
        for block in range(0, before.st_size, 1 << 20):
            opened.seek(block)
            if any(data := opened.read(64)):
                opened.seek(block)
                opened.write(bytes(255 - byte for byte in data))
    mem.chmod(before.st_mode & 0o7777)
    os.utime(mem, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("verb", "is_told"),
    [
        pytest.param("compress", True, marks=pytest.mark.deep),
        ("compress", False),
        ("decompress", True),
        pytest.param("decompress", False, marks=pytest.mark.deep),
    ],
)
async def test_a_later_capture_is_never_taken_for_the_one_that_was_begun_with(
    warm: ramet.VM, verb: str, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, started and put into standby again, all in the same directory."""
    halting = Halting()
    async with warm.fork(1, name="again") as (vm,):
        await vm.standby()
        if verb == "decompress":
            await vm.compress()
        if not is_told:
            monkeypatch.setattr(decompression, "cancel", lambda *_, **__: None)
        errors: list[ramet.RametError] = []
        with letting_go(halting):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ended_with, getattr(vm, verb)(progress=halting), errors)
                await halting.reached()
                if verb == "decompress":
                    # Its file would appear in what comes after.
                    monkeypatch.setattr(decompression, "_STOPPING_S", 0.2)
                    with pytest.raises(ramet.LockBusyError, match="memory of again is being decompressed"):
                        await vm.stop(timeout=0)
                    assert (await vm.info()).state == "standby"
                else:
                    await vm.stop(timeout=0)
                    assert not list(vm.directory.glob("mem*"))
                    await vm.start()
                    await vm.exec("sh", "-c", "echo later > /run/it", check=True)
                    await vm.standby()
                halting.go_on()
        if verb == "decompress":
            assert errors == []
            await vm.restore()
            return
        (error,) = errors
        assert isinstance(error, ramet.WrongStateError)
        assert ("stopped while" if is_told else "captured anew") in error.message
        assert not list(vm.directory.glob("*.zst"))
        assert not list(vm.directory.glob(".tmp-*"))
        assert (await vm.inspect()).compression == "raw"
        await vm.restore()
        assert (await vm.exec("cat", "/run/it", check=True)).text == "later\n"


async def test_a_stop_ends_a_decompression(warm: ramet.VM) -> None:
    halting = Halting(at_once=True)
    errors: list[ramet.RametError] = []
    async with warm.fork(1, name="given") as (vm,):
        await vm.standby()
        await vm.compress()
        with letting_go(halting), anyio.fail_after(LIMIT_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ended_with, vm.decompress(progress=halting), errors)
                await halting.reached()
                tasks.start_soon(ended_with, vm.stop(timeout=0), [])
                while vm._context.store.get(vm.id).pending is None:
                    await anyio.sleep(0.01)
                await anyio.sleep(0.1)
                halting.go_on()
        (error,) = errors
        assert isinstance(error, ramet.WrongStateError)
        assert "stopped while its memory was being worked on" in error.message
        assert (await vm.info()).state == "stopped"
        assert not list(vm.directory.glob("*mem*"))
        assert not list(vm.directory.glob(".tmp-*"))


async def test_a_stop_ends_a_fork_that_decompresses(warm: ramet.VM, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(descriptor: int, path: Path, frame: Frame, out: int) -> bytes | None:
        time.sleep(0.1)
        return unpack_into(descriptor, path, frame, out)

    monkeypatch.setattr(decompression, "unpack_into", slowly)
    errors: list[ramet.RametError] = []
    async with warm.fork(1, name="given") as (vm,):
        await vm.standby()
        await vm.compress()
        with anyio.fail_after(LIMIT_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ended_with, vm.fork_report(2), errors)
                while not list(vm.directory.glob(".tmp-pack-*")):
                    await anyio.sleep(0.01)
                await vm.stop(timeout=0)
        (error,) = errors
        assert isinstance(error, ramet.WrongStateError)
        assert not list(vm.directory.glob("*mem*"))
        assert not list(vm.directory.glob(".tmp-*"))


async def test_a_stop_that_is_killed_before_it_gave_anything_up(warm: ramet.VM, warm_home: Path) -> None:
    """It waits for who unpacks; what is in standby is in standby then."""
    busy = ramet.LockBusyError("busy")
    async with warm.fork(1, name="stays") as (vm,):
        await vm.exec("sh", "-c", "echo remembered > /run/it", check=True)
        await vm.standby()
        words = [sys.executable, "-m", "ramet", "stop", "--timeout", "0", vm.id]
        async with inode_lock(vm.directory / "manifest.json", shared=True, wait_s=1, busy=busy):
            stopping = subprocess.Popen(words, env={**os.environ, "RAMET_HOME": str(warm_home)})
            try:
                with anyio.fail_after(LIMIT_S):
                    while vm._context.store.get(vm.id).pending is None:
                        await anyio.sleep(0.01)
            finally:
                stopping.kill()
                stopping.wait()
        async with ramet.Host(warm_home):
            assert (await vm.info()).state == "standby"
        await vm.restore()
        assert await remembers(vm)


async def test_a_large_delta_that_was_compacted_goes_with_a_stop(warm: ramet.VM) -> None:
    async with warm.fork(1, name="heavy") as (vm,):
        await vm.exec("sh", "-c", "head -c 9000000 /dev/urandom > /tmp/more", check=True)
        await vm.standby()
        await vm.compress()
        async with vm.fork(1):
            pass
        assert {path.suffix for path in vm.directory.glob("mem-*")} == {"", ".zst"}
        await vm.stop(timeout=0)
        assert not list(vm.directory.glob("mem*"))


async def test_a_damaged_raw_file_is_made_anew(snapshot: ramet.Snapshot) -> None:
    """And never taken for the truth, with its compressed file thrown away."""
    mem = snapshot.directory / "mem"
    whole = digest(mem)
    await snapshot.compress()
    async with snapshot.fork(1) as (vm,):
        damage(mem)
        assert digest(mem) != whole
        assert (await snapshot.decompress()).compression == "raw"
        assert digest(mem) == whole
        assert (await snapshot.verify()).ok
    async with snapshot.fork(1) as (vm,):
        assert await remembers(vm)


@pytest.mark.parametrize("level", [None, pytest.param(5, marks=pytest.mark.deep)])
async def test_compressing_again_never_takes_a_damaged_raw_file(
    snapshot: ramet.Snapshot, level: int | None
) -> None:
    """At the same level, the one that it has, or at another one."""
    mem = snapshot.directory / "mem"
    await snapshot.compress(level=2)
    async with snapshot.fork(1):
        pass
    damage(mem)
    assert (await snapshot.compress(level=level)).level == (level or 2)
    assert not mem.exists()
    assert (await snapshot.verify()).ok
    async with snapshot.fork(1) as (vm,):
        assert await remembers(vm)


async def test_compressing_at_another_level_that_fails_leaves_the_first(snapshot: ramet.Snapshot) -> None:
    before = await snapshot.compress(level=2)

    def fail(done: int, _total: int, passes: list[int] = []) -> None:  # noqa: B006 - of this one call
        passes.append(done)
        if any(later < earlier for earlier, later in pairwise(passes)):  # unpacked, and packing
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await snapshot.compress(level=3, progress=fail)
    assert not (snapshot.directory / "mem").exists()
    assert not list(snapshot.directory.glob(".tmp-*"))
    after = await snapshot.compress()
    assert (after.level, after.compressed_bytes) == (2, before.compressed_bytes)
    async with snapshot.fork(1) as (vm,):
        assert await remembers(vm)


async def test_an_error_over_a_damaged_raw_file_says_how_it_is_mended(snapshot: ramet.Snapshot) -> None:
    mem = snapshot.directory / "mem"
    await snapshot.compress()
    async with snapshot.fork(1):
        pass
    damage(mem)
    os.utime(mem)
    with pytest.raises(ramet.DamagedError) as caught:
        await snapshot.fork(1)
    assert f"ramet snapshot decompress {snapshot.id}" in str(caught.value.hint)
    await snapshot.decompress()
    async with snapshot.fork(1) as (vm,):
        assert await remembers(vm)


async def test_a_restore_doesnt_wait_for_a_decompression_that_waits_for_it(warm: ramet.VM) -> None:
    halting = Halting()
    async with warm.fork(1, name="both") as (vm,):
        await vm.exec("sh", "-c", "echo remembered > /run/it", check=True)
        await vm.standby()
        await vm.compress()
        errors: list[ramet.RametError] = []
        with letting_go(halting), anyio.fail_after(LIMIT_S / 2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ended_with, vm.decompress(progress=halting), errors)
                await halting.reached()
                async with anyio.create_task_group() as restoring:
                    restoring.start_soon(vm.restore)
                    while vm._context.store.get(vm.id).pending is None:
                        await anyio.sleep(0.01)
                    halting.go_on()
        assert all(isinstance(error, ramet.WrongStateError) for error in errors), errors
        assert (await vm.info()).state == "running"
        assert await remembers(vm)


async def test_a_fork_doesnt_wait_for_the_packing_of_what_is_raw_again(snapshot: ramet.Snapshot) -> None:
    """It begins to wait while the memory is unpacked."""
    await snapshot.compress(level=1)
    unpacking_begun, packed = Halting(at_once=True), Halting(passes=2)  # of the unpacking, and of the packing
    results: list[object] = []
    remembered: list[bool] = []

    def progress(done: int, total: int) -> None:
        unpacking_begun(done, total)
        packed(done, total)

    async def compress() -> None:
        results.append(await snapshot.compress(level=2, progress=progress))

    async def fork() -> None:
        async with snapshot.fork(1) as (vm,):
            remembered.append(await remembers(vm))

    with letting_go(unpacking_begun, packed):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(compress)
            await unpacking_begun.reached()
            with anyio.fail_after(LIMIT_S / 2):
                async with anyio.create_task_group() as forking:
                    forking.start_soon(fork)
                    await anyio.sleep(0.3)
                    unpacking_begun.go_on()
                assert not results  # it is packing still
            packed.go_on()
    assert remembered == [True]
    (done,) = results
    assert isinstance(done, ramet.Compression)
    assert (done.compression, done.level) == ("compressed", 2)
    assert not (snapshot.directory / "mem").exists()


async def test_removed_while_its_raw_file_is_waited_for(snapshot: ramet.Snapshot) -> None:
    errors: list[ramet.RametError] = []
    busy = ramet.LockBusyError("busy")
    await snapshot.compress()
    async with snapshot.fork(1):
        pass
    async with (
        inode_lock(snapshot.directory, shared=True, wait_s=1, busy=busy),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(ended_with, snapshot.compress(), errors)
        await anyio.sleep(0.3)
        await snapshot.remove()
    (error,) = errors
    assert isinstance(error, ramet.NotFoundError)


async def test_a_warm_vmm_of_memory_that_was_given_up_isnt_claimed(
    snapshot: ramet.Snapshot, warm_home: Path
) -> None:
    """It has the file of before: who forks shares the one that the others get."""
    async with ramet.Host(warm_home, warm=1) as host:
        again = await host.snapshot(snapshot.id)
        async with again.fork(1):
            pass
        with anyio.fail_after(LIMIT_S):
            while not any(entry.state == "ready" for entry in (await host.pool(wait=30)).entries):
                await anyio.sleep(0.05)
        await again.compress()
        async with again.fork(2) as forks:
            inode = (snapshot.directory / "mem").stat().st_ino
            assert {(vm.directory / "mem").stat().st_ino for vm in forks} == {inode}
