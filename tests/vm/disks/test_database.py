"""A database under write load on a mounted disk, branched again and again while it is written to."""

from __future__ import annotations

import anyio
import pytest

from ramet.disk.filesystem import find_mke2fs
from ramet.errors import UnavailableError
from ramet.model import protocols
from tests.side_by_side import tell
from tests.support.database import (
    check_database,
    install_sqlite,
    sqlite_tree,
    start_load,
    stop_load,
    transactions,
    wait_for_transactions,
)
from tests.support.guests import Guest
from tests.vm.conftest import host_and_snapshots

host = host_and_snapshots

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(400)]

_BRANCHES = 20


@pytest.mark.deep
async def test_twenty_branches_under_load_are_whole(linux: Guest, host: protocols.Host) -> None:
    sqlite_tree()
    try:
        find_mke2fs()
    except UnavailableError as error:
        pytest.skip(str(error))
    vm = await host.run(linux.image, name="base", driver=linux.driver, memory="192M", disks=["512M:/data"])
    before = await vm.info()
    await install_sqlite(vm)
    await start_load(vm)
    lines: list[bytes] = []

    async def follow() -> None:
        """A client of the source, whose stream goes on through all branches."""
        script = "i=0; while :; do i=$((i + 1)); echo $i; usleep 100000; done"
        async with vm.process("sh", "-c", script) as counting:
            async for chunk in counting.output():
                lines.append(chunk.data)

    branches: list[tuple[protocols.VM, int]] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        for _ in range(_BRANCHES):
            seen = await transactions(vm)
            (branch,) = await vm.fork(1, require_shared=True)
            await branch.pause()  # one writer at a time is load enough
            branches.append((branch, seen))
        await wait_for_transactions(vm, seen + 2)
        heard = len(lines)
        with anyio.fail_after(30):
            while len(lines) <= heard:
                await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()
    await stop_load(vm)
    load = await check_database(vm)
    for branch, seen in branches:
        await branch.resume()
        await wait_for_transactions(branch, seen + 1)  # its writer goes on
        await stop_load(branch)
        assert (await check_database(branch)).transactions > seen
        await branch.remove(force=True)
    numbers = [int(word) for word in b"".join(lines).split()]
    assert numbers == list(range(1, len(numbers) + 1)), "the stream of a client of the source has a gap"
    after = await vm.info()
    assert (after.id, after.name, after.pid, after.generation) == (
        before.id, before.name, before.pid, before.generation,
    )  # fmt: skip
    tell(
        f"SQLite branched {_BRANCHES} times under load: all whole; the source has {load.transactions}"
        f" transactions, its client heard {len(numbers)} lines without a gap"
    )
