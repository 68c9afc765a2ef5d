"""A mounted data disk on each driver, with a database under write load on it."""

from __future__ import annotations

import pytest

import ramet
from ramet.errors import UnavailableError, UsageError
from tests.machines import DRIVERS
from tests.support.database import (
    check_database,
    install_sqlite,
    sqlite_tree,
    start_load,
    stop_load,
    transactions,
    wait_for_transactions,
)

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(900)]


async def said(vm: ramet.VM, script: str) -> str:
    return (await vm.exec("sh", "-c", script, check=True)).text.strip()


@pytest.mark.parametrize("driver", DRIVERS)
async def test_forks_write_their_own_and_a_cold_start_finds_it(host: ramet.Host, driver: str) -> None:
    sqlite_tree()
    try:
        # The first one has no place: the second is found all the same.
        vm = await host.run("builtin", memory="128M", driver=driver, disks=["1M", "256M:/data"])
    except (UsageError, UnavailableError) as error:
        if isinstance(error, UsageError) and "no driver" not in error.message:
            raise
        pytest.skip(str(error))
    assert (await said(vm, "grep ' /data ' /proc/mounts")).split()[:3] == ["/dev/vdb", "/data", "ext4"]
    await install_sqlite(vm)
    await start_load(vm)
    seen = await transactions(vm)
    template = await vm.template()
    forks = await template.fork(2, require_shared=driver == "qemu")
    await template.remove()
    for number, fork in enumerate(forks):
        await wait_for_transactions(fork, seen + 3 + 5 * number)
        await stop_load(fork)
        assert (await check_database(fork)).transactions >= seen
        await said(fork, f"echo fork-{number} > /data/who")
    kept = await check_database(forks[0])
    await forks[0].stop()
    await forks[0].start()
    assert await said(forks[0], "cat /data/who; dmesg | grep -c recovery || true") == "fork-0\n0"
    await install_sqlite(forks[0])
    assert await check_database(forks[0]) == kept
    assert await said(forks[1], "cat /data/who") == "fork-1"


@pytest.mark.parametrize("driver", DRIVERS)
async def test_branches_of_a_database_under_load_are_whole(host: ramet.Host, driver: str) -> None:
    """Branched while it is written to: disk and memory of one moment, in every branch; the source goes on."""
    sqlite_tree()
    try:
        vm = await host.run("builtin", memory="192M", driver=driver, disks=["256M:/data"])
    except (UsageError, UnavailableError) as error:
        if isinstance(error, UsageError) and "no driver" not in error.message:
            raise
        pytest.skip(str(error))
    before = await vm.info()
    await install_sqlite(vm)
    await start_load(vm)
    for _ in range(3):
        seen = await transactions(vm)
        (branch,) = await vm.fork(1, require_shared=driver == "qemu")
        await wait_for_transactions(branch, seen + 1)
        await stop_load(branch)
        assert (await check_database(branch)).transactions > seen
        await branch.remove(force=True)
        await wait_for_transactions(vm, seen + 2)
    after = await vm.info()
    assert (after.id, after.name, after.pid) == (before.id, before.name, before.pid)
    await stop_load(vm)
    await check_database(vm)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_place_that_is_no_directory_is_an_error(host: ramet.Host, driver: str) -> None:
    try:
        with pytest.raises(ramet.GuestError, match="can't be mounted at /etc/passwd: Not a directory"):
            await host.run("builtin", memory="128M", driver=driver, disks=["64M:/etc/passwd"])
    except (UsageError, UnavailableError) as error:
        pytest.skip(str(error))
    assert await host.list(everything=True) == []


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_disk_becomes_larger_under_its_guest(host: ramet.Host, driver: str) -> None:
    """With its filesystem. A fork has the new size, a snapshot from before the old size; cold starts too."""
    try:
        vm = await host.run("builtin", memory="128M", driver=driver, disks=["64M:/data"])
    except (UsageError, UnavailableError) as error:
        if isinstance(error, UsageError) and "no driver" not in error.message:
            raise
        pytest.skip(str(error))
    await said(vm, "head -c 20000000 /dev/urandom > /data/old; sync")
    digest = await said(vm, "md5sum < /data/old")
    before = await vm.snapshot("before")
    resized = await vm.resize_disk("disk", "160M")
    assert resized.size_bytes == resized.filesystem_bytes == 160 << 20
    await said(vm, "head -c 100000000 /dev/zero | tr '\\0' x > /data/new; sync")
    (fork,) = await vm.fork(1)
    assert await said(fork, "cat /sys/block/vda/size; wc -c < /data/new; md5sum < /data/old") == (
        f"327680\n100000000\n{digest}"
    )
    (earlier,) = await before.fork(1)
    assert await said(earlier, "cat /sys/block/vda/size; md5sum < /data/old") == f"131072\n{digest}"
    await before.remove()
    await fork.stop()
    await fork.resize_disk("disk", "256M")
    await fork.start()
    assert await said(fork, "cat /sys/block/vda/size; md5sum < /data/old") == f"524288\n{digest}"
    assert int(await said(fork, "stat -f -c %b /data")) * 4096 > 200 << 20
    assert await said(fork, "dmesg | grep -c -i 'ext4.*error' || true") == "0"
