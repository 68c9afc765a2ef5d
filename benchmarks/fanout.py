"""Many forks in one call: how long it takes, and what processor time it costs, ramet's own included."""

from __future__ import annotations

import time
from typing import Final

import ramet
from benchmarks import guests
from benchmarks.figures import Key
from benchmarks.run import Benchmark, Plot, Run
from ramet.memory.accounting import available_bytes

WALL: Final = "wall time of the call"
RATE: Final = "forks per second"
REMOVAL: Final = "removal per fork"
CPU: Final = "CPU per fork"
_HUNDRED: Final = 100
_ROOM: Final = 0.7
"""Of the memory that is free, what forks may take."""


async def measure(run: Run, driver: str) -> None:
    """For each number in turn ramet's call and the floor's with as many at a time, now one first, now the
    other.
    """
    base = await run.template(driver)
    floor = run.floor(driver, base)
    rounds = {1: run.pick(10, 2), 10: run.pick(7, 2), 100: run.pick(5, 0), 500: run.pick(1, 0)}
    each_bytes = 0
    for count, times in rounds.items():
        if times == 0:
            continue
        wanted = 1.5 * count * each_bytes  # a fork that has just begun hasn't touched all that it will
        if wanted > _ROOM * available_bytes():
            run.ledger.skip(f"{driver}, {count} forks", f"they want {wanted / 2**20:.0f} MiB of memory")
            continue
        if count > _HUNDRED and run.is_late:
            run.ledger.skip(f"{driver}, {count} forks", "no time left")
            continue
        for number in range(times):
            if number > 1 and run.is_late:
                break
            if number % 2 == 0:
                each_bytes = await _ramet(run, driver, base, count)
            done = floor.round(count, guests.concurrency())
            _note(run, f"{driver}, floor", count, done["wall_ms"], done["cpu_ms"])
            run.ledger.put(REMOVAL, f"{driver}, floor", done["reap_ms"] / count, x=count)
            if number % 2 == 1:
                each_bytes = await _ramet(run, driver, base, count)
        for what in (WALL, CPU):
            run.ledger.compare(
                f"{driver}: {count} {'fork' if count == 1 else 'forks'} over the floor's, {what}",
                Key(what, f"{driver}, ramet", count),
                Key(what, f"{driver}, floor", count),
            )


async def _ramet(run: Run, driver: str, base: ramet.VM, count: int) -> int:
    """One call. What private memory one of its forks has."""
    own_s, clock = time.process_time(), guests.Clock()
    async with base.fork(count) as forks:
        wall_ms = clock.ms
        own_s = time.process_time() - own_s
        pids = [fork.receipt.pid for fork in forks]
        cpu_ms = 1000 * (own_s + guests.cpu_s(pids))
        _note(run, f"{driver}, ramet", count, wall_ms, cpu_ms)
        run.ledger.put("ramet's own CPU per fork", f"{driver}, ramet", 1000 * own_s / count, x=count)
        private = guests.memory_of(pids[-1])["Private_Dirty"]
        clock = guests.Clock()
    run.ledger.put(REMOVAL, f"{driver}, ramet", clock.ms / count, x=count)
    return private


def _note(run: Run, who: str, count: int, wall_ms: float, cpu_ms: float) -> None:
    run.ledger.put(WALL, who, wall_ms, x=count)
    run.ledger.put(RATE, who, 1000 * count / wall_ms, "1/s", x=count)
    run.ledger.put(CPU, who, cpu_ms / count, x=count)


BENCHMARK: Final = Benchmark(
    name="fanout",
    title="Many forks in one call",
    about="`fork(N)` of a template of 512 MiB, until all N have given their proof. The floor starts as "
    "many, with as many at a time. Processor time is that of this process and of the VMMs' "
    "threads (schedstat).",
    measure=measure,
    budget_s=45,
    axis="forks",
    plots=(
        Plot(RATE, "Forks per second", log_x=True),
        Plot(CPU, "Processor time per fork", log_x=True),
    ),
)
