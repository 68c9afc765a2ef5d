"""Instances of container images from a boot snapshot: programs, disks, certificates, ends, prunes."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import ramet
from ramet.engine.boot_snapshots import cache
from ramet.errors import ExecNotFoundError, UnavailableError
from ramet.model.container import ImageConfig
from ramet.paths import Home
from tests.support.containers import add_image

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.deep, pytest.mark.timeout(300)]

CONFIG = ImageConfig(entrypoint=("/bin/sh", "-c"), cmd=("echo from the image; exit 3",), env=("COLOR=blue",))


@pytest.fixture
async def host(homes: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ramet.Host]:
    """A Host on a home with the image `tiny`."""
    monkeypatch.delenv("RAMET_BOOT_SNAPSHOTS", raising=False)
    home = Path(tempfile.mkdtemp(dir=homes))
    try:
        await add_image(home, CONFIG)
    except UnavailableError as error:
        pytest.skip(f"this machine can't run guests of container images: {error}")
    async with ramet.Host(home) as opened:
        yield opened


def kept(host: ramet.Host) -> list[str]:
    return [entry.key for entry in cache.entries(Home(host.home))]


async def console_of(vm: ramet.VM) -> str:
    return (vm.directory / "console.log").read_text()


async def ended(vm: ramet.VM) -> int | None:
    """Its exit code, when it has ended."""
    await vm.wait()
    return (await vm.info()).exit_code


async def test_each_has_its_own_program_and_what_it_was_given(host: ramet.Host) -> None:
    """The boot snapshot has nothing of the first user's."""
    first = await host.run(
        "tiny", driver="qemu", command=["echo $COLOR $SECRET; exit 4"], env={"SECRET": "one"}
    )
    assert await ended(first) == 4
    assert "blue one" in await console_of(first)
    second = await host.run("tiny", driver="qemu", command=["echo $COLOR $A. $(id -u); exit 5"], user="7")
    assert await ended(second) == 5
    assert "blue . 7" in await console_of(second)
    assert "one" not in await console_of(second)
    third = await host.run("tiny", driver="qemu")
    assert await ended(third) == 3
    assert len(kept(host)) == 1
    with pytest.raises(ExecNotFoundError):
        await host.run("tiny", driver="qemu", entrypoint=["/no/such/program"])
    assert len(kept(host)) == 1
    # A cold start of it is an ordinary one.
    await third.start()
    assert await ended(third) == 3
    boot = (await third.info()).boot
    assert boot is not None
    assert boot.how == "cold"


async def test_disks_and_roots_are_each_instances_own(host: ramet.Host) -> None:
    one, two = [await host.run("tiny", driver="qemu", disks=["16M:/data"], idle=True) for _ in range(2)]
    for vm in (one, two):
        assert (await vm.exec("sh", "-c", "ls /data /root-file | grep -v lost", cwd="/")).text == "/data:\n"
        await vm.exec("sh", "-c", f"echo {vm.name} | tee /data/name > /root-file; sync", cwd="/", check=True)
    for vm in (one, two):
        assert (await vm.exec("cat", "/data/name", "/root-file", cwd="/")).text == f"{vm.name}\n" * 2
    assert len(kept(host)) == 1
    # All that an instance goes through.
    await one.standby()
    await one.restore()
    snapshot = await one.snapshot("s")
    await one.exec("rm", "/data/name", cwd="/", check=True)
    await one.rewind("s")
    assert (await one.exec("cat", "/data/name", cwd="/")).text == f"{one.name}\n"
    await one.resize_disk("root", "11G")
    [fork] = await one.fork(1)
    assert (await fork.exec("cat", "/root-file", cwd="/")).text == f"{one.name}\n"
    await one.stop()
    await one.start()
    assert (await one.exec("cat", "/data/name", "/root-file", cwd="/")).text == f"{one.name}\n" * 2
    await snapshot.remove()
    ram = await host.run("tiny", driver="qemu", idle=True, rootfs="ram")
    assert len(kept(host)) == 2
    await ram.exec("sh", "-c", "echo 1 > /root-file", cwd="/", check=True)


async def test_they_go_with_their_image(host: ramet.Host) -> None:
    vm = await host.run("tiny", driver="qemu", idle=True)
    other = await host.run("builtin", driver="qemu")
    assert len(kept(host)) == 2
    shown = (await host.image("tiny")).boot_snapshots
    assert [snapshot.memory_bytes for snapshot in shown] == [256 << 20]
    assert (await host.prune_images()).boot_snapshots == 0
    await host.remove_image("tiny")
    assert len(kept(host)) == 1
    boot = (await other.info()).boot
    assert boot is not None
    assert kept(host) == [boot.key]
    [fork] = await vm.fork(1)
    assert (await fork.exec("echo", "there", cwd="/")).text == "there\n"
