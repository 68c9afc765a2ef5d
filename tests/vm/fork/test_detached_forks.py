"""`fork(detach=True)`: forks that stay when their Host is left, and what detaching them costs the store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import ramet
import ramet.sync
from ramet.cli.main import app
from ramet.engine.lifecycle import removal
from ramet.engine.snapshots.catalog import remove
from ramet.errors import NotFoundError
from ramet.model import protocols
from ramet.model.record import Record
from ramet.store.database import Database
from ramet.store.records import Store, Table
from tests.side_by_side import tell

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


class Counts:
    """Write transactions, and rows of instances that were decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.transactions = self.rows = 0
        transaction, decoded = Database.transaction, Table._decoded

        def counted(database: Database, **options: Any) -> Any:
            self.transactions += 1
            return transaction(database, **options)

        def counted_row(table: Table[Any], row_id: str, body: str) -> Any:
            self.rows += 1
            return decoded(table, row_id, body)

        monkeypatch.setattr(Database, "transaction", counted)
        monkeypatch.setattr(Table, "_decoded", counted_row)


def owners_of(home: Path, *, source: str) -> dict[str, Record]:
    store = Store(home / "ramet.db")
    try:
        return {row.name: row for row in store.all() if row.parent == source}
    finally:
        store.close()


async def test_detached_forks_stay_when_the_host_is_left(warm_home: Path, warm: protocols.VM) -> None:
    async with ramet.Host(warm_home) as host:
        base = await host.get("warm")
        async with base.fork(2, name="stays", detach=True) as forks:
            ids = {vm.id for vm in forks}
        report = await base.fork_report(1, name="reported", detach=True)
        (goes,) = await base.fork(1, name="goes")
        assert len(report.forks) == 1
    async with ramet.Host(warm_home) as host:
        left = {instance.name: instance for instance in await host.list() if instance.parent == warm.id}
        assert set(left) == {"stays-1", "stays-2", "reported"}
        assert {left["stays-1"].id, left["stays-2"].id} == ids
        assert goes.id not in {instance.id for instance in left.values()}
        for name in left:
            vm = await host.get(name)
            assert (await vm.exec("hostname")).text == f"{name}\n"
            await vm.remove(force=True)


@pytest.mark.parametrize("detach", [False, True])
async def test_they_belong_to_their_maker_until_they_are_whole(
    warm: protocols.VM, warm_home: Path, monkeypatch: pytest.MonkeyPatch, detach: bool
) -> None:
    """A process that is killed before all of them are written down leaves none (I7)."""
    seen: list[dict[str, Record]] = []
    finish_forks = Store.finish_forks

    def looking(store: Store, *arguments: Any) -> Any:
        seen.append(owners_of(warm_home, source=warm.id))
        return finish_forks(store, *arguments)

    monkeypatch.setattr(Store, "finish_forks", looking)
    forks = await warm.fork(2, detach=detach)
    (before,) = seen
    assert [(record.state, record.owner is None) for record in before.values()] == [("created", False)] * 2
    after = owners_of(warm_home, source=warm.id)
    assert [(record.state, record.owner is None) for record in after.values()] == [("running", detach)] * 2
    for vm in forks:
        await vm.remove(force=True)


async def test_a_call_that_fails_after_its_forks_are_written_down_leaves_none(
    warm: protocols.VM, warm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("ramet.engine.fork.call.request_for_machine", fail)
    with pytest.raises(KeyError):
        await warm.fork(2, detach=True)
    assert owners_of(warm_home, source=warm.id) == {}


def test_the_command_line_pays_for_no_fork_again(
    warm_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ramet fork -n N`: as many transactions as for one fork, and two rows read per fork: when it is written
    down, and when the Host is left.
    """
    monkeypatch.setenv("RAMET_HOME", str(warm_home))
    counts: dict[int, Counts] = {}
    for number in (1, 2, 3):
        with monkeypatch.context() as patch:
            counts[number] = Counts(patch)
            with pytest.raises(SystemExit) as ended:
                app(["fork", "warm", "-n", str(number), "--name", f"n{number}", "--quiet"])
            assert ended.value.code == 0
        ids = capsys.readouterr().out.split()
        assert len(ids) == number
        with ramet.sync.Host(warm_home) as host:
            for reference in ids:
                assert host.get(reference).info().state == "running"
                host.get(reference).remove(force=True)
    for number, count in counts.items():
        tell(f"ramet fork -n {number}: {count.transactions} transactions, {count.rows} rows decoded")
    assert counts[1].transactions == counts[2].transactions == counts[3].transactions
    assert counts[3].rows - counts[2].rows == counts[2].rows - counts[1].rows
    assert counts[3].rows - counts[1].rows <= 2 * 2


@pytest.mark.parametrize("some_fail", [False, True])
async def test_detached_forks_that_an_interrupted_caller_never_gets_are_removed(
    warm: ramet.VM, some_fail: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ramet.sync` undoes a call whose result comes too late for Ctrl-C. A fork that can't be removed keeps
    none of the others.
    """
    forks = await warm.fork(3, detach=True)
    destroy = removal.destroy

    async def stubborn(context: Any, record: Record) -> bool:
        if record.id == forks[0].id:
            raise ramet.UnavailableError("it stays")
        return await destroy(context, record)

    made = ramet.ForkError(forks, {"another": ramet.VmmError("it died")}) if some_fail else forks
    monkeypatch.setattr(removal, "destroy", stubborn)
    with pytest.raises(ramet.UnavailableError, match="it stays"):
        await ramet.sync._unwanted(made)
    for vm in forks[1:]:
        with pytest.raises(NotFoundError):
            await vm.info()
    monkeypatch.undo()
    await forks[0].remove(force=True)


@pytest.mark.parametrize("detach", [False, True])
async def test_a_branch_that_is_cancelled_while_its_capture_is_removed_leaves_no_fork(
    warm_home: Path, warm: protocols.VM, monkeypatch: pytest.MonkeyPatch, detach: bool
) -> None:
    """By asyncio itself (`asyncio.timeout`), against which no shield of anyio's helps."""
    (source,) = await warm.fork(1, name="source")
    removing = asyncio.Event()

    async def slowly(*row: Any) -> bool:
        if not removing.is_set():
            removing.set()
            await asyncio.sleep(60)
        return await remove(*row)

    with monkeypatch.context() as patched:
        patched.setattr("ramet.engine.snapshots.create.remove", slowly)
        call = asyncio.ensure_future(source.fork_report(2, detach=detach))
        await asyncio.wait_for(removing.wait(), 60)
        assert len(owners_of(warm_home, source=source.id)) == 2
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert owners_of(warm_home, source=source.id) == {}
    await source.remove(force=True)
