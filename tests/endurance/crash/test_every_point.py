"""Kill -9 of ramet at every point of every operation: soon nothing of it is left, though nobody opens the
home, and the next command shows the truth and gives everything back.

"The truth" means: each instance that is listed as running answers, each template can be forked; "everything"
means: no VMM, directory or temporary file without a record.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

import ramet
from ramet.disk.volumes import size_of
from ramet.engine.boot_snapshots import cache
from ramet.errors import UnavailableError
from ramet.paths import Home
from ramet.system import processes, spawn
from tests.conftest import assert_nothing_left
from tests.side_by_side import tell
from tests.support import preloaded
from tests.support.owners import until_clean

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

# With Linux `run` and `start` boot a guest for some seconds each: the deep tier samples their points, and so
# it does with two forks, which pass the same points side by side, in an order that is another one each time:
# every second is tried. All of them are tried by hand (`make test-soak`), one point of each operation, on one
# driver, in every `make test`.
BOOTING = {"run", "start", "first_run"}
FEW = 1
# Captures and what is restored from them have about a hundred points each: other ones in each run.
MANY_STEPS = {"pool", "pooled_fork", "branch", "snapshot", "come", "standby", "restore", "rewind"} | {
    "compress",
    "decompress",
    "compressed_fork",
    "compressed_restore",
    *("first_run", "later_run"),
}
MOST_POINTS = 10
# What others have left is removed by whoever opens the home, and then by the next one.
NOBODYS = {"reconcile"}


QEMU = ("qemu", "builtin", "128M")
FIRECRACKER = ("firecracker", "probe", "32M")
TRIALS = [
    *(
        (QEMU, operation)
        for operation in ("fork", "template", "rm", "stop", "pause", "reconcile", "run", "start")
    ),
    # The others do nothing that depends on the driver.
    *((FIRECRACKER, operation) for operation in ("fork", "detached_fork", "template", "run", "start")),
    *(
        (FIRECRACKER, snapshot)
        for snapshot in ("branch", "snapshot", "snapshot_rm", "standby", "restore", "rewind", "come")
    ),
    *(
        (FIRECRACKER, operation)
        for operation in ("compress", "decompress", "compressed_fork", "compressed_restore")
    ),
    *((FIRECRACKER, operation) for operation in ("resize", "resize_stopped")),
    *((FIRECRACKER, operation) for operation in ("first_run", "later_run", "prune_boot")),
    (QEMU, "first_run"),
    *((QEMU, operation) for operation in ("branch", "standby", "rewind", "pooled_fork")),
    *((FIRECRACKER, operation) for operation in ("pool", "pooled_fork")),
]
ELSEWHERE = {
    *((QEMU, operation) for operation in ("template", "run", "start", "standby", "rewind", "pooled_fork")),
    *((FIRECRACKER, operation) for operation in ("fork", "branch")),
    (QEMU, "first_run"),
}
"""Trials whose operation is tried on the other driver in every `make test`."""


@pytest.fixture(scope="module")
async def crash_homes(
    homes: Path, anyio_backend: str
) -> AsyncIterator[Callable[[tuple[str, str, str]], Awaitable[Path]]]:
    """A home with one small template, `base`, for each driver: made when a test asks for it, and kept."""
    made: dict[tuple[str, str, str], Path] = {}

    async def home_of(kind: tuple[str, str, str]) -> Path:
        if kind not in made:
            driver, image, memory = kind
            directory = Path(tempfile.mkdtemp(dir=homes, prefix="crash-"))
            async with ramet.Host(directory) as host:
                try:
                    vm = await host.run(image, driver=driver, name="base", memory=memory)
                except UnavailableError as error:
                    pytest.skip(error.message)
                await (await vm.template()).detach()
            made[kind] = directory
        return made[kind]

    yield home_of
    for directory in made.values():
        async with ramet.Host(directory) as host:
            await (await host.get("base")).remove()
        assert_nothing_left(directory)


@pytest.fixture
async def crash_home(
    crash_homes: Callable[[tuple[str, str, str]], Awaitable[Path]], request: pytest.FixtureRequest
) -> Path:
    """The home of the driver that the test is a trial of. A parametrized fixture of the module would be torn
    down, and Linux booted again, for each trial.
    """
    return await crash_homes(request.param)


def inject(home: Path, operation: str, point: int) -> subprocess.CompletedProcess[str]:
    words = (str(home), operation, str(point))
    done = preloaded.run("tests.endurance.crash.injector", words, environment=os.environ, limit_s=120)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


async def prepare(home: Path, operation: str) -> None:
    """What the operation finds: a fork `x`, in the state that it needs."""
    if operation in {"run", "first_run", "fork", "detached_fork", "pool", "pooled_fork"}:
        return
    async with ramet.Host(home) as host:
        base = await host.get("base")
        if operation in {"later_run", "prune_boot"}:
            await make_boot_snapshot(host)
            return
        if operation == "reconcile":
            (x,) = await base.fork(1, name="x")
            (y,) = await base.fork(1, name="y")
            await x.detach()
            gone = spawn.spawn(["true"], directory=home, log=home / "gone.log")
            await processes.wait_ended(gone, timeout_s=10)
            context = y._context
            context.ours.discard(y.id)
            context.store.change(y.id, lambda row: msgspec.structs.replace(row, owner=gone))
            (home / "instances" / "0123456789ab").mkdir()
            return
        (x,) = await base.fork(1, name="x")
        await x.detach()
        if operation in {"start", "resize_stopped"}:
            await x.stop()
        if operation in {"snapshot_rm", "rewind", "come", "compress", "decompress", "compressed_fork"}:
            made = await x.snapshot("s")
            if operation in {"decompress", "compressed_fork"}:
                await made.compress(level=1)
            if operation == "come":
                (home / "x.ramet").unlink(missing_ok=True)
                await made.export(home / "x.ramet")
        if operation in {"restore", "compressed_restore"}:
            await x.standby()
        if operation == "compressed_restore":
            await x.compress(level=1)


async def make_boot_snapshot(host: ramet.Host) -> None:
    """Of the image, the driver and the shape of `base`."""
    info = await (await host.get("base")).info()
    with pytest.MonkeyPatch.context() as patches:
        patches.setenv("RAMET_BOOT_SNAPSHOTS", "10G")
        vm = await host.run(info.image, driver=info.driver, memory=info.memory_bytes)
    await vm.remove(force=True)


async def verify_boot_snapshots(host: ramet.Host, operation: str) -> None:
    """None is there half: one that can be found makes a guest that answers. All of them are removed."""
    place = host.home / "boot-snapshots"
    assert list(place.glob(".tmp-*")) == []
    found = {path.name for path in place.glob("*") if path.suffix != ".lock"}
    assert found == {entry.key for entry in cache.entries(Home(host.home))}
    assert len(found) in {"later_run": {1}, "first_run": {0, 1}, "prune_boot": {0, 1}}.get(operation, {0})
    if found:
        info = await (await host.get("base")).info()
        with pytest.MonkeyPatch.context() as patches:
            patches.setenv("RAMET_BOOT_SNAPSHOTS", "10G")
            vm = await host.run(info.image, driver=info.driver, memory=info.memory_bytes)
        made = (await vm.info()).boot
        assert made is not None
        assert (made.how, made.detail) == ("snapshot", "a fork of the boot snapshot")
        await vm.remove(force=True)
    for key in found:
        await cache.remove(host._opened, key)


async def verify(home: Path, operation: str) -> None:
    """The next command's view of the home: consistent, truthful, and after removal empty but for `base`."""
    async with ramet.Host(home) as host:
        instances = await host.list(everything=True)
        by_name = {instance.name: instance for instance in instances}
        assert by_name["base"].state == "template"
        recorded = {instance.id for instance in instances}
        with anyio.move_on_after(30):
            # The killed process's watcher may have removed the last record just before this Host looked.
            while {path.name for path in (home / "instances").iterdir()} != recorded:
                await anyio.sleep(0.01)
        assert {path.name for path in (home / "instances").iterdir()} == recorded, (
            "a directory without a record, or none"
        )
        assert list((home / "instances").glob("*/.tmp-*")) == []
        assert list((home / "snapshots").glob("*/.tmp-*")) == []
        assert list((home / "compressing").glob("*")) == []
        assert list((home / "staging").iterdir()) == []
        assert not (home / "pool").exists()
        await verify_snapshots(host, operation)
        await verify_boot_snapshots(host, operation)
        living = {
            process.pid for found in spawn.spawned_below(home / "instances").values() for process in found
        }
        assert living == {instance.pid for instance in instances if instance.pid is not None}, (
            "a VMM without a record"
        )
        for instance in instances:
            vm = await host.get(instance.id)
            for disk in vm._record.machine.disks:
                assert size_of(vm.directory, disk) == disk.size_bytes, "a disk's record isn't its file's"
            assert instance.state in {"running", "template", "stopped", "paused", "standby"}, instance
            if instance.state == "standby":
                assert operation in {"standby", "restore", "compressed_restore"}, "nobody asked for that"
                await vm.restore()
                assert (await vm.exec("hostname", timeout=30)).text == f"{instance.name}\n"
            if instance.state == "paused":
                assert operation == "pause", "nobody asked for that"
                await vm.resume()
            if instance.state in {"running", "paused"}:
                assert (await vm.exec("hostname", timeout=30)).text == f"{instance.name}\n"
            elif instance.state == "template" and instance.name != "base":
                async with vm.fork(1) as (child,):
                    assert (await child.exec("true")).ok
        expected: dict[str, set[frozenset[str]]] = {
            # A call that was killed before it detached its forks takes them along.
            **{one_made: {frozenset(), frozenset({"x"})} for one_made in ("run", "first_run", "later_run")},
            "prune_boot": {frozenset()},
            "fork": {frozenset(), frozenset({"f-1"}), frozenset({"f-1", "f-2"})},
            # One transaction detaches all that are whole: none of them, or all.
            "detached_fork": {frozenset(), frozenset({"f-1", "f-2"})},
            "pool": {frozenset()},
            "pooled_fork": {frozenset(), frozenset({"f-1"}), frozenset({"f-1", "f-2"})},
            "rm": {frozenset(), frozenset({"x"})},
            "reconcile": {frozenset({"x"})},
            "branch": {frozenset({"x"}), frozenset({"x", "f"})},
            "compressed_fork": {frozenset({"x"}), frozenset({"x", "f"})},
        }
        assert frozenset(by_name) - {"base"} in expected.get(operation, {frozenset({"x"})})
        for instance in instances:
            if instance.name != "base":
                await (await host.get(instance.id)).remove(force=True)
    assert Home(home).instances.exists()
    assert {path.name for path in (home / "instances").iterdir()} == {by_name["base"].id}
    assert spawn.spawned_below(home / "instances") == {}
    # Every link that forks had to the template's memory has been given back.
    assert (home / "instances" / by_name["base"].id / "mem").stat().st_nlink == 1


