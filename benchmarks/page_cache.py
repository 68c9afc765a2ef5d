"""A fork whose mem-file is in the page cache, and one whose isn't."""

from __future__ import annotations

from typing import Final

import ramet
from benchmarks import guests
from benchmarks.figures import Key
from benchmarks.latency import EXEC, READY
from benchmarks.run import Benchmark, Plot, Run


async def measure(run: Run, driver: str) -> None:
    """Warm, cold, warm, cold."""
    base = await run.touched(driver)
    mem = base.directory / "mem"
    async with base.fork(1):  # the VMM's own files are in the cache, in both cases
        pass
    for _ in run.rounds(20, 2, least=4):
        await _one(run, driver, base, "warm")
        guests.drop_from_cache(mem)
        left = guests.cached_bytes(mem)
        run.ledger.put("mem-file left in the cache", f"{driver}, cold", left, "bytes")
        await _one(run, driver, base, "cold")
    for what in (READY, EXEC):
        run.ledger.compare(
            f"{driver}: cold over warm, {what}", Key(what, f"{driver}, cold"), Key(what, f"{driver}, warm")
        )


async def _one(run: Run, driver: str, base: ramet.VM, who: str) -> None:
    clock = guests.Clock()
    async with base.fork(1) as (fork,):
        run.ledger.put(READY, f"{driver}, {who}", fork.receipt.timings_ms.total)
        await fork.exec("true", check=True)
        run.ledger.put(EXEC, f"{driver}, {who}", clock.ms)


BENCHMARK: Final = Benchmark(
    name="page_cache",
    title="Cold and warm",
    about="A fork of a guest of 512 MiB that has written 64 MiB: with its mem-file in the page cache, "
    "and after the kernel was told to drop the file (`POSIX_FADV_DONTNEED`). The VMM's own files "
    "stay in the cache.",
    measure=measure,
    budget_s=12,
    plots=(Plot(READY, "Cold and warm page cache", log_x=True),),
)
