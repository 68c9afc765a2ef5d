"""Captures whose memory is compressed: everything goes on as before, with fewer bytes on the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

import ramet
from ramet.engine.maintenance import compression, decompression, memory_jobs
from ramet.engine.manifest import read_manifest
from ramet.engine.pool import prewarm
from ramet.engine.snapshots import compression as snapshots_compression
from ramet.memory.integrity import digest
from ramet.model import protocols
from ramet.model.schema import ForkReport, Receipt
from tests.vm.compression.conftest import Halting, letting_go, remembers, slowly

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


def mem_of(one: ramet.Snapshot | ramet.VM) -> Path:
    return one.directory / "mem"


def compressed_files(one: ramet.Snapshot | ramet.VM) -> list[Path]:
    return list(one.directory.glob("mem*.zst"))


def nothing_half_made(one: ramet.Snapshot | ramet.VM) -> bool:
    home = one._context.home
    left = [*one.directory.glob(".tmp-*"), *home.compressing.glob("*")]
    known = set(read_manifest(one.directory).files)
    return not left and {path.name for path in compressed_files(one)} <= known


def receipts(report: ForkReport) -> list[Receipt]:
    return [fork for fork in report.forks if isinstance(fork, Receipt)]


@pytest.mark.core
async def test_there_and_back(snapshot: ramet.Snapshot) -> None:
    before = digest(mem_of(snapshot))
    facts = mem_of(snapshot).stat()
    told: list[tuple[int, int]] = []
    done = await snapshot.compress(progress=lambda *one: told.append(one))
    assert (done.compression, done.level) == ("compressed", 3)
    assert done.compressed_bytes is not None
    assert done.compressed_bytes < done.raw_bytes / 2
    assert told[-1] == (facts.st_size, facts.st_size)
    assert told == sorted(told)
    assert not mem_of(snapshot).exists()
    shown = await snapshot.inspect()
    assert shown.compression == "compressed"
    (packed,) = (part for part in shown.parts if part.name.endswith(".zst"))
    assert packed.digest == before
    assert {part.name for part in shown.parts} == {path.name for path in snapshot.directory.iterdir()} - {
        "manifest.json",
        "confirmed.json",
    }
    verified = await snapshot.verify()
    assert verified.ok
    assert packed.name in {part.name for part in verified.parts}
    assert (await snapshot.compress()).compressed_bytes == done.compressed_bytes  # nothing left to do
    done = await snapshot.decompress()
    assert (done.compression, done.level, done.compressed_bytes) == ("raw", None, None)
    assert digest(mem_of(snapshot)) == before
    found = mem_of(snapshot).stat()
    assert (found.st_size, found.st_mode, found.st_mtime_ns) == (
        facts.st_size,
        facts.st_mode,
        facts.st_mtime_ns,
    )
    assert found.st_blocks <= facts.st_blocks  # holes stayed holes
    assert compressed_files(snapshot) == []
    assert read_manifest(snapshot.directory).format == 2  # as one that never was compressed
    assert (await snapshot.decompress()).compression == "raw"
    assert nothing_half_made(snapshot)


async def test_a_forks_receipt_tells(snapshot: ramet.Snapshot, warm_host: ramet.Host) -> None:
    await snapshot.compress(level=1)
    first = await snapshot.fork_report(2, require_shared=True)
    second = await snapshot.fork_report(1, require_shared=True)
    for report, decompressed in ((first, True), (second, False)):
        for receipt in receipts(report):
            assert receipt.memory.mode in {"delta", "shared"}
            assert ("decompressed" in receipt.memory.reason) == decompressed
            assert (receipt.timings_ms.decompress > 0) == decompressed
            parts = receipt.timings_ms
            assert parts.decompress + parts.queued <= parts.total
            await (await warm_host.get(receipt.id)).remove(force=True)
    assert (await snapshot.inspect()).compression == "compressed"
    assert mem_of(snapshot).exists()
    assert len(compressed_files(snapshot)) == 1  # both stay
    before = compressed_files(snapshot)
    await snapshot.compress(level=1)
    assert (mem_of(snapshot).exists(), compressed_files(snapshot)) == (False, before)


async def test_many_forks_at_once_decompress_once(
    snapshot: ramet.Snapshot, warm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one process, and of others: all have the same file, and all but one have waited for it."""
    await snapshot.compress()
    calls: list[object] = []
    real = decompression.unpack_memory

    async def counted(*arguments: object) -> None:
        calls.append(arguments)
        await real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decompression, "unpack_memory", counted)
    others = [
        await anyio.open_process(
            [sys.executable, "-m", "ramet", "fork", snapshot.id, "--json"],
            env={**os.environ, "RAMET_HOME": str(warm_home)},
            stdin=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    made: list[ramet.VM] = []
    async with anyio.create_task_group() as tasks:

        async def fork() -> None:
            made.extend(await snapshot.fork(2))

        for _ in range(3):
            tasks.start_soon(fork)
    async with ramet.Host(warm_home) as host:
        for other in others:
            assert other.stdout is not None
            said = b"".join([piece async for piece in other.stdout])
            assert await other.wait() == 0
            made.append(await host.get(json.loads(said)["forks"][0]["id"]))
        assert len(calls) <= 1
        assert {mem_of(vm).stat().st_ino for vm in made} == {mem_of(snapshot).stat().st_ino}
        for vm in made:
            assert await remembers(vm)
            await vm.remove(force=True)
    assert nothing_half_made(snapshot)


@pytest.mark.parametrize("verb", ["compress", pytest.param("decompress", marks=pytest.mark.deep), "fork"])
async def test_one_that_is_killed_in_the_middle(snapshot: ramet.Snapshot, warm_home: Path, verb: str) -> None:
    if verb != "compress":
        await snapshot.compress()
    words = ["fork", snapshot.id] if verb == "fork" else ["snapshot", verb, snapshot.id]
    killed = subprocess.Popen(
        [sys.executable, "-m", "ramet", *words, *(["--level", "19"] if verb == "compress" else [])],
        env={**os.environ, "RAMET_HOME": str(warm_home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with anyio.fail_after(60):
        while not list(snapshot.directory.glob(f"{memory_jobs.TEMPORARY}*")):
            assert killed.poll() is None
            await anyio.lowlevel.checkpoint()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (mem_of(snapshot).exists(), len(compressed_files(snapshot))) == (
        (True, 0) if verb == "compress" else (False, 1)
    )
    assert (await snapshot.inspect()).compression == ("raw" if verb == "compress" else "compressed")
    async with ramet.Host(warm_home):
        assert nothing_half_made(snapshot)
    async with snapshot.fork(1) as (vm,):
        assert await remembers(vm)
    await snapshot.compress()
    await snapshot.decompress()
    assert nothing_half_made(snapshot)


async def test_a_restore_cancels(warm: ramet.VM) -> None:
    async with warm.fork(1, name="sleeper") as (vm,):
        await vm.exec("sh", "-c", "echo remembered > /run/it", check=True)
        await vm.standby()
        # Raw, compressing, compressed: each is restored.
        await vm.restore()
        assert await remembers(vm)
        await vm.standby()
        refused: list[ramet.WrongStateError] = []

        async def compress() -> None:
            try:
                await vm.compress(progress=slowly)
            except ramet.WrongStateError as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(compress)
            while (await vm.inspect()).compression != "compressing":
                await anyio.sleep(0.01)
            await vm.restore()
            assert (await vm.info()).state == "running"
        assert len(refused) == 1
        assert await remembers(vm)
        assert not compressed_files(vm)
        await vm.standby()
        assert (await vm.inspect()).compression == "raw"
        await vm.compress()
        assert (await vm.inspect()).compression == "compressed"
        assert not mem_of(vm).exists()
        async with vm.fork(1) as (child,):
            assert await remembers(child)
        await vm.compress()
        await vm.restore()
        assert (await vm.inspect()).compression is None
        assert not compressed_files(vm)
        assert await remembers(vm)


async def test_a_rewind_cancels(warm: ramet.VM, warm_host: ramet.Host) -> None:
    async with warm.fork(1, name="old") as (vm,):
        await vm.exec("sh", "-c", "echo remembered > /run/it", check=True)
        snapshot = await vm.snapshot("then")
        await vm.exec("rm", "/run/it", check=True)
        refused: list[str] = []

        async def compress() -> None:
            try:
                await snapshot.compress(progress=slowly)
            except ramet.WrongStateError as error:
                refused.append(error.message)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(compress)
            while (await snapshot.inspect()).compression != "compressing":
                await anyio.sleep(0.01)
            await vm.rewind("then")
        assert refused == ["then was restored, rewound to or stopped while its memory was being worked on"]
        assert await remembers(vm)
        assert (await snapshot.inspect()).compression == "raw"
        assert nothing_half_made(snapshot)
        await snapshot.compress()
        await vm.rewind("then")
        assert await remembers(vm)
        await snapshot.remove()


async def test_a_template_and_what_was_compressed_before(warm: ramet.VM, warm_host: ramet.Host) -> None:
    """In standby, compressed, snapshotted, made a template: each can be forked."""
    async with warm.fork(1, name="chain") as (vm,):
        await vm.exec("sh", "-c", "echo remembered > /run/it", check=True)
        with pytest.raises(ramet.WrongStateError, match="chain is running"):
            await vm.compress()
        await vm.standby()
        await vm.compress()
        snapshot = await vm.snapshot("of-a-compressed-one")
        (mine,), (its,) = compressed_files(vm), compressed_files(snapshot)
        assert mine.stat().st_ino == its.stat().st_ino
        assert not mem_of(snapshot).exists()
        await vm.template()
        assert (await vm.inspect()).compression == "compressed"
        async with vm.fork(1) as (one,), snapshot.fork(1) as (other,):
            assert await remembers(one)
            assert await remembers(other)
            # A capture of what was restored from a compressed one is as any other.
            again = await one.snapshot("again")
            async with again.fork(1) as (third,):
                assert await remembers(third)
            await again.remove()
        await snapshot.remove()


async def test_it_travels_compressed(snapshot: ramet.Snapshot, warm_host: ramet.Host, tmp_path: Path) -> None:
    raw, packed = tmp_path / "raw", tmp_path / "packed"
    await snapshot.export(raw)
    await snapshot.compress()
    await snapshot.export(packed)
    assert packed.stat().st_size < raw.stat().st_size
    # The same content, however it is kept: no second one is made.
    for file in (packed, raw):
        assert (await warm_host.import_snapshot(file)).id == snapshot.id
    second = await warm_host.import_snapshot(packed, name="second")
    (mine,), (its,) = compressed_files(snapshot), compressed_files(second)
    assert mine.stat().st_ino == its.stat().st_ino
    assert (await second.verify()).ok
    await second.remove()
    # But never a damaged one instead of the good one that came.
    facts = mine.stat()
    mine.chmod(0o644)
    with mine.open("r+b") as opened:
        opened.seek(facts.st_size // 2)
        opened.write(b"another byte")
    mine.chmod(facts.st_mode & 0o777)
    os.utime(mine, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    second = await warm_host.import_snapshot(packed, name="second")
    assert (await second.verify()).ok
    assert not (await snapshot.verify()).ok
    async with second.fork(1) as (vm,):
        assert await remembers(vm)
    await second.remove()
    twin = await warm_host.import_snapshot(raw, name="twin")
    assert (await twin.inspect()).compression == "raw"
    await snapshot.remove()
    await twin.remove()
    came = await warm_host.import_snapshot(packed, name="came")
    assert (await came.inspect()).compression == "compressed"
    assert (await came.verify()).ok
    async with came.fork(1) as (vm,):
        assert await remembers(vm)
    assert (await warm_host.import_snapshot(raw)).id == came.id


async def test_one_in_standby_that_is_given_up_leaves_no_compressed_file(warm: ramet.VM) -> None:
    async with warm.fork(1) as (vm,):
        await vm.standby()
        await vm.compress()
        await vm.stop(timeout=0)
        assert not compressed_files(vm)
        assert not mem_of(vm).exists()


async def test_a_large_delta_is_compacted_first(warm: ramet.VM) -> None:
    async with warm.fork(1, name="heavy") as (vm,):
        await vm.exec("sh", "-c", "echo remembered > /run/it", check=True)
        await vm.exec("sh", "-c", "head -c 9000000 /dev/urandom > /tmp/more", check=True)
        await vm.standby()
        await vm.compress()
        manifest = read_manifest(vm.directory)
        assert manifest.memory.delta is None
        assert manifest.memory.compressed is not None
        async with vm.fork(1) as (child,):
            assert await remembers(child)
            assert child.receipt.memory.mode == "shared"
            assert child.receipt.memory.delta_bytes == 0
        await vm.restore()
        assert await remembers(vm)


async def test_nothing_is_decompressed_ahead(snapshot: ramet.Snapshot, warm_home: Path) -> None:
    """A pool that keeps VMMs warm leaves what is compressed so, until somebody forks it."""
    async with ramet.Host(warm_home, warm=1) as host:
        again = await host.snapshot(snapshot.id)
        async with again.fork(1):
            pass
        with anyio.fail_after(60):
            while not (await host.pool(wait=30)).entries:
                await anyio.sleep(0.05)
        await again.compress()
        async with again.fork(1) as (vm,):  # the warm one has a link of its own, or it is decompressed
            assert await remembers(vm)
        await again.compress()
        context = host._context
        assert context is not None
        with pytest.raises(ramet.UnavailableError, match="is compressed, and isn't decompressed ahead"):
            await prewarm.make_loaded(context, f"snapshots/{again.id}")
        for _ in range(8):
            await anyio.sleep(0.05)
            assert not mem_of(snapshot).exists()


@pytest.mark.parametrize("verb", ["compress", "decompress"])
async def test_cancelled_between_its_last_steps(
    snapshot: ramet.Snapshot, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is published and not named, or not named any more: no job tells of it afterwards."""
    if verb == "decompress":
        await snapshot.compress()
    step = "publish" if verb == "compress" else "_publish_manifest"
    real, scope = getattr(compression, step), anyio.CancelScope()

    def cancelling(*told: object) -> None:
        real(*told)
        anyio.from_thread.run_sync(scope.cancel)

    monkeypatch.setattr(compression, step, cancelling)
    with scope:
        await getattr(snapshot, verb)()
    assert scope.cancel_called  # at the last step it comes too late, and the call is done
    assert nothing_half_made(snapshot)
    async with snapshot.fork(1) as (vm,):
        assert await remembers(vm)


class TestWrongInput:
    async def test_levels(self, snapshot: protocols.Snapshot) -> None:
        for level in (0, 20, -1):
            with pytest.raises(ramet.UsageError, match="there is no level"):
                await snapshot.compress(level=level)
        with pytest.raises(ramet.UsageError, match="progress of compress"):
            await snapshot.compress(progress="loud")  # type: ignore[arg-type]
        assert (await snapshot.inspect()).compression == "raw"

    @pytest.mark.parametrize(
        "how",
        [
            pytest.param("cut", marks=pytest.mark.deep),
            "altered",
            "gone",
            pytest.param("another's", marks=pytest.mark.deep),
        ],
    )
    async def test_a_compressed_file_that_is_not_what_it_was(
        self, snapshot: ramet.Snapshot, how: str
    ) -> None:
        await snapshot.compress()
        (packed,) = compressed_files(snapshot)
        whole = packed.read_bytes()
        packed.chmod(0o644)
        match how:
            case "cut":
                os.truncate(packed, len(whole) // 2)
            case "altered":
                facts = packed.stat()
                with packed.open("r+b") as file:
                    file.seek(len(whole) // 2)
                    file.write(bytes(100))
                os.utime(packed, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            case "another's":
                packed.write_bytes(whole + whole)
            case _:
                packed.unlink()
        for attempt in (snapshot.fork(2), snapshot.decompress(), snapshot.compress(level=9)):
            with pytest.raises(ramet.DamagedError, match=r"\.zst") as caught:
                await attempt
            assert caught.value.hint
        if how != "gone":
            verified = await snapshot.verify()
            assert [part.name for part in verified.parts if not part.ok] == [packed.name]
        packed.unlink(missing_ok=True)
        packed.write_bytes(whole)
        packed.chmod(0o444)
        async with snapshot.fork(1) as (vm,):
            assert await remembers(vm)
        assert nothing_half_made(snapshot)

    async def test_a_raw_file_is_not_given_up_for_a_damaged_one(self, snapshot: ramet.Snapshot) -> None:
        """Both are there after a fork: the compressed one is read before the raw one goes."""
        await snapshot.compress()
        async with snapshot.fork(1):
            pass
        (packed,) = compressed_files(snapshot)
        facts = packed.stat()
        packed.chmod(0o644)
        with packed.open("r+b") as file:
            file.seek(facts.st_size // 2)
            file.write(bytes(100))
        os.utime(packed, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        packed.chmod(0o444)
        await snapshot.compress()
        assert compressed_files(snapshot) != [packed]
        assert not mem_of(snapshot).exists()
        async with snapshot.fork(1) as (vm,):
            assert await remembers(vm)

    async def test_a_raw_file_that_is_not_what_it_was(self, warm: ramet.VM, warm_host: ramet.Host) -> None:
        """It is read anyway: what it holds has to have the part's digest."""
        async with warm.fork(1, share_memory=False) as (vm,):
            await vm.standby()
            mem = mem_of(vm)
            facts = mem.stat()
            mem.chmod(0o644)
            with mem.open("r+b") as file:
                file.seek(facts.st_size // 2)
                file.write(b"another byte")
            os.utime(mem, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            mem.chmod(facts.st_mode & 0o777)
            with pytest.raises(ramet.DamagedError, match="mem is damaged"):
                await vm.compress()
            assert mem.exists()
            assert nothing_half_made(vm)

    async def test_while_it_is_forked(
        self, snapshot: ramet.Snapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(compression, "_FORKS_S", 0.2)
        context = snapshot._context
        origin = snapshots_compression.of_snapshot(context, snapshot._record).origin()
        async with decompression.raw_file_kept(origin):
            with pytest.raises(ramet.LockBusyError, match="its raw file stays") as caught:
                await snapshot.compress(level=4)
            assert f"ramet snapshot compress --level 4 {snapshot.id}" in str(caught.value.hint)
            assert (await snapshot.inspect()).compression == "compressed"
            assert mem_of(snapshot).exists()
            async with snapshot.fork(1) as (vm,):
                assert await remembers(vm)
        await snapshot.compress(level=4)
        assert not mem_of(snapshot).exists()

    async def test_twice_at_once(self, snapshot: protocols.Snapshot) -> None:
        """The second is told so; forks, which can wait, wait."""
        outcomes: list[str] = []

        async def attempt(call: object) -> None:
            try:
                outcomes.append((await call).compression)  # type: ignore[misc]
            except ramet.LockBusyError as error:
                outcomes.append(f"{error.code}: {'being compressed or unpacked' in error.message}")

        halting = Halting(at_once=True)
        with letting_go(halting):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(attempt, snapshot.compress(progress=halting))
                await halting.reached()
                assert (await snapshot.inspect()).compression == "compressing"
                for call in (snapshot.compress(), snapshot.decompress()):
                    await attempt(call)
                async with snapshot.fork(1) as (vm,):  # the raw file is there all the time
                    assert await remembers(vm)
                    assert vm.receipt.timings_ms.decompress == 0
                halting.go_on()
        assert outcomes == ["busy: True", "busy: True", "compressed"]

    async def test_one_that_is_removed_meanwhile(self, snapshot: ramet.Snapshot) -> None:
        async with anyio.create_task_group() as tasks:

            async def compress() -> None:
                with pytest.raises(ramet.NotFoundError):
                    await snapshot.compress(progress=lambda *_: time.sleep(0.02))  # noticed at its end

            tasks.start_soon(compress)
            while (await snapshot.inspect()).compression != "compressing":
                await anyio.sleep(0.01)
            await snapshot.remove()
        assert not snapshot.directory.exists()
        assert list(snapshot._context.home.compressing.iterdir()) == []

    @pytest.mark.parametrize("verb", ["compress", "decompress"])
    async def test_a_call_that_is_cancelled(self, snapshot: ramet.Snapshot, verb: str) -> None:
        if verb == "decompress":
            await snapshot.compress()

        async def call() -> None:
            await (snapshot.compress(level=19) if verb == "compress" else snapshot.decompress())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            while not list(snapshot.directory.glob(f"{memory_jobs.TEMPORARY}*")):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert (await snapshot.inspect()).compression == ("raw" if verb == "compress" else "compressed")
        assert nothing_half_made(snapshot)
        async with snapshot.fork(1) as (vm,):
            assert await remembers(vm)