async def verify_snapshots(host: ramet.Host, operation: str) -> None:
    """What is listed is whole and can be forked; nothing else is there. All of it is removed."""
    found = await host.snapshots()
    expected: dict[str, set[frozenset[str]]] = {
        "snapshot": {frozenset(), frozenset({"t"})},
        "snapshot_rm": {frozenset(), frozenset({"s"})},
        "rewind": {frozenset({"s"})},
        "come": {frozenset({"s"}), frozenset({"s", "came"})},
        **{unchanged: {frozenset({"s"})} for unchanged in ("compress", "decompress", "compressed_fork")},
    }
    assert frozenset(info.name for info in found) in expected.get(operation, {frozenset()})
    assert {path.name for path in (host.home / "snapshots").iterdir()} == {info.id for info in found}
    for info in found:
        snapshot = await host.snapshot(info.id)
        assert {path.name for path in snapshot.directory.glob("*.zst")} <= {
            part.name for part in (await snapshot.inspect()).parts
        }
        assert (await snapshot.verify()).ok
        async with snapshot.fork(1) as (child,):
            assert (await child.exec("true")).ok
        await snapshot.remove()


TRIED: dict[str, int] = {}


def trials(chosen: list[tuple[tuple[str, str, str], str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("crash_home", "operation"),
        chosen,
        indirect=["crash_home"],
        ids=[f"{home[0]}-{operation}" for home, operation in chosen],
    )


@pytest.mark.proves("I2")
@pytest.mark.timeout(300)
@trials([trial for trial in TRIALS if trial not in ELSEWHERE])
async def test_kill_at_a_few_points(operation: str, crash_home: Path) -> None:
    """Others in each run."""

    def a_few(points: list[str]) -> list[int]:
        return sorted(secrets.SystemRandom().sample(range(1, len(points) + 1), FEW))

    await kill_at(crash_home, operation, a_few)


@pytest.mark.proves("I2")
@pytest.mark.deep
@pytest.mark.timeout(900)
@trials(TRIALS)
async def test_kill_at_many_points(operation: str, crash_home: Path) -> None:
    async with ramet.Host(crash_home) as host:
        boots_linux = operation in BOOTING and (await host.list())[0].image == "builtin"

    def many(points: list[str]) -> list[int]:
        chosen = list(range(1, len(points) + 1))
        if boots_linux:
            return chosen[:: max(1, len(chosen) // 12)]
        if operation in MANY_STEPS:
            return chosen[secrets.randbelow(3) :: max(1, len(chosen) // MOST_POINTS)]
        return chosen[::2] if operation in {"fork", "detached_fork"} else chosen

    await kill_at(crash_home, operation, many)


@pytest.mark.proves("I2")
@pytest.mark.soak
@pytest.mark.timeout(3600)
@trials(TRIALS)
async def test_kill_at_every_point(operation: str, crash_home: Path) -> None:
    await kill_at(crash_home, operation, lambda points: list(range(1, len(points) + 1)))


async def kill_at(home: Path, operation: str, choose: Callable[[list[str]], list[int]]) -> None:
    """Once without a kill, which gives the points by name; then once for each chosen one, killed there."""
    await prepare(home, operation)
    whole = await anyio.to_thread.run_sync(inject, home, operation, 0)
    assert whole.returncode == 0, whole.stderr
    points = whole.stdout.splitlines()
    assert len(points) >= 8, points
    await verify(home, operation)
    for point in choose(points):
        await prepare(home, operation)
        killed = await anyio.to_thread.run_sync(inject, home, operation, point)
        # Concurrent forks don't pass their points in the same order each time, so a run may end before its
        # last one.
        assert killed.returncode in {-9, 0}, killed.stderr
        try:
            if operation not in NOBODYS:
                await until_clean(home)
            await verify(home, operation)
        except BaseException as error:
            error.add_note(f"{operation} was killed at point {point} of {len(points)}: {points[point - 1]}")
            raise
        TRIED[operation] = TRIED.get(operation, 0) + (killed.returncode == -9)


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[None]:
    """How many points were tried, for the reader of a test run's output."""
    yield
    tell(f"killed at {sum(TRIED.values())} points, leaks found: 0; {TRIED}")
