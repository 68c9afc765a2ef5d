"""A thousand forks of one template, alive at once."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from benchmarks import guests
from benchmarks.figures import Key
from benchmarks.run import Benchmark, Run
from ramet.system import spawn

COUNT: Final = 1000
ANSWERED: Final = "forks that answered"
FORKED: Final = "time to fork"
REAPED: Final = "time to reap"
LEFT: Final = "processes and directories left"


async def measure(run: Run, driver: str) -> None:
    """All of them at once, asked something, and removed."""
    base = await run.template(driver)
    count = run.pick(COUNT, 50)
    who = f"{driver}, ramet"
    instances = run.host.home / "instances"
    before = set(instances.iterdir())
    clock = guests.Clock()
    async with base.fork(count) as forks:
        run.ledger.put(FORKED, who, clock.ms / 1000, "s", x=count)
        pss = sum(guests.memory_of(fork.receipt.pid)["Pss"] for fork in forks)
        run.ledger.put("PSS per fork", who, pss / count, "bytes", x=count)
        clock = guests.Clock()
        results = await forks.exec("hostname")
        run.ledger.put("time to ask them all", who, clock.ms / 1000, "s", x=count)
        # Each with a name of its own, so that no answer is counted twice.
        names = {result.text for result in results if not isinstance(result, Exception)}
        run.ledger.put(ANSWERED, who, len(names), "", x=count)
        pids = {fork.receipt.pid for fork in forks}
        clock = guests.Clock()
    run.ledger.put(REAPED, who, clock.ms / 1000, "s", x=count)
    left: set[Path | int] = {pid for pid in pids if Path(f"/proc/{pid}").exists()}
    left |= set(instances.iterdir()) - before
    left |= {process.pid for found in spawn.spawned_below(instances).values() for process in found}
    run.ledger.put(LEFT, who, len(left), "", x=count)
    done = run.floor(driver, base).round(count, guests.concurrency())
    floor = f"{driver}, floor"
    run.ledger.put(FORKED, floor, done["wall_ms"] / 1000, "s", x=count)
    run.ledger.put(REAPED, floor, done["reap_ms"] / 1000, "s", x=count)
    run.ledger.put("PSS per fork", floor, sum(done["pss_bytes"]) / count, "bytes", x=count)
    for what in (FORKED, REAPED):
        run.ledger.compare(f"{what}, over the floor's", Key(what, who, count), Key(what, floor, count))


BENCHMARK: Final = Benchmark(
    name="thousand",
    title="A thousand at once",
    about="1,000 probe forks of one template in one call, all alive at once: each is asked for its "
    "name, then all are removed. Then as many of the floor's. Measured once: it shows that this "
    "works, and how long the removal takes.",
    measure=measure,
    budget_s=40,
    drivers=("firecracker",),
    axis="forks",
)
