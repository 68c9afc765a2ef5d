"""A branch: how long its source is paused, by how much memory differs from the base of its captures."""

from __future__ import annotations

from typing import Final

import ramet
from benchmarks import guests, pause
from benchmarks.figures import Key
from benchmarks.run import Benchmark, Plot, Run
from ramet.units import MIB

PAUSE: Final = "pause, by the VMM's own events"
CHANGED: Final = "changed memory"
_QUIET_S: Final = 0.03
_MEMORIES: Final = ("512M", "4G")


async def measure(run: Run, driver: str) -> None:
    """Sources of either size in turn with little changed; then the smaller one with more and more."""
    memories = _MEMORIES[:1] if run.quick else _MEMORIES
    sources = {}
    for memory in memories:
        (sources[memory],) = await (await run.template(driver, memory)).fork(1)
    for _ in run.rounds(120, 3, least=30):
        for memory, source in sources.items():
            await _branch(run, driver, source, f"{driver}, {memory}", 0)
    if not run.quick:
        for mib in (4, 16, 64):
            await guests.touch(sources["512M"], driver, mib * MIB, f"changed-{mib}")
            for _ in run.rounds(10, least=3):
                await _branch(run, driver, sources["512M"], f"{driver}, 512M", mib)
    for memory in memories[1:]:
        run.ledger.compare(
            f"{driver}: the pause at {memory} over that at {memories[0]}",
            Key(PAUSE, f"{driver}, {memory}", 0),
            Key(PAUSE, f"{driver}, {memories[0]}", 0),
        )


async def _branch(run: Run, driver: str, source: ramet.VM, who: str, mib: int) -> None:
    made = await pause.measure_branches(source, driver, "", "idle", 1, heartbeats=False, quiet_s=_QUIET_S)
    run.ledger.put(PAUSE, who, made.events[0], x=mib)
    run.ledger.put("pause, as the engine says", who, made.call[0], x=mib)
    run.ledger.put(CHANGED, who, made.changed_bytes, "bytes", x=mib)


BENCHMARK: Final = Benchmark(
    name="branches",
    title="Branches",
    about="The pause of a running guest when it is forked, from the VMM's own message that it stopped "
    "to its own message that it runs again (QEMU's events, Firecracker's log). x is the memory "
    "that was written on purpose since; `changed memory` is what differed and was copied. Disks "
    "are idle. `python -m benchmarks.pause` adds busy disks, and heartbeats that another process "
    "misses.",
    measure=measure,
    budget_s=30,
    axis="MiB written",
    plots=(Plot(PAUSE, "Pause of a branch by changed memory"),),
)
