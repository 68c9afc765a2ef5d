"""`run` is a fork of a guest that was booted once: of the probe, and of Linux."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.engine.boot_snapshots import cache
from ramet.errors import RametError
from ramet.paths import Home
from tests.support.guests import Guest

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run without boot snapshots elsewhere: a home for each would boot once more for nothing."""
    monkeypatch.delenv("RAMET_BOOT_SNAPSHOTS", raising=False)


async def boot_of(vm: ramet.VM) -> ramet.Boot:
    boot = (await vm.info()).boot
    assert boot is not None
    return boot


def kept(host: ramet.Host) -> list[str]:
    return [entry.key for entry in cache.entries(Home(host.home))]


@pytest.mark.core
async def test_a_shape_is_booted_once(guest: Guest, host: ramet.Host) -> None:
    first = await host.run(guest.image, driver=guest.driver, name="first", labels={"a": "b"})
    boot = await boot_of(first)
    assert boot.how == "snapshot"
    assert "first run of this shape" in boot.detail
    second = await host.run(guest.image, driver=guest.driver)
    again = await boot_of(second)
    assert (again.how, again.key) == ("snapshot", boot.key)
    assert "first run" not in again.detail
    assert kept(host) == [boot.key]
    # Both are nobody's forks, and no snapshot is seen.
    for vm in (first, second):
        info = await vm.info()
        assert (info.parent, info.snapshot, info.generation, info.forks) == (None, None, 1, 0)
    assert (await first.info()).labels == {"a": "b"}
    assert await host.snapshots() == []
    assert {instance.name for instance in await host.list(everything=True)} == {first.name, second.name}
    described = (await host.image(guest.image)).boot_snapshots
    assert [snapshot.key for snapshot in described] == [boot.key]
    # The mem-file is one.
    assert len({(vm.directory / "mem").stat().st_ino for vm in (first, second)}) == 1


async def test_the_first_capture_is_a_delta(guest: Guest, host: ramet.Host) -> None:
    vm = await host.run(guest.image, driver=guest.driver)
    snapshot = await vm.snapshot("one")
    shown = await snapshot.inspect()
    assert 0 < shown.delta_bytes < shown.memory_bytes // 4
    assert (await snapshot.verify()).ok
    [fork] = await vm.fork(1)
    assert (await fork.info()).parent == vm.id
    assert fork.receipt.memory.mode == "delta"
    await snapshot.remove()


async def test_what_is_asked_for_cold_boots(guest: Guest, host: ramet.Host) -> None:
    vm = await host.run(guest.image, driver=guest.driver, cold=True)
    assert (await boot_of(vm)).how == "cold"
    assert kept(host) == []


async def test_another_shape_is_booted_for_itself(probe: Guest, host: ramet.Host) -> None:
    one = await host.run(probe.image, driver=probe.driver, memory="64M")
    other = await host.run(probe.image, driver=probe.driver, memory="96M")
    assert (await boot_of(one)).key != (await boot_of(other)).key
    assert len(kept(host)) == 2


async def test_zero_turns_them_off(probe: Guest, host: ramet.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_BOOT_SNAPSHOTS", "0")
    vm = await host.run(probe.image, driver=probe.driver)
    assert (await boot_of(vm)).how == "cold"
    assert kept(host) == []


async def test_what_was_used_longest_ago_goes_first(
    probe: Guest, host: ramet.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {}
    for memory in ("64M", "65M", "66M"):
        vm = await host.run(probe.image, driver=probe.driver, memory=memory)
        keys[memory] = (await boot_of(vm)).key
        await anyio.sleep(0.02)
    await host.run(probe.image, driver=probe.driver, memory="64M")
    largest = max(entry.size_bytes for entry in cache.entries(Home(host.home)))
    monkeypatch.setenv("RAMET_BOOT_SNAPSHOTS", str(3 * largest))
    await anyio.sleep(0.02)
    vm = await host.run(probe.image, driver=probe.driver, memory="67M")
    assert kept(host) == [(await boot_of(vm)).key, keys["64M"], keys["66M"]]


async def test_one_in_use_stays(probe: Guest, host: ramet.Host) -> None:
    vm = await host.run(probe.image, driver=probe.driver)
    key = (await boot_of(vm)).key
    assert key is not None
    with pytest.raises(RametError, match="in use"):
        async with cache.in_use(host._opened, key):
            await cache.remove(host._opened, key)
    assert kept(host) == [key]
    await cache.remove(host._opened, key)
    assert kept(host) == []
    # Who was made from it keeps its files.
    [fork] = await vm.fork(1)
    assert (await fork.info()).state == "running"
    assert list(Home(host.home).boot_snapshots.iterdir()) == []


@pytest.mark.parametrize("harm", ["cut", "missing", "altered", "no manifest", "vmstate"])
async def test_a_damaged_one_is_made_anew(probe: Guest, host: ramet.Host, harm: str) -> None:
    old = await host.run(probe.image, driver=probe.driver)
    key = (await boot_of(old)).key
    assert key is not None
    directory = Home(host.home).boot_snapshot(key)
    _harm(directory, harm)
    vm = await host.run(probe.image, driver=probe.driver)
    boot = await boot_of(vm)
    assert (boot.how, boot.key) == ("snapshot", key)
    assert "booted anew" in boot.detail
    third = await host.run(probe.image, driver=probe.driver)
    assert "booted" not in (await boot_of(third)).detail
    assert (await third.fork(1))[0].receipt.memory.mode == "delta"


def _harm(directory: Path, harm: str) -> None:
    mem, vmstate = directory / "mem", directory / "vmstate"
    match harm:
        case "cut":
            mem.chmod(0o600)
            os.truncate(mem, 4096)
        case "missing":
            mem.unlink()
        case "altered":
            with mem.open("r+b") as file:
                file.write(b"x" * 4096)
        case "no manifest":
            (directory / "manifest.json").unlink()
        case "vmstate":
            content = bytearray(vmstate.read_bytes())
            content[len(content) // 2] ^= 0xFF
            facts = vmstate.stat()
            vmstate.unlink()
            vmstate.write_bytes(content)
            vmstate.chmod(facts.st_mode & 0o777)
            os.utime(vmstate, ns=(facts.st_atime_ns, facts.st_mtime_ns))


async def test_a_guest_that_cant_be_captured_runs_on(
    probe: Guest, host: ramet.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise ramet.FilesystemError("there is no space left")

    monkeypatch.setattr("ramet.engine.capture.capture.publish", full)
    vm = await host.run(probe.image, driver=probe.driver)
    monkeypatch.undo()
    boot = await boot_of(vm)
    assert (boot.how, boot.key) == ("fallback", None)
    assert "no space left" in boot.detail
    info = await vm.info()
    assert (info.state, info.generation) == ("running", 1)
    assert kept(host) == []
    [fork] = await vm.fork(1)
    assert (await fork.info()).generation == 2
