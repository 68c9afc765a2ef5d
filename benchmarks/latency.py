"""One fork: until its guest has proved itself, and until its first command has ended.

With and without a pool, against the floor and against copying.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from itertools import permutations
from typing import Final

import ramet
from benchmarks import guests
from benchmarks.figures import Key
from benchmarks.run import Benchmark, Plot, Run
from ramet.engine.restore.timeline import STEPS

READY: Final = "fork to ready"
RETURNED: Final = "fork to the call's return"
EXEC: Final = "fork to first exec"
WARM: Final = 2
"""VMMs that the pool keeps for the one fork that is made at a time."""
_COPIES_EACH: Final = 5
"""Copying is slower and of less interest: once in so many rounds."""


async def measure(run: Run, driver: str) -> None:
    """Ramet, the floor and a pool in turn, and now and then a copy."""
    base = await run.template(driver)
    floor = run.floor(driver, base)
    who = f"{driver}, ramet"
    async with AsyncExitStack() as stack:
        pooled = await _pooled(run, stack, driver)
        await _one(run, base, "")  # the first of a process imports what it needs

        async def ramets() -> None:
            await _one(run, base, who)

        async def floors() -> None:
            run.ledger.put(READY, f"{driver}, floor", floor.once())

        async def pools() -> None:
            await _one(run, pooled[1], f"{driver}, warm pool")
            # It fills up again now, not in somebody else's time.
            await guests.filled(pooled[0], pooled[1].id)

        # What was there just before matters: a VMM's end keeps the kernel busy for some milliseconds more.
        orders = list(permutations((ramets, floors, pools)))
        for number in run.rounds(200 if driver == "firecracker" else 100, 8, least=run.pick(20, 4)):
            for fork in orders[number % len(orders)]:
                await fork()
            if number % _COPIES_EACH == 0:
                await _one(run, base, f"{driver}, copying", share_memory=False)
    for name, of in (("ramet", who), ("warm pool", f"{driver}, warm pool")):
        run.ledger.compare(f"{driver}: {name} over floor", Key(READY, of), Key(READY, f"{driver}, floor"))
    run.ledger.compare(
        f"{driver}: copying over sharing", Key(READY, f"{driver}, copying"), Key(READY, who), paired=False
    )


async def _one(run: Run, base: ramet.VM, who: str, *, share_memory: bool = True) -> None:
    clock = guests.Clock()
    async with base.fork(1, share_memory=share_memory) as (fork,):
        returned_ms = clock.ms
        await fork.exec("true", check=True)
        exec_ms = clock.ms
        if not who:
            return
        run.ledger.put(READY, who, fork.receipt.timings_ms.total)
        run.ledger.put(RETURNED, who, returned_ms)
        run.ledger.put(EXEC, who, exec_ms)
        if share_memory:
            for step in STEPS:
                run.ledger.put(f"step {step}", who, getattr(fork.receipt.timings_ms, step))


async def _pooled(run: Run, stack: AsyncExitStack, driver: str) -> tuple[ramet.Host, ramet.VM]:
    """A Host with a full pool, and a template in it."""
    host = await stack.enter_async_context(guests.pool(run.scratch / f"pooled-{driver}", WARM))
    base = await (await guests.boot(host, driver, "512M")).template()
    async with base.fork(1):  # a pool is for sources that are forked: now it knows this one
        pass
    await guests.filled(host, base.id)
    return host, base


BENCHMARK: Final = Benchmark(
    name="latency",
    title="One fork",
    about="Forks of a template of 512 MiB, one at a time. `fork to ready` (the receipt's `total`) runs "
    "from the call to the proof. The others run until the call returns, with the receipt "
    "complete, and until a command in the fork, `true`, has ended (`fork to first exec`). The "
    "floor is link, spawn, load, resume and the guest's first answer, without ramet. `copying` is "
    "`share_memory=False`. The steps are the receipt's.",
    measure=measure,
    budget_s=30,
    plots=(Plot(READY, "One fork, call to ready", log_x=True),),
)
