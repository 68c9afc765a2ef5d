"""The pause of a branch: what it doesn't grow with. `benchmarks/pause.py` measures how long it is."""

from __future__ import annotations

import statistics

import pytest
from benchmarks.pause import measure_branches

import ramet
from tests.side_by_side import tell
from tests.support.guests import Guest
from tests.vm.conftest import host_and_snapshots

host = host_and_snapshots

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(300)]

_BRANCHES = 3
_ROUNDS = 2
_MOST_ROUNDS = 8
_MOST = 3.0


async def ratio_of(guest: Guest, sources: dict[str, ramet.VM], what: str) -> float:
    """The pause of the last one over that of the first, by the VMMs' own events: of each the quicker half.

    In turn, and on a busy machine, where a few may not tell, more of them: what really grew stays above.
    """
    events: dict[str, list[float]] = {memory: [] for memory in sources}
    for number in range(_MOST_ROUNDS):
        for memory, source in sources.items():
            made = await measure_branches(source, guest.driver, memory, "idle", _BRANCHES, heartbeats=False)
            events[memory] += made.events
        usual = {memory: statistics.median(sorted(found)[: -(-len(found) // 2)])
                 for memory, found in events.items()}  # fmt: skip
        small, large = usual.values()
        if number + 1 >= _ROUNDS and large <= _MOST * small:
            break
    tell(f"{guest.driver}: {what}: {large:.1f} / {small:.1f} ms = {large / small:.2f}")
    return large / small


@pytest.mark.deep
@pytest.mark.alone
async def test_it_does_not_grow_with_ram(guest: Guest, host: ramet.Host) -> None:
    sources = {}
    for memory in ("512M", "4G"):
        base = await guest.boot(host, memory=memory)
        await base.template()
        (sources[memory],) = await base.fork(1)
        await base.remove()
    assert await ratio_of(guest, sources, "the pause of a branch of 4 GiB over one of 512 MiB") <= _MOST


@pytest.mark.deep
@pytest.mark.alone
async def test_of_a_booted_guest_it_does_not_grow_with_untouched_ram(probe: Guest, host: ramet.Host) -> None:
    """A guest that has just booted and has no mem-file: the probe touches the same of any RAM."""
    sources = {memory: await probe.boot(host, memory=memory) for memory in ("512M", "4G")}
    assert await ratio_of(probe, sources, "the pause of a booted guest of 4 GiB over one of 512 MiB") <= _MOST
