"""A call's claims on warm VMMs: kept by a call that makes its forks, put back by one that doesn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ramet
from ramet.engine.origin import origin_of
from ramet.engine.pool import claims as pool_claims
from ramet.engine.pool.claims import acquire
from ramet.engine.restore.parts import ForkOptions
from tests.vm.pool.conftest import filled, fork

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


def waiting(home: Path) -> set[str]:
    """The ids of what is ready in the pool."""
    return {path.name.split(".")[1] for path in (home / "pool").glob("ready.*")}


async def test_a_block_that_fails_before_its_records_puts_all_back(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=2) as host:
        await fork(host, count=2)
        ready = {entry.id for entry in await filled(host, 2)}
        base = await host.get("base")
        context = base._context
        origin = origin_of(context, base._record)
        driver = context.driver(origin.manifest.driver)
        with pytest.raises(KeyError):
            async with acquire(context, origin, driver, ForkOptions(), 2) as claims:
                assert (set(claims.ids), claims.loaded, waiting(probe_home)) == (ready, 2, set())
                raise KeyError
        assert waiting(probe_home) == ready


async def test_a_claim_that_fails_halfway_puts_the_first_one_back(
    probe_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ramet.Host(probe_home, warm=2) as host:
        await fork(host, count=2)
        ready = {entry.id for entry in await filled(host, 2)}
        base = await host.get("base")
        claim = pool_claims._claim

        async def second_fails(*arguments: Any) -> Any:
            if len(waiting(probe_home)) == 1:
                raise OSError("no second one")
            return await claim(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(pool_claims, "_claim", second_fails)
            with pytest.raises(OSError, match="no second one"):
                await base.fork(2)
        assert waiting(probe_home) == ready
        forks = await base.fork(2)
        assert {vm.id for vm in forks} == ready


async def test_who_fails_reports_no_demand_and_neither_does_a_branch(probe_home: Path) -> None:
    async with ramet.Host(probe_home, warm=1) as host:
        await fork(host)
        base = await host.get("base")
        context = base._context
        asked: list[tuple[str, int]] = []
        assert context.controller is not None
        context.controller.report_demand = lambda *told: asked.append(told)  # type: ignore[method-assign]
        (vm,) = await base.fork(1, share_memory=False)
        await vm.fork(2)
        with pytest.raises(ramet.NameTakenError):
            await base.fork(1, name="base")
        assert asked == []
        await base.fork(3)
        assert asked == [(f"instances/{base.id}", 3)]
