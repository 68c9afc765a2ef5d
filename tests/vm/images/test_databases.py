"""Databases of Debian in a guest, on its root disk, under write load: twenty branches of each are whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.disk.volumes import size_of
from ramet.model.container import ImageConfig
from ramet.units import GIB
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
_DATA = "/var/lib/postgresql/data"
_BIN = "/usr/lib/postgresql/15/bin"
_POSTGRES = ImageConfig(
    entrypoint=(
        *("/bin/sh", "-ec"),
        '[ -s "$PGDATA/PG_VERSION" ] || initdb -D "$PGDATA" -A trust -E UTF8 --locale=C --no-sync;'
        " exec postgres -c listen_addresses= -c unix_socket_directories=/tmp -c shared_buffers=16MB",
    ),
    env=(f"PGDATA={_DATA}", "PGHOST=/tmp", f"PATH={_BIN}:/usr/local/bin:/usr/bin:/bin"),
    user="postgres",
    working_dir="/var/lib/postgresql",
    stop_signal="SIGINT",
)
_BALANCED = (
    "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = d AND (SELECT sum(tbalance) FROM pgbench_tellers)"
    " = d AND (SELECT sum(bbalance) FROM pgbench_branches) = d, n"
    " FROM (SELECT coalesce(sum(delta), 0) AS d, count(*) AS n FROM pgbench_history) AS history"
)


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


async def _psql(vm: ramet.VM, statement: str) -> str:
    return (await vm.exec("psql", "-AtXc", statement, "postgres", check=True, timeout=120)).text.strip()


async def _until_ready(vm: ramet.VM) -> None:
    with anyio.fail_after(300):
        while not (await vm.exec("pg_isready", "-q")).ok:
            await anyio.sleep(0.5)


async def test_postgresql_as_the_main_process(host: ramet.Host) -> None:
    vm = await run(host, await debian_image(host.home, _POSTGRES), memory="384M", name="pg", rootfs="disk:2G")
    await _until_ready(vm)
    assert await _psql(vm, "SELECT current_user") == "postgres"
    await vm.exec("pgbench", "-q", "-i", "postgres", check=True, timeout=300)
    await _psql(vm, "CREATE EXTENSION amcheck")
    await vm.spawn("pgbench", "-n", "-c", "2", "-T", "3600", "postgres")
    resized = await vm.resize_disk("root", "4G")  # under its load
    assert resized.filesystem_bytes == 4 * GIB
    branches: list[tuple[ramet.VM, int]] = []
    for _ in range(_BRANCHES):
        done = int(await _psql(vm, "SELECT count(*) FROM pgbench_history"))
        (branch,) = await vm.fork(1, require_shared=True)
        await branch.pause()
        branches.append((branch, done))
    for branch, done in [*branches, (vm, branches[-1][1])]:
        if branch is not vm:
            await branch.resume()
        await branch.exec("sh", "-c", "kill -9 $(cat /proc/[0-9]*/stat | sed -n 's/ (pgbench).*//p')")
        balanced, count = (await _psql(branch, _BALANCED)).split("|")
        assert balanced == "t", branch.name
        assert int(count) >= done
        checked = await branch.exec("pg_amcheck", "--heapallindexed", "postgres", timeout=300)
        assert checked.ok, checked.stderr
        if branch is not branches[0][0] and branch is not vm:
            await branch.remove(force=True)
    # After a crash of the whole machine the log is replayed; after a stop by its own signal there is none.
    crashed = branches[0][0]
    await crashed.stop(timeout=0)
    await crashed.start()
    await _until_ready(crashed)
    assert (await _psql(crashed, _BALANCED)).startswith("t|")
    [disk] = crashed._record.machine.disks
    assert size_of(crashed.directory, disk) == 4 * GIB
    stopped = await vm.stop(timeout=60)
    assert stopped.exit_code == 0, stopped.reason
    assert "database system is shut down" in (vm.directory / "console.log").read_text(errors="replace")
    tell(f"PostgreSQL branched {_BRANCHES} times under load: all whole, {branches[-1][1]} transactions seen")
