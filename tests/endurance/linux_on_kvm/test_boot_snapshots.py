"""Runs from boot snapshots where KVM runs Linux, on each driver: against a boot, and against a fork."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from statistics import median

import pytest

import ramet
from tests import machines
from tests.side_by_side import tell

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300)]

_ROUNDS = 5
_OVER_A_FORK = 1.3
_QUICKER_THAN_A_BOOT = 6


@pytest.mark.parametrize("driver", ["firecracker", "qemu"])
async def test_a_run_costs_a_fork(host: ramet.Host, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the call to the end of a first command; the medians of runs and forks in turn."""
    await machines.require(driver, "builtin")
    monkeypatch.delenv("RAMET_BOOT_SNAPSHOTS", raising=False)

    async def run(*, cold: bool = False) -> ramet.VM:
        return await host.run("builtin", driver=driver, cold=cold)

    async def timed(make: Callable[[], Awaitable[ramet.VM]]) -> tuple[float, ramet.VM]:
        began = time.monotonic()
        vm = await make()
        await vm.exec("true", check=True)
        return time.monotonic() - began, vm

    cold, booted = await timed(lambda: run(cold=True))
    first, vm = await timed(run)
    await vm.remove(force=True)
    template = await booted.template()
    runs: list[float] = []
    forks: list[float] = []
    for _ in range(_ROUNDS):
        for figures, make in ((runs, run), (forks, lambda: _one_fork(template))):
            took, vm = await timed(make)
            figures.append(took)
            await vm.remove(force=True)
    over_a_fork, quicker = median(runs) / median(forks), cold / median(runs)
    tell(
        f"{driver} in the emulated host: a run from the boot snapshot {median(runs) * 1e3:.0f} ms,"
        f" {over_a_fork:.2f} of a fork, {quicker:.1f} times quicker than a boot; the first run"
        f" {first / cold:.2f} of a boot"
    )
    assert over_a_fork <= _OVER_A_FORK
    assert quicker >= _QUICKER_THAN_A_BOOT


async def _one_fork(template: ramet.VM) -> ramet.VM:
    (fork,) = await template.fork(1)
    return fork
