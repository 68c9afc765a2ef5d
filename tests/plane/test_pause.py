"""The pause of a branch: what it doesn't grow with. `benchmarks/pause.py` measures how long it is."""

from __future__ import annotations

import statistics

import pytest
from benchmarks.pause import measure_branches

import ramet
from tests.plane.guest import Guest
from tests.side_by_side import tell

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300)]

_BRANCHES = 5


async def pause_ms(guest: Guest, source: ramet.VM, memory: str) -> float:
    """The median, by the VMM's own events."""
    made = await measure_branches(source, guest.driver, memory, "idle", _BRANCHES, heartbeats=False)
    # What is usual, not what a busy machine makes of it: the quicker half.
    return statistics.median(sorted(made.events)[: _BRANCHES // 2 + 1])


@pytest.mark.alone
async def test_it_does_not_grow_with_ram(guest: Guest, host: ramet.Host) -> None:
    found = {}
    for memory in ("512M", "4G"):
        base = await guest.boot(host, memory=memory)
        await base.template()
        (source,) = await base.fork(1)
        found[memory] = await pause_ms(guest, source, memory)
        await source.remove(force=True)
        await base.remove()
    ratio = found["4G"] / found["512M"]
    tell(f"{guest.driver}: the pause of a branch of 4 GiB over one of 512 MiB: {ratio:.2f} ({found})")
    assert ratio <= 3


@pytest.mark.alone
async def test_of_a_booted_guest_it_does_not_grow_with_untouched_ram(probe: Guest, host: ramet.Host) -> None:
    """A guest that has just booted and has no mem-file: the probe touches the same of any RAM."""
    found = {}
    for memory in ("512M", "4G"):
        source = await probe.boot(host, memory=memory)
        found[memory] = await pause_ms(probe, source, memory)
        await source.remove(force=True)
    ratio = found["4G"] / found["512M"]
    tell(f"firecracker: the pause of a booted guest of 4 GiB over one of 512 MiB: {ratio:.2f} ({found})")
    assert ratio <= 3
