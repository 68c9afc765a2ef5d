"""PostgreSQL of Debian as a guest's main process, on its root disk, under load: twenty branches are whole."""

from __future__ import annotations

import re
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

import ramet
from ramet.model.container import ImageConfig
from ramet.units import GIB
from tests.side_by_side import tell
from tests.support.debian_images import debian_image, debian_layer

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.deep, pytest.mark.timeout(900)]

_BRANCHES = 20
_BALANCED = (
    "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = d AND (SELECT sum(tbalance) FROM pgbench_tellers)"
    " = d AND (SELECT sum(bbalance) FROM pgbench_branches) = d, n"
    " FROM (SELECT coalesce(sum(delta), 0) AS d, count(*) AS n FROM pgbench_history) AS history"
)
"""Each transaction of pgbench adds one number to an account, a teller and a branch, and notes it."""
_DONE = "SELECT count(*) FROM pgbench_history"
_CHECKED = "SELECT count(bt_index_check(oid)) FROM pg_class WHERE relkind = 'i' AND relname ~ '^pgbench'"
"""An index that isn't sound is an error."""


@pytest.fixture
async def host(home: Path) -> AsyncIterator[ramet.Host]:
    """An open Host on a home of the test's own."""
    async with ramet.Host(home) as opened:
        yield opened


def _version() -> str:
    """The major version of PostgreSQL in the image: Debian has programs and settings below it."""
    with tarfile.open(debian_layer()) as layer:
        for name in layer.getnames():
            if found := re.fullmatch(r"\./usr/lib/postgresql/(\d+)/bin/postgres", name):
                return found[1]
    raise AssertionError("the image has no PostgreSQL")


def _config(version: str) -> ImageConfig:
    """The server with the cluster that Debian's package made, and a client without Debian's wrappers."""
    return ImageConfig(
        entrypoint=("postgres",),
        cmd=(
            "-c",
            f"config_file=/etc/postgresql/{version}/main/postgresql.conf",
            "-c",
            "shared_buffers=16MB",
        ),
        env=(
            f"PATH=/usr/lib/postgresql/{version}/bin:/usr/bin:/bin",
            "PGHOST=/var/run/postgresql",
            "PGDATABASE=postgres",
        ),
        user="postgres",
        working_dir="/var/lib/postgresql",
        stop_signal="SIGINT",
    )


async def _psql(vm: ramet.VM, statement: str) -> str:
    return (await vm.exec("psql", "-AtXc", statement, check=True, timeout=120)).text.strip()


async def _until(vm: ramet.VM, *command: str) -> None:
    with anyio.fail_after(120):
        while not (await vm.exec(*command)).ok:
            await anyio.sleep(0.2)


async def _is_whole(vm: ramet.VM, done: int) -> int:
    """Wait for another commit, and look under the load: no commit is lost, each transaction is whole, indexes
    are sound. Each statement sees one moment.
    """
    wait = f"DO 'BEGIN WHILE ({_DONE}) <= {done} LOOP PERFORM pg_sleep(0.02); END LOOP; END'"
    words = ("psql", "-AtqXc", wait, "-c", _BALANCED, "-c", _CHECKED)
    said = (await vm.exec(*words, check=True, timeout=180)).text.split("\n")
    balanced, count = said[0].split("|")
    assert (balanced, said[1]) == ("t", "3"), (vm.name, said)
    assert int(count) > done
    return int(count)


async def test_twenty_branches_of_a_loaded_server_are_whole(host: ramet.Host) -> None:
    await debian_image(host.home, _config(_version()))
    vm = await host.run("debian", name="pg", memory="256M", rootfs="disk:2G")
    await _until(vm, "pg_isready", "-q")
    assert await _psql(vm, "SELECT current_user") == "postgres"
    await vm.exec("pgbench", "-q", "-i", check=True, timeout=300)
    await _psql(vm, "CREATE EXTENSION amcheck")
    await vm.spawn("pgbench", "-n", "-c", "2", "-T", "3600")
    assert (await vm.resize_disk("root", "4G")).filesystem_bytes == 4 * GIB  # under its load
    branches: list[tuple[ramet.VM, int]] = []
    for _ in range(_BRANCHES):
        done = int(await _psql(vm, _DONE))
        (branch,) = await vm.fork(1, require_shared=True)
        await branch.pause()  # one load at a time
        branches.append((branch, done))
    total = await _is_whole(vm, branches[-1][1])
    checked = await vm.exec("pg_amcheck", "--heapallindexed", timeout=300)
    assert checked.ok, checked.stderr
    stopped = await vm.stop(timeout=60)  # by the image's signal, as Docker would
    assert stopped.exit_code == 0, stopped.reason
    assert "database system is shut down" in (vm.directory / "console.log").read_text(errors="replace")
    for branch, done in branches:
        await branch.resume()
        await _is_whole(branch, done)
        await branch.remove(force=True)
    tell(f"PostgreSQL branched {_BRANCHES} times under load: all whole, {total} transactions committed")
