"""SQLite of Debian in a guest, on its root disk, under write load: twenty branches are whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import ramet
from ramet.model.container import ImageConfig
from tests.side_by_side import tell
from tests.support.containers import run
from tests.support.database import (
    check_database,
    start_load,
    stop_load,
    transactions,
    wait_for_transactions,
)
from tests.support.debian_images import debian_image

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.deep, pytest.mark.timeout(900)]

_BRANCHES = 20


@pytest.fixture
async def host(home: Path) -> AsyncIterator[ramet.Host]:
    """An open Host on a home of the test's own, and its image's files go with it."""
    async with ramet.Host(home) as opened:
        yield opened


async def test_sqlite_on_the_root_disk(host: ramet.Host) -> None:
    config = ImageConfig(cmd=("sleep", "infinity"))
    vm = await run(host, await debian_image(host.home, config), memory="256M", name="sqlite")
    assert (await vm.exec("python3", "-c", "import sqlite3; print(6 * 7)", check=True)).text == "42\n"
    await vm.exec("mkdir", "/data", check=True)
    await start_load(vm)
    branches: list[tuple[ramet.VM, int]] = []
    for _ in range(_BRANCHES):
        seen = await transactions(vm)
        (branch,) = await vm.fork(1, require_shared=True)
        await branch.pause()
        branches.append((branch, seen))
    await stop_load(vm)
    load = await check_database(vm)
    for branch, seen in branches:
        await branch.resume()
        await wait_for_transactions(branch, seen + 1)
        await stop_load(branch)
        assert (await check_database(branch)).transactions > seen
        await branch.remove(force=True)
    tell(f"SQLite on a root disk, branched {_BRANCHES} times under load: all whole, {load.transactions} done")
