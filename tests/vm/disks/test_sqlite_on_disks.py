"""A database under write load on a mounted disk: frozen, forked, and cut off in mid-transaction."""

from __future__ import annotations

import os
import signal
from typing import Literal

import anyio
import pytest

import ramet
from ramet.disk.filesystem import find_mke2fs
from ramet.errors import UnavailableError
from tests.support.database import (
    check_database,
    install_sqlite,
    sqlite_tree,
    start_load,
    stop_load,
    transactions,
    wait_for_transactions,
)
from tests.support.ready import Ready

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300)]


@pytest.mark.parametrize("journal", ["wal", pytest.param("delete", marks=pytest.mark.deep)])
async def test_forks_of_a_database_under_load_are_whole(
    host: ramet.Host, ready: Ready, journal: Literal["wal", "delete"]
) -> None:
    sqlite_tree()
    try:
        find_mke2fs()
    except UnavailableError as error:
        pytest.skip(str(error))
    vm = await ready(host, disks=("64M:/data",))
    await install_sqlite(vm)
    await start_load(vm, journal=journal)
    seen = await transactions(vm)
    template = await vm.template()
    forks = await template.fork(3, require_shared=True)
    # In every fork the writer goes on with the transaction in which it was frozen.
    for number, fork in enumerate(forks):
        await wait_for_transactions(fork, seen + 3 + 4 * number)
    for fork in forks[:2]:
        await stop_load(fork)
        assert (await check_database(fork)).transactions >= seen
    # The last one loses its VMM as a machine loses its power: what it had said to be committed is there.
    last = forks[2]
    committed = await transactions(last)
    pid = (await last.info()).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with anyio.fail_after(30):
        while (await last.info()).state != "failed":
            await anyio.sleep(0.05)
    await last.stop()
    await last.start()
    await install_sqlite(last)
    assert (await check_database(last)).transactions >= committed
    # And it can be gone on with.
    await start_load(last, journal=journal)
    await stop_load(last)
    await check_database(last)
