"""The controller: how many it keeps of what, and when it doesn't."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import ramet
from ramet.engine.pool import prewarm, sources
from ramet.engine.pool.controller import Controller
from ramet.errors import FilesystemError, UsageError
from tests.conftest import living_in
from tests.vm.pool.conftest import filled, fork, idle_pool

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


@asynccontextmanager
async def controller_of(host: ramet.Host, budget: int, **settings: Any) -> AsyncIterator[Controller]:
    """One with settings of its own, of a Host that has none."""
    assert host._context is not None
    controller = Controller(host._context, budget, **settings)
    controller.start()
    try:
        yield controller
    finally:
        await controller.close()


@pytest.mark.timing
async def test_a_budget_is_kept_whatever_is_asked_for(probe_home: Path) -> None:
    most = 0
    async with ramet.Host(probe_home, warm=3) as host:

        async def count() -> None:
            nonlocal most
            while True:
                most = max(most, len((await host.pool()).entries))
                await anyio.sleep(0.005)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            await idle_pool(host)
            for _ in range(3):
                for vm in await fork(host, count=8):
                    await vm.remove(force=True)
                await filled(host, 3)
            tasks.cancel_scope.cancel()
        assert most == 3
        assert len(living_in(probe_home)) == 3
        (kept,) = (await host.pool()).controllers
        assert (kept.warm, kept.held_back) == (3, None)


@pytest.mark.timing
async def test_two_sources_share_it_by_demand(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=6) as host:
        (vm,) = await fork(host)
        snapshots = [await vm.snapshot(name) for name in ("many", "few")]
        await snapshots[0].fork(8)
        await snapshots[1].fork(2)
        of = {snapshot.id: 0 for snapshot in snapshots}
        with anyio.fail_after(60):
            while sum(of.values()) < 5:
                entries = (await idle_pool(host)).entries
                of = {key: sum(entry.source == key for entry in entries) for key in of}
        assert of[snapshots[0].id] > of[snapshots[1].id] >= 1
        for snapshot in snapshots:
            await snapshot.remove()
        with anyio.fail_after(60):
            while {entry.source for entry in (await idle_pool(host)).entries} & of.keys():
                await anyio.sleep(0.02)


@pytest.mark.timing
async def test_what_is_made_here_is_warm_before_it_is_forked(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=2) as host:
        (vm,) = await fork(host)
        snapshot = await vm.snapshot("first")
        with anyio.fail_after(60):
            while not any(entry.source == snapshot.id for entry in (await idle_pool(host)).entries):
                await anyio.sleep(0.02)
        async with snapshot.fork(1) as (child,):
            assert child.receipt.warm == "loaded"
        await snapshot.remove()


@pytest.mark.timing
async def test_without_demand_it_shrinks(probe_home: Path) -> None:
    async with ramet.Host(probe_home) as host, controller_of(host, 4, half_life_s=1.0):
        await fork(host, count=4)
        await filled(host, 1)
        with anyio.fail_after(60):
            while [(entry.warm, entry.state) for entry in (await host.pool()).entries] != [
                ("empty", "ready")
            ]:
                await anyio.sleep(0.05)


async def test_memory_that_is_to_stay_free_stays_free(probe_home: Path) -> None:
    async with ramet.Host(probe_home) as host, controller_of(host, 4, spare_bytes=1 << 60) as controller:
        await controller.until_idle()
        report = await host.pool()
        assert report.entries == []
        assert "is to stay free" in (report.controllers[0].held_back or "")
        (vm,) = await fork(host)
        assert vm.receipt.warm is None


@pytest.mark.timing
async def test_nothing_is_made_while_its_host_forks(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=2) as host:
        await idle_pool(host)
        context = host._context
        assert context is not None
        controller = context.controller
        assert controller is not None
        with controller.quiet():
            base = await host.get("base")
            controller.report_demand(f"instances/{base.id}", 2)
            await anyio.sleep(0.5)
            assert all(entry.warm == "empty" for entry in (await host.pool()).entries)
        await filled(host, 2)


@pytest.mark.timing
async def test_what_cannot_be_made_is_tried_less_and_less_and_said(
    probe_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    async def fail(*_: object) -> None:
        nonlocal tried
        tried += 1
        raise FilesystemError("no room")

    monkeypatch.setattr(prewarm, "make_loaded", fail)
    monkeypatch.setattr(sources, "_BACK_OFF_S", (0.2, 60.0))
    async with ramet.Host(probe_home, warm=2) as host:
        (vm,) = await fork(host)
        assert vm.receipt.warm in {"empty", None}
        with anyio.fail_after(30):
            while tried < 3:
                await anyio.sleep(0.02)
        (kept,) = (await host.pool()).controllers
        assert kept.held_back == "no room"
        before = tried
        await anyio.sleep(0.5)
        assert tried - before <= 1


async def test_an_error_that_nobody_foresaw_ends_the_controller_and_not_its_host(
    probe_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Controller) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(Controller, "_shares", fail)
    async with ramet.Host(probe_home, warm=2) as host:
        await idle_pool(host)
        (kept,) = (await host.pool()).controllers
        assert kept.held_back == "the pool controller has failed: ZeroDivisionError: a mistake"
        (vm,) = await fork(host)
        assert vm.receipt.warm is None


@pytest.mark.timing
async def test_two_controllers_have_a_budget_each(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=2) as one:
        async with ramet.Host(probe_home, warm=3) as other:
            await fork(one, count=2)
            await fork(other, count=3)
            await filled(other, 5)
            assert sorted(kept.warm for kept in (await one.pool()).controllers) == [2, 3]
        with anyio.fail_after(30):
            await filled(one, 2)
        assert len((await one.pool()).entries) == 2


@pytest.mark.parametrize(("warm", "words"), [(-1, "-1 is negative"), (1001, "1000|1001")])
async def test_a_senseless_budget_is_refused(probe_home: Path, warm: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ramet.Host(probe_home, warm=warm)
